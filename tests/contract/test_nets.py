"""What every network family must keep to, and what a network file promises."""

import pytest
import torch
from networks import (
    CONDITIONAL,
    EXAMPLES,
    SHAPE,
    UNET,
    WIDTHS,
    close,
    each_case,
    each_width,
    inputs,
    make,
)
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stepsearch.core.errors import ConfigError
from stepsearch.nets.families import FAMILIES, count_flops
from stepsearch.nets.slim import SlimConv2d, SlimGroupNorm, SlimLayer
from stepsearch.nets.unet import ResBlock, UNet, UNetArch


def test_every_family_has_examples():
    assert set(EXAMPLES) == set(FAMILIES), "add a small configuration of the new family to EXAMPLES"


@each_case
class TestFamilies:
    @each_width
    def test_subnet_equals_the_supernet_at_that_width(self, family, config, width):
        net, (x, time) = make(family, config), inputs()
        with torch.no_grad():
            want, got = net(x, time, width=width), net.subnet(width)(x, time)
        assert got.shape == x.shape
        assert want.abs().max() > 0.01
        close(got, want, 1e-6)

    @each_width
    def test_subnet_in_float64(self, family, config, width):
        net, (x, time) = make(family, config).double(), inputs(dtype=torch.float64)
        with torch.no_grad():
            close(net.subnet(width)(x, time), net(x, time, width=width), 1e-12)

    @each_width
    def test_subnet_owns_contiguous_weights(self, family, config, width):
        net, (x, time) = make(family, config), inputs()
        plain = net.subnet(width)
        state = plain.state_dict()
        assert all(tensor.is_contiguous() for tensor in state.values())
        with torch.no_grad():
            before = net(x, time, width=width)
            for tensor in state.values():
                tensor.fill_(float("nan"))
            assert torch.equal(net(x, time, width=width), before)

    def test_narrower_is_smaller(self, family, config):
        net = make(family, config)
        sizes = [sum(t.numel() for t in net.subnet(w).state_dict().values()) for w in WIDTHS]
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == sum(t.numel() for t in net.state_dict().values())

    def test_widths_give_different_answers(self, family, config):
        net, (x, time) = make(family, config), inputs()
        with torch.no_grad():
            outputs = [net(x, time, width=w) for w in WIDTHS]
        for i, a in enumerate(outputs):
            assert all((a - b).abs().max() > 1e-4 for b in outputs[:i])

    def test_width_leaves_no_trace(self, family, config):
        """Width is an argument: an answer does not depend on what was asked before."""
        net, (x, time) = make(family, config), inputs()
        with torch.no_grad():
            first = net(x, time, width=0.5)
            net(x, time, width=1.0)
            net.subnet(0.25)
            assert torch.equal(net(x, time, width=0.5), first)

    def test_an_image_does_not_see_the_others(self, family, config):
        net, (x, time) = make(family, config), inputs()
        with torch.no_grad():
            rows = [net(x[i : i + 1], time[i : i + 1], width=0.5) for i in range(len(x))]
            close(torch.cat(rows), net(x, time, width=0.5), 1e-5)

    def test_flops_grow_with_width(self, family, config):
        flops = [count_flops(make(family, config), SHAPE, w) for w in WIDTHS]
        assert flops == sorted(set(flops))
        assert flops[0] > 0

    def test_counting_flops_leaves_the_network_alone(self, family, config):
        net = make(family, config)
        before = {k: v.clone() for k, v in net.state_dict().items()}
        count_flops(net, SHAPE, 0.5)
        after = net.state_dict()
        assert {v.device.type for v in after.values()} == {"cpu"}
        assert all(torch.equal(after[k], before[k]) for k in before)


@each_width
def test_subnets_draw_no_random_numbers(width):
    net, before = make("unet", UNET), torch.get_rng_state()
    net.subnet(width)
    assert torch.equal(torch.get_rng_state(), before)


