"""One contract for every executor, and what Ray's owes on top of it: workers may die."""

import contextlib
import threading
import time
from dataclasses import replace

import pytest
import torch
from support import CARDS, SPACE, score

from stepsearch.build import build_schedule
from stepsearch.core.errors import ConfigError, Interrupted, StepsearchError
from stepsearch.core.trial import Failure, Measurement
from stepsearch.executors import ray_pool
from stepsearch.executors.deadline import Limits
from stepsearch.executors.local import ATTEMPTS, LocalExecutor
from stepsearch.executors.ray_pool import RayExecutor

FINE, RAISES, FLAKY, DIES = 0.25, 0.5, 0.75, 1.0  # by width of the first call
RAY = pytest.param("ray", marks=pytest.mark.ray)


def make_factory(folder):
    """A score whose behaviour the schedule chooses; nested, so that workers get it by value."""
    table = {s.key(): score(s) for width in (FINE, FLAKY) for s in schedules_of(width)}

    def factory():
        import os
        from dataclasses import replace
        from pathlib import Path

        def behave(schedule, *rung):
            key, tried = schedule.key(), Path(folder)
            attempts = len(list(tried.glob(f"{key}-*")))
            (tried / f"{key}-{attempts}").write_text(str(os.getpid()))
            width = schedule.widths[0]
            if width == 1.0:
                os._exit(1)
            if width == 0.5:
                raise ArithmeticError("no good\nsecond line")
            if width == 0.75 and attempts == 0:
                raise OSError("only once")
            return replace(table[key], n_samples=rung[0]) if rung else table[key]

        return behave

    return factory


def schedules_of(width, count=6):
    candidate = replace(SPACE.decode((0,) * 7), widths=(width,))
    return [build_schedule(replace(candidate, calls=n + 1), CARDS) for n in range(count)]


def attempts_of(folder, schedule):
    return len(list(folder.glob(f"{schedule.key()}-*")))


@pytest.fixture(scope="class", params=["local", RAY])
def pool(request, tmp_path_factory):
    """An executor and the folder in which every attempt leaves a file.

    One for the whole class, and closed after it: a process holds one Ray at a time.
    """
    folder = tmp_path_factory.mktemp(request.param)
    factory = make_factory(folder)
    executor = LocalExecutor(factory) if request.param == "local" else RayExecutor(factory, 2)
    yield executor, folder
    executor.close()
    executor.close()  # twice is safe


def results_of(executor, schedules):
    """By key; every schedule exactly once."""
    found = list(executor.map(iter(schedules)))
    assert sorted(key for key, _ in found) == sorted(s.key() for s in schedules)
    return dict(found)


