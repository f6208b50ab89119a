"""A space sent elsewhere: the same search, with its weights, wherever it is unpacked."""

import json
import shutil
from pathlib import Path

import pytest
from support import ROOT, copy_toy

from stepsearch.bundle import write_bundle
from stepsearch.config import read_space
from stepsearch.core.errors import ConfigError
from stepsearch.core.settings import content_hash

SPACES = sorted(path.stem for path in (ROOT / "search_spaces").glob("*.yaml"))


@pytest.fixture
def tree(tmp_path):
    """The shipped spaces and recipes, without weights."""
    for name in ("search_spaces", "supernets"):
        (tmp_path / "there" / name).mkdir(parents=True)
        for path in (ROOT / name).glob("*.yaml"):
            shutil.copy(path, tmp_path / "there" / name)
    return tmp_path / "there"


def train(settings):
    """Cards and weights of every network, as far as names and hashes go."""
    for recipe in settings.networks:
        stem = f"{recipe.name}-{recipe.sha256('d' * 64)[:8]}"
        folder = Path(recipe.file).parent
        card = {"training": {"data_sha256": "d" * 64}}
        (folder / f"{stem}.json").write_text(json.dumps(card))
        (folder / f"{stem}.safetensors").write_bytes(recipe.name.encode())


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", [n for n in SPACES if not n.startswith("cifar10")])
def test_a_shipped_space_is_the_same_search_when_it_is_unpacked(name, tree, tmp_path):
    settings = read_space(tree / "search_spaces" / f"{name}.yaml", ["search.seed=7"])
    train(settings)
    write_bundle(settings, tmp_path / "bundle")
    shutil.rmtree(tree)
    shutil.move(tmp_path / "bundle", tmp_path / "elsewhere")
    again = read_space(tmp_path / "elsewhere" / "space.yaml")
    assert content_hash(again.content()) == content_hash(settings.content())
    for recipe in again.networks:
        weights = f"{recipe.name}-{recipe.sha256('d' * 64)[:8]}.safetensors"
        assert (Path(recipe.file).parent / weights).read_bytes() == recipe.name.encode()


def test_weights_of_another_recipe_stay_behind(tree, tmp_path):
    settings = read_space(tree / "search_spaces" / "digits.yaml")
    train(settings)
    for name in ("digits-00000000", "digits-relay-00000000"):
        (tree / "supernets" / f"{name}.json").write_text('{"training": {"data_sha256": "x"}}')
        (tree / "supernets" / f"{name}.safetensors").write_bytes(b"old")
    (tree / "supernets" / "digits-notes.json").write_text("[]")
    write_bundle(settings, tmp_path / "bundle")
    kinds = sorted(path.rpartition(".")[2] for path in files(tmp_path / "bundle"))
    assert kinds == ["json", "safetensors", "yaml", "yaml"]


def test_a_network_that_is_not_trained_is_not_sent(tree, tmp_path):
    settings = read_space(tree / "search_spaces" / "digits.yaml")
    with pytest.raises(ConfigError, match=r"'digits' is not trained yet.*stepsearch train"):
        write_bundle(settings, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_fitted_network_needs_no_training(tmp_path):
    write_bundle(read_space(copy_toy(tmp_path / "there")), tmp_path / "bundle")
    assert files(tmp_path / "bundle") == {"space.yaml", "networks/0/toy.yaml"}


def test_statistics_are_sent_and_images_stay_where_they_are(tmp_path):
    space = copy_toy(tmp_path / "there")
    images = tmp_path / "images"
    images.mkdir()
    recipe = tmp_path / "there" / "supernets" / "toy.yaml"
    recipe.write_text(recipe.read_text().replace("data: digits", "data: {folder: ../../images}"))
    (space.parent / "real.npz").write_bytes(b"numbers")
    settings = read_space(space, [f"evaluation.reference={space.parent / 'real.npz'}"])
    write_bundle(settings, tmp_path / "bundle")
    again = read_space(tmp_path / "bundle" / "space.yaml")
    assert again.recipes[0].data.path == str(images.resolve())
    assert again.evaluation.reference == str(tmp_path / "bundle" / "real.npz")


def test_more_than_a_job_can_take_is_refused(tree, tmp_path, monkeypatch):
    settings = read_space(tree / "search_spaces" / "digits.yaml")
    train(settings)
    monkeypatch.setattr("stepsearch.bundle.MOST_BYTES", 10)
    with pytest.raises(ConfigError, match=r"more than the 0 MB.*--in-place"):
        write_bundle(settings, tmp_path / "bundle")