class TestUNetLayers:
    @each_width
    def test_group_norms_keep_their_groups(self, width):
        """The plain layer of each norm is torch's, with as many groups and narrower ones."""
        net, rng = make("unet", UNET), torch.Generator().manual_seed(2)
        plain = dict(net.subnet(width).named_modules())
        norms = {k: m for k, m in net.named_modules() if isinstance(m, SlimGroupNorm)}
        assert len(norms) > 20
        for name, norm in norms.items():
            slim = plain[name]
            assert norm.groups == slim.groups == UNET["groups"]
            channels = len(slim.weight)
            assert channels == width * len(norm.weight)
            torch_norm = nn.GroupNorm(UNET["groups"], channels)
            torch_norm.load_state_dict({"weight": slim.weight, "bias": slim.bias})
            x = torch.randn(2, channels, 4, 4, generator=rng)
            with torch.no_grad():
                torch.testing.assert_close(norm(x, width=width), torch_norm(x))

    @each_width
    def test_input_output_and_sinusoid_stay_full(self, width):
        config = {"base": 8, "groups": 2, "sinusoid": 10}
        net, plain = make("unet", config), make("unet", config).subnet(width)
        slim = round(8 * width)
        assert plain.head.weight.shape == (slim, SHAPE[0], 3, 3)
        assert plain.tail.weight.shape == (SHAPE[0], slim, 3, 3)
        assert plain.time1.weight.shape == (4 * slim, 10)
        assert plain.time2.weight.shape == (4 * slim, 4 * slim)
        assert torch.equal(plain.head.weight, net.head.weight[:slim])
        assert torch.equal(plain.tail.weight, net.tail.weight[:, :slim])
        assert torch.equal(plain.tail.bias, net.tail.bias)
        assert torch.equal(plain.time1.weight, net.time1.weight[: 4 * slim])

    @pytest.mark.parametrize("config", [UNET, CONDITIONAL], ids=str)
    def test_every_layer_is_slim(self, config):
        """No weight sits in a layer that ignores the width."""
        net = make("unet", config)
        slim = {
            f"{name}.{part}"
            for name, layer in net.named_modules()
            if isinstance(layer, SlimLayer)
            for part, _ in layer.named_parameters()
        }
        assert set(net.state_dict()) == slim


class TestSkipConcatenation:
    """A skip channel meets the same weight column at every width."""

    @pytest.fixture
    def blocks(self):
        """Name and (channels from below, channels of the skip) of every block going up."""
        net = make("unet", UNET)
        blocks = {n: m for n, m in net.named_modules() if isinstance(m, ResBlock) and n[:2] == "up"}
        assert len(blocks) == 9
        return net, {name: block.conv1.sources for name, block in blocks.items()}

    @each_width
    @pytest.mark.parametrize("layer", ["conv1", "shortcut"])
    def test_one_column(self, blocks, width, layer):
        """All columns but one are zero: the plain layer has it where the skip channel lies."""
        net, sources = blocks
        for name, (below, skip) in sources.items():
            assert skip > 0
            conv = net.get_submodule(f"{name}.{layer}")
            for channel in (0, round(skip * width) - 1):
                with torch.no_grad():
                    conv.weight.zero_()
                    conv.weight[:, below + channel] = 1
                plain = net.subnet(width).get_submodule(f"{name}.{layer}")
                used = plain.weight.abs().sum((0, 2, 3)).nonzero().flatten().tolist()
                assert used == [round(below * width) + channel], f"{name} at {width}"
                h = torch.zeros(1, plain.weight.shape[1], 4, 4)
                h[:, used] = 1
                conv.bias.data.zero_()
                with torch.no_grad():
                    assert conv(h, width=width).abs().min() > 0
                    assert conv(1 - h, width=width).abs().max() == 0

    @each_width
    def test_unused_skip_channels_are_not_read(self, blocks, width):
        """Columns of the skip beyond the width, and those of the part below, do not matter."""
        net, sources = blocks
        x, time = inputs()
        with torch.no_grad():
            before = net(x, time, width=width)
            for name, (below, skip) in sources.items():
                weight = net.get_submodule(f"{name}.conv1").weight
                weight[:, round(below * width) : below] = 7
                weight[:, below + round(skip * width) :] = 7
            assert torch.equal(net(x, time, width=width), before)

    @each_width
    def test_norm_takes_the_same_slices(self, blocks, width):
        net, sources = blocks
        plain = net.subnet(width)
        for name, (below, skip) in sources.items():
            norm = net.get_submodule(f"{name}.norm1")
            want = torch.cat(
                [norm.weight[: round(below * width)], norm.weight[below:][: round(skip * width)]]
            )
            assert torch.equal(plain.get_submodule(f"{name}.norm1").weight, want)


