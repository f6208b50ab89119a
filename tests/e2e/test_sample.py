"""`stepsearch sample`: the same noise in every folder, exact pixels, and what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import call, files, one_line, stepsearch
from PIL import Image
from safetensors.torch import load_file
from support import copy_toy

from stepsearch.build import plan_stage
from stepsearch.cli import main
from stepsearch.core.guidance import Guidance
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.trial import Failure
from stepsearch.evaluate import sample as evaluate_sample
from stepsearch.journal import journal_line, read_journal
from stepsearch.nets.load import load_net, save_net
from stepsearch.sample import grid
from stepsearch.store import JOURNAL

RUN = ["run", "search_spaces/toy.yaml", "-o", "out", "schedule.calls=[4]", "evaluation.seed=3"]
RUN += ["search.population=8", "search.generations=1", "evaluation.images=80"]
OTHER = """\
version: 1
name: other
data: digits
widths: [{widths}]
net: {{family: gaussian, components: 8}}
"""
COLOUR = OTHER.replace("other", "colour").replace("digits", "{{npz: colour.npz}}")
LABELLED_UNET = """\
version: 1
name: labelled
data: digits
widths: [1.0]
net: {{family: unet, base: 4, mult: [1, 2], groups: 1, classes: 10}}
train: {{steps: 2, batch: 8, warmup: 0}}
"""
SMALL = OTHER.replace("other", "small").replace("digits", "{{digits, size: 4, resample: box}}")
SHARP = LABELLED_UNET.replace("labelled", "sharp").replace(", classes: 10", "")
SHARP = SHARP.replace("[1.0]", "[0.5, 1.0]") + "relay: {{scale: 2, blur: 2.0}}\n"
JUDGE = LABELLED_UNET.replace("labelled", "judge").replace("unet", "noisy-classifier")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished toy run `out` of eight trials, made by the real command."""
    folder = tmp_path_factory.mktemp("sample")
    copy_toy(folder)
    done = stepsearch(folder, *RUN)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def home(finished, tmp_path, monkeypatch):
    """A copy of it as current folder; recipes and weights move along."""
    folder = tmp_path / "home"
    shutil.copytree(finished, folder)
    resolved = folder / "out" / "resolved.yaml"
    resolved.write_text(resolved.read_text().replace(str(finished), str(folder)))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("STEPSEARCH_CACHE", str(folder / "cache"))
    return folder


def trials():
    """By number; the journal has them in the order in which they were finished."""
    return sorted(read_journal(Path("out") / JOURNAL)[0], key=lambda trial: trial.trial_id)


def weights():
    return next(Path("supernets").glob("toy-*.safetensors"))


@pytest.fixture
def sample(home):
    """Runs the command; the folder that it printed."""

    def run(*argv):
        done = call(home, "sample", *map(str, argv))
        assert (done.returncode, done.stderr) == (0, "")
        return Path(done.stdout.removesuffix("\n"))

    return run


@pytest.fixture
def refused(home):
    """Runs the command, which must end in one line and write nothing; the line."""

    def run(*argv):
        before = files(home)
        done = call(home, "sample", *map(str, argv))
        one_line(done)
        assert files(home) == before
        return done.stderr

    return run


def pixels(path):
    """(C, H, W) of a PNG."""
    found = np.asarray(Image.open(path))
    return found[None] if found.ndim == 2 else found.transpose(2, 0, 1)


def images(folder):
    return np.stack([pixels(path) for path in sorted(folder.glob("0*.png"))])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _settings(candidate):
    return candidate.solver, candidate.grid, candidate.calls


