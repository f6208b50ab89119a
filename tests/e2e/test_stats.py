"""Data on the command line: reference statistics, code, corrupt images, CIFAR-10, stopping."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from command import STEPSEARCH, call, files, one_line
from PIL import Image
from support import ROOT, copy_toy

from stepsearch.config import dump_space, read_space
from stepsearch.core.errors import ConfigError
from stepsearch.core.settings import content_hash
from stepsearch.evaluate import prepare_evaluation
from stepsearch.nets.load import load_card
from stepsearch.objectives.reference import Statistics
from stepsearch.training.data import load_dataset

NET = """\
version: 1
name: toy
data: digits
widths: [0.5, 1.0]
net: {family: gaussian, components: 4}
"""
CODE = """\
import pathlib
import numpy as np
pathlib.Path("imported").touch()
def make(count):
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (8, 8), dtype=np.uint8), i % 3) for i in range(count)]
"""


def fine(done):
    """What a command that must succeed prints."""
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The toy space on 400 of the digits, its statistics, and what was said of them."""
    folder = tmp_path_factory.mktemp("home")
    copy_toy(folder)
    digits = load_dataset("digits")
    images = digits.images[:400].transpose(0, 2, 3, 1)
    np.savez(folder / "some.npz", images=images, labels=digits.labels[:400])
    recipe = folder / "supernets" / "toy.yaml"
    recipe.write_text(recipe.read_text().replace("data: digits", "data: {npz: ../some.npz}"))
    done = call(folder, "stats", "search_spaces/toy.yaml", "-o", "stats.npz")
    assert fine(done) == "stats.npz\n"
    (folder / "said.txt").write_text(done.stderr)
    return folder


class TestStats:
    def test_one_line_says_the_floor(self, home):
        said, floor = (home / "said.txt").read_text(), Statistics.load(home / "stats.npz")
        assert said.count("\n") == 1
        assert "of 400 images 1x8x8: real against real (halves of the data) FID " in said
        assert float(said.split()[-1]) == pytest.approx(floor.real_vs_real, rel=1e-3)

    def test_others_find_mean_and_covariance_under_their_names(self, home):
        with np.load(home / "stats.npz") as file:
            assert np.array_equal(file["mu"], file["mean"])
            assert np.array_equal(file["sigma"], file["cov"])
            assert file["sigma"].shape == 2 * file["mu"].shape

    def test_a_recipe_will_do_and_names_the_file(self, home):
        done = call(home, "stats", "supernets/toy.yaml", "--device", "cpu")
        assert fine(done) == "toy-classifier.npz\n"
        ours, other = (Statistics.load(home / f) for f in ("stats.npz", "toy-classifier.npz"))
        assert ours.reference.sha256 == other.reference.sha256

    @pytest.mark.parametrize(
        ("more", "says"),
        [
            (["-o", "stats.npz"], ("stats.npz", "nothing is overwritten", "-o")),
            (["--features", "clasifier"], ("'clasifier'", "did you mean 'classifier'")),
            (["--weights", "none.pth"], ("none.pth", "no such file")),
            (["--features"], ("--features",)),
        ],
        ids=lambda v: " ".join(v),
    )
    def test_what_cannot_be_written_is_one_line(self, home, more, says):
        before = files(home)
        one_line(call(home, "stats", "supernets/toy.yaml", *more), *says)
        assert files(home) == before


