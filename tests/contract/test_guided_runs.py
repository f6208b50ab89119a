"""A space file with guidance: how it is read, what it refuses, and a whole search over it."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from command import stepsearch
from safetensors.torch import load_file
from support import read_csv, timeless

from stepsearch import load_run
from stepsearch.config import dump_space, read_space
from stepsearch.core.errors import ConfigError
from stepsearch.core.guidance import Guidance
from stepsearch.core.settings import content_hash
from stepsearch.nets.load import file_sha256, load_card, load_net, save_net
from stepsearch.recipe_config import read_recipe
from stepsearch.recipe_training import recipe_data
from stepsearch.supernet import check_buildable

RECIPE = "version: 1\nname: {0}\ndata: digits\nwidths: {1}\nnet: {{{2}}}\ntrain: {3}\n"
TRAIN = "{steps: 2, batch: 8, warmup: 0}"
LAYOUT = "base: 4, mult: [1, 2], groups: 1"
RECIPES = {
    "plain": ("[0.5, 1.0]", f"family: unet, {LAYOUT}"),
    "labelled": ("[0.5, 1.0]", f"family: unet, {LAYOUT}, classes: 10"),
    "guide": ("[1.0]", f"family: noisy-classifier, {LAYOUT}, classes: 10"),
    "nine": ("[1.0]", f"family: noisy-classifier, {LAYOUT}, classes: 9"),
}
SPACE = """\
version: 1
name: guided
supernets: [recipes/labelled.yaml]
schedule:
  calls: [2, 3]
  grid: quad
  solver: [ddim, {pfdiff: {k: 1, l: 1}}]
  widths: {segments: 1, choices: [0.5, 1.0]}
  guidance:
    - cfg: {scale: {min: 2, max: 3, step: 1}, low: 0.5}
    - classifier: {net: recipes/guide.yaml, scale: 2, high: 50}
    - none
