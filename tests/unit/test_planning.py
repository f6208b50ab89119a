"""What a search will take: timed on two candidates, and nothing is trained or written."""

import json
import shutil

import numpy as np
import pytest
from command import call, files, one_line
from support import ROOT, copy_toy

from stepsearch.planning import Timing, _hours, _line


def timing(gflops, *seconds):
    return Timing(gflops, seconds, 500)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The toy space, and what `plan -f json` says of it."""
    folder = tmp_path_factory.mktemp("toy")
    space = copy_toy(folder)
    before = files(folder)
    done = call(folder, "plan", str(space), "evaluation.images=60", "-f", "json")
    assert done.returncode == 0, done.stderr
    return folder, space, before, json.loads(done.stdout)


def test_the_line_goes_through_both_candidates():
    a, b = _line(timing(2.0, 5.0), timing(6.0, 13.0), (5.0, 13.0))
    assert (a, b) == (1.0, 2.0)


@pytest.mark.parametrize("seconds", [(5.0, 4.0), (5.0, 5.0), (1.0, 9.0)])
def test_no_candidate_is_planned_to_take_less_than_no_time(seconds):
    a, b = _line(timing(2.0), timing(6.0), seconds)
    assert a >= 0
    assert b >= 0
    assert a + 6 * b == pytest.approx(seconds[1] if seconds[1] > seconds[0] else np.mean(seconds))


def test_hours_are_those_of_the_line_over_random_genomes(rng):
    """Without spread of the timings or of the draw they are exact: trials and two canaries."""
    spread = _hours(timing(2.0, 5.0), timing(6.0, 13.0), np.array([3.0]), 98, rng)
    assert spread.p50 == spread.p90 == pytest.approx(100 * 7.0 / 3600)


def test_more_spread_moves_the_nine_in_ten_and_not_the_middle(rng):
    gflops = np.array([2.0, 3.0, 4.0])
    narrow = _hours(timing(2.0, 5.0), timing(6.0, 13.0), gflops, 98, rng)
    wide = _hours(timing(2.0, 4.0, 5.0, 6.0), timing(6.0, 8.0, 13.0, 18.0), gflops, 98, rng)
    assert wide.p50 == pytest.approx(narrow.p50, rel=0.1)
    assert wide.p90 - wide.p50 > 3 * (narrow.p90 - narrow.p50)


def test_a_plan_says_what_the_space_says(toy):
    *_, plan = toy
    assert plan["device"] == "cpu"
    assert plan["trials"] == 12 * 4
    assert plan["size"]["exact"]
    assert plan["size"]["genomes"] == 3 * 2 * 3 * 4**5
    assert plan["size"]["schedules"] < plan["size"]["genomes"]  # few calls miss some segments
    assert plan["accepted"] == 1
    assert plan["cheap"]["gflops_per_image"] < plan["dear"]["gflops_per_image"]
    assert all(s > 0 for which in ("cheap", "dear") for s in plan[which]["seconds"])
    assert 0 < plan["core_hours"]["p50"] <= plan["core_hours"]["p90"]
    assert plan["training_steps"] == {}


def test_planning_writes_nothing_but_the_cache(toy):
    folder, _, before, _ = toy
    after = {k: v for k, v in files(folder).items() if folder / "cache" not in (k, *k.parents)}
    assert after == before


def test_what_is_not_trained_is_timed_untrained_and_said(tmp_path):
    for name in ("search_spaces", "supernets"):
        (tmp_path / name).mkdir()
        shutil.copy(ROOT / name / "digits.yaml", tmp_path / name)
    space = str(tmp_path / "search_spaces" / "digits.yaml")
    words = ["evaluation.images=8", "schedule.calls=[2, 3]", "schedule.solver=[ddim]"]
    done = call(tmp_path, "plan", space, *words, "--workers", "4")
    assert done.returncode == 0, done.stderr
    assert "to train: digits" in done.stdout
    assert "1400 steps" in done.stdout
    assert "wall time, 4 workers" in done.stdout
    assert not list((tmp_path / "supernets").glob("*.safetensors"))


def test_a_space_that_allows_nothing_is_said(toy):
    folder, space, *_ = toy
    limit = "constraints={gflops_per_image: {max: 1.0e-12}}"
    done = call(folder, "plan", str(space), limit)
    one_line(done, "none of 1000 random genomes", "widen them", status=4)


@pytest.mark.parametrize("words", [["--workers", "0"], ["--gpus-per-worker", "0"]])
def test_numbers_that_make_no_sense_are_bad_input(toy, words):
    folder, space, *_ = toy
    one_line(call(folder, "plan", str(space), *words), words[0])