class TestReference:
    @pytest.fixture
    def measured(self, home, monkeypatch):
        """Settings, and what they are measured with, of the toy space with these overrides."""
        monkeypatch.setenv("STEPSEARCH_CACHE", str(home / "cache"))
        monkeypatch.chdir(home)

        def measured(*overrides):
            space = read_space(home / "search_spaces" / "toy.yaml", list(overrides))
            data = load_dataset("npz", home / "some.npz")
            return space, *prepare_evaluation(space.evaluation, space.objectives, data)

        return measured

    def test_the_file_names_all_that_a_number_depends_on(self, home, measured):
        _, spec, facts = measured()
        found = Statistics.load(home / "stats.npz")
        assert (found.images, found.shape, found.data) == (400, (1, 8, 8), "some")
        assert found.data_sha256 == spec.data_sha256
        assert (found.extractor, len(found.extractor_sha256)) == ("classifier", 64)
        assert found.real_vs_real == facts["real_vs_real"]

    def test_statistics_of_the_same_data_are_the_same_metric_and_the_same_search(self, measured):
        space, spec, facts = measured()
        given, other, other_facts = measured("evaluation.reference=stats.npz")
        assert given.evaluation.reference is not None
        assert content_hash(given.content()) == content_hash(space.content())
        assert other.metric_id == spec.metric_id
        assert other_facts == facts

    def test_a_resolved_file_names_them_from_anywhere(self, home, measured, tmp_path):
        given, *_ = measured("evaluation.reference=stats.npz")
        (tmp_path / "resolved.yaml").write_text(dump_space(given))
        assert read_space(tmp_path / "resolved.yaml") == given

    def test_a_space_without_them_is_what_it_was(self, home):
        space = read_space(home / "search_spaces" / "toy.yaml")
        assert "reference" not in json.dumps(space.content())

    def test_other_statistics_are_another_metric_and_what_is_compared_with(self, home, measured):
        _, spec, _ = measured()
        found = Statistics.load(home / "stats.npz")
        mean = found.reference.mean + 10
        replace(found, reference=replace(found.reference, mean=mean)).save(home / "moved.npz")
        _, moved, _ = measured("evaluation.reference=moved.npz")
        assert moved.metric_id != spec.metric_id
        with np.load(moved.reference) as file:
            assert np.array_equal(file["mean"], mean)

    BAD = {
        "foreign": (lambda a, m: {"mu": a["mu"], "sigma": a["sigma"]}, ("'mean'",)),
        "other": (
            lambda a, m: a | {"metadata": json.dumps(m | {"extractor_sha256": "0" * 64})},
            ("classifier@00000000", "this run has classifier@", "--features classifier"),
        ),
        "future": (lambda a, m: a | {"metadata": json.dumps(m | {"format": 2})}, ("format 2",)),
        "shapes": (lambda a, m: a | {"cov": a["cov"][1:]}, ("cov",)),
        "nan": (lambda a, m: a | {"mean": a["mean"] * np.nan}, ("not finite",)),
        "short": (lambda a, m: a | {"metadata": "{}"}, ("KeyError",)),
        "more": (lambda a, m: a | {"metadata": json.dumps(m | {"x": 1})}, ("'x'",)),
        "objects": (lambda a, m: a | {"mean": np.array([{}], dtype=object)}, ("Object arrays",)),
    }

    @pytest.mark.parametrize("name", BAD)
    def test_what_is_no_statistics_of_this_extractor_is_one_line(self, home, measured, name):
        with np.load(home / "stats.npz") as file:
            arrays = dict(file)
        change, says = self.BAD[name]
        np.savez(home / f"{name}.npz", **change(arrays, json.loads(arrays["metadata"].item())))
        with pytest.raises(ConfigError) as error:
            measured(f"evaluation.reference={name}.npz")
        for words in (f"{name}.npz", "stepsearch stats", *says):
            assert words in str(error.value)

    @pytest.mark.parametrize("part", [0, 100, 0.5, 0.999])
    def test_a_torn_file_is_one_line(self, home, part):
        data = (home / "stats.npz").read_bytes()
        cut = int(part * len(data)) if 0 < part < 1 else part
        (home / "torn.npz").write_bytes(data[:cut])
        with pytest.raises(ConfigError, match=r"torn\.npz: no readable statistics"):
            Statistics.load(home / "torn.npz")


