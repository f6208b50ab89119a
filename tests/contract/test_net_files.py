"""What a network file promises, and the network that a solver sees."""

import dataclasses
import hashlib
import json
import re

import pytest
import torch
from networks import SHAPE, UNET, WIDTHS, close, each_case, inputs, make

from stepsearch.core.errors import ConfigError, SpaceError
from stepsearch.core.protocols import NetCard
from stepsearch.nets.adapters import slim_net
from stepsearch.nets.families import FAMILIES
from stepsearch.nets.load import load_card, load_net, save_net


def card_of(family, config):
    return NetCard(
        name="tiny",
        sha256="",
        family=family,
        process="vp-linear-1000",
        image_shape=SHAPE,
        widths=WIDTHS,
        flops=(1e6, 2e6, 3e6, 4e6),
        arch=config,
        training={"steps": 3, "seed": 0},
        classes=FAMILIES[family].classes(config),
    )


@pytest.fixture
def saved(tmp_path):
    """Path of a small U-Net on disk, and its card."""
    path = tmp_path / "tiny.safetensors"
    return path, save_net(path, card_of("unet", UNET), make("unet", UNET).state_dict())


def edit_card(path, **fields):
    file = path.with_suffix(".json")
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def load_fails(path, *named):
    with pytest.raises(ConfigError) as caught:
        load_net(path)
    message = str(caught.value)
    assert all(str(part) in message for part in named), message
    assert "\n" not in message


class TestFiles:
    @each_case
    def test_round_trip(self, tmp_path, family, config):
        path, module = tmp_path / "net.safetensors", make(family, config)
        card = save_net(path, card_of(family, config), module.state_dict())
        assert card.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert card.key == f"tiny@{card.sha256[:8]}"
        assert sorted(f.name for f in tmp_path.iterdir()) == ["net.json", "net.safetensors"]
        x, _ = inputs()
        before = slim_net(card, module, "cpu")
        for name in (path, str(path), path.with_suffix(".json")):
            net = load_net(name)
            assert net.card == card
            for width in WIDTHS:
                want = before.eps(x, 1.5, width=width)
                assert torch.equal(net.eps(x, 1.5, width=width), want)

    def test_card_round_trip(self, saved):
        path, card = saved
        assert load_card(path) == card
        assert NetCard.from_json(card.to_json()) == card

    def test_saving_twice_gives_the_same_file(self, saved, tmp_path):
        path, card = saved
        again = save_net(tmp_path / "again.safetensors", card, make("unet", UNET).state_dict())
        assert again == card
        assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()

    def test_other_weights_have_another_key(self, saved, tmp_path):
        _, card = saved
        weights = make("unet", UNET).state_dict()
        weights["tail.bias"] += 1
        assert save_net(tmp_path / "b.safetensors", card, weights).key != card.key

    def test_tampered_weights(self, saved):
        path, card = saved
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        found = hashlib.sha256(data).hexdigest()
        load_fails(path, path, found[:12], card.sha256[:12])

    @pytest.mark.parametrize("suffix", [".json", ".safetensors"])
    def test_missing_file(self, saved, suffix):
        path, _ = saved
        path.with_suffix(suffix).unlink()
        load_fails(path, path.with_suffix(suffix), "no such file")

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"garbage",
            b"[]",
            b"null",
            b"{}",
            b"\xff\xfe\x00",
            b'{"widths": 5, "image_shape": [], "flops": []}',
            pytest.param(b"[" * 100_000, id="deep"),
        ],
    )
    def test_garbage_card(self, saved, text):
        path, _ = saved
        path.with_suffix(".json").write_bytes(text)
        load_fails(path, path.with_suffix(".json"), "not a network card")

    def test_card_with_another_set_of_fields(self, saved):
        path, _ = saved
        edit_card(path, more=1)
        load_fails(path, path.with_suffix(".json"), "'more'")

    @pytest.mark.parametrize(
        "fields",
        [
            {"sha256": None},
            {"sha256": 5},
            {"family": []},
            {"arch": None},
            {"arch": []},
            {"arch": {}},
            {"arch": {"base": "a"}},
            {"widths": ["a"]},
            {"image_shape": []},
        ],
        ids=str,
    )
    def test_card_with_fields_of_another_type(self, saved, fields):
        path, _ = saved
        edit_card(path, **fields)
        load_fails(path, path.with_suffix(".json"))

    @pytest.mark.parametrize(
        "fields",
        [{"process": "x"}, {"widths": []}, {"flops": [1.0]}, {"name": None}, {"classes": 3}],
        ids=str,
    )
    def test_card_with_impossible_fields(self, saved, fields):
        path, _ = saved
        edit_card(path, **fields)
        load_fails(path, path.with_suffix(".json"))

    def test_unknown_family(self, saved):
        path, _ = saved
        edit_card(path, family="unett")
        load_fails(path, "'unett'", "did you mean 'unet'")

    @pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
    def test_truncated_weights_with_a_corrected_hash(self, saved, part):
        path, _ = saved
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * part)])
        edit_card(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        load_fails(path, path, "does not fit its card")

    def test_weights_of_another_architecture(self, saved):
        path, _ = saved
        edit_card(path, arch=UNET | {"blocks": 1})
        load_fails(path, path, "does not fit its card")


class TestSlimNet:
    @pytest.fixture
    def net(self):
        return slim_net(card_of("unet", UNET), make("unet", UNET), "cpu")

    def test_asks_at_the_nearest_trained_time(self, net):
        x, _ = inputs()
        process, module = net.card.diffusion, make("unet", UNET)
        for time in (0, 17, 999):
            level = process.level_at(time)
            with torch.no_grad():
                want = module(x, torch.full((3,), float(time)), width=0.5)
            for near in (level, level * 1.0001):
                close(net.eps(x, near, width=0.5), want, 1e-5)

    def test_keeps_shape_and_needs_no_gradient(self, net):
        x, _ = inputs()
        got = net.eps(x.requires_grad_(), 1.0)
        assert (got.shape, got.dtype, got.requires_grad) == (x.shape, x.dtype, False)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
    def test_keeps_the_dtype(self, net, dtype):
        x, _ = inputs()
        assert net.eps(x.to(dtype), 1.0).dtype == dtype

    def test_batch_size_does_not_change_an_image(self, net):
        x, _ = inputs()
        rows = torch.cat([net.eps(row[None], 2.0, width=0.75) for row in x])
        close(rows, net.eps(x, 2.0, width=0.75), 1e-5)

    def test_bad_width_and_condition(self, net):
        x, _ = inputs()
        with pytest.raises(
            SpaceError, match=re.escape("width 0.3 is not offered by network 'tiny'")
        ):
            net.eps(x, 1.0, width=0.3)
        with pytest.raises(ConfigError, match="unconditional"):
            net.eps(x, 1.0, cond=torch.zeros(3))

    def test_costs_on_the_card(self, net):
        assert net.card.gflops(1.0) == net.card.flops[-1] / 1e9
        assert net.card.gflops(0.25) == net.card.flops[0] / 1e9
        other = dataclasses.replace(net.card, widths=(1.0,), flops=(5e9,))
        assert other.gflops(1) == 5.0
