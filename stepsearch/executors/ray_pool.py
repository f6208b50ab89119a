"""Scores schedules on Ray actors, one per worker.

Ray retries nothing by itself (`max_task_retries=0`): a schedule whose worker died is put back in
the queue here, with its attempts counted, and the worker is replaced. So one poisonous schedule
costs three workers and no more, and a lost node cannot leave tasks hanging (Ray 2.60).
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from stepsearch.core.errors import ConfigError, StepsearchError
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.trial import Failure, Measurement
from stepsearch.executors.local import ATTEMPTS, Score, Trouble, attempt, note_trouble

REACH_SECONDS = 10.0  # for an address to answer at all
START_SECONDS = 300.0  # for all workers to load their networks
STORE_BYTES = 200_000_000  # schedules and scores are all that passes through the object store


def _import_ray(address: str | None) -> Any:
    """Ray, with the settings that it reads when it is imported.

    A local cluster of one user needs no token, and with the mode unset Ray 2.60 would write one
    that later clusters demand; a remote cluster gets the token if there is one.
    """
    token = Path.home() / ".ray" / "auth_token"
    mode = "token" if address not in (None, "local") and token.is_file() else "disabled"
    os.environ.setdefault("RAY_AUTH_MODE", mode)
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # workers keep this Python
    os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    return ray


def _check_reachable(address: str) -> None:
    """ConnectionError unless something listens there; Ray itself would wait for ever."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()


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
            self._connect(workers, address)
            self._idle = deque(self._start() for _ in range(workers))
            self.pids: list[int] = self._wait_ready()
        except BaseException:
            self.close()
            raise

    def _connect(self, workers: int, address: str | None) -> None:
        common = {"log_to_driver": False, "logging_level": "ERROR"}
        local = address in (None, "local")
        try:
            if local:
                self._ray.init(
                    address="local",
                    num_cpus=workers,
                    include_dashboard=False,
                    object_store_memory=STORE_BYTES,
                    **common,
                )
            else:
                _check_reachable(str(address))
                self._ray.init(address=address, **common)
        except (OSError, ValueError, RuntimeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"ray: cannot reach {address or 'a local cluster'}: {first}"
            ) from None
        found = self._ray.cluster_resources()
        for kind, needed in (("CPU", workers), ("GPU", workers * self._gpus)):
            if found.get(kind, 0) < needed:
                raise ConfigError(
                    f"--workers {workers}: needs {needed:g} {kind}s, the Ray cluster has "
                    f"{found.get(kind, 0):g}; ask for fewer workers or start more nodes"
                )

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
