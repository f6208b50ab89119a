"""Scores schedules in this process, one after the other."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from stepsearch.core.schedule import StepSchedule
from stepsearch.core.trial import Failure, Measurement, NonFinite

ATTEMPTS = 3  # a schedule that fails so often is a failed trial

Score = Callable[..., Measurement]  # of a schedule, or of a schedule and a rung
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why an attempt gave no measurement: one line for the table, the rest for the log."""

    summary: str
    details: str = ""
    kind: str = "error"  # one of FAIL_KINDS

    @property
    def final(self) -> bool:
        """Whether another attempt would end the same: the same arithmetic, the same numbers.

        Any other trouble may be the machine's: memory that neighbours took, a file that was away.
        """
        return self.kind == "nonfinite"


def attempt(score: Score, schedule: StepSchedule, rung: int | None = None) -> Measurement | Trouble:
    """Score a schedule; a candidate may fail in any way without ending the search."""
    try:
        return score(schedule) if rung is None else score(schedule, rung)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return Trouble(f"{type(error).__name__}: {first}", traceback.format_exc(), _kind(error))


def _kind(error: Exception) -> str:
    names = {cls.__name__ for cls in type(error).__mro__}
    # torch's errors by name, as torch may not be there: of a GPU, and of the CPU's allocator
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names:
        return "memory"
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
        return "memory"
    return "nonfinite" if isinstance(error, NonFinite) else "error"


def note_trouble(schedule: StepSchedule, tries: int, trouble: Trouble) -> None:
    """Write a failed attempt to the log."""
    log.warning(
        "schedule %s, attempt %d: %s\n%s", schedule.key(), tries, trouble.summary, trouble.details
    )


class LocalExecutor:
    """`factory` builds the scoring function once, when the first schedule arrives.

    Once `stopping` is true nothing new is begun, and `map` ends early. There is no time limit: a
    schedule that hangs hangs this process.
    """

    def __init__(
        self, factory: Callable[[], Score], *, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._factory, self._stopping = factory, stopping
        self._score: Score | None = None

    def map(
        self, schedules: Iterable[StepSchedule], rung: int | None = None
    ) -> Iterator[tuple[str, Measurement | Failure]]:
        """Results in the order of `schedules`, each taken when the result before was used."""
        source = iter(schedules)
        while not self._stopping() and (schedule := next(source, None)) is not None:
            if self._score is None:
                self._score = self._factory()
            result = self._result(self._score, schedule, rung)
            if result is None:
                return
            yield schedule.key(), result

    def _result(
        self, score: Score, schedule: StepSchedule, rung: int | None
    ) -> Measurement | Failure | None:
        """None where it failed and is not to be tried again because the run stops."""
        tries = 0
        while True:
            outcome = attempt(score, schedule, rung)
            if isinstance(outcome, Measurement):
                return outcome
            tries += 1
            note_trouble(schedule, tries, outcome)
            if outcome.final or tries == ATTEMPTS:
                return Failure(outcome.summary, tries, kind=outcome.kind)
            if self._stopping():
                return None

    def close(self) -> None:
        """Nothing to release."""
