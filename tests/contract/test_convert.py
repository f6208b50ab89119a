"""Networks of DDSM's code become ours: outputs, files that are refused, files that run code."""

import json
import pickle
import shutil
from dataclasses import replace

import pytest
import torch
from command import files
from safetensors.torch import load_file, save_file

from stepsearch import convert, load_net
from stepsearch.cli import main
from stepsearch.core.errors import ConfigError
from stepsearch.nets.families import FAMILIES
from stepsearch.nets.pretrained_ddsm import source_name
from stepsearch.nets.unet import UNet, UNetArch


@pytest.fixture(scope="module")
def source(data):
    path = data.parent / "golden" / "ddsm_unet.safetensors"
    if not path.is_file():
        pytest.skip(f"{path}: no such file")
    return path


@pytest.fixture(scope="module")
def tensors(source):
    """Weights without their prefix, input and outputs of the official code."""
    return {k.removeprefix("net."): v for k, v in load_file(source).items()}


@pytest.fixture(scope="module")
def state(tensors):
    """The bare state dict."""
    return {k: v.float() for k, v in tensors.items() if "." in k and not k.startswith("out_")}


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("ddsm") / "net.safetensors"
    return path, convert(source, path)


def double(path):
    """The converted network in float64, built by what its card says."""
    card = load_net(path).card
    net = FAMILIES[card.family].build(card.arch, card.image_shape, card.widths)
    net.load_state_dict(load_file(path))
    return net.double().eval()


class TestDdsm:
    def test_outputs_are_those_of_the_official_code(self, converted, tensors):
        net, x = double(converted[0]), tensors["x"].double()
        outputs = {k: v for k, v in tensors.items() if k.startswith("out_w")}
        assert len(outputs) == 4
        for name, want in outputs.items():
            width = float(name.removeprefix("out_w"))
            with torch.no_grad():
                assert (net(x, tensors["t"], width=width) - want).abs().max() < 1e-9
                assert (net.subnet(width)(x, tensors["t"]) - want).abs().max() < 1e-9

    def test_a_loaded_network_answers_like_the_official_code(self, converted, tensors):
        net = load_net(converted[0], dtype=torch.float64)
        for row, time in enumerate(tensors["t"].tolist()):
            level = net.card.diffusion.level_at(time)
            for width in net.card.widths:
                got = net.eps(tensors["x"][row][None].double(), level, width=width)[0]
                assert (got - tensors[f"out_w{width}"][row]).abs().max() < 1e-9

    def test_aligned_slices_would_answer_otherwise(self, converted, tensors):
        """What `concat: leading` is for: only width 1 is the same without it."""
        path, card = converted
        net = UNet(UNetArch.from_config(card.arch | {"concat": "aligned"}, 3)).double()
        net.load_state_dict(load_file(path))
        with torch.no_grad():
            for width, same in ((1.0, True), (0.75, False), (0.25, False)):
                got = net(tensors["x"].double(), tensors["t"], width=width)
                assert bool((got - tensors[f"out_w{width}"]).abs().max() < 1e-9) == same

    def test_the_card_says_what_is_known(self, converted):
        _, card = converted
        assert card.name == "net"
        assert (card.image_shape, card.widths) == ((3, 16, 16), (0.25, 0.5, 0.75, 1.0))
        assert (card.process, card.prediction, card.classes) == ("vp-linear-1000", "eps", 0)
        assert card.arch["concat"] == "leading"
        assert card.training["assumed"] == []

    @pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
    def test_a_checkpoint_of_the_official_code(self, converted, state, tmp_path, suffix):
        """Wrapped in DataParallel, beside all that training needs; EMA weights unless asked."""
        other = {f"module.{k}": v + 1 for k, v in state.items()}
        content = {
            "net_model": other,
            "ema_model": state,
            "sched": {"last_epoch": 3, "lr_lambdas": [None]},
            "optim": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]},
            "step": 3,
            "x_T": torch.zeros(4, 3, 16, 16),
        }
        torch.save(content, tmp_path / f"ckpt{suffix}")
        for weights, shift in (("ema", 0), ("model", 1)):
            out = tmp_path / f"{weights}.safetensors"
            card = convert(tmp_path / f"ckpt{suffix}", out, weights=weights, widths=[1.0])
            assert card.image_shape == (3, 16, 16)
            assert torch.equal(load_file(out)["tail.bias"], state["tail.2.bias"] + shift)
            if weights == "ema":
                assert all(
                    torch.equal(v, load_file(converted[0])[k]) for k, v in load_file(out).items()
                )

    def test_what_a_bare_state_dict_does_not_say_is_told(self, state, tmp_path, capsys):
        torch.save(state, tmp_path / "net.pt")
        argv = ["convert", str(tmp_path / "net.pt"), "-o", str(tmp_path / "a.safetensors")]
        assert main([*argv, "--widths", "1"]) == 0
        out, err = capsys.readouterr()
        assert out.strip() == str(tmp_path / "a.safetensors")
        assert "16 groups" in err
        assert "32x32" in err
        argv[-1] = str(tmp_path / "b.safetensors")
        assert (
            main([*argv, "--widths", "1", "0.5", "--size", "8", "--groups", "32", "--name", "n"])
            == 0
        )
        assert "assumed" not in capsys.readouterr().err
        card = load_net(argv[-1]).card
        assert (card.name, card.widths, card.image_shape) == ("n", (0.5, 1.0), (3, 8, 8))
        assert card.arch["groups"] == 32

    @pytest.mark.parametrize(
        "arch",
        [
            UNetArch(3, 16, (1, 2, 2), 2, (1,), 8),
            UNetArch(1, 8, (2, 1, 3), 1, (0, 2), 4),
            UNetArch(3, 8, (1,), 3, (), 8),
        ],
        ids=lambda arch: str(arch.mult),
    )
    def test_shapes_say_the_layout(self, arch, tmp_path):
        arch = replace(arch, time="table", concat="leading")
        state = {source_name(k): v for k, v in UNet(arch).state_dict().items()}
        save_file(state, tmp_path / "in.safetensors")
        out = tmp_path / "net.safetensors"
        card = convert(tmp_path / "in.safetensors", out, groups=arch.groups, size=8, widths=[1.0])
        assert UNetArch.from_config(card.arch, card.image_shape[0]) == arch

    def test_widths_that_fit_the_groups_are_offered(self, state, tmp_path):
        for groups, eighths in ((8, range(2, 9)), (64, (8,))):
            out = tmp_path / f"{groups}.safetensors"
            save_file(state, tmp_path / "net.safetensors")
            card = convert(tmp_path / "net.safetensors", out, groups=groups, size=4)
            assert card.widths == tuple(k / 8 for k in eighths)


