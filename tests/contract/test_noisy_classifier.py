"""The classifier of noisy images: its gradient, and what that costs."""

import pytest
import torch
from networks import SHAPE, each_classifier, inputs, make

from stepsearch.core.errors import ConfigError
from stepsearch.core.protocols import NetCard
from stepsearch.nets.families import FAMILIES
from stepsearch.nets.load import load_net, save_net
from stepsearch.nets.slim import SlimConv2d, SlimLinear


def card_of(config, family="noisy-classifier"):
    return NetCard(
        name="tiny",
        sha256="",
        family=family,
        process="vp-linear-1000",
        image_shape=SHAPE,
        widths=(1.0,),
        flops=(1.0,),
        arch=config,
        classes=config["classes"],
    )


@each_classifier
class TestNoisyClassifier:
    LABELS = torch.tensor([2, 0, 1])

    def made(self, config, dtype=torch.float32):
        module = make("noisy-classifier", config).to(dtype)
        return FAMILIES["noisy-classifier"].adapt(card_of(config), module, "cpu"), module

    def test_gradient_is_that_of_finite_differences(self, config):
        """Along random directions, in float64."""
        guide, module = self.made(config, torch.float64)
        x, level, step = inputs(dtype=torch.float64)[0], 1.7, 1e-5
        time = torch.full((3,), guide.card.diffusion.time_at(level))

        def log_p(x):
            with torch.no_grad():
                return module(x, time).log_softmax(1)[range(3), self.LABELS]

        gradient = guide.gradient(x, level, self.LABELS)
        rng = torch.Generator().manual_seed(4)
        for _ in range(4):
            way = torch.randn(x.shape, generator=rng, dtype=torch.float64)
            want = (log_p(x + step * way) - log_p(x - step * way)) / (2 * step)
            got = (gradient * way).sum((1, 2, 3))
            assert want.abs().min() > 1e-6
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)

    def test_a_small_step_along_it_makes_the_label_likelier(self, config):
        guide, module = self.made(config)
        x, time = inputs()[0], torch.full((3,), 300.0)
        level = guide.card.diffusion.level_at(300)
        with torch.no_grad():
            before, after = (
                module(given, time).log_softmax(1)[range(3), self.LABELS]
                for given in (x, x + 0.01 * guide.gradient(x, level, self.LABELS))
            )
        assert (after > before).all()

    def test_asked_at_the_nearest_trained_time(self, config):
        guide, (x, _) = self.made(config)[0], inputs()
        level, other = (guide.card.diffusion.level_at(t) for t in (500, 501))
        want = guide.gradient(x, level, self.LABELS)
        assert torch.equal(guide.gradient(x, level * 1.0001, self.LABELS), want)
        assert not torch.equal(guide.gradient(x, other, self.LABELS), want)

    def test_comes_back_from_a_file(self, config, tmp_path):
        guide, module = self.made(config)
        card = save_net(tmp_path / "a.safetensors", guide.card, module.state_dict())
        again, (x, _) = load_net(tmp_path / "a.safetensors"), inputs()
        assert again.card == card
        got = again.gradient(x, 1.0, self.LABELS)
        assert torch.equal(got, guide.gradient(x, 1.0, self.LABELS))

    def test_an_image_does_not_see_the_others(self, config):
        guide, (x, _) = self.made(config)[0], inputs()
        rows = [guide.gradient(x[i:][:1], 1.0, self.LABELS[i:][:1]) for i in range(3)]
        torch.testing.assert_close(torch.cat(rows), guide.gradient(x, 1.0, self.LABELS))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
    def test_keeps_the_dtype_and_the_image_and_needs_no_gradient_mode(self, config, dtype):
        guide, (x, _) = self.made(config)[0], inputs(dtype=dtype)
        before = x.clone()
        with torch.inference_mode(False), torch.no_grad():
            got = guide.gradient(x, 1.0, self.LABELS)
        assert (got.shape, got.dtype, got.requires_grad) == (x.shape, dtype, False)
        assert torch.equal(x, before)
        assert not x.requires_grad

    @pytest.mark.parametrize("labels", [[0, 1], [0, 1, 3], [0, -1, 0], [0.0, 1.0, 2.0]])
    def test_labels_that_are_none_are_refused(self, config, labels):
        with pytest.raises(ConfigError, match="labels"):
            self.made(config)[0].gradient(inputs()[0], 1.0, torch.tensor(labels))


def test_a_classifier_costs_its_way_to_the_logits_and_back_to_the_image():
    """Backward costs each layer what forward does, but for those that see the time alone."""
    module = make("noisy-classifier", {"base": 8, "groups": 2, "classes": 3})
    got = FAMILIES["noisy-classifier"].flops(module, SHAPE, 1.0)
    total, both_ways = 0, []

    def note(layer, args, output):
        both_ways.append(2 * 2 * layer.weight[0].numel() * output[0].numel())

    for layer in module.modules():
        if isinstance(layer, (SlimConv2d, torch.nn.Linear)):
            layer.register_forward_hook(note)
        elif isinstance(layer, SlimLinear):
            total += 2 * layer.weight.numel()
    module(*inputs(count=1))
    assert len(both_ways) == 8
    assert got == total + sum(both_ways)
