"""Faults of workers and nodes: a score that needs no torch, and who kills what scores."""

import logging
import os
import random
import signal
import threading
import time

from support import CARD, CARDS, StubExecutor, timeless

from stepsearch.search import run_search
from stepsearch.store import RunStore


def stub_factory(seconds=0.0, behaviours=None, folder=None):
    """The factory of a score equal to `support.score`; nested, so that workers get it by value.

    Args:
        behaviours: key of a schedule -> what else it does, see `behave`.
        folder: where every attempt at one of these leaves a file.
    """
    gflops = {width: CARD.gflops(width) for width in CARD.widths}
    behaviours = dict(behaviours or {})

    def factory():
        import os
        import time
        from pathlib import Path

        from stepsearch.core.trial import Measurement

        def behave(what, key):
            tried = len(list(Path(folder).glob(f"{key}-*")))
            (Path(folder) / f"{key}-{tried}").touch()
            if what == "raises":
                raise ArithmeticError("no good")
            if what == "exits":
                os._exit(1)
            if what == "memory":
                raise MemoryError("no room")
            if what == "hangs" or (what == "straggles" and tried == 0):
                time.sleep(3600)

        def score(schedule):
            key = schedule.key()
            what = behaviours.get(key)
            if what is not None:
                behave(what, key)
            time.sleep(seconds)
            fid = round(100 / sum(schedule.widths) + 5 * int(key[1:5], 16) / 0x10000, 6)
            cost = sum(gflops[width] for width in schedule.widths)
            return Measurement(
                values={
                    "fid": {"nan": float("nan"), "inf": float("inf")}.get(what, fid),
                    "fid_se": 0.25,
                    "gflops_per_image": cost,
                },
                n_samples=200,
                seed=0,
                metric_id="stub-0",
                seconds=0.125,
                started_at="2026-01-02T03:04:05+00:00",
            )

        return score

    return factory


def search(settings, folder, executor, on_trial=lambda progress: None):
    """A search into a new run directory; returns its trials."""
    store = RunStore.create(folder, settings.objectives, {})
    try:
        run_search(settings, CARDS, store, executor, on_trial)
        return list(store.trials)
    finally:
        store.close()


def undisturbed(settings, folder, executor=None):
    """A search that nothing happens to, in this process."""
    return search(settings, folder, executor or StubExecutor())


def assert_same_run(folder, whole):
    """The tables of both runs are equal but for times, and no trial is there twice."""
    for name in ("trials.csv", "pareto.csv"):
        assert timeless(folder / name) == timeless(whole / name)
    keys = [row["key"] for row in timeless(folder / "trials.csv")]
    assert len(set(keys)) == len(keys) > 0


class Careful(logging.Handler):
    """Does harm at random moments, but never to a candidate that two attempts have failed of.

    A third would make it a failed trial, as it should: nobody can tell it from a poisonous one.
    """

    def __init__(self, executor, harm, count, *, pause=0.3, seed=0):
        super().__init__()
        self.executor, self.harm, self.left, self.done = executor, harm, count, 0
        self.rng, self.pause = random.Random(seed), pause
        self.tries, self.settled = {}, set()
        self.over, self.failed = threading.Event(), None
        self.thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self):
        logging.getLogger("stepsearch.executors.local").addHandler(self)
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.over.set()
        self.thread.join(timeout=60)
        logging.getLogger("stepsearch.executors.local").removeHandler(self)
        assert not self.thread.is_alive()
        assert self.failed is None, self.failed

    def emit(self, record):
        key, tries, *_ = record.args
        self.tries[key] = tries

    def on_trial(self, progress):
        self.settled.add(progress.latest.key)

    def new_search(self):
        """Keys of another search mean other candidates."""
        self.tries, self.settled = {}, set()

    def _work(self):
        try:
            self._harm()
        except Exception as error:  # of a thread nobody would hear it
            self.failed, self.left = error, 0

    def _harm(self):
        while self.left and not self.over.wait(self.rng.uniform(0, self.pause)):
            if any(n >= 2 and key not in self.settled for key, n in list(self.tries.items())):
                continue
            if self.harm(self.executor, self.rng):
                self.left, self.done = self.left - 1, self.done + 1


def kill_worker(executor, rng, patience=60.0):
    """SIGKILL one of the workers; returns when the driver has seen that it is gone."""
    pids = executor.pids
    if not pids:
        return False
    victim = rng.choice(pids)
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + patience
    while victim in executor.pids:
        if time.monotonic() > deadline:
            return True  # the search is over: nobody looks
        time.sleep(0.005)
    return True