objectives: [fid, gflops_per_image]
evaluation: {images: 30, batch: 15}
search: {population: 6, generations: 2, seed: 1}
"""


def write_inputs(folder):
    (folder / "recipes").mkdir()
    for name, (widths, net) in RECIPES.items():
        (folder / "recipes" / f"{name}.yaml").write_text(RECIPE.format(name, widths, net, TRAIN))
    (folder / "space.yaml").write_text(SPACE)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_inputs(tmp_path)


class TestSpaceFile:
    def read(self, folder, old="", new=""):
        (folder / "space.yaml").write_text(SPACE.replace(old, new))
        return read_space(folder / "space.yaml")

    def test_names_classifiers_by_their_recipes(self, folder):
        settings = self.read(folder)
        assert [r.name for r in settings.guides] == ["guide"]
        assert settings.guides[0].file == str(folder / "recipes" / "guide.yaml")
        chosen = {settings.space.decode(g).guidance for g in every_genome(settings.space)}
        assert chosen == {
            Guidance("cfg", 2, low=0.5),
            Guidance("cfg", 3, low=0.5),
            Guidance("classifier", 2, high=50, net="guide"),
            None,
        }

    def test_a_resolved_file_reads_back_from_anywhere(self, folder):
        settings = self.read(folder)
        (folder / "run").mkdir()
        (folder / "run" / "resolved.yaml").write_text(dump_space(settings))
        assert read_space(folder / "run" / "resolved.yaml") == settings

    def test_another_classifier_is_another_search(self, folder):
        before = content_hash(self.read(folder).content())
        recipe = folder / "recipes" / "guide.yaml"
        recipe.write_text(recipe.read_text().replace("steps: 2", "steps: 3"))
        assert content_hash(self.read(folder).content()) != before

    def test_a_search_without_classifiers_says_nothing_of_them(self, folder):
        settings = self.read(folder, SPACE[SPACE.index("  guidance") : SPACE.index("objectives")])
        assert settings.guides == ()
        assert "guides" not in settings.content()
        assert "guidance" not in yaml.safe_load(dump_space(settings))["schedule"]

    def test_one_classifier_at_two_settings_is_trained_once(self, folder):
        again = "    - classifier: {net: recipes/guide.yaml, scale: 1}\n    - none"
        assert [r.name for r in self.read(folder, "    - none", again).guides] == ["guide"]

    @pytest.mark.parametrize(
        ("old", "new", "says"),
        [
            ("guide.yaml", "plain.yaml", (":11:25: ", "'plain'", "'unet'", "noisy-classifier")),
            ("guide.yaml", "none.yaml", (":11:25: ", "no such recipe")),
            ("net: recipes/guide.yaml, ", "", ("'classifier' needs", "net")),
            ("net: recipes/guide.yaml", "net: 3", (":11:25: ", "expected text")),
            ("cfg: {", "cfg: {net: recipes/guide.yaml, ", (":10:7: ", "'cfg' takes no net")),
            ("[recipes/labelled", "[recipes/plain", (":10:7: ", "'plain' is unconditional")),
            ("[recipes/labelled", "[recipes/guide", (":3:13: ", "'guide' is a classifier")),
            ("guide.yaml", "nine.yaml", ("'nine' knows 9 classes", "'labelled' 10")),
            ("scale: 2,", "scale: -2,", (":11:7: ", "scale", "-2")),
        ],
        ids=lambda v: v[-1] if isinstance(v, tuple) else "",
    )
    def test_what_cannot_guide_is_one_line_with_its_place(self, folder, old, new, says):
        with pytest.raises(ConfigError) as error:
            self.read(folder, old, new)
        text = str(error.value)
        assert text.startswith(f"{folder / 'space.yaml'}:")
        assert text.isprintable()
        for words in says:
            assert words in text

    def test_two_networks_of_one_name(self, folder):
        recipe = folder / "recipes" / "guide.yaml"
        recipe.write_text(recipe.read_text().replace("name: guide", "name: labelled"))
        with pytest.raises(ConfigError, match=r":11:25: .*named 'labelled'; rename one"):
            self.read(folder)


def every_genome(space):
    return itertools.product(*(range(n) for _, n in space.genes))


class TestData:
    """A conditional network sees every one of its labels and no other, or is not trained at all."""

    @pytest.mark.parametrize(
        ("labels", "says"),
        [
            (None, r"\.yaml: net\.classes: .*has no labels"),
            (np.arange(40) % 11, r"\.yaml: net\.classes: .*11 labels in 0..10"),
            (np.arange(40) % 10 - 1, r"\.yaml: net\.classes: .*10 labels in -1..8"),
            (np.arange(40) % 9, r"\.yaml: net\.classes: .*9 labels in 0..8"),
            (np.arange(40.0) % 10, r"data\.npz: labels must be one whole number .*float64"),
            (np.eye(10, dtype=int)[np.arange(40) % 10], r"data\.npz: labels .*\(40, 10\)"),
        ],
        ids=lambda v: v if isinstance(v, str) else "",
    )
    @pytest.mark.parametrize("name", ["labelled", "guide"])
    def test_labels_that_do_not_fit(self, folder, name, labels, says):
        with pytest.raises(ConfigError, match=says):
            check_buildable(*self.inputs(folder, name, labels))

    def test_labels_that_fit(self, folder):
        for name in ("labelled", "guide"):
            check_buildable(*self.inputs(folder, name, np.arange(40, dtype=np.uint8) % 10))

    def inputs(self, folder, name, labels):
        arrays = {"images": np.zeros((40, 8, 8, 1), np.uint8)}
        np.savez(folder / "data.npz", **arrays, **({} if labels is None else {"labels": labels}))
        file = folder / "recipes" / f"{name}.yaml"
        file.write_text(file.read_text().replace("data: digits", "data: {npz: ../data.npz}"))
        recipe = read_recipe(file)
        return recipe, recipe_data(recipe)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the finished run `out` of SPACE, made by the real command."""
    folder = write_inputs(tmp_path_factory.mktemp("guided"))
    done = stepsearch(folder, "run", "space.yaml", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert "classifier guide: training 2 steps" in done.stderr
    return folder


class TestRun:
    def test_every_kind_is_tried_and_told_in_the_table(self, home):
        rows = read_csv(home / "out" / "trials.csv")
        assert len(rows) == 12
        assert {row["state"] for row in rows} == {"COMPLETE"}
        names = ("guide", "guidance", "guidance_low", "guidance_high")
        told = {tuple(row[name] for name in names) for row in rows}
        assert told == {
            ("", "", "", ""),
            ("cfg", "2.0", "0.5", ""),
            ("cfg", "3.0", "0.5", ""),
            ("guide", "2.0", "", "50.0"),
        }

    def test_cost_is_that_of_both_branches(self, home):
        run = load_run(home / "out")
        cards = {c.key: c for c in map(load_card, (home / "recipes").glob("*.safetensors"))}
        for row in run.trials.itertuples():
            schedule = run.schedules[row.key]
            (stage,) = schedule.stages
            cost = sum(cards[stage.net].gflops(call.width) for call in stage.calls)
            guided = [call.width for call in stage.calls if call.scale is not None]
            guide = stage.net if stage.guide == "cfg" else stage.guide
            cost += sum(cards[guide].gflops(w if guide == stage.net else 1) for w in guided)
            assert row.gflops_per_image == pytest.approx(cost, rel=1e-9)
            assert row.nfe == len(stage.calls)

    def test_the_environment_lists_the_classifier(self, home):
        env = json.loads((home / "out" / "env.json").read_text())
        assert (list(env["supernets"]), list(env["guides"])) == (["labelled"], ["guide"])
        (weights,) = (home / "recipes").glob("guide-*.safetensors")
        assert env["guides"]["guide"]["sha256"] == file_sha256(weights)

    def test_the_baseline_says_how_it_was_guided(self, home):
        canaries = json.loads((home / "out" / "canaries.json").read_text())
        assert canaries["baseline"].endswith("width 1, cfg 3")

    def test_a_run_cut_short_is_resumed_to_the_same_table(self, home, tmp_path):
        out = tmp_path / "out"
        shutil.copytree(home / "out", out)
        want = timeless(out / "trials.csv")
        lines = (out / "journal.jsonl").read_bytes().splitlines(keepends=True)
        (out / "journal.jsonl").write_bytes(b"".join(lines[:7]))
        (out / "trials.csv").unlink()
        done = stepsearch(home, "resume", out)
        assert done.returncode == 0, done.stderr
        assert timeless(out / "trials.csv") == want

    def test_a_classifier_trained_anew_since_is_refused(self, home, tmp_path):
        copy = tmp_path / "home"
        shutil.copytree(home, copy)
        resolved = copy / "out" / "resolved.yaml"
        resolved.write_text(resolved.read_text().replace(str(home), str(copy)))
        (path,) = (copy / "recipes").glob("guide-*.safetensors")
        weights = load_file(path)
        weights["tail.bias"] += 1
        save_net(path, load_card(path), weights)
        done = stepsearch(copy, "resume", "out")
        assert done.returncode == 5
        assert "guides changed" in done.stderr


def test_the_command_trains_a_classifier(folder):
    done = stepsearch(folder, "train", "recipes/guide.yaml")
    assert done.returncode == 0, done.stderr
    guide = load_net(done.stdout.strip())
    assert f"width 1: {guide.card.gflops(1):.4g} GFLOPs" in done.stderr
    x = torch.zeros(2, 1, 8, 8)
    assert guide.gradient(x, 1.0, torch.tensor([0, 9])).shape == x.shape


def test_images_of_a_trial_guided_by_a_classifier(home, tmp_path):
    rows = read_csv(home / "out" / "trials.csv")
    trial = next(row["trial_id"] for row in rows if row["guide"] == "guide")
    done = stepsearch(home, "sample", "out", trial, "-n", "2", "-o", tmp_path / "images")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "images" / "00001.png").is_file()


def test_validate_checks_the_classifier_against_the_data(folder):
    recipe = folder / "recipes" / "guide.yaml"
    recipe.write_text(recipe.read_text().replace("batch: 8", "batch: 1798"))
    done = stepsearch(folder, "validate", "space.yaml")
    assert done.returncode == 2
    assert "guide.yaml: train.batch: 1798" in done.stderr
