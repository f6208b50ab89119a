"""Actors that come and go: each is asked whether it is ready, none is waited for.

An actor that is gone is replaced by a new one, wherever there is room (`max_restarts=0`): Ray would
restart it where it was, and hand work to it before it is there.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

BACKOFF_SECONDS = 1.0, 30.0  # before another start after one that failed: first, most

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Worker:
    """An actor that has answered."""

    handle: Any
    pid: int
    node: str


class Pool:
    """As many actors as are wanted, as far as they can be had.

    Args:
        ray: the module, connected.
        start: makes one more actor; returns at once.
        wanted: number of actors.
    """

    def __init__(self, ray: Any, start: Callable[[], Any], wanted: int) -> None:
        self._ray, self._start, self._wanted = ray, start, wanted
        self.starting: dict[Any, Any] = {}  # promise of an answer -> actor
        self.ready: list[Worker] = []
        self._idle: list[Worker] = []
        self._slow: Counter[str] = Counter()  # attempts that a node did not end in time, in a row
        self.failed_starts = 0  # in a row
        self.trouble = "none has answered yet"
        self._alive_at, self._next_start = time.monotonic(), 0.0

    def fill(self) -> None:
        """Start what is missing; after a start that failed, only some time later."""
        if time.monotonic() < self._next_start:
            return
        for _ in range(self._wanted - len(self.ready) - len(self.starting)):
            handle = self._start()
            self.starting[handle.ready.remote()] = handle

    def answered(self, promise: Any) -> None:
        """Take in an actor whose promise is kept or broken."""
        handle = self.starting.pop(promise)
        try:
            pid, node = self._ray.get(promise)
        except self._ray.exceptions.RayError as error:
            self._failed(error)
            return
        worker = Worker(handle, pid, node)
        self.failed_starts = 0
        self.ready.append(worker)
        self._idle.append(worker)

    def _failed(self, error: Exception) -> None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        self.trouble = lines[-1] if lines else type(error).__name__
        self.failed_starts += 1
        first, most = BACKOFF_SECONDS
        pause = min(most, first * 2 ** (self.failed_starts // self._wanted))
        self._next_start = time.monotonic() + pause
        log.warning("a worker could not start: %s", error)

    def lost_for(self) -> float:
        """Seconds since there was a worker; 0 while there is one."""
        return 0.0 if self.ready else time.monotonic() - self._alive_at

    def free(self, avoid: Collection[str] = ()) -> Worker | None:
        """Take an idle worker, one of a node that keeps its times first.

        None where all are busy, or all idle ones are on nodes to `avoid` while there are others.
        """
        allowed = [worker for worker in self._idle if worker.node not in avoid]
        if not allowed:
            if any(worker.node not in avoid for worker in self.ready):
                return None
            allowed = self._idle
        if not allowed:
            return None
        worker = min(allowed, key=lambda w: self._slow[w.node])
        self._idle.remove(worker)
        return worker

    def release(self, worker: Worker) -> None:
        """The worker may have more work."""
        self._idle.append(worker)

    def in_time(self, worker: Worker) -> None:
        """The worker's node kept to its time."""
        self._slow.pop(worker.node, None)

    def discard(self, worker: Worker, *, late: bool = False) -> None:
        """End a worker that is dead, or has not answered in time."""
        self.ready.remove(worker)
        self._alive_at = time.monotonic()
        self._slow[worker.node] += late
        with contextlib.suppress(self._ray.exceptions.RayError, ValueError):  # already gone
            self._ray.kill(worker.handle)
