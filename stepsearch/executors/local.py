"""Scores schedules in this process, one after the other."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from stepsearch.core.schedule import StepSchedule
from stepsearch.core.trial import Failure, Measurement

ATTEMPTS = 3  # a schedule that fails so often is a failed trial

Score = Callable[[StepSchedule], Measurement]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why an attempt gave no measurement: one line for the table, the rest for the log."""

    summary: str
    details: str = ""


def attempt(score: Score, schedule: StepSchedule) -> Measurement | Trouble:
    """Score a schedule; a candidate may fail in any way without ending the search."""
    try:
        return score(schedule)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return Trouble(f"{type(error).__name__}: {first}", traceback.format_exc())


def note_trouble(schedule: StepSchedule, tries: int, trouble: Trouble) -> None:
    """Write a failed attempt to the log."""
    log.warning(
        "schedule %s, attempt %d: %s\n%s", schedule.key(), tries, trouble.summary, trouble.details
    )


class LocalExecutor:
    """`factory` builds the scoring function once, when the first schedule arrives.

    Once `stopping` is true nothing new is begun, and `map` ends early.
    """

    def __init__(
        self, factory: Callable[[], Score], *, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._factory, self._stopping = factory, stopping
        self._score: Score | None = None

    def map(self, schedules: Iterable[StepSchedule]) -> Iterator[tuple[str, Measurement | Failure]]:
        """Results in the order of `schedules`."""
        for schedule in schedules:
            if self._stopping():
                return
            if self._score is None:
                self._score = self._factory()
            yield schedule.key(), self._result(self._score, schedule)

    def _result(self, score: Score, schedule: StepSchedule) -> Measurement | Failure:
        trouble = Trouble("never tried")
        for tries in range(1, ATTEMPTS + 1):
            outcome = attempt(score, schedule)
            if isinstance(outcome, Measurement):
                return outcome
            trouble = outcome
            note_trouble(schedule, tries, trouble)
        return Failure(trouble.summary, ATTEMPTS)

    def close(self) -> None:
        """Nothing to release."""