def _without(state, name):
    return {k: v for k, v in state.items() if k != name}


def _more_blocks(state):
    """Another block at the lowest level alone."""
    extra = {
        k.replace(".2.", ".3.", 1): v for k, v in state.items() if k.startswith("downblocks.2.")
    }
    return state | {k: v.clone() for k, v in extra.items()}


BROKEN = {  # what is done to the state dict: what the line says
    "missing": (lambda s: _without(s, "middleblocks.1.block1.0.bias"), "no tensor 'middleblocks.1"),
    "extra": (lambda s: s | {"upblocks.9.x": torch.ones(1)}, "upblocks.9.x"),
    "shape": (lambda s: s | {"tail.2.bias": torch.ones(4)}, "tail.2.bias: shape (4,)"),
    "axes": (lambda s: s | {"head.weight": torch.ones(4)}, "head.weight: expected 4 axes"),
    "nan": (lambda s: s | {"head.bias": torch.full((64,), torch.nan)}, "head.bias: holds values"),
    "levels": (_more_blocks, "level 1 has blocks"),
    "times": (
        lambda s: s | {"time_embedding.timembedding.0.weight": torch.ones(500, 64)},
        "500 times",
    ),
    "other": (lambda s: {"conv_in.weight": torch.ones(1)}, "read from its folder"),
    "empty": (lambda s: {"a": torch.ones(1)}, "not in the layout of DDSM"),
}