class TestContract:
    def test_every_schedule_has_exactly_one_result(self, pool):
        executor, _ = pool
        schedules = schedules_of(FINE)
        assert results_of(executor, schedules) == {s.key(): score(s) for s in schedules}
        assert results_of(executor, schedules[:1]) == {schedules[0].key(): score(schedules[0])}
        assert results_of(executor, []) == {}

    def test_a_candidate_that_raises_fails_alone_after_three_attempts(self, pool):
        executor, folder = pool
        good, bad = schedules_of(FINE), schedules_of(RAISES, 2)
        found = results_of(executor, [good[0], bad[0], *good[1:5], bad[1], good[5]])
        for schedule in bad:
            assert found[schedule.key()] == Failure("ArithmeticError: no good", ATTEMPTS)
            assert attempts_of(folder, schedule) == ATTEMPTS == 3
        assert all(found[s.key()] == score(s) for s in good)

    def test_a_candidate_that_raises_once_is_measured(self, pool):
        executor, folder = pool
        schedules = schedules_of(FLAKY)
        assert results_of(executor, schedules) == {s.key(): score(s) for s in schedules}
        assert {attempts_of(folder, s) for s in schedules} == {2}

    def test_schedules_are_taken_one_by_one_when_earlier_results_were_used(self, pool):
        executor, _ = pool
        workers = 1 if isinstance(executor, LocalExecutor) else 2
        used, taken = [], []

        def source():
            for schedule in schedules_of(FINE):
                taken.append(len(used))
                assert len(taken) - len(used) <= workers  # never more than can run
                yield schedule

        for key, _ in executor.map(source()):
            used.append(key)
        assert len(used) == len(taken) == 6
        assert taken[workers:] == list(range(1, 7 - workers))  # one result, one schedule

    @pytest.mark.parametrize("rung", [0, 3])
    def test_the_rung_is_passed_on(self, pool, rung):
        executor, _ = pool
        schedules = schedules_of(FINE, 3)
        for _, result in executor.map(iter(schedules), rung):
            assert isinstance(result, Measurement)
            assert result.n_samples == rung

    @pytest.mark.parametrize("pool", [RAY], indirect=True)
    def test_a_candidate_that_kills_its_worker_fails_alone_after_three_workers(self, pool):
        executor, folder = pool
        good, bad = schedules_of(FINE), schedules_of(DIES, 2)
        found = results_of(executor, [*bad, *good])
        for schedule in bad:
            failure = found[schedule.key()]
            assert isinstance(failure, Failure)
            assert (failure.error, failure.kind, failure.attempts) == ("worker died", "died", 3)
            pids = {path.read_text() for path in folder.glob(f"{schedule.key()}-*")}
            assert len(pids) == attempts_of(folder, schedule) == 3
        assert all(found[s.key()] == score(s) for s in good)
        assert results_of(executor, good) == {s.key(): score(s) for s in good}


@pytest.mark.ray
def test_workers_that_cannot_start_are_one_line_and_leave_nothing_running():
    import ray

    def factory():
        raise ValueError("weights are missing")

    with pytest.raises(StepsearchError, match=r"workers cannot start.*weights are missing") as e:
        RayExecutor(factory, 1)
    assert "\n" not in str(e.value)
    assert not isinstance(e.value, ConfigError)
    assert not ray.is_initialized()


@pytest.fixture(scope="class")
def stop():
    return threading.Event()


@pytest.fixture(scope="class")
def executor(stop):
    """Two workers, three seconds for each attempt; the width says whether it needs 0, 1 or more."""

    def factory():
        import time

        from stepsearch.core.trial import Measurement

        def sleep(schedule):
            time.sleep({0.25: 0.0, 0.75: 1.0, 1.0: 3600.0}[schedule.widths[0]])
            return Measurement({"fid": 1.0}, 1, 0, "stub", 0.1, "")

        return sleep

    limits = Limits(first=3.0, enough=1000)
    executor = RayExecutor(factory, 2, limits=limits, stopping=stop.is_set)
    yield executor
    executor.close()


