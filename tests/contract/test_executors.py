"""One contract for every executor, and what Ray's owes on top of it: workers may die."""

import contextlib
import os
import signal
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support import CARDS, SPACE, score

from stepsearch.build import build_schedule
from stepsearch.core.errors import ConfigError, StepsearchError
from stepsearch.core.trial import Failure, Measurement
from stepsearch.executors import ray_pool
from stepsearch.executors.local import ATTEMPTS, LocalExecutor
from stepsearch.executors.ray_pool import RayExecutor

FINE, RAISES, FLAKY, DIES = 0.25, 0.5, 0.75, 1.0  # by width of the first call
RAY = pytest.param("ray", marks=pytest.mark.ray)


def make_factory(folder):
    """A score whose behaviour the schedule chooses; nested, so that workers get it by value."""
    table = {s.key(): score(s) for width in (FINE, FLAKY) for s in schedules_of(width)}

    def factory():
        import os
        from pathlib import Path

        def behave(schedule):
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
            return table[key]

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

    @pytest.mark.parametrize("pool", [RAY], indirect=True)
    def test_a_candidate_that_kills_its_worker_fails_alone_after_three_workers(self, pool):
        executor, folder = pool
        good, bad = schedules_of(FINE), schedules_of(DIES, 2)
        found = results_of(executor, [*bad, *good])
        for schedule in bad:
            failure = found[schedule.key()]
            assert isinstance(failure, Failure)
            assert (failure.error.split(" (")[0], failure.attempts) == ("worker died", 3)
            pids = {path.read_text() for path in folder.glob(f"{schedule.key()}-*")}
            assert len(pids) == attempts_of(folder, schedule) == 3
        assert all(found[s.key()] == score(s) for s in good)
        assert results_of(executor, good) == {s.key(): score(s) for s in good}


@pytest.mark.ray
def test_a_worker_killed_from_outside_is_replaced_and_nothing_is_printed(tmp_path, capfd):
    schedules = schedules_of(FINE, 8)
    table = {s.key(): score(s) for s in schedules}

    def factory():
        import os
        import time
        from pathlib import Path

        def slow(schedule):
            (Path(tmp_path) / f"{schedule.key()}-{os.getpid()}").touch()
            time.sleep(0.3)
            return table[schedule.key()]

        return slow

    executor = RayExecutor(factory, 2)
    victim = executor.pids[0]

    def kill():
        while not list(tmp_path.glob(f"*-{victim}")):
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)

    assassin = threading.Thread(target=kill, daemon=True)
    try:
        assert victim != executor.pids[1]
        assassin.start()
        assert results_of(executor, schedules) == table
    finally:
        executor.close()
    assassin.join(timeout=10)
    assert not assassin.is_alive()
    tried = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert len(tried) == len(schedules) + 1  # one was tried twice
    assert len({path.name.split("-")[1] for path in tmp_path.iterdir()}) == 3
    assert capfd.readouterr().out == ""


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


@pytest.mark.parametrize(
    ("workers", "gpus", "message"),
    [
        (9, 0.0, r"--workers 9: needs 9 CPUs, the Ray cluster has 8"),
        (6, 0.5, r"--workers 6: needs 3 GPUs, the Ray cluster has 2"),
    ],
)
def test_a_cluster_that_is_too_small_is_named_with_what_it_lacks(
    monkeypatch, workers, gpus, message
):
    closed = []
    cluster = SimpleNamespace(
        init=lambda **settings: None,
        cluster_resources=lambda: {"CPU": 8.0, "GPU": 2.0},
        shutdown=lambda: closed.append(True),
    )
    monkeypatch.setattr(ray_pool, "_import_ray", lambda address: cluster)
    with pytest.raises(ConfigError, match=message):
        RayExecutor(score_factory, workers, address="10.0.0.1:6379", gpus_per_worker=gpus)
    assert closed


@pytest.mark.parametrize("error", [ConnectionError("refused"), ValueError("a\nb"), RuntimeError()])
def test_a_cluster_that_cannot_be_reached_is_named(monkeypatch, error):
    def init(**settings):
        raise error

    cluster = SimpleNamespace(init=init, shutdown=lambda: None)
    monkeypatch.setattr(ray_pool, "_import_ray", lambda address: cluster)
    with pytest.raises(ConfigError, match=r"cannot reach 10\.0\.0\.1:6379") as caught:
        RayExecutor(score_factory, 1, address="10.0.0.1:6379")
    assert "\n" not in str(caught.value)


def score_factory():
    return score


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