class TestBadInput:
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

    def refuse(self, folder, capsys, *argv):
        """The one line of a command that ends with 2 and writes nothing."""
        before = files(folder)
        assert main(["convert", *argv]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1, err
        assert files(folder) == before
        return err

    @pytest.mark.parametrize("case", BROKEN)
    def test_a_state_dict_that_is_none(self, case, state, tmp_path, capsys):
        change, named = BROKEN[case]
        save_file(change(state), "in.safetensors")
        assert named in self.refuse(tmp_path, capsys, "in.safetensors", "-o", "out.safetensors")

    @pytest.mark.parametrize(
        ("argv", "named"),
        [
            (["--widths", "1", "0.3"], "width 0.3"),
            (["--widths", "0.375"], "16 groups"),
            (["--widths", "2"], "(0, 1]"),
            (["--widths", "nan"], "nan"),
            (["--groups", "24"], "24 groups"),
            (["--groups", "0"], "groups=0"),
            (["--size", "7"], "7x7"),
            (["--size", "0"], "--size"),
            (["--null-label"], "--null-label"),
            (["--name", "a@b"], "'a@b'"),
            (["-o", "out.pt"], ".safetensors"),
            (["-o", "none/out.safetensors"], "no such folder"),
            (["-o", "there.safetensors"], "exists"),
            (["-o", "card.safetensors"], "card.json: exists"),
        ],
        ids=str,
    )
    def test_arguments(self, argv, named, source, tmp_path, capsys):
        for name in ("there.safetensors", "card.json"):
            (tmp_path / name).write_text("precious")
        output = [] if "-o" in argv else ["-o", "out.safetensors"]
        assert named in self.refuse(tmp_path, capsys, str(source), *output, *argv)

    @pytest.mark.parametrize("name", ["in.safetensors", "in.pt"])
    @pytest.mark.parametrize("size", [0, 10, 5000, -1])
    def test_files_cut_short(self, name, size, state, tmp_path, capsys):
        (save_file if name.endswith("s") else torch.save)(state, "whole")
        content = (tmp_path / "whole").read_bytes()
        (tmp_path / name).write_bytes(content[:size])
        err = self.refuse(tmp_path, capsys, name, "-o", "out.safetensors")
        assert "fetch it again" in err or "save its state_dict alone" in err

    @pytest.mark.parametrize("name", ["in.pt", "in.safetensors", "in.bin"])
    def test_files_of_another_kind(self, name, tmp_path, capsys):
        for content in (b"<html>not found</html>", bytes(range(256)) * 40, b"PK\x03\x04 no zip"):
            (tmp_path / name).write_bytes(content)
            assert name in self.refuse(tmp_path, capsys, name, "-o", "out.safetensors")

    def test_a_name_of_the_hub(self, tmp_path, capsys):
        err = self.refuse(tmp_path, capsys, "google/ddpm-cifar10-32", "-o", "out.safetensors")
        assert "download" in err

    def test_an_unknown_ending(self, source, tmp_path, capsys):
        shutil.copy(source, "net.h5")
        assert "'.h5'" in self.refuse(tmp_path, capsys, "net.h5", "-o", "out.safetensors")

    def test_metadata_that_is_no_json(self, state, tmp_path, capsys):
        save_file(state, "in.safetensors", {"config": "{"})
        assert "JSON" in self.refuse(tmp_path, capsys, "in.safetensors", "-o", "out.safetensors")

    def test_something_that_is_no_network(self, tmp_path):
        with pytest.raises(ConfigError, match="neither a path nor a diffusers model"):
            convert(3, tmp_path / "out.safetensors")


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


class TestPickles:
    @pytest.fixture
    def evil(self, state, tmp_path):
        trace = tmp_path / "executed"
        torch.save(state | {"net": Evil(trace)}, tmp_path / "evil.pt")
        with (tmp_path / "raw.pt").open("wb") as file:
            pickle.dump(Evil(trace), file)
        return trace

    @pytest.mark.parametrize("name", ["evil.pt", "raw.pt"])
    def test_code_in_a_file_is_not_run(self, evil, name, tmp_path, capsys):
        out = tmp_path / "out.safetensors"
        assert main(["convert", str(tmp_path / name), "-o", str(out)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "more than plain weights" in err
        assert not evil.exists()
        assert not out.exists()
        torch.load(tmp_path / "evil.pt", weights_only=False)
        assert evil.exists(), "the file does nothing even where it is trusted"

    @pytest.mark.parametrize(("version", "fine"), [("2.9.1", False), ("2.10.0", True)])
    def test_an_older_torch_reads_no_pickle(self, version, fine, state, tmp_path, monkeypatch):
        torch.save(state, tmp_path / "in.pt")
        monkeypatch.setattr(torch, "__version__", version)
        out = tmp_path / "out.safetensors"
        if fine:
            convert(tmp_path / "in.pt", out, widths=[1.0], size=4)
        else:
            with pytest.raises(ConfigError, match=r"2\.9\.1.*install torch 2\.10"):
                convert(tmp_path / "in.pt", out)
        assert out.exists() == fine


def test_a_converted_card_is_read_back(converted):
    path, card = converted
    assert json.loads(path.with_suffix(".json").read_text())["sha256"] == card.sha256
    assert load_net(path).card == card
