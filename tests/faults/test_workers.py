"""Workers that are killed, and candidates that misbehave, change nothing of a run."""

from collections import Counter

import pytest
from ray_stub import Careful, assert_same_run, kill_worker, search, stub_factory, undisturbed
from support import StubExecutor, score, settings_with, timeless

from stepsearch.core.trial import Failure
from stepsearch.executors.deadline import Limits
from stepsearch.executors.local import ATTEMPTS
from stepsearch.executors.ray_pool import RayExecutor

pytestmark = [pytest.mark.faults, pytest.mark.ray]


@pytest.mark.timeout(3600)
def test_workers_killed_at_random_moments_change_no_table(tmp_path, size, injected, capfd):
    kills = size(50, 1000)
    settings = settings_with(population=24, generations=4)
    undisturbed(settings, tmp_path / "whole")
    executor, searches = RayExecutor(stub_factory(seconds=0.05), 2), 0
    try:
        with Careful(executor, kill_worker, kills) as killer:
            while killer.left:
                searches += 1
                killer.new_search()
                folder = tmp_path / f"run-{searches}"
                search(settings, folder, executor, killer.on_trial)
                assert_same_run(folder, tmp_path / "whole")
        assert killer.done == kills
        injected("worker killed", kills)
    finally:
        executor.close()
    assert capfd.readouterr().out == ""  # stdout belongs to data, whatever raylets have to say


FATAL = {
    "raises": ("error", "ArithmeticError: no good"),
    "hangs": ("timeout", "no result within its time limit"),
    "exits": ("died", "worker died"),
    "memory": ("memory", "MemoryError: no room"),
    "nan": ("nonfinite", "NonFinite: objectives must be finite, got {'fid': nan}"),
    "inf": ("nonfinite", "NonFinite: objectives must be finite, got {'fid': inf}"),
}
LIMITS = Limits(first=60.0, least=2.0, enough=3)


def test_candidates_that_misbehave_in_every_way_fail_alone_and_by_name(tmp_path, injected):
    settings = settings_with(population=24, generations=3)
    asked = [t.key for t in undisturbed(settings, tmp_path / "fine")[:24]]
    behaviours = dict(zip(asked[3::3], [*FATAL, "straggles"], strict=True))
    fails = {key: FATAL[what] for key, what in behaviours.items() if what in FATAL}
    undisturbed(settings, tmp_path / "whole", ExpectedExecutor(fails))
    executor = RayExecutor(
        stub_factory(0.01, behaviours, tmp_path),
        2,
        cost=lambda schedule: float(schedule.nfe),
        limits=LIMITS,
    )
    try:
        trials = search(settings, tmp_path / "run", executor)
    finally:
        executor.close()
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    injected("misbehaving candidate", len(behaviours))
    rows = [r for r in timeless(tmp_path / "run" / "trials.csv") if r["state"] == "FAIL"]
    assert Counter(row["fail_kind"] for row in rows) == Counter(kind for kind, _ in fails.values())
    for trial in trials:
        what = behaviours.get(trial.key)
        attempts = len(list(tmp_path.glob(f"{trial.key}-*")))
        assert attempts == {None: 0, "straggles": 2, "nan": 1, "inf": 1}.get(what, ATTEMPTS)


class ExpectedExecutor(StubExecutor):
    """Fails what is to fail, in the words of the table."""

    def __init__(self, fails):
        super().__init__()
        self.expected = fails

    def map(self, schedules, rung=None):
        for schedule in schedules:
            kind, error = self.expected.get(schedule.key(), ("", ""))
            yield (
                schedule.key(),
                Failure(error, ATTEMPTS, kind=kind) if kind else score(schedule),
            )