@pytest.mark.ray
class TestRay:
    """What only workers that are processes can do."""

    def test_a_candidate_that_hangs_is_ended_three_times_and_the_others_go_on(self, executor):
        hangs, *fine = schedules_of(DIES, 1) + schedules_of(FINE, 4)
        began = time.monotonic()
        found = results_of(executor, [hangs, *fine])
        assert found.pop(hangs.key()) == Failure(
            "no result within its time limit", ATTEMPTS, kind="timeout"
        )
        assert all(isinstance(result, Measurement) for result in found.values())
        assert time.monotonic() - began > 3 * 3.0

    def test_what_an_abandoned_map_left_running_is_no_result_of_the_next(self, executor):
        slow, quick = schedules_of(FLAKY, 2), schedules_of(FINE, 3)
        abandoned = executor.map(iter([quick[0], *slow]))
        assert next(abandoned)[0] == quick[0].key()
        abandoned.close()
        results_of(executor, quick)
        results_of(executor, slow)

    def test_a_worker_out_of_memory_is_told_from_one_that_died(self, executor, monkeypatch, caplog):
        get, raised = executor._ray.get, []

        def monitored(promise):
            if not raised:
                raised.append(promise)
                raise executor._ray.exceptions.OutOfMemoryError("killed by the monitor")
            return get(promise)

        monkeypatch.setattr(executor._ray, "get", monitored)
        schedules = schedules_of(FINE, 1)
        results_of(executor, schedules)
        text = (
            f"schedule {schedules[0].key()}, attempt 1: worker killed: its node ran out of memory"
        )
        assert [r.getMessage().splitlines()[0] for r in caplog.records] == [text]

    def test_a_stop_is_heard_while_nothing_finishes_and_ends_with_the_limit(self, executor, stop):
        (hangs,) = schedules_of(DIES, 1)
        timer = threading.Timer(0.5, stop.set)
        timer.start()
        try:
            assert hangs.key() not in dict(executor.map(iter([hangs, *schedules_of(FINE, 2)])))
            assert stop.is_set()
            assert list(executor.map(iter([hangs]))) == []
        finally:
            timer.join()
            stop.clear()


@pytest.mark.ray
def test_when_all_workers_are_gone_the_run_is_interrupted_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_pool, "START_SECONDS", 2.0)
    (schedule,) = schedules_of(DIES, 1)

    def factory():
        import os
        from pathlib import Path

        mark = Path(tmp_path) / "started"
        if mark.exists():
            raise RuntimeError("the disk is full")
        mark.touch()
        return lambda schedule: os._exit(1)

    executor = RayExecutor(factory, 1)
    with contextlib.closing(executor), pytest.raises(Interrupted) as caught:
        list(executor.map(iter([schedule])))
    text = str(caught.value)
    assert "all workers are gone" in text
    assert "stepsearch resume" in text
    assert caught.value.exit_code == 75


class Outcomes:
    """A score that raises what its schedule's number of calls stands for."""

    KINDS = {1: "nonfinite", 2: "nonfinite", 3: "memory", 4: "memory", 5: "memory", 6: "error"}

    def __init__(self):
        self.tried = 0

    def __call__(self, schedule):
        self.tried += 1
        n = schedule.nfe
        if n <= 2:
            return replace(score(schedule), values={"fid": float("nan" if n == 1 else "inf")})
        raise {
            3: MemoryError(),
            4: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            5: RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            6: ValueError("objectives must be finite, says somebody else"),
        }[n]


@pytest.mark.parametrize("schedule", schedules_of(FINE), ids=Outcomes.KINDS.values())
def test_every_failure_has_its_kind_and_only_arithmetic_is_not_tried_again(schedule):
    outcomes = Outcomes()
    executor = LocalExecutor(lambda: outcomes)
    ((_, failure),) = executor.map(iter([schedule]))
    kind = Outcomes.KINDS[schedule.nfe]
    assert isinstance(failure, Failure)
    assert failure.kind == kind
    assert failure.attempts == outcomes.tried == (1 if kind == "nonfinite" else ATTEMPTS)


def test_a_failure_is_logged_with_its_traceback(tmp_path, caplog):
    executor = LocalExecutor(make_factory(tmp_path))
    (schedule,) = schedules_of(RAISES, 1)
    with contextlib.closing(executor), caplog.at_level("WARNING", logger="stepsearch"):
        results_of(executor, [schedule])
    assert len(caplog.records) == 3
    for record in caplog.records:
        text = record.getMessage()
        assert schedule.key() in text
        assert "Traceback" in text
        assert "second line" in text


def test_the_scoring_function_is_built_once_and_only_when_needed():
    built = []

    def factory():
        built.append(True)
        return score

    executor = LocalExecutor(factory)
    assert not built
    for _ in range(2):
        found = results_of(executor, schedules_of(FINE))
        assert all(isinstance(result, Measurement) for result in found.values())
    assert len(built) == 1