class TestImages:
    def test_a_folder_holds_every_image_a_grid_and_the_schedule(self, home):
        done = stepsearch(home, "sample", "out", "2", "-n", "3")
        key = trials()[2].key
        assert (done.returncode, done.stdout, done.stderr) == (0, f"out/samples/{key}\n", "")
        folder = home / "out" / "samples" / key
        names = {"grid.png", "sample.json", "schedule.json"}
        assert set(contents(folder)) == {f"0000{j}.png" for j in range(3)} | names
        written = StepSchedule.from_json((folder / "schedule.json").read_text())
        assert written.key() == key
        facts = json.loads((folder / "sample.json").read_text())
        assert facts == {"count": 3, "seed": 3, "schedule": key}
        assert [p.name for p in folder.parent.iterdir()] == [key]

    def test_pixels_are_those_that_are_scored(self, sample):
        folder = sample("out", 1, "-n", 5)
        net = load_net(weights())
        schedule = StepSchedule.from_json(trials()[1].schedule)
        want = evaluate_sample(schedule, {net.card.key: net}, 5, 3)
        assert (images(folder) == want.numpy()).all()

    def test_the_same_trial_and_seed_give_the_same_bytes(self, sample):
        one, same = (sample("out", 1, "-n", 4, "-o", name) for name in "ab")
        other = sample("out", 1, "-n", 4, "--seed", 4, "-o", "c")
        assert contents(one) == contents(same)
        assert (images(one) != images(other)).any(axis=(1, 2, 3)).all()

    def test_an_image_does_not_depend_on_how_many_there_are_and_in_which_batches(self, sample):
        whole = sample("out", 1, "-n", 7, "-o", "whole")
        for n, batch in [(7, 3), (7, 1), (4, 64)]:
            part = sample("out", 1, "-n", n, "--batch", batch, "-o", f"{n}-{batch}")
            assert len(images(part)) == n
            assert (images(part) == images(whole)[:n]).all()

    def test_every_trial_starts_from_the_same_noise(self, sample):
        """Image j of two trials is alike, image j of one and another of the other are not."""
        first = trials()[0].candidate
        settings = (first.solver, first.grid, first.calls)
        same = [t for t in trials() if _settings(t.candidate) == settings]
        uniform = [t for t in same if len(set(t.call_widths)) == 1]
        two = sorted(uniform, key=lambda t: t.call_widths)[-2:]
        one, other = (images(sample("out", t.key, "-n", 40)).reshape(40, -1) for t in two)
        assert (one != other).any(axis=1).all()
        close = np.corrcoef(one - one.mean(0), other - other.mean(0))[:40, 40:]
        assert np.diag(close).min() > 0.8
        assert abs(close[~np.eye(40, dtype=bool)].mean()) < 0.1

    def test_a_trial_is_its_number_its_key_or_the_beginning_of_its_key(self, sample):
        trial = trials()[3]
        short = next(trial.key[:n] for n in range(2, 17) if unique(trial.key[:n]))
        found = [sample("out", name, "-n", 2, "-o", name) for name in ("3", trial.key, short)]
        assert contents(found[0]) == contents(found[1]) == contents(found[2])

    def test_an_empty_folder_may_be_filled(self, sample):
        Path("empty").mkdir()
        assert len(images(sample("out", 0, "-n", 2, "-o", "empty"))) == 2


def unique(prefix):
    return sum(t.key.startswith(prefix) for t in trials()) == 1