def test_conv_over_sources_by_hand():
    conv = SlimConv2d((4, 8), 4, 1)
    conv.weight.data = torch.arange(12.0).expand(4, 12)[..., None, None].clone()
    weight, _ = conv.weights(0.5)
    assert weight[:, :, 0, 0].tolist() == [[0, 1, 4, 5, 6, 7]] * 2


DDPM = {  # FLOPs of one call on 3x32x32 at widths 8/8 .. 2/8
    8: 12443713536,
    7: 9565509632,
    6: 7065231360,
    5: 4942878720,
    4: 3198451712,
    3: 1831950336,
    2: 843374592,
}


class TestFlops:
    @pytest.mark.parametrize("eighths", DDPM)
    def test_ddpm_configuration(self, eighths):
        with torch.device("meta"):
            net = UNet(UNetArch(3, 128, (1, 2, 2, 2), 2, (1,), 16))
        assert count_flops(net, (3, 32, 32), eighths / 8) == DDPM[eighths]

    @each_width
    def test_attention_is_counted(self, width):
        """Per attention: four 1x1 convolutions, and two products of positions x positions."""
        config = {"base": 8, "mult": [1, 2], "blocks": 1, "groups": 2}
        flops = {
            levels: count_flops(make("unet", config | {"attention": list(levels)}), SHAPE, width)
            for levels in ((), (0,), (1,))
        }
        for level, blocks in ((0, 3), (1, 3)):  # one block going down, two going up
            c, n = 8 * (level + 1) * width, (8 // 2**level) ** 2
            want = blocks * (4 * 2 * c * c * n + 2 * 2 * n * n * c)
            assert flops[(level,)] - flops[()] == want

    @each_width
    def test_equals_what_a_cpu_runs(self, width):
        """With attention as plain products; where torch fuses it on a CPU, it counts as nothing."""
        plain, (x, time) = make("unet", UNET).subnet(width), inputs(count=1)
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            plain(x, time)
        assert count_flops(make("unet", UNET), SHAPE, width) == counter.get_total_flops()

    def test_fused_attention_on_a_cpu_counts_as_nothing(self):
        """Why count_flops uses the meta device."""
        q = torch.randn(1, 1, 16, 8)
        counts = []
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
            counter = FlopCounterMode(display=False)
            with torch.no_grad(), sdpa_kernel(backend), counter:
                nn.functional.scaled_dot_product_attention(q, q, q)
            counts.append(counter.get_total_flops())
        assert counts[0] < counts[1] == 2 * 2 * 16 * 16 * 8


class TestConfig:
    @pytest.mark.parametrize(
        ("family", "config", "named"),
        [
            ("unet", {"bases": 8}, ["'bases'", "did you mean 'base'", "attention"]),
            ("unet", {"base": 8, "attn": [1]}, ["'attn'", "known: base, mult"]),
            (
                "unet",
                {"base": 12, "groups": 4},
                ["base 12", "width 0.25", "3 channels", "4 groups"],
            ),
            ("unet", {"base": 10, "groups": 2}, ["base 10", "width 0.25", "2.5 channels"]),
            ("unet", {"base": 8, "groups": 2, "mult": []}, ["mult"]),
            ("unet", {"base": 8, "groups": 2, "mult": [0, 1]}, ["mult", "[0, 1]"]),
            ("unet", {"base": 8, "groups": 2, "blocks": 0}, ["blocks=0"]),
            ("unet", {"base": 8, "groups": 2, "attention": [2]}, ["attention", "[2]", "0..1"]),
            ("unet", {"base": 0, "groups": 2}, ["base", "0"]),
            ("unet", {"base": 9, "groups": 1}, ["base", "even", "9"]),
            ("gaussian", {"component": 8}, ["'components'", "{'component': 8}"]),
            ("gaussian", {"components": 0}, ["'components'", "0"]),
            ("gaussian", {"components": 2.0}, ["'components'", "2.0"]),
            ("gaussian", {"components": True}, ["'components'", "True"]),
            ("gaussian", {}, ["'components'"]),
            ("unet", {}, ["base"]),
            ("unet", {"base": "16"}, ["base", "'16'"]),
            ("unet", {"base": 16.0}, ["base", "16.0"]),
            ("unet", {"base": True}, ["base", "True"]),
            ("unet", {"base": 8, "groups": 2, "mult": 2}, ["mult", "a list", "2"]),
            ("unet", {"base": 8, "groups": 2, "mult": [1.5, 2]}, ["mult", "[1.5, 2]"]),
            ("unet", {"base": 8, "groups": 2, "blocks": 1.5}, ["blocks", "1.5"]),
            ("unet", {"base": 8, "groups": 2, "attention": 1}, ["attention", "a list", "1"]),
            ("unet", {"base": 8, "groups": 2, "attention": ["a"]}, ["attention", "['a']"]),
            ("unet", {"base": 8, "groups": 0}, ["groups=0"]),
            ("unet", {"base": 8, "groups": 2, "dropout": 1.0}, ["dropout=1.0"]),
            ("unet", {"base": 8, "groups": 2, "classes": -1}, ["classes", "-1"]),
            ("unet", {"base": 8, "groups": 2, "classes": 2.0}, ["classes", "2.0"]),
            ("unet", CONDITIONAL | {"label_dropout": 0}, ["label_dropout", "(0, 1)", "got 0"]),
            ("unet", CONDITIONAL | {"label_dropout": 1}, ["label_dropout", "(0, 1)", "got 1"]),
            ("unet", CONDITIONAL | {"label_dropout": "a"}, ["label_dropout", "'a'"]),
            ("unet", {"base": 8, "groups": 2, "label_dropout": 0.1}, ["label_dropout", "classes"]),
            (
                "unet",
                {"base": 8, "groups": 2, "time": "rows"},
                ["time", "sinusoid, table", "'rows'"],
            ),
            ("unet", {"base": 8, "groups": 2, "concat": ["leading"]}, ["concat", "['leading']"]),
            ("unet", {"base": 8, "groups": 2, "downsample": 0}, ["downsample", "asymmetric", "0"]),
            ("unet", {"base": 8, "groups": 2, "eps": 0}, ["eps=0"]),
            ("unet", {"base": 8, "groups": 2, "eps": "1e-6"}, ["eps", "'1e-6'"]),
            ("unet", {"base": 8, "groups": 2, "head_dim": -1}, ["head_dim=-1"]),
            (
                "unet",  # the middle attends at any rate
                {"base": 8, "mult": [2, 1], "groups": 2, "head_dim": 4},
                ["over 8 channels at width 0.25", "2 channels", "heads of 4"],
            ),
            ("noisy-classifier", {"base": 8, "classes": 3, "concat": "leading"}, ["'concat'"]),
            (
                "noisy-classifier",
                {"base": 8, "groups": 2},
                ["noisy-classifier: classes", "missing"],
            ),
            ("noisy-classifier", CONDITIONAL, ["unknown key 'label_dropout'"]),
            ("noisy-classifier", {"base": 8, "groups": 2, "classes": 3}, ["[1.0]", "0.25"]),
        ],
        ids=str,
    )
    def test_bad_values_are_named(self, family, config, named):
        with pytest.raises(ConfigError) as caught:
            FAMILIES[family].check(config, WIDTHS)
        message = str(caught.value)
        assert all(part in message for part in named), message
        assert "\n" not in message

    @each_case
    def test_good_values_pass(self, family, config):
        FAMILIES[family].check(config, WIDTHS)

    def test_negative_sinusoid(self):
        with pytest.raises(ConfigError, match="sinusoid"):
            FAMILIES["unet"].check({"base": 8, "groups": 2, "sinusoid": -2}, WIDTHS)

    def test_odd_sinusoid(self):
        with pytest.raises(ConfigError) as caught:
            FAMILIES["unet"].check({"base": 8, "groups": 2, "sinusoid": 3}, WIDTHS)
        assert "sinusoid" in str(caught.value)
        assert "3" in str(caught.value)

    @pytest.mark.parametrize("width", [0.0, -0.5, 2.0])
    def test_widths_outside_the_range(self, width):
        with pytest.raises(ConfigError):
            FAMILIES["unet"].check({"base": 8, "groups": 2}, (width, 1.0))

    def test_image_side_that_does_not_divide(self):
        with pytest.raises(ConfigError, match=r"3 levels .* 4, got 12x10"):
            FAMILIES["unet"].build({"base": 8, "groups": 2, "mult": [1, 1, 1]}, (1, 12, 10), WIDTHS)

    def test_a_component_needs_an_image(self):
        assert FAMILIES["gaussian"].least_images({"components": 8}) == 8

    def test_a_gaussian_keeps_the_heaviest_components_first(self):
        weights = make("gaussian", {"components": 8}).weights
        assert (weights[:-1] >= weights[1:]).all()
        torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
