"""Scores schedules in this process, one after the other."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator

from stepsearch.core.schedule import StepSchedule
from stepsearch.core.trial import Failure, Measurement

ATTEMPTS = 3  # a schedule that fails so often is a failed trial

Score = Callable[[StepSchedule], Measurement]
log = logging.getLogger(__name__)


def attempt(score: Score, schedule: StepSchedule) -> Measurement | str:
    """The measurement, or one line on why there is none; the traceback goes to the log.

    This is the boundary behind which a candidate may fail in any way without ending the search.
    """
    try:
        return score(schedule)
    except Exception as error:
        log.warning("schedule %s failed\n%s", schedule.key(), traceback.format_exc())
        first = (str(error).strip().splitlines() or [""])[0]
        return f"{type(error).__name__}: {first}"


class LocalExecutor:
    """`factory` builds the scoring function once, when the first schedule arrives."""

    def __init__(self, factory: Callable[[], Score]) -> None:
        self._factory = factory
        self._score: Score | None = None

    def map(self, schedules: Iterable[StepSchedule]) -> Iterator[tuple[str, Measurement | Failure]]:
        """Results in the order of `schedules`."""
        for schedule in schedules:
            if self._score is None:
                self._score = self._factory()
            for _ in range(ATTEMPTS):
                result = attempt(self._score, schedule)
                if isinstance(result, Measurement):
                    break
            yield schedule.key(), Failure(result, ATTEMPTS) if isinstance(result, str) else result

    def close(self) -> None:
        """Nothing to release."""