class TestGrid:
    @pytest.mark.parametrize(
        ("shape", "columns", "factor"),
        [
            ((1, 1, 8, 8), 1, 8),
            ((5, 1, 8, 8), 3, 8),
            ((64, 3, 8, 8), 8, 8),
            ((7, 3, 5, 9), 3, 7),
            ((2, 1, 32, 32), 2, 2),
            ((4, 3, 48, 64), 2, 1),
            ((2, 1, 100, 80), 2, 1),
        ],
    )
    def test_image_j_is_at_its_place_scaled_up_by_whole_factors(self, rng, shape, columns, factor):
        given = rng.integers(0, 256, shape, np.uint8)
        count, channels, height, width = shape
        found = grid(given)
        rows = -(-count // columns)
        down, right = height * factor + 1, width * factor + 1
        assert found.shape == (channels, rows * down + 1, columns * right + 1)
        inside = np.zeros(found.shape[1:], bool)
        for j, image in enumerate(given):
            top, left = j // columns * down + 1, j % columns * right + 1
            place = np.s_[top : top + down - 1, left : left + right - 1]
            assert (found[:, *place] == np.kron(image, np.ones((factor, factor), np.uint8))).all()
            inside[place] = True
        assert len(np.unique(found[:, ~inside])) == 1  # padding, and the places of no image

    def test_the_file_is_the_grid_of_the_images(self, sample):
        folder = sample("out", 0, "-n", 5)
        assert (pixels(folder / "grid.png") == grid(images(folder))).all()


class TestScheduleFile:
    @pytest.mark.parametrize("how", ["recipe", "name", "weights"])
    def test_the_exported_schedule_gives_the_same_folder(self, sample, how):
        folder = sample("out", 2, "-n", 6)
        net = {"recipe": "supernets/toy.yaml", "name": "toy", "weights": weights()}[how]
        given = ["--schedule", folder / "schedule.json", "--supernet", net, "-n", 6]
        again = sample(*given, "--seed", 3, "-o", "again")
        assert contents(again) == contents(folder)
        default = sample(*given)
        assert default == Path("samples") / trials()[2].key
        assert json.loads((default / "sample.json").read_text())["seed"] == 0

    def test_another_network_is_bound_and_told(self, sample, capsys):
        folder, card = sample("out", 0, "-n", 6), train(OTHER, capsys, widths="0.25, 0.375, 1")
        assert main(["sample", *given(folder), "-n", "6", "--seed", "3", "-o", "o"]) == 0
        out, err = capsys.readouterr()
        old = StepSchedule.from_json(trials()[0].schedule)
        assert out == "o\n"
        assert f"made for {old.stages[0].net}, sampled with {card.key}" in err
        assert len(err.splitlines()) == 1
        new = StepSchedule.from_json(Path("o/schedule.json").read_text())
        assert new == StepSchedule((replace(old.stages[0], net=card.key),))
        assert (images(Path("o")) != images(folder)).any()

    def test_a_network_of_colours_makes_images_of_colours(self, sample, capsys, rng):
        data = rng.integers(0, 256, (40, 8, 8, 3), np.uint8)
        np.savez("supernets/colour.npz", images=data, labels=np.arange(40) % 4)
        folder, card = sample("out", 0), train(COLOUR, capsys, widths="0.25, 1")
        assert main(["sample", *given(folder, "colour"), "-n", "3", "-o", "o"]) == 0
        net = load_net(next(Path("supernets").glob("colour-*.safetensors")))
        schedule = StepSchedule.from_json(Path("o/schedule.json").read_text())
        want = evaluate_sample(schedule, {card.key: net}, 3, 0).numpy()
        assert want.shape == (3, 3, 8, 8)
        assert (images(Path("o")) == want).all()

    def test_a_width_that_the_network_lacks_is_told(self, sample, refused, capsys):
        folder = sample("out", 0)
        train(OTHER, capsys, widths="1")
        width = f"width {trials()[0].call_widths[0]:g} is not offered by network 'other'"
        assert width in refused(*given(folder), "-o", "o")

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "not a StepSchedule document"),
            ("\xff", "not a StepSchedule document"),
            ('{"version": 9, "stages": []}', "version 9 is unknown"),
            ('{"version": 1, "stages": [{"net": 1}]}', "not a StepSchedule document"),
        ],
    )
    def test_a_malformed_schedule_is_told(self, refused, text, says):
        Path("s.json").write_text(text)
        err = refused("--schedule", "s.json", "--supernet", "toy")
        assert "s.json: " in err
        assert says in err

    def test_every_stage_needs_a_network_or_the_run(self, refused):
        (stage,) = StepSchedule.from_json(trials()[0].schedule).stages
        for stages, networks in ((2, 1), (2, 3), (1, 2)):
            Path("s.json").write_text(StepSchedule((stage,) * stages).to_json())
            err = refused("--schedule", "s.json", *["--supernet", "toy"] * networks)
            assert f"s.json: {stages} stage{'s' * (stages > 1)} (toy@" in err
            times = f"{networks} time{'s' * (networks > 1)}"
            assert f"--supernet is given {times}; give it once for each stage" in err
            assert "stepsearch sample RUN TRIAL" in err

    def test_a_relay_is_sampled_with_a_network_for_each_stage(self, home, refused, capsys):
        small, sharp = (train(text, capsys, widths="0.5, 1") for text in (SMALL, SHARP))
        grid = {"karras": {"start": 0.5, "end": 0.1}}
        first = plan_stage(small, solver="ddim", calls=2, widths=0.5)
        second = plan_stage(sharp, solver="relay", calls=3, grid=grid, widths=[1.0, 0.5, 0.5])
        relay = StepSchedule((first, second))
        Path("s.json").write_text(relay.to_json())
        argv = ["--schedule", "s.json", "-n", "3"]
        both = ["--supernet", "small", "--supernet", "sharp"]
        assert main(["sample", *argv, *both, "-o", "o"]) == 0
        assert capsys.readouterr() == ("o\n", "")
        paths = [next(Path("supernets").glob(f"{name}-*.json")) for name in ("small", "sharp")]
        nets = {net.card.key: net for net in map(load_net, paths)}
        want = evaluate_sample(relay, nets, 3, 0).numpy()
        assert want.shape == (3, 1, 8, 8)
        assert (images(Path("o")) == want).all()
        assert "'small' is no second stage" in refused(*argv, "--supernet", "small", *both[:2])
        assert "s.json: network 'sharp' is the second" in refused(*argv, *both[2:], *both[2:])
        Path("s.json").write_text(StepSchedule((second,)).to_json())
        err = refused(*argv, *both[2:])
        assert "s.json: its first stage, of 'sharp@" in err
        assert "does not start from noise" in err

    def test_a_guided_schedule_needs_its_classifier_and_asks_it(self, home, refused, capsys):
        card, judge = (train(text, capsys) for text in (LABELLED_UNET, JUDGE))
        guidance = Guidance("classifier", 3.0, net="judge")
        made = {"solver": "ddim", "calls": 2, "guidance": guidance, "classifier": judge}
        schedule = StepSchedule((plan_stage(card, **made),))
        Path("s.json").write_text(schedule.to_json())
        argv = ["--schedule", "s.json", "-n", "3", "--supernet"]
        assert "give --guide" in refused(*argv, "labelled")
        assert "'labelled' is of family 'unet'" in refused(*argv, "toy", "--guide", "labelled")
        assert "'judge' is of family 'noisy-classifier'" in refused(*argv, "judge")
        assert main(["sample", *argv, "labelled", "--guide", "judge", "-o", "o"]) == 0
        assert capsys.readouterr() == ("o\n", "")
        nets = {net.card.key: net for net in map(load_net, Path("supernets").glob("l*-*.json"))}
        nets |= {judge.key: load_net(next(Path("supernets").glob("judge-*.json")))}
        assert (images(Path("o")) == evaluate_sample(schedule, nets, 3, 0).numpy()).all()


