"""A search over one stage, a relay and a student at once, from its files to its images."""

import json
import shutil

import numpy as np
import pytest
from command import call, files, one_line
from joint import JOINT, NET, SHARP, SMALL, STUDENT, write_joint
from PIL import Image
from support import read_csv, timeless

from stepsearch.config import read_space
from stepsearch.core.errors import Interrupted
from stepsearch.core.kinds import KINDS
from stepsearch.core.schedule import StepSchedule
from stepsearch.nets.load import load_card
from stepsearch.recipe_config import read_recipe
from stepsearch.recipe_training import recipe_data
from stepsearch.run import Resources, start_run
from stepsearch.store import JOURNAL, read_journal
from stepsearch.supernet import ensure_supernet

TABLES = ("trials.csv", "pareto.csv")
OTHER = NET.replace("name: net", "name: other").replace("ema: 0.9", "ema: 0.9, seed: 1")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the finished run `out`."""
    folder = write_joint(tmp_path_factory.mktemp("joint"))
    done = call(folder, "run", "space.yaml", "-o", "out")
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stderr)
    return folder


def of_kind(folder, kind):
    """The first row of a kind in a run's table."""
    return next(row for row in read_csv(folder / "out" / "trials.csv") if row["kind"] == kind)


# --- the search


def test_one_table_holds_all_kinds(home):
    rows = read_csv(home / "out" / "trials.csv")
    assert len(rows) == 16
    assert {row["state"] for row in rows} == {"COMPLETE"}
    assert {row["kind"] for row in rows} == set(KINDS)
    for row in rows:
        net = {"single": "net", "relay": "small", "distilled": "student"}[row["kind"]]
        assert row["supernet"] == net
        assert (row["relay_supernet"] == "sharp") == (row["kind"] == "relay")
        assert row["n_samples"] == "64"
    assert len({row["metric_id"] for row in rows}) == 1


def test_cost_counts_every_call_at_the_size_of_its_network(home):
    cards = {c.key: c for c in (load_card(p) for p in home.glob("*.safetensors"))}
    trials = {t.key: t for t in read_journal(home / "out" / JOURNAL)[0]}
    for row in read_csv(home / "out" / "trials.csv"):
        schedule = StepSchedule.from_json(trials[row["key"]].schedule)
        calls = [(s, c) for s in schedule.stages for c in s.calls]
        want = sum(cards[stage.net].gflops(call.width) for stage, call in calls)
        assert float(row["gflops_per_image"]) == pytest.approx(want, rel=1e-9)
        assert row["nfe"] == str(len(calls))
    shapes = {card.name: card.image_shape for card in cards.values()}
    assert shapes["small"] == (1, 4, 4)
    assert {shapes[n] for n in ("net", "sharp", "student")} == {(1, 8, 8)}


def test_every_network_is_trained_once_and_the_run_names_it(home):
    env = json.loads((home / "out" / "env.json").read_text())
    cards = {c.name: c for c in (load_card(p) for p in home.glob("*.safetensors"))}
    assert set(cards) == {"net", "small", "sharp", "student"}
    assert set(env["supernets"]) == {"net", "small", "student"}
    assert set(env["seconds"]) == {"sharp"}
    for name, identity in (env["supernets"] | env["seconds"]).items():
        assert identity["sha256"] == cards[name].sha256
    assert cards["student"].distilled.teacher == cards["net"].key
    said = (home / "said.txt").read_text()
    assert said.count("student student: distilling") == 1
    assert said.count("supernet net: training 3 steps") == 1


def test_a_run_that_lost_its_last_trials_ends_the_same(home):
    before = {name: timeless(home / "out" / name) for name in TABLES}
    shutil.copytree(home / "out", home / "again")
    journal = home / "again" / JOURNAL
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:5]))
    done = call(home, "resume", "again")
    assert done.returncode == 0, done.stderr
    assert {name: timeless(home / "again" / name) for name in TABLES} == before
    assert "training" not in done.stderr


@pytest.mark.ray
def test_two_workers_give_the_same_tables(home, monkeypatch):
    monkeypatch.setenv("STEPSEARCH_CACHE", str(home / "cache"))
    settings = read_space(home / "space.yaml")
    resources = Resources(workers=2, executor="ray")
    start_run(settings, home / "both", (home / "space.yaml").read_text(), resources, resume=False)
    for name in TABLES:
        assert timeless(home / "both" / name) == timeless(home / "out" / name)


# --- images


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_kind_have_the_size_of_the_data(home, kind):
    row = of_kind(home, kind)
    done = call(home, "sample", "out", row["trial_id"], "-n", "3", "-o", f"{kind}-images")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{kind}-images"
    pictures = sorted((home / f"{kind}-images").glob("0*.png"))
    assert len(pictures) == 3
    pixels = [np.asarray(Image.open(path)) for path in pictures]
    assert {p.shape for p in pixels} == {(8, 8)}
    assert len({p.tobytes() for p in pixels}) == 3


def test_the_schedule_of_a_relay_is_told_to_come_from_its_run(home):
    trials = {str(t.trial_id): t for t in read_journal(home / "out" / JOURNAL)[0]}
    (home / "relay.json").write_text(trials[of_kind(home, "relay")["trial_id"]].schedule)
    done = call(home, "sample", "--schedule", "relay.json", "--supernet", "net.yaml")
    one_line(done, "relay.json: 2 stages", "stepsearch sample RUN TRIAL")


# --- students alone


@pytest.fixture
def folder(tmp_path):
    return write_joint(tmp_path, other=OTHER)


