"""`stepsearch train --eval`: is the supernet worth searching, width by width."""

import contextlib
import io

import numpy as np
import pandas as pd
import pytest
import yaml
from command import files
from PIL import Image

from stepsearch.cli import main
from stepsearch.nets.load import load_card

UNET = {"family": "unet", "base": 8, "mult": [1, 2], "blocks": 1, "groups": 2}
TRAIN = {"steps": 30, "batch": 32, "warmup": 4}
WIDTHS = [0.25, 0.5, 1.0]
MEASURE = ("--eval", "--images", "48", "--calls", "4")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    """One for all tests: the classifier that takes features is trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPSEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def write(folder, **change):
    recipe = {"version": 1, "name": "net", "data": "digits", "widths": WIDTHS, "net": UNET}
    path = folder / "net.yaml"
    path.write_text(yaml.safe_dump(recipe | {"train": TRAIN} | change))
    return path


def table_of(weights):
    return pd.read_csv(weights.with_name(f"{weights.stem}-eval.csv"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a recipe that was trained and measured once, and what the command said."""
    folder = tmp_path_factory.mktemp("trained")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(["train", str(write(folder)), *MEASURE]) == 0
    (weights,) = folder.glob("net-*.safetensors")
    return weights, out.getvalue(), err.getvalue()


class TestTable:
    def test_has_a_row_for_every_width_and_says_how_it_was_measured(self, trained):
        weights, *_ = trained
        card, table = load_card(weights), table_of(weights)
        assert list(table["width"]) == WIDTHS[::-1]
        for calls, name in ((1, "gflops_per_call"), (4, "gflops_per_image")):
            want = [calls * flops / 1e9 for flops in card.flops[::-1]]
            assert list(table[name]) == pytest.approx(want, rel=1e-5)
        assert list(table["loss"]) == [card.training["loss"][f"{w:g}"] for w in WIDTHS[::-1]]
        for name in ("fid", "gflops"):
            own = table["gflops_per_image" if name == "gflops" else name]
            assert list(table[f"{name}_over_widest"]) == pytest.approx(list(own / own[0]), rel=1e-4)
        assert np.isfinite(table[["fid", "fid_se"]]).all(axis=None)
        assert (table["fid_se"] > 0).all()
        same = {"nfe": 4, "n_samples": 48, "seed": 0, "grid": "quad", "supernet": card.key}
        for name, value in same.items():
            assert set(table[name]) == {value}
        assert table["metric_id"].str.startswith("classifier-").all()
        assert not table.isna().any(axis=None)

    def test_the_weights_alone_are_on_stdout_and_the_table_on_stderr(self, trained):
        weights, out, err = trained
        assert out == f"{weights}\n"
        lines = err.splitlines()
        for width in WIDTHS:
            (line,) = (line for line in lines if line.startswith(f"{width:g} "))
            assert f"{table_of(weights).set_index('width').loc[width, 'fid']:.2f}" in line
        assert any("real images against real" in line for line in lines)

    def test_every_width_has_a_grid_of_images_of_its_own(self, trained):
        weights, *_ = trained
        grids = [weights.with_name(f"{weights.stem}-w{w:g}.png") for w in WIDTHS]
        pictures = [np.asarray(Image.open(path)) for path in grids]
        assert len({p.tobytes() for p in pictures}) == 3
        assert {p.shape for p in pictures} == {(7 * 65 + 1, 7 * 65 + 1)}  # 48 images of 64 pixels

    def test_again_measures_nothing_and_other_settings_are_added(self, trained, capsys):
        weights, *_ = trained
        recipe, first = weights.with_name("net.yaml"), table_of(weights)
        before = files(weights.parent)
        assert main(["train", str(recipe), *MEASURE]) == 0
        assert files(weights.parent) == before
        assert main(["train", str(recipe), *MEASURE, "--seed", "1"]) == 0
        table = table_of(weights)
        pd.testing.assert_frame_equal(table[:3], first)
        assert list(table["seed"]) == [0, 0, 0, 1, 1, 1]
        assert (table["fid"][:3].to_numpy() != table["fid"][3:].to_numpy()).all()


@pytest.mark.parametrize(
    ("change", "argv", "message"),
    [
        (
            {"net": {"family": "noisy-classifier", "base": 8, "groups": 2, "classes": 10}}
            | {"widths": [1.0]},
            ["--eval"],
            "net.family: 'noisy-classifier' classifies",
        ),
        ({"relay": {"scale": 2}}, ["--eval"], "relay: a second stage starts from images of a"),
        ({}, ["--images", "100"], "--images: says how widths are measured; add --eval"),
        ({}, ["--eval", "--images", "3"], "--images: must be at least 4, got 3"),
        ({}, ["--eval", "--calls", "0"], "--calls: must be at least 1, got 0"),
        ({}, ["--eval", "--calls", "5000"], "--calls: "),
        ({}, ["--eval", "--features", "nonsense"], "--features: "),
        ({}, ["--eval", "--weights", "nowhere.pt"], "--weights: nowhere.pt: no such file"),
        ({"data": {"npz": "images.npz"}}, ["--eval"], "--features: 'classifier' needs labelled"),
    ],
)
def test_what_cannot_be_measured_is_one_line_before_anything_is_trained(
    tmp_path, capsys, change, argv, message
):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", images=rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8))
    refused(capsys, write(tmp_path, **change), argv, message)


def test_a_student_is_told_where_it_is_measured_before_its_teacher_is_trained(tmp_path, capsys):
    write(tmp_path)
    student = {"version": 1, "name": "few", "distill": {"teacher": "net.yaml", "steps": 3}}
    path = tmp_path / "few.yaml"
    path.write_text(yaml.safe_dump(student))
    refused(capsys, path, ["--eval"], "few.yaml: distill: a student is sampled at levels")


def refused(capsys, recipe, argv, message):
    """The command ends in one line and writes nothing."""
    before = files(recipe.parent)
    assert main(["train", str(recipe), *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("stepsearch: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert files(recipe.parent) == before