class TestAllowCode:
    @pytest.fixture
    def coded(self, tmp_path):
        """The toy space on a data set in code."""
        copy_toy(tmp_path)
        (tmp_path / "mine.py").write_text(CODE)
        recipe, space = (tmp_path / f / "toy.yaml" for f in ("supernets", "search_spaces"))
        code = "data: {dataset: 'mine:make', args: {count: 300}}"
        recipe.write_text(NET.replace("data: digits", code))
        space.write_text(space.read_text().replace("[0.25, 0.5, 0.75, 1.0]", "[0.5, 1.0]"))
        yield tmp_path
        sys.modules.pop("mine", None)

    @pytest.mark.parametrize("command", ["train", "validate", "stats", "run"])
    def test_it_runs_with_the_flag_and_is_not_imported_without(self, coded, command):
        argv = [command, "supernets/toy.yaml"]
        if command == "run":
            argv = ["run", "search_spaces/toy.yaml", "search.population=2"]
            argv += ["search.generations=1", "evaluation.images=20"]
        before = files(coded)
        one_line(call(coded, *argv), "'mine:make'", "--allow-code")
        assert files(coded) == before
        fine(call(coded, *argv, "--allow-code"))
        assert (coded / "imported").exists()
        if command == "run":
            one_line(call(coded, "resume", "results/toy"), "--allow-code")
            fine(call(coded, "resume", "results/toy", "--allow-code"))

    def test_other_arguments_are_another_network(self, coded):
        for count in (300, 299):
            override = f"data.args.count={count}"
            fine(call(coded, "train", "supernets/toy.yaml", override, "--allow-code"))
        assert len(list((coded / "supernets").glob("toy-*.safetensors"))) == 2


def test_corrupt_images_that_are_skipped_are_told_and_on_the_card(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    for i in range(40):
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / f"{i:02}.png")
    for i in range(5):
        (tmp_path / "set" / f"{i:02}.png").write_bytes(b"no")
    (tmp_path / "net.yaml").write_text(NET.replace("digits", "{folder: set}"))
    before = files(tmp_path)
    one_line(call(tmp_path, "train", "net.yaml"), "5 unreadable images of 40", "2 more")
    assert files(tmp_path) == before
    done = call(tmp_path, "train", "net.yaml", "data.corrupt=skip")
    card = load_card(tmp_path / fine(done).strip())
    assert "5 of 40 images are unreadable and left out: 00.png, 01.png, 02.png and 2" in done.stderr
    assert card.training["images"] == 35
    assert card.training["corrupt"] == [f"{i:02}.png" for i in range(5)]


class TestCifar10:
    @pytest.fixture
    def home(self, data, tmp_path):
        """The shipped recipes, whose path leads nowhere, beside 500 real images."""
        from pyarrow import parquet

        file = data / "cifar10-jpeg-test.parquet"
        if not file.is_file():
            pytest.skip(f"{file}: no such file; set STEPSEARCH_DATA to the folder that holds it")
        parquet.write_table(parquet.read_table(file)[:500], tmp_path / "some.parquet")
        for name in ("cifar10", "cifar10-16"):
            text = (ROOT / "supernets" / f"{name}.yaml").read_text()
            (tmp_path / f"{name}.yaml").write_text(text.replace("../../shared/", "nowhere/"))
        return tmp_path

    def test_a_path_that_is_not_here_is_named_with_its_remedy(self, home):
        path = "'nowhere/data/cifar10-jpeg-train.parquet'"
        done = call(home, "train", "cifar10.yaml")
        one_line(done, "cifar10.yaml:4:", path, "data.parquet=PATH")

    @pytest.mark.parametrize("name", ["cifar10", "cifar10-16"])
    def test_the_recipes_fit_the_data(self, home, name):
        fine(call(home, "validate", f"{name}.yaml", "data.parquet=some.parquet"))

    def test_training_that_is_killed_continues_to_the_same_weights(self, home):
        argv = ["train", "cifar10-16.yaml", "data.parquet=some.parquet", "data.size=8"]
        argv += ["train.batch=8", "train.steps=8", "train.checkpoint_every=2", "net.mult=[1]"]
        argv += ["net.base=8", "net.groups=1"]
        # names of the whole run and of the killed one differ, and so do their files
        whole = fine(call(home, *argv, "name=whole"))
        env = os.environ | {"STEPSEARCH_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1"}
        command = [STEPSEARCH, *argv]
        with subprocess.Popen(command, cwd=home, env=env, stderr=subprocess.PIPE) as process:
            while not list(home.glob("cifar10-16-*.training")) and process.poll() is None:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        assert list(home.glob("cifar10-16-*.training"))
        done = fine(call(home, *argv))
        weights = [(home / name.strip()).read_bytes() for name in (whole, done)]
        assert weights[0] == weights[1]
