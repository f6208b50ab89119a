"""A network that others trained, converted: it walks schedules, and training starts from it."""

import json
import shutil

import pytest
import torch
from command import files
from diffusers_nets import TINY, diffusers, model
from safetensors.torch import load_file, save_file

from stepsearch import StepSchedule, convert, integrate, load_net, plan_stage
from stepsearch.cli import main
from stepsearch.core.errors import ConfigError
from stepsearch.recipe_config import read_recipe
from stepsearch.recipe_training import recipe_data
from stepsearch.supernet import supernet_path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network of diffusers for the digits' size, converted by the command."""
    folder = tmp_path_factory.mktemp("init")
    model(TINY).save_pretrained(folder / "model")
    path = folder / "tiny.safetensors"
    assert main(["convert", str(folder / "model"), "-o", str(path)]) == 0
    return path


@pytest.fixture
def recipe(weights, tmp_path, monkeypatch):
    """Writes a recipe beside a copy of the weights."""
    monkeypatch.setenv("STEPSEARCH_CACHE", str(tmp_path / "cache"))
    for suffix in (".safetensors", ".json"):
        shutil.copy(weights.with_suffix(suffix), tmp_path)

    def write(text, name="recipe"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"version: 1\nname: {name}\ndata: digits\n{text}")
        return path

    return write


def test_a_schedule_walks_it(weights):
    net = load_net(weights)
    assert net.card.widths == (0.25, 0.5, 0.75, 1.0)
    widths = [1.0, 0.75, 0.5, 0.25]
    stage = plan_stage(net.card, solver="ddim", calls=4, widths=widths)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = []
    out = integrate(
        StepSchedule((stage,)), {net.card.key: net}, x, on_call=lambda _, w, __: seen.append(w)
    )
    assert seen == widths
    assert out.isfinite().all()
    assert (out - x).abs().max() > 0.1


def test_training_starts_from_it(recipe, weights, capsys):
    """A step too small to see leaves the weights where they were; fresh ones would differ."""
    train = "train: {steps: 2, batch: 8, learning_rate: 1e-9, warmup: 0}\n"
    path = recipe(f"init: tiny.safetensors\n{train}")
    assert main(["train", str(path)]) == 0
    out = capsys.readouterr().out.strip()
    card, start = load_net(out).card, load_net(weights).card
    assert (card.arch, card.widths) == (start.arch, start.widths)
    assert card.training["recipe"]["init_sha256"] == start.sha256
    got, init = load_file(out), load_file(weights)
    for name, value in init.items():
        torch.testing.assert_close(got[name], value, atol=1e-6, rtol=0)
    assert any(not torch.equal(got[name], init[name]) for name in init), "nothing was trained"
    assert torch.equal(got["table.weight"], init["table.weight"])


def test_without_training_it_is_taken_as_it_is(recipe, weights, capsys):
    assert main(["train", str(recipe("init: tiny.safetensors\nwidths: [0.5, 1.0]\n"))]) == 0
    out = capsys.readouterr().out.strip()
    assert load_net(out).card.widths == (0.5, 1.0)
    assert all(torch.equal(load_file(out)[k], v) for k, v in load_file(weights).items())


def test_a_net_section_may_repeat_the_weights(recipe, weights):
    arch = load_net(weights).card.arch
    net = json.dumps({"family": "unet", **arch, "dropout": 0.1})
    read = read_recipe(recipe(f"init: tiny.safetensors\nnet: {net}\n"))
    assert read.net["dropout"] == 0.1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("init: none.safetensors\n", "stepsearch convert"),
        ("init: tiny.json\n", "stepsearch convert"),
        ("init: 3\n", "init"),
        ("init: tiny.safetensors\nwidths: [0.3]\n", "width 0.3"),
        (
            "init: tiny.safetensors\nnet: {family: unet, base: 8, groups: 2}\n",
            "net: mult is [1, 2]",
        ),
        ("init: tiny.safetensors\nnet: {family: gaussian, components: 3}\n", "'gaussian'"),
        ("init: tiny.safetensors\ntrain: {batch: 3}\n", "steps"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(text, named, recipe, tmp_path, capsys):
    path = recipe(text)
    before = files(tmp_path)
    assert main(["train", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert named in err
    assert files(tmp_path) == before


def test_other_channels_are_refused_before_training(recipe, tmp_path, capsys):
    colour = {**TINY, "in_channels": 3, "out_channels": 3}
    convert(model(colour), tmp_path / "colour.safetensors", widths=[1.0])
    path = recipe("init: colour.safetensors\ntrain: {steps: 1, batch: 8}\n")
    for command in ("validate", "train"):
        assert main([command, str(path)]) == 2
        assert "channels" in capsys.readouterr().err


def test_another_prediction_is_not_trained_on(recipe, tmp_path, capsys):
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction")
    pipe = diffusers.DDPMPipeline(model(TINY), scheduler)
    convert(pipe, tmp_path / "v.safetensors", widths=[1.0])
    assert main(["validate", str(recipe("init: v.safetensors\n"))]) == 2
    assert "predicts v" in capsys.readouterr().err


def test_other_weights_are_another_recipe(recipe, tmp_path):
    """Their hash is part of the identity, their place is not."""
    other = load_file(tmp_path / "tiny.safetensors")
    read = read_recipe(recipe("init: tiny.safetensors\n"))
    first, content = supernet_path(read, recipe_data(read)), read.content()
    for suffix in (".safetensors", ".json"):
        shutil.copy(tmp_path / f"tiny{suffix}", tmp_path / f"copy{suffix}")
    assert read_recipe(recipe("init: copy.safetensors\n")).content() == content
    theirs = model(TINY)
    theirs.conv_out.bias.data += 1
    convert(theirs, tmp_path / "other.safetensors")
    read = read_recipe(recipe("init: other.safetensors\n"))
    assert supernet_path(read, recipe_data(read)) != first
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="sha256"):
        read_recipe(recipe("init: other.safetensors\n"))
