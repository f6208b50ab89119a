"""A driver that is killed or stopped at any moment resumes to the run it would have been."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import copy_toy, quiet_environment, timeless

from stepsearch.config import read_space
from stepsearch.run import Resources, start_run

pytestmark = pytest.mark.faults

TRIALS = 24
SETTINGS = ["search.population=6", "search.generations=4", "evaluation.images=2500"]
PROGRAM = Path(sys.executable).with_name("stepsearch")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The toy space with its network and statistics made, and an undisturbed run of it."""
    base = tmp_path_factory.mktemp("toy")
    space, patch = copy_toy(base), pytest.MonkeyPatch()
    patch.setenv("STEPSEARCH_CACHE", str(base / "cache"))
    start_run(
        read_space(space, SETTINGS), base / "whole", space.read_text(), Resources(), resume=False
    )
    patch.undo()
    return space


class Driver:
    """A `stepsearch` in a process group of its own."""

    def __init__(self, toy, folder):
        self.folder = folder
        arguments = ["resume", folder] if folder.exists() else ["run", toy, "-o", folder, *SETTINGS]
        self.process = subprocess.Popen(
            [PROGRAM, *arguments],
            env=quiet_environment(toy.parents[1] / "cache"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for_trials(self, count):
        """Return as soon as the journal holds `count` trials, or the driver is gone."""
        deadline = time.monotonic() + 60
        while journal_of(self.folder).count(b"\n") < count and self.process.poll() is None:
            assert time.monotonic() < deadline, "the search stands still"
            time.sleep(0.005)

    def send(self, number):
        os.killpg(self.process.pid, number)

    def finish(self):
        """Exit status and stderr."""
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


def journal_of(folder):
    path = folder / "journal.jsonl"
    return path.read_bytes() if path.exists() else b""


def assert_like_undisturbed(folder, toy):
    whole = toy.parents[1] / "whole"
    for name in ("trials.csv", "pareto.csv"):
        assert timeless(folder / name) == timeless(whole / name)
    assert (folder / "generations.csv").read_bytes() == (whole / "generations.csv").read_bytes()
    keys = [json.loads(line)["trial"]["key"] for line in journal_of(folder).splitlines()]
    assert len(set(keys)) == len(keys) == TRIALS


def test_killed_at_random_moments_a_run_ends_like_an_undisturbed_one(toy, tmp_path, size, injected):
    rng, folder, killed, kills = random.Random(0), tmp_path / "run", 0, size(4, 10)
    before = b""
    for n in range(kills):
        driver = Driver(toy, folder)
        driver.wait_for_trials((n + 1) * TRIALS // (kills + 2))
        time.sleep(rng.uniform(0, 0.4))
        driver.send(signal.SIGKILL)
        code, _ = driver.finish()
        killed += code == -signal.SIGKILL
        after = journal_of(folder)
        assert after.startswith(before), "a finished trial was lost"
        before = after
    assert killed == kills
    injected("kills of a whole `stepsearch` at random moments", kills)
    assert Driver(toy, folder).finish()[0] == 0
    assert journal_of(folder).startswith(before)
    assert_like_undisturbed(folder, toy)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_stops_a_run_in_good_order(toy, tmp_path, name):
    folder = tmp_path / "run"
    driver = Driver(toy, folder)
    driver.wait_for_trials(7)
    driver.send(signal.Signals[name])
    code, err = driver.finish()
    assert code == 75, err
    last = err.splitlines()[-1]
    assert f"stepsearch resume {folder}" in last
    assert "Traceback" not in err
    done = journal_of(folder)
    assert 7 <= done.count(b"\n") < TRIALS
    assert len(timeless(folder / "trials.csv")) == done.count(b"\n")
    assert Driver(toy, folder).finish()[0] == 0
    assert journal_of(folder).startswith(done)
    assert_like_undisturbed(folder, toy)