def test_a_student_is_distilled_once_and_its_path_printed(folder):
    first = call(folder, "distill", "student.yaml")
    assert first.returncode == 0, first.stderr
    path = folder / first.stdout.strip()
    assert path.is_file()
    assert path.name.startswith("student-")
    card = load_card(path)
    assert (card.widths, card.distilled.widths, card.distilled.dense) == ((1.0,), (1.0,), True)
    assert card.distilled.levels == pytest.approx((20, 1), rel=0.01)
    teacher = load_card(next(folder.glob("net-*.safetensors")))
    assert card.training["teacher_sha256"] == teacher.sha256
    before = files(folder)
    again = call(folder, "distill", "student.yaml")
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert "using" in again.stderr
    assert "distilling" not in again.stderr
    assert files(folder) == before


@pytest.mark.parametrize("teacher", ["other.yaml", "other"])
def test_another_teacher_is_another_student(folder, teacher):
    (folder / "supernets").mkdir()
    (folder / "supernets" / "other.yaml").write_text(OTHER)
    done = call(folder, "distill", "student.yaml", "--teacher", teacher)
    assert done.returncode == 0, done.stderr
    card = load_card(folder / done.stdout.strip())
    assert card.distilled.teacher.startswith("other@")
    assert not list(folder.glob("net-*"))
    trained = folder if teacher.endswith(".yaml") else folder / "supernets"
    assert len(list(trained.glob("other-*.safetensors"))) == 1


@pytest.mark.parametrize("widths", ["0.5", "[0.5, 1.0]", "all"])
def test_a_student_of_any_widths_can_be_loaded_and_sampled(home, folder, widths):
    shutil.copytree(home / "cache", folder / "cache")  # the classifier of FID
    (folder / "student.yaml").write_text(STUDENT.replace("low: 1", f"low: 1, widths: {widths}"))
    done = call(folder, "distill", "student.yaml")
    assert done.returncode == 0, done.stderr
    card = load_card(folder / done.stdout.strip())
    assert card.widths == ((0.5,) if widths == "0.5" else (0.5, 1.0))
    few = JOINT.partition("relay:")[0] + JOINT[JOINT.index("distilled:") :]
    if widths == "all":
        few = few.replace("[logsnr]", "[logsnr]\n  widths: {segments: 1, choices: [0.5, 1.0]}")
    (folder / "few.yaml").write_text(few.replace("[net.yaml, student.yaml]", "[student.yaml]"))
    done = call(folder, "run", "few.yaml", "-o", "out", "search.population=2", "schedule.calls=2")
    assert done.returncode == 0, done.stderr
    rows = read_csv(folder / "out" / "trials.csv")
    assert {(row["kind"], row["state"]) for row in rows} == {("distilled", "COMPLETE")}


@pytest.mark.parametrize("killed", [2, 4, 9])
def test_interrupted_anywhere_a_student_ends_in_the_same_weights(folder, killed):
    """Three steps of the teacher, then seven of the student."""
    recipe = read_recipe(folder / "student.yaml", ["distill.steps=7"])
    data, seen = recipe_data(recipe), []

    def kill(step, losses):
        seen.append(step)
        if len(seen) == killed:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        ensure_supernet(recipe, data, on_step=kill)
    path, card = ensure_supernet(recipe, data, on_step=kill)
    assert len(seen) == 3 + 7  # no step was taken twice
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    write_joint(path.parent)
    assert ensure_supernet(recipe, data)[1].sha256 == card.sha256


# --- what is refused


def test_a_student_is_distilled_in_one_process(folder):
    before = files(folder)
    done = call(folder, "train", "student.yaml", "--workers", "2")
    one_line(done, "student.yaml", "one process", "drop --workers")
    assert files(folder) == before


def test_a_recipe_without_a_distill_section_makes_no_student(folder):
    one_line(call(folder, "distill", "net.yaml"), "net.yaml: no recipe of a student", "train")
    for name in ("none", "net-0.safetensors"):
        done = call(folder, "distill", "student.yaml", "--teacher", name)
        one_line(done, f"--teacher: '{name}' is neither", "stepsearch ls")
    assert not list(folder.glob("*.safetensors"))


UNFIT = [
    ("size: 4", "size: 2", SHARP, ("1 x 2 x 2", "1 x 8 x 8", "data.size or relay.scale")),
    ("{digits, size: 4, resample: box}", "digits", SHARP, ("1 x 8 x 8 do not make", "2 times")),
    ("size: 4", "size: 4", SHARP.replace("scale: 2", "scale: 4"), ("1 x 4 x 4 do", "4 times")),
]


@pytest.mark.parametrize(("old", "new", "sharp", "says"), UNFIT, ids=[row[1] for row in UNFIT])
def test_stages_of_sizes_that_do_not_fit_are_refused_before_anything_is_written(
    folder, old, new, sharp, says
):
    write_joint(folder, small=SMALL.replace(old, new), sharp=sharp)
    before = files(folder)
    done = call(folder, "run", "space.yaml", "-o", "out")
    one_line(done, "small.yaml: data: images of", "second stage 'sharp'", *says)
    assert files(folder) == before


def test_tiles_that_do_not_divide_the_images_are_refused(folder):
    write_joint(folder, sharp=SHARP.replace("scale: 2", "scale: 3"))
    done = call(folder, "train", "sharp.yaml")
    one_line(done, "sharp.yaml: relay.scale: images of 8 x 8 pixels", "tiles of 3")


def test_first_and_second_stages_of_different_pictures_are_refused(folder):
    np.savez(folder / "other.npz", images=np.zeros((40, 4, 4, 1), np.uint8))
    write_joint(folder, small=SMALL.replace("{digits, size: 4, resample: box}", "{npz: other.npz}"))
    before = files(folder)
    done = call(folder, "run", "space.yaml", "-o", "out")
    one_line(done, "'net' and 'small' are trained on different data", "use one data set")
    assert files(folder) == before
