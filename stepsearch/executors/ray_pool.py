"""Scores schedules on Ray actors, one per worker.

Ray retries nothing by itself (`max_task_retries=0`): a schedule whose worker died is put back in
the queue here, with its attempts counted, and the worker is replaced. So one poisonous schedule
costs three workers and no more, and a lost node cannot leave tasks hanging (Ray 2.60).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from stepsearch.cluster import connect, prepare_ray
from stepsearch.core.errors import StepsearchError
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.trial import Failure, Measurement
from stepsearch.executors.local import ATTEMPTS, Score, Trouble, attempt, note_trouble

START_SECONDS = 300.0  # for all workers to load their networks


def _import_ray(address: str | None) -> Any:
    """Ray, with the settings that it reads when it is imported."""
    prepare_ray(address)
    import ray

    return ray


class _Worker:
    """Lives in its own process; builds the scoring function once."""

    def __init__(self, factory: Callable[[], Score]) -> None:
        self._score = factory()

    def ready(self) -> int:
        return os.getpid()

    def score(self, schedule: StepSchedule) -> Measurement | Trouble:
        return attempt(self._score, schedule)


class RayExecutor:
    """A pool of `workers` actors on a new local Ray, or on the cluster at `address`.

    Once `stopping` is true nothing new is begun, and `map` ends when the running ones have.

    Raises:
        ConfigError: a cluster that has too few CPUs or GPUs, or none at `address`.
        StepsearchError: workers that cannot start.
    """

    def __init__(
        self,
        factory: Callable[[], Score],
        workers: int,
        *,
        address: str | None = None,
        gpus_per_worker: float = 0.0,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._factory, self._gpus, self._stopping = factory, gpus_per_worker, stopping
        self._ray = _import_ray(address)
        self._stack = contextlib.ExitStack()
        # Ray prints what its raylet says of dead workers to stdout, which belongs to data
        self._stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        try:
            connect(self._ray, workers, address, gpus=gpus_per_worker)
            self._idle = deque(self._start() for _ in range(workers))
            self.pids: list[int] = self._wait_ready()
        except BaseException:
            self.close()
            raise

    def _start(self) -> Any:
        remote = self._ray.remote(
            num_cpus=1, num_gpus=self._gpus, max_restarts=0, max_task_retries=0
        )(_Worker)
        return remote.remote(self._factory)

    def _wait_ready(self) -> list[int]:
        try:
            return list(
                self._ray.get([w.ready.remote() for w in self._idle], timeout=START_SECONDS)
            )
        except self._ray.exceptions.RayError as error:
            lines = [line for line in str(error).strip().splitlines() if line.strip()]
            raise StepsearchError(f"ray: workers cannot start: {lines[-1].strip()}") from None

    def map(self, schedules: Iterable[StepSchedule]) -> Iterator[tuple[str, Measurement | Failure]]:
        """Results as they are finished."""
        queue = deque((schedule, 1) for schedule in schedules)
        running: dict[Any, tuple[Any, StepSchedule, int]] = {}
        while queue or running:
            if self._stopping():
                queue.clear()
                if not running:
                    return
            while queue and self._idle:
                schedule, tries = queue.popleft()
                worker = self._idle.popleft()
                running[worker.score.remote(schedule)] = (worker, schedule, tries)
            done, _ = self._ray.wait(list(running), num_returns=1)
            for ref in done:
                worker, schedule, tries = running.pop(ref)
                result = self._collect(ref, worker)
                if isinstance(result, Measurement):
                    yield schedule.key(), result
                    continue
                note_trouble(schedule, tries, result)
                if tries < ATTEMPTS:
                    queue.append((schedule, tries + 1))
                else:
                    yield schedule.key(), Failure(result.summary, tries)

    def _collect(self, ref: Any, worker: Any) -> Measurement | Trouble:
        """The worker's answer; a dead worker is replaced."""
        try:
            result: Measurement | Trouble = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            with contextlib.suppress(ValueError):  # already gone
                self._ray.kill(worker)
            self._idle.append(self._start())
            return Trouble(f"worker died ({type(error).__name__})", str(error))
        self._idle.append(worker)
        return result

    def close(self) -> None:
        """Stop the workers, and Ray itself if it was started here."""
        self._ray.shutdown()
        self._stack.close()