def train(recipe, capsys, **values):
    """The card of a recipe, trained beside the toy."""
    text = recipe.format(**values)
    name = text.split("name: ")[1].split()[0]
    path = Path("supernets") / f"{name}.yaml"
    path.write_text(text)
    assert main(["train", str(path)]) == 0
    return load_net(capsys.readouterr().out.strip()).card


def given(folder, name="other"):
    return ["--schedule", str(folder / "schedule.json"), "--supernet", name]


# --- nothing overwritten, nothing written by what is refused


@pytest.mark.parametrize("what", ["earlier images", "folder", "file"])
def test_nothing_is_overwritten(sample, refused, what):
    if what == "earlier images":
        sample("out", 1, "-n", 2, "-o", "mine")
    elif what == "folder":
        Path("mine").mkdir()
        Path("mine/thesis.txt").write_text("mine")
    else:
        Path("mine").write_text("mine")
    err = refused("out", 1, "-n", 2, "-o", "mine")
    assert "mine: exists" in err
    assert "-o" in err


FILE = ["--schedule", "s.json", "--supernet", "toy"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], ["RUN and TRIAL", "--schedule and --supernet"]),
        (["out"], ["TRIAL is missing"]),
        (["out", "1", *FILE], ["--schedule", "not for RUN"]),
        (["out", "1", "--guide", "judge"], ["--guide", "not for RUN"]),
        (["--schedule", "s.json"], ["--supernet is missing"]),
        (["--supernet", "toy"], ["--schedule is missing"]),
        (FILE, ["s.json: No such file", "check the path"]),
        (["out", "1", "-n", "0"], ["--count: must be at least 1, got 0"]),
        (["out", "1", "-n", "-3"], ["--count: must be at least 1, got -3"]),
        (["out", "1", "-n", "many"], ["'many'"]),
        (["out", "1", "--batch", "0"], ["--batch: must be at least 1, got 0"]),
        (["out", "1", "--seed", "-1"], ["--seed: must be at least 0, got -1"]),
        (["none", "1"], ["none: no run directory"]),
        (["out", "99"], ["out: no trial '99' among 8"]),
        (["out", "sxyz"], ["out: no trial 'sxyz'"]),
        (["out", ""], ["out: no trial ''"]),
        (["out", "s"], ["'s' is ambiguous", "write more of the key"]),
        (["out", "1", "more"], ["'more'"]),
    ],
    ids=lambda v: " ".join(v) or "nothing",
)
def test_bad_arguments_are_one_line_and_nothing_is_written(refused, argv, says):
    err = refused(*argv)
    for words in says:
        assert words in err


