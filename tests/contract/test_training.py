"""Supernet training: resumable, seeded, and it learns."""

import contextlib
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from stepsearch.core.errors import ConfigError
from stepsearch.core.process import get_process
from stepsearch.core.settings import TrainConfig
from stepsearch.nets.families import FAMILIES
from stepsearch.nets.unet import UNet, UNetArch
from stepsearch.training.batches import Batches, sandwich_widths
from stepsearch.training.data import load_dataset
from stepsearch.training.loop import Team, train_supernet
from stepsearch.training.noising import AddNoise

WIDTHS = (0.25, 0.5, 0.75, 1.0)
SHORT = TrainConfig(steps=12, batch=32, warmup=4, checkpoint_every=5)
PLAIN = ("unet", {"base": 8, "groups": 2})
CONDITIONAL = ("unet", {"base": 8, "groups": 2, "classes": 10, "label_dropout": 0.25})
CLASSIFIER = ("noisy-classifier", {"base": 8, "groups": 2, "classes": 10})
each_net = pytest.mark.parametrize("net", [PLAIN, CONDITIONAL, CLASSIFIER], ids=str)


class Killed(Exception):
    """What the tests raise to end a training."""


@pytest.fixture(scope="module")
def images():
    return load_dataset("digits").images[:256]


@pytest.fixture(scope="module")
def labels():
    return load_dataset("digits").labels[:256]


def build(net):
    """A tiny network and its widths, always with the same weights."""
    family, config = net
    widths = (1.0,) if FAMILIES[family].classifies else WIDTHS
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FAMILIES[family].build(config, (1, 8, 8), widths), widths


@pytest.fixture
def train(images, labels, tmp_path):
    """Trains a fresh tiny network, always from the same weights: (EMA weights, module, steps)."""

    def train(
        config=SHORT,
        *,
        net=PLAIN,
        kill=None,
        name="run",
        watch=None,
        dropout=0.0,
        rng=None,
        data=images,
        marks=labels,
        spy=None,
        loss=None,
        keep=False,
        made=None,
        **how,
    ):
        family, arch = net
        module, widths = made or build((family, arch | {"dropout": dropout}))
        with torch.random.fork_rng() if made is None else contextlib.nullcontext():
            if spy is not None:
                module.register_forward_pre_hook(spy)
            if rng is not None:
                torch.manual_seed(rng)
            steps = []

            def on_step(step, losses):
                steps.append(step)
                if watch is not None:
                    watch(module, losses)
                if step == kill:
                    raise Killed

            process, checkpoint = get_process("vp-linear-1000"), tmp_path / f"{name}.training"
            try:
                ema = train_supernet(
                    module,
                    Batches(data, widths, AddNoise(process), config, labels=marks),
                    config,
                    loss=loss or FAMILIES[family].loss,
                    checkpoint=checkpoint,
                    on_step=on_step,
                    **how,
                )
            except Killed:
                assert steps[-1] == kill
                return None, module, steps
            assert kill is None
            if not keep:
                checkpoint.unlink(missing_ok=True)
            return ema, module, steps

    return train


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


class TestResume:
    @pytest.mark.parametrize(("kill", "first"), [(3, 1), (6, 6), (9, 6), (10, 6), (11, 11)])
    def test_continues_after_the_last_checkpoint(self, train, tmp_path, kill, first):
        """A checkpoint is written after on_step of its step; before step 5 there is none."""
        _, _, before = train(kill=kill)
        assert before == list(range(1, kill + 1))
        assert (tmp_path / "run.training").is_file() == (first > 1)
        _, _, after = train()
        assert after == list(range(first, 13))

    @pytest.mark.parametrize("kill", [3, 5])
    def test_killed_before_the_first_checkpoint(self, train, tmp_path, kill):
        whole, module, _ = train(name="whole")
        train(kill=kill)
        assert not (tmp_path / "run.training").exists()
        resumed, again, _ = train()
        assert equal(whole, resumed)
        assert equal(module.state_dict(), again.state_dict())

    @pytest.mark.parametrize(
        ("net", "kill"),
        [(PLAIN, 6), (PLAIN, 9), (PLAIN, 11), (CONDITIONAL, 9), (CLASSIFIER, 9)],
        ids=str,
    )
    def test_killed_and_resumed_equals_an_unbroken_run(self, train, tmp_path, kill, net):
        whole, module, _ = train(net=net, name="whole")
        train(net=net, kill=kill)
        assert (tmp_path / "run.training").is_file()
        resumed, again, _ = train(net=net)
        assert equal(whole, resumed)
        assert equal(module.state_dict(), again.state_dict())

    def test_checkpoints_do_not_change_the_result(self, train):
        often = TrainConfig(steps=12, batch=32, warmup=4, checkpoint_every=1)
        assert equal(train(SHORT)[0], train(often)[0])


