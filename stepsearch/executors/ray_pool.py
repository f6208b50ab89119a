"""Scores schedules on Ray actors, one per worker.

Ray retries nothing by itself (`max_task_retries=0`): a schedule whose worker died, or did not
answer in time, is put back in the queue here, with its attempts counted, and the worker is
replaced. So one poisonous schedule costs three workers and no more, and a lost node cannot leave
tasks hanging (Ray 2.60).
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stepsearch.cluster import Head, connect, find_address, prepare_ray
from stepsearch.core.errors import Interrupted, StepsearchError
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.trial import Failure, Measurement
from stepsearch.executors.deadline import Limits, Rates
from stepsearch.executors.local import ATTEMPTS, Score, Trouble, attempt, note_trouble
from stepsearch.executors.pool import Pool, Worker
from stepsearch.executors.shipped import Shipped, place_files, read_files

START_SECONDS = 300.0  # for a worker to load its networks, and to be replaced when all are gone
STARTS = 3  # in a row that fail before there is nothing to hope for
OTHERS_SECONDS = 30.0  # that those who are ready wait for the others, once
POLL_SECONDS = 0.5  # between looks at signals, limits and the head of the cluster
HEAD_SECONDS = 20.0  # that the head may be silent; at 60 Ray ends the process

LATE = Trouble("no result within its time limit", kind="timeout")
AGAIN = "nothing finished is lost, continue with `stepsearch resume` of this run"


def _import_ray(address: str | None) -> Any:
    """Ray, with the settings that it reads when it is imported."""
    prepare_ray(address)
    import ray

    return ray


class _Actor:
    """Lives in its own process; builds the scoring function once."""

    def __init__(self, factory: Callable[..., Score], files: Sequence[Shipped]) -> None:
        import ray

        def fetch(reference: Any) -> memoryview:
            return memoryview(ray.get(reference))

        self._score = factory(place_files(files, fetch)) if files else factory()
        self._node = ray.get_runtime_context().get_node_id()

    def ready(self) -> tuple[int, str]:
        return os.getpid(), self._node

    def score(self, schedule: StepSchedule, rung: int | None) -> Measurement | Trouble:
        return attempt(self._score, schedule, rung)


@dataclass(eq=False, slots=True)
class _Batch:
    """The schedules of one `map`."""

    source: Iterator[StepSchedule]
    rung: int | None
    retries: deque[_Task] = field(default_factory=deque)
    closed: bool = False  # nothing more is taken from the source

    def close(self) -> None:
        """Begin nothing more."""
        self.retries.clear()
        self.closed = True


@dataclass(frozen=True, slots=True)
class _Task:
    """A schedule on its way, and what became of it so far."""

    batch: _Batch
    schedule: StepSchedule
    cost: float
    tries: int = 1
    nodes: tuple[str, ...] = ()  # where attempts failed
    died: tuple[str, ...] = ()  # where workers died of it, or with their node


@dataclass(frozen=True, slots=True)
class _Run:
    """An attempt that is being made."""

    task: _Task
    worker: Worker
    since: float


class RayExecutor:
    """A pool of `workers` actors on a new local Ray, or on the cluster at `address`.

    Once `stopping` is true nothing new is begun, and `map` ends when the running ones have, or have
    come to their limits.

    Args:
        factory: builds the scoring function, in every worker; called with a mapping from the paths
            of `files` to where they are on that worker's node if there are `files`.
        files: (path, sha256) of what the factory reads, sent to nodes that do not have it.
        cost: what the time of a schedule grows with, GFLOPs; None where all take the same time.
        limits: when an attempt counts as hung.

    Raises:
        ConfigError: a cluster that has too few CPUs or GPUs, or none at `address`.
        StepsearchError: workers that cannot start.
    """

    def __init__(
        self,
        factory: Callable[..., Score],
        workers: int,
        *,
        address: str | None = None,
        gpus_per_worker: float = 0.0,
        stopping: Callable[[], bool] = lambda: False,
        files: Iterable[tuple[str, str]] = (),
        cost: Callable[[StepSchedule], float] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._stopping = stopping
        self._cost = cost or (lambda schedule: 1.0)
        self._rates = Rates(limits or Limits())
        self._running: dict[Any, _Run] = {}
        self._batch: _Batch | None = None
        self._ray = _import_ray(address)
        self._stack = contextlib.ExitStack()
        # Ray prints what its raylet says of dead workers to stdout, which belongs to data
        self._stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        try:
            address = find_address(address)
            connect(self._ray, workers, address, gpus=gpus_per_worker)
            self._pool = Pool(
                self._ray, self._starter(factory, files, gpus_per_worker, address), workers
            )
            self._head = Head(self._ray.get_runtime_context().gcs_address)
            self._looked = time.monotonic()
            self._wait_ready(workers)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Processes of the workers that are ready, on whatever node."""
        return [worker.pid for worker in self._pool.ready]

    def _starter(
        self,
        factory: Callable[..., Score],
        files: Iterable[tuple[str, str]],
        gpus: float,
        address: str | None,
    ) -> Callable[[], Any]:
        """Starts an actor, somewhere, without waiting for it."""
        shipped: Sequence[Shipped] = ()
        if files := dict(files):
            if address is None:  # workers of this machine read them where they lie
                factory = functools.partial(factory, {path: path for path in files})
            else:
                shipped = read_files(
                    files.items(), lambda data: self._ray.put(np.frombuffer(data, np.uint8))
                )
        remote = self._ray.remote(
            num_cpus=1,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )(_Actor)
        return lambda: remote.remote(factory, shipped)

    def _wait_ready(self, workers: int) -> None:
        """Return when all workers are ready, or some are and the others take their time."""
        begun = time.monotonic()
        self._pool.fill()
        while len(self._pool.ready) < workers and not self._stopping():
            waited = time.monotonic() - begun
            if self._pool.ready and waited > OTHERS_SECONDS:
                return
            # a start may have met a node that was just lost, and goes elsewhere the next time
            if self._pool.failed_starts >= max(workers, STARTS) or waited > START_SECONDS:
                raise StepsearchError(f"ray: workers cannot start: {self._pool.trouble}")
            self._take_in()
            self._pool.fill()

    def map(
        self, schedules: Iterable[StepSchedule], rung: int | None = None
    ) -> Iterator[tuple[str, Measurement | Failure]]:
        """Results as they are finished.

        Raises:
            Interrupted: the cluster is gone, or all of its workers are.
        """
        # what an earlier map, left before its end, has running goes on and is ignored
        self._batch = batch = _Batch(iter(schedules), rung)
        while True:
            if self._stopping():
                batch.close()
            self._hand_out(batch)
            if not batch.retries and batch.closed and not self._runs(batch):
                return
            for run, outcome in [*self._take_in(), *self._look()]:
                if run.task.batch is not batch:
                    continue
                result = self._judge(run, outcome)
                if result is not None:
                    yield run.task.schedule.key(), result

    def _runs(self, batch: _Batch) -> bool:
        return any(run.task.batch is batch for run in self._running.values())

    def _hand_out(self, batch: _Batch) -> None:
        """Give idle workers what is waiting: what is to be tried again first, then new ones."""
        self._pool.fill()
        while (chosen := self._retry(batch) or self._new(batch)) is not None:
            task, worker = chosen
            promise = worker.handle.score.remote(task.schedule, batch.rung)
            self._running[promise] = _Run(task, worker, time.monotonic())

    def _retry(self, batch: _Batch) -> tuple[_Task, Worker] | None:
        for task in batch.retries:
            if (worker := self._pool.free(avoid=task.nodes)) is not None:
                batch.retries.remove(task)
                return task, worker
        return None

    def _new(self, batch: _Batch) -> tuple[_Task, Worker] | None:
        if batch.closed or (worker := self._pool.free()) is None:
            return None
        schedule = next(batch.source, None)
        if schedule is None:
            batch.closed = True
            self._pool.release(worker)
            return None
        return _Task(batch, schedule, self._cost(schedule)), worker

    def _take_in(self) -> list[tuple[_Run, Measurement | Trouble]]:
        """What has ended, waiting a little for the first; a worker that is gone is discarded."""
        waiting = [*self._running, *self._pool.starting]
        if not waiting:
            time.sleep(POLL_SECONDS)
            return []
        ended = []
        for promise in self._ray.wait(waiting, num_returns=1, timeout=POLL_SECONDS)[0]:
            if promise in self._pool.starting:
                self._pool.answered(promise)
            else:
                run = self._running.pop(promise)
                ended.append((run, self._outcome(promise, run)))
        return ended

    def _outcome(self, promise: Any, run: _Run) -> Measurement | Trouble:
        known = self._ray.exceptions
        try:
            outcome: Measurement | Trouble = self._ray.get(promise)
        except known.RayTaskError as error:  # the worker lives: what it has found cannot be sent
            self._pool.release(run.worker)
            return Trouble(f"no answer: {str(error).strip().splitlines()[-1]}", str(error))
        except known.RayError as error:
            self._pool.discard(run.worker)
            if isinstance(error, known.OutOfMemoryError):
                return Trouble("worker killed: its node ran out of memory", str(error), "memory")
            return Trouble("worker died", f"{type(error).__name__}: {error}", "died")
        if isinstance(outcome, Measurement):
            self._rates.note(run.task.batch.rung, run.task.cost, time.monotonic() - run.since)
            self._pool.in_time(run.worker)
        self._pool.release(run.worker)
        return outcome

    def _look(self) -> list[tuple[_Run, Trouble]]:
        """From time to time: end attempts that take too long; is the cluster still there?"""
        now = time.monotonic()
        if now - self._looked < POLL_SECONDS:
            return []
        self._looked = now
        if self._head.gone_for() > HEAD_SECONDS:
            raise Interrupted(f"ray: the head of the cluster has not answered for long; {AGAIN}")
        if self._pool.lost_for() > START_SECONDS:
            raise Interrupted(
                f"ray: all workers are gone and none could start in {START_SECONDS:g} seconds "
                f"({self._pool.trouble}); {AGAIN}"
            )
        late = []
        for promise, run in list(self._running.items()):
            task, seconds = run.task, now - run.since
            if seconds <= self._rates.limit(task.batch.rung, task.cost, task.tries):
                continue
            if not self._ray.wait([promise], timeout=0)[0]:  # this process may itself be late
                del self._running[promise]  # should it still answer, nobody listens
                self._pool.discard(run.worker, late=True)
                self._rates.note(task.batch.rung, task.cost, seconds)
                late.append((run, LATE))
        return late

    def _judge(self, run: _Run, outcome: Measurement | Trouble) -> Measurement | Failure | None:
        """The result, or None where the schedule is put back to be tried again."""
        task, node = run.task, run.worker.node
        if isinstance(outcome, Measurement):
            return outcome
        note_trouble(task.schedule, task.tries, outcome)
        died = (*task.died, node) if outcome.kind == "died" else task.died
        if outcome.final or task.tries >= ATTEMPTS + self._excused(task.tries, died):
            return Failure(outcome.summary, task.tries, kind=outcome.kind)
        if not self._stopping():
            again = replace(task, tries=task.tries + 1, nodes=(*task.nodes, node), died=died)
            task.batch.retries.append(again)
        return None

    def _excused(self, tries: int, died: Sequence[str]) -> int:
        """Attempts that ended because a node was lost, so many as a candidate may blame on it."""
        if tries < ATTEMPTS or not died or self._head.gone_for() > 0:
            return 0
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        return min(ATTEMPTS, sum(node not in alive for node in died))

    def close(self) -> None:
        """Stop the workers, and Ray itself if it was started here."""
        self._ray.shutdown()
        self._stack.close()