def test_an_unknown_supernet_points_at_the_list(sample, refused):
    folder = sample("out", 0, "-n", 1)
    assert "--supernet: 'nobody'" in refused(*given(folder, "nobody"), "-o", "o")
    guided = refused(*given(folder, "toy"), "--guide", "nobody", "-o", "o")
    assert "--guide: 'nobody'" in guided
    assert "stepsearch ls" in guided


def test_a_failed_trial_has_no_images(refused):
    lines = [journal_line(t) for t in trials()]
    lines[1] = journal_line(replace(trials()[1], result=Failure("RuntimeError: no", 3)))
    Path("out", JOURNAL).write_bytes(b"".join(lines))
    err = refused("out", "1")
    assert "trial 1 failed (RuntimeError: no)" in err
    assert "stepsearch front out" in err


def test_missing_weights_are_told_with_the_command_that_makes_them(home, refused, sample, capsys):
    folder = sample("out", 1, "-n", 2)
    weights().unlink()
    recipe = home / "supernets" / "toy.yaml"
    assert f"`stepsearch train {recipe}`" in refused("out", "1", "-o", "o")
    assert "`stepsearch train " in refused(*given(folder, "toy"), "-o", "o")
    assert main(["train", str(recipe)]) == 0
    capsys.readouterr()
    assert contents(sample("out", 1, "-n", 2, "-o", "o")) == contents(folder)


def test_a_network_that_was_trained_again_is_not_taken_for_the_old_one(refused):
    card, state = load_net(weights()).card, load_file(weights())
    old = card.key
    new = save_net(weights(), card, {name: 2 * values for name, values in state.items()}).key
    err = refused("out", "1")
    assert f"measured with {old}, this is {new}" in err
