"""Results that are known already, before an executor is asked for the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from stepsearch.core.protocols import Executor
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.trial import Failure, Measurement


class RememberedExecutor:
    """Yields what is in `known` by schedule key, and has `executor` score the rest."""

    def __init__(self, executor: Executor, known: Mapping[str, Measurement]) -> None:
        self._executor, self._known = executor, known

    def map(
        self, schedules: Iterable[StepSchedule], rung: int | None = None
    ) -> Iterator[tuple[str, Measurement | Failure]]:
        """Results of full evaluations may be known, those of rungs never are."""
        ready: deque[tuple[str, Measurement | Failure]] = deque()

        def unknown() -> Iterator[StepSchedule]:
            for schedule in schedules:
                key = schedule.key()
                if rung is None and key in self._known:
                    ready.append((key, self._known[key]))
                else:
                    yield schedule

        for result in self._executor.map(unknown(), rung):
            while ready:
                yield ready.popleft()
            yield result
        while ready:
            yield ready.popleft()

    def close(self) -> None:
        """Release the workers of the executor."""
        self._executor.close()
