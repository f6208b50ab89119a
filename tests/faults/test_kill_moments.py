"""A driver that is killed, or told to stop, at a moment that nobody chose."""

import contextlib
import os
import random
import shutil
import signal
import time

import pytest
from invariants import journal_of
from support import OBJECTIVES

from stepsearch.core.settings import MODES
from stepsearch.signals import NUMBERS, TOGETHER
from stepsearch.store import RunStore

pytestmark = pytest.mark.faults

DELAY = 0.004  # seconds that a score takes at most
LIVES = 6  # of a driver before it may end
EARLY = 0.7  # of its life, by when it is killed: later it has mostly ended


def kill(pid, number=signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.kill(pid, number)


def begin(zygote, run, settings, **arguments):
    job = {"job": "search", "folder": str(run), "settings": settings, "delay": DELAY}
    return zygote.start(job | arguments)[0]


def wait_for_trials(run, count):
    deadline = time.monotonic() + 30
    while journal_of(run).count(b"\n") < count:
        assert time.monotonic() < deadline, "the search stands still"
        time.sleep(0.001)


def duration(zygote, run, settings):
    """Seconds that an undisturbed driver lives."""
    begun = time.monotonic()
    begin(zygote, run, settings)
    assert zygote.wait()[0].code == 0
    return time.monotonic() - begun


@pytest.mark.parametrize("mode", MODES)
def test_killed_at_random_moments_nothing_finished_is_lost(zygote, runs, size, injected, mode):
    rng, kills, seed = random.Random(0), 0, 0
    wanted = size(70 if mode == MODES[0] else 30, 500)
    life = duration(zygote, runs.new(), {"mode": mode})
    while kills < wanted:
        settings = {"mode": mode, "seed": seed}
        run, before = runs.new(), b""
        for _ in range(LIVES):
            pid = begin(zygote, run, settings)
            time.sleep(rng.uniform(0, EARLY * life))
            kill(pid)
            (ended,) = zygote.wait()
            assert ended.code in (-9, 0), ended
            assert journal_of(run).startswith(before), "a finished trial was lost"
            before = journal_of(run)
            if ended.code == 0:
                break
            kills += 1
        runs.finish(run, settings, before)
        if seed % 5 == 0:
            runs.assert_left_alone(run, settings)
        shutil.rmtree(run.parent)
        seed += 1
    injected("kills of a driver at random moments", kills)
    injected("seeds of searches that were killed at random moments", seed)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_at_a_random_moment_ends_in_good_order(zygote, runs, size, injected, number):
    rng, stops = random.Random(number), 0
    life = duration(zygote, runs.new(), {})
    for _ in range(size(5, 50)):
        run = runs.new()
        pid = begin(zygote, run, {})
        wait_for_trials(run, 1)
        time.sleep(rng.uniform(0, life / 2))
        kill(pid, number)
        kill(pid, number)  # as timeout(1) does: both mean one stop
        (ended,) = zygote.wait()
        assert ended.code in (75, 0), ended
        assert "Traceback" not in ended.output
        if ended.code == 75:
            assert f"`stepsearch resume {run}`" in ended.output.splitlines()[-1]
            assert (run / "trials.csv").read_text().count("\n") - 1 == journal_of(run).count(b"\n")
            stops += 1
        runs.finish(run, {}, journal_of(run))
        shutil.rmtree(run.parent)
    assert stops > 0
    injected("stops by a signal at random moments", stops)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_second_signal_stops_at_once(zygote, runs, injected, number):
    """What hangs cannot be drained: the last score takes a minute."""
    run = runs.new()
    pid = begin(zygote, run, {}, stuck=True)
    wait_for_trials(run, 23)
    kill(pid, number)
    time.sleep(2 * TOGETHER)
    begun = time.monotonic()
    kill(pid, signal.SIGTERM)
    (ended,) = zygote.wait()
    assert ended.code == 130, ended
    assert time.monotonic() - begun < 10
    assert f"{signal.Signals(number).name}: finishing what is running" in ended.output
    runs.finish(run, {}, journal_of(run))
    injected("second signals", 1)


def test_of_twenty_drivers_on_a_held_run_each_is_turned_away(zygote, runs, injected):
    run = runs.new()
    shutil.copytree(runs.whole({}), run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with contextlib.closing(RunStore(run, OBJECTIVES)):
        zygote.start(*[{"job": "search", "folder": str(run)}] * 20)
        for ended in zygote.wait():
            assert ended.code == 5, ended
            assert ended.output.startswith(f"{run}: another stepsearch is writing here")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    injected("drivers racing for one run", 20)


def test_of_twenty_drivers_that_begin_one_run_nobody_spoils_it(zygote, runs, injected):
    """One creates it; others find that it is there, or held, or finished."""
    run = runs.new()
    zygote.start(*[{"job": "search", "folder": str(run)}] * 20)
    ended = zygote.wait()
    assert {one.code for one in ended} <= {0, 2, 5}, ended
    assert 0 in {one.code for one in ended}
    for one in ended:
        assert one.code != 2 or "exists already and nothing is overwritten" in one.output
        assert one.code != 5 or "another stepsearch is writing here" in one.output
    runs.finish(run, {}, journal_of(run))
    assert not [path for path in run.parent.iterdir() if path.name.endswith(".new")]
    injected("drivers racing for one run", 20)
