"""What a diffusion transformer promises beyond what every family does."""

import pytest
import torch
from networks import EXAMPLES, SHAPE, WIDTHS, close, each_width, inputs, make
from torch import nn

from stepsearch.core.errors import ConfigError
from stepsearch.nets import dit
from stepsearch.nets.dit import patchify, positions, unpatchify
from stepsearch.nets.families import FAMILIES, count_flops

PLAIN, UNEVEN, CONDITIONAL = EXAMPLES["dit"]
each_config = pytest.mark.parametrize("config", EXAMPLES["dit"], ids=str)


def fresh(config):
    """As training finds it."""
    return FAMILIES["dit"].build(config, SHAPE, WIDTHS)


@each_config
@each_width
def test_flops_in_closed_form(config, width):
    """What shrinks: attention in its heads, the MLP in its hidden units; nothing else."""
    d, patch, pixels = config["dim"], config.get("patch", 2), SHAPE[0] * config.get("patch", 2) ** 2
    n, inner, hidden = (SHAPE[1] // patch) ** 2, width * d, width * d * config.get("mlp", 4)
    attention = 4 * n * d * inner + 2 * n * n * inner  # query, key, value, out; two products
    block = 6 * d * d + attention + 2 * n * d * hidden
    ends = n * pixels * d + n * d * pixels + 2 * d * d
    want = 2 * (256 * d + d * d + config["depth"] * block + ends)
    assert count_flops(make("dit", config), SHAPE, width) == want


class TestStart:
    """adaLN-Zero: training starts at the identity."""

    @each_config
    @each_width
    def test_the_answer_is_zero(self, config, width):
        assert fresh(config)(*inputs(), width=width).abs().max() == 0

    @each_width
    def test_every_block_is_the_identity(self, width):
        net = fresh(PLAIN)
        tokens, condition = torch.randn(2, 5, PLAIN["dim"]), torch.randn(2, PLAIN["dim"])
        for block in net.blocks:
            assert torch.equal(block(tokens, condition, width=width), tokens)

    def test_every_weight_learns_after_a_few_steps(self):
        """Zeros at the start block no gradient for ever."""
        net, (x, time) = fresh(CONDITIONAL), inputs()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            (net(x, time, torch.tensor([0, 1, 2])) - x).square().mean().backward()
            optimizer.step()
        still = {name for name, p in net.named_parameters() if p.grad.abs().max() < 1e-9}
        # softmax does not see what is added to every score of a query
        assert still <= {f"blocks.{i}.key.bias" for i in range(CONDITIONAL["depth"])}


class TestPatches:
    def test_tokens_are_the_patches_row_by_row(self):
        x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
        tokens = patchify(x, 2)
        assert tokens.shape == (2, 6, 12)
        for n in range(6):
            row, column = 2 * (n // 3), 2 * (n % 3)
            own = x[:, :, row : row + 2, column : column + 2]
            assert torch.equal(tokens[:, n].sort().values, own.flatten(1).sort().values)

    @pytest.mark.parametrize("patch", [1, 2, 3])
    def test_there_and_back(self, patch):
        x = torch.randn(2, 3, 6, 12)
        assert torch.equal(unpatchify(patchify(x, patch), 6 // patch, 12 // patch, patch), x)

    def test_images_need_not_be_square(self):
        net, x = make("dit", PLAIN), torch.randn(3, SHAPE[0], 4, 8)
        with torch.no_grad():
            close(net.subnet(0.5)(x, inputs()[1]), net(x, inputs()[1], width=0.5), 1e-6)

    @pytest.mark.parametrize("sides", [(6, 8), (8, 6)])
    def test_a_patch_that_does_not_divide(self, sides):
        with pytest.raises(ConfigError, match=rf"patch: images of {sides[0]}x{sides[1]} .* 4x4"):
            FAMILIES["dit"].build(UNEVEN, (1, *sides), WIDTHS)


class TestPositions:
    SWAP = torch.tensor([1, 0, *range(2, 16)])

    def swapped(self, x):
        return unpatchify(patchify(x, 2)[:, self.SWAP], 4, 4, 2)

    def unlike(self, net):
        """How far the answer to swapped patches is from the swapped answer."""
        x, time = inputs()
        with torch.no_grad():
            return (net(self.swapped(x), time) - self.swapped(net(x, time))).abs().max()

    def test_a_patch_knows_its_place(self):
        assert self.unlike(make("dit", PLAIN)) > 1e-2

    def test_by_its_position_alone(self, monkeypatch):
        """Without it the network would be the same for any order of the patches."""
        monkeypatch.setattr(dit, "positions", lambda *given: 0 * positions(*given))
        assert self.unlike(make("dit", PLAIN)) < 1e-4

    def test_no_two_places_are_alike(self):
        table = positions(3, 5, 16, torch.device("cpu"))
        assert table.shape == (15, 16)
        assert torch.pdist(table.float()).min() > 0.1


class TestWidths:
    @each_width
    def test_a_width_is_the_leading_heads_and_hidden_units(self, width):
        """The others removed from the sums, the full network answers the same."""
        net, (x, time) = make("dit", PLAIN), inputs()
        with torch.no_grad():
            want = net(x, time, width=width)
            for block in net.blocks:
                for layer in (block.out, block.contract):
                    layer.weight[:, round(width * layer.weight.shape[1]) :] = 0
            close(net(x, time), want, 1e-5)

    def test_attention_is_that_of_torch(self):
        block, h = make("dit", PLAIN).blocks[0], torch.randn(2, 7, PLAIN["dim"])
        want = nn.MultiheadAttention(PLAIN["dim"], PLAIN["heads"], batch_first=True)
        parts = (block.query, block.key, block.value)
        with torch.no_grad():
            want.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
            want.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
            want.out_proj.weight.copy_(block.out.weight)
            want.out_proj.bias.copy_(block.out.bias)
            close(block.attend(h, width=1.0), want(h, h, h)[0], 1e-5)

    @pytest.mark.parametrize(
        ("changes", "widths", "named"),
        [
            ({"heads": 2}, WIDTHS, ["2 heads", "width 0.25", "0.5", "multiple of 4"]),
            ({"heads": 4}, (0.375, 1.0), ["4 heads", "width 0.375", "1.5", "multiple of 8"]),
            ({"heads": 4}, (1 / 3, 0.5, 1.0), ["4 heads", "width 0.333", "multiple of 6"]),
            ({"mlp": 0.125}, WIDTHS, ["2 hidden units", "width 0.25", "0.5", "multiple of 4"]),
            ({}, (0.0, 1.0), ["(0, 1]", "0.0"]),
            ({}, (1.0, 1.5), ["(0, 1]", "1.5"]),
        ],
        ids=str,
    )
    def test_widths_that_leave_a_part_of_a_head_or_unit(self, changes, widths, named):
        with pytest.raises(ConfigError) as caught:
            FAMILIES["dit"].check(PLAIN | changes, widths)
        message = str(caught.value)
        assert all(part in message for part in ["dit: ", *named]), message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dims": 16}, ["unknown key 'dims'", "did you mean 'dim'", "known: dim, depth"]),
        ({"base": 16}, ["unknown key 'base'"]),
        ({"dim": None}, ["dim: missing"]),
        ({"depth": None}, ["depth: missing"]),
        ({"heads": None}, ["heads: missing"]),
        ({"dim": 0}, ["dim", "at least 1", "0"]),
        ({"depth": 0}, ["depth", "at least 1", "0"]),
        ({"heads": -4}, ["heads", "at least 1", "-4"]),
        ({"patch": 0}, ["patch", "at least 1", "0"]),
        ({"dim": 18, "heads": 3}, ["dim: 18", "by 4", "heads 3", "multiple of 12"]),
        ({"dim": 16, "heads": 3}, ["dim: 16", "heads 3", "multiple of 12"]),
        ({"dim": "16"}, ["dim", "a whole number", "'16'"]),
        ({"dim": 16.0}, ["dim", "a whole number", "16.0"]),
        ({"heads": True}, ["heads", "a whole number", "True"]),
        ({"mlp": [4]}, ["mlp", "a number", "[4]"]),
        ({"mlp": 0}, ["mlp: 0", "whole number of hidden units"]),
        ({"mlp": 1.3}, ["mlp: 1.3", "dim 16", "whole number of hidden units"]),
        ({"mlp": float("nan")}, ["mlp: nan"]),
        ({"mlp": float("inf")}, ["mlp: inf"]),
        ({"classes": -1}, ["classes", "-1"]),
        ({"classes": 2.0}, ["classes", "a whole number", "2.0"]),
        ({"label_dropout": 0.1}, ["label_dropout", "classes"]),
        ({"classes": 3, "label_dropout": 0}, ["label_dropout", "(0, 1)", "got 0"]),
        ({"classes": 3, "label_dropout": 1}, ["label_dropout", "(0, 1)", "got 1"]),
        ({"classes": 3, "label_dropout": "a"}, ["label_dropout", "a number", "'a'"]),
    ],
    ids=str,
)
def test_bad_values_are_named(changes, named):
    config = {k: v for k, v in (PLAIN | changes).items() if v is not None}
    with pytest.raises(ConfigError) as caught:
        FAMILIES["dit"].check(config, WIDTHS)
    message = str(caught.value)
    assert all(part in message for part in ["dit: ", *named]), message
    assert "\n" not in message