class TestSeeds:
    def test_same_seed_same_weights(self, train):
        (a, module_a, _), (b, module_b, _) = train(), train()
        assert equal(a, b)
        assert equal(module_a.state_dict(), module_b.state_dict())

    def test_other_seed_other_weights(self, train):
        (a, *_), (b, *_) = train(), train(TrainConfig(12, 32, warmup=4, seed=1))
        assert not any(torch.equal(a[n], b[n]) for n in a if n.endswith("weight"))

    def test_seed_decides_times_and_noise_too(self, train, images):
        """Where all images are one, their order makes no difference and the seed still does."""
        same = np.repeat(images[:1], 64, axis=0)
        (a, *_), (b, *_) = (train(TrainConfig(3, 32, seed=s), data=same) for s in (0, 1))
        assert not torch.equal(a["tail.weight"], b["tail.weight"])

    @pytest.mark.parametrize("dropout", [0.0, 0.1])
    def test_the_global_generator_does_not_matter(self, train, dropout):
        (a, *_), (b, *_) = (train(dropout=dropout, rng=seed) for seed in (1, 2))
        assert equal(a, b)


class TestLearning:
    def test_loss_falls(self, train):
        history = []
        config = TrainConfig(steps=150, batch=32, warmup=20, learning_rate=2e-3)
        train(config, watch=lambda module, losses: history.append(losses))
        for width in (0.25, 1.0):
            losses = np.array([step[width] for step in history])
            assert np.isfinite(losses).all()
            assert abs(losses[0] - 1) < 0.1  # the output starts at zero and noise has variance 1
            assert losses[-30:].mean() < 0.5

    @each_net
    def test_every_weight_moves(self, train, net):
        fresh = build(net)[0].state_dict()
        ema, module, _ = train(net=net)
        for weights in (ema, module.state_dict()):
            assert not any(torch.equal(weights[name], fresh[name]) for name in fresh)

    def test_images_stay_untouched(self, train, images):
        before = images.copy()
        train()
        assert np.array_equal(images, before)

    def test_ema_is_the_formula(self, train):
        """ema <- d ema + (1 - d) weights with d = min(cap, (1 + s) / (10 + s)), from the start."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            want = UNet(UNetArch(1, base=8, mult=(1, 2), groups=2)).double().state_dict()
        config = TrainConfig(steps=6, batch=32, warmup=1, ema=0.25, learning_rate=0.01)
        decays = iter([1 / 10, 2 / 11, 3 / 12, 0.25, 0.25, 0.25])

        def watch(module, losses):
            d = next(decays)
            for name, value in module.state_dict().items():
                want[name] = d * want[name] + (1 - d) * value.double()

        got, *_ = train(config, watch=watch)
        assert next(decays, None) is None
        for name in want:
            torch.testing.assert_close(got[name].double(), want[name], rtol=1e-5, atol=1e-6)

    def test_batch_larger_than_the_data(self, train):
        with pytest.raises(ConfigError, match=r"train\.batch: 257 .* 256 images"):
            train(TrainConfig(steps=1, batch=257))


class TestLabels:
    def test_labels_do_not_change_an_unconditional_network(self, train):
        assert equal(train()[0], train(marks=None)[0])

    @pytest.mark.parametrize("net", [CONDITIONAL, CLASSIFIER], ids=str)
    def test_labels_decide_what_is_learnt(self, train, net, labels):
        assert not equal(train(net=net)[0], train(net=net, marks=9 - labels)[0])

    def test_every_label_is_learnt_and_so_is_none(self, train):
        """Of the label vectors, one a class and one for none, each has moved."""
        fresh = build(CONDITIONAL)[0].state_dict()["label.weight"]
        moved = (train(net=CONDITIONAL)[0]["label.weight"] - fresh).abs().amax(1)
        assert moved.shape == (11,)
        assert moved.min() > 0

    def test_a_part_of_the_labels_is_hidden_and_the_others_go_with_their_images(
        self, train, labels
    ):
        """Where all images of a batch are of one class, so are the labels that are shown."""
        shown = []
        config = TrainConfig(steps=15, batch=32, warmup=4)
        train(
            config,
            net=CONDITIONAL,
            marks=np.full_like(labels, 7),
            spy=lambda module, args: shown.append(args[2]),
        )
        shown = torch.cat(shown)
        assert set(shown.tolist()) == {7, 10}
        hidden = (shown == 10).double().mean()
        assert abs(hidden - 0.25) < 4 * (0.25 * 0.75 / len(shown)) ** 0.5

    def test_every_image_comes_with_its_own_label(self, train, labels):
        """Images of one grey, by which each is known once the noise is taken out again."""
        data = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None] * 25, (256, 1, 8, 8))
        process, seen = get_process("vp-linear-1000"), []

        def loss(module, batch, width):
            level = torch.tensor([process.level_at(int(t)) for t in batch.time])
            scale = (1 + level**2).sqrt()[:, None, None, None]
            x0 = scale * batch.noisy - level[:, None, None, None] * batch.target
            seen.append(((x0 + 1) * 127.5 / 25 - batch.labels[:, None, None, None]).abs().max())
            return FAMILIES["unet"].loss(module, batch, width)

        train(net=CONDITIONAL, data=np.ascontiguousarray(data), loss=loss)
        assert len(seen) == 36  # three widths a step
        assert max(seen) < 0.1


class TestConfig:
    def test_ema_decay(self):
        config = TrainConfig(steps=1, ema=0.9)
        got = [config.decay(s) for s in (0, 1, 8, 79, 80, 81, 10_000)]
        assert got == pytest.approx([0.1, 2 / 11, 0.5, 80 / 89, 0.9, 0.9, 0.9], rel=1e-12)

    def test_learning_rate(self):
        """Linear to the peak, then half a cosine down to a tenth."""
        config = TrainConfig(steps=300, learning_rate=1e-2, warmup=100)
        assert [config.rate(s) for s in (0, 49, 99)] == pytest.approx([1e-4, 5e-3, 1e-2])
        assert [config.rate(s) for s in (100, 200, 300)] == pytest.approx([1e-2, 5.5e-3, 1e-3])
        rates = [config.rate(s) for s in range(100, 300)]
        assert rates == sorted(rates, reverse=True)

    def test_no_warmup(self):
        assert TrainConfig(steps=10, warmup=0, learning_rate=0.1).rate(0) == pytest.approx(0.1)


class TestSandwich:
    MANY = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)

    def test_widest_narrowest_and_one_between(self, rng):
        for _ in range(50):
            widest, narrowest, middle = sandwich_widths(rng.permutation(self.MANY), rng)
            assert (widest, narrowest) == (1.0, 0.25)
            assert middle in self.MANY[1:-1]

    def test_middles_are_uniform(self, rng):
        counts = Counter(sandwich_widths(self.MANY, rng)[2] for _ in range(5000))
        assert set(counts) == set(self.MANY[1:-1])
        assert chisquare(list(counts.values())).pvalue > 1e-3

    def test_seeded(self):
        draws = [
            [sandwich_widths(self.MANY, rng) for _ in range(20)]
            for rng in map(np.random.default_rng, (0, 0, 1))
        ]
        assert draws[0] == draws[1] != draws[2]

    @pytest.mark.parametrize("widths", [(1.0,), (0.5, 1.0)])
    def test_few_widths(self, rng, widths):
        assert sandwich_widths(widths, rng) == widths[::-1]

    def test_every_step_trains_them(self, train):
        seen = []
        train(watch=lambda module, losses: seen.append(tuple(losses)))
        assert len(seen) == 12
        assert all(s[:2] == (1.0, 0.25) and s[2] in (0.5, 0.75) for s in seen)
        assert len({s[2] for s in seen}) == 2

    @pytest.mark.parametrize("between", [0, 2, 5, 9])
    def test_as_many_between_as_are_asked_for(self, rng, between):
        for _ in range(20):
            got = sandwich_widths(self.MANY, rng, between)
            assert got[:2] == (1.0, 0.25)
            assert len(set(got)) == len(got) == 2 + min(between, 5)
            assert set(got) <= set(self.MANY)


class TestOptions:
    """Of the recipe's train section."""

    def test_a_batch_may_be_cut_into_parts(self, train):
        (whole, *_), (parts, *_) = train(), train(replace(SHORT, accumulate=4))
        assert not equal(whole, parts)  # summed in another order
        assert all((whole[n] - parts[n]).abs().max() < 2e-5 for n in whole)

    def test_parts_must_be_whole(self, train):
        with pytest.raises(ConfigError, match=r"train.batch: 32 .*1 workers x 5 parts.*multiple"):
            train(replace(SHORT, accumulate=5))

    @pytest.mark.parametrize("size", [2, 4])
    def test_a_team_trains_what_one_trains(self, train, size):
        """Every worker ends with the same weights, those of one worker but for rounding."""
        alone, *_ = train()
        barrier, shared = threading.Barrier(size), [None] * size
        made = [build(PLAIN) for _ in range(size)]

        def member(rank):
            def average(tensor):
                shared[rank] = tensor.clone()
                barrier.wait()
                tensor.copy_(torch.stack(shared).mean(0))
                barrier.wait()

            return train(name=f"rank{rank}", team=Team(rank, size, average), made=made[rank])[0]

        with ThreadPoolExecutor(size) as pool, torch.random.fork_rng():
            weights = list(pool.map(member, range(size)))
        assert all(equal(weights[0], other) for other in weights[1:])
        assert all((alone[n] - weights[0][n]).abs().max() < 2e-5 for n in alone)

    def test_only_the_first_of_a_team_writes(self, train, tmp_path):
        train(name="second", team=Team(1, 2), kill=12)
        assert not (tmp_path / "second.training").exists()

    def test_stopped_on_the_way_and_continued_equals_an_unbroken_run(self, train, tmp_path):
        whole, *_ = train(name="whole")
        train(stop=7, keep=True)
        resumed, _, steps = train()
        assert steps == list(range(8, 13))
        assert equal(whole, resumed)

    def test_bf16_learns_and_weights_stay_float32(self, train):
        config = TrainConfig(steps=40, batch=32, warmup=4, precision="bf16", learning_rate=5e-3)
        history = []
        ema, *_ = train(config, watch=lambda module, losses: history.append(losses[1.0]))
        assert {w.dtype for w in ema.values()} == {torch.float32}
        assert np.mean(history[-10:]) < 0.6 < history[0]

    def test_bf16_is_used(self, train):
        assert not equal(train()[0], train(replace(SHORT, precision="bf16"))[0])

    def test_a_compiled_network_is_what_trains(self, train, monkeypatch):
        """Compiling for real takes half a minute a width; that is torch's to test."""
        compiled, calls = [], []

        class Compiled:
            def __init__(self, module):
                compiled.append(module)
                self.arch = module.arch  # torch's passes all attributes on

            def __call__(self, *args, width):
                calls.append(width)
                return compiled[0](*args, width=width)

        monkeypatch.setattr(torch, "compile", Compiled)
        plain, *_ = train()
        assert not compiled
        again, module, _ = train(replace(SHORT, compile=True))
        assert compiled == [module]
        assert len(calls) == 36  # three widths a step
        assert equal(plain, again)

    @pytest.mark.parametrize(("power", "weights"), [(0, [1, 1]), (1, [4, 1]), (-2, [1, 16])])
    def test_width_weight_weighs_the_losses_of_a_step(self, train, power, weights):
        """The gradient is their weighted mean; the losses that are told are the plain ones."""
        told, gradients = [], []

        def loss(module, batch, width):
            return module.tail.bias.sum() * {1.0: 3.0, 0.25: 7.0}[width] + 1

        def watch(module, losses):
            told.append(losses)
            gradients.append(float(module.tail.bias.grad))

        config = TrainConfig(1, 32, between=0, width_weight=power, grad_clip=1e9)
        train(config, loss=loss, watch=watch)
        assert gradients == pytest.approx([np.average([3, 7], weights=weights)], rel=1e-6)
        assert told == [{1.0: 1.0, 0.25: 1.0}]  # the bias starts at zero
