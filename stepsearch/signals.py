"""Stopping in good order: a first signal finishes what is running, a second one stops at once."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from stepsearch.core.errors import Interrupted

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # SLURM warns with SIGUSR1
TOGETHER = 0.2  # seconds: timeout(1) signals a process, then its group, and means one stop


class Signals:
    """Turns signals into a flag that is asked at safe points; use as a context manager.

    Nothing is raised inside a handler: an exception in the middle of Ray's compiled code, or of a
    write, is no good order.
    """

    def __init__(self, again: str) -> None:
        self._again = again  # what continues, in words
        self._got: str | None = None
        self._at = 0.0  # seconds, of a clock that is never set back
        self._before = {n: signal.getsignal(n) for n in NUMBERS}

    def __enter__(self) -> Signals:
        self.install(self._again)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self, again: str) -> None:
        """Put the handlers in place, over any that a library has set since."""
        self._again = again
        for number in NUMBERS:
            signal.signal(number, self._handle)

    def stopping(self) -> bool:
        """Whether a signal has come."""
        return self._got is not None

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._got is not None:
            raise Interrupted(
                f"stopped by {self._got}; nothing finished is lost, continue with {self._again}"
            )

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._got is not None:
            if now - self._at > TOGETHER:
                os._exit(130)
            return
        self._got, self._at = signal.Signals(number).name, now
        text = f"stepsearch: {self._got}: finishing what is running; once more to stop at once\n"
        os.write(2, text.encode())
