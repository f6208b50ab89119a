"""What a person sees while something runs: live lines on a terminal, a line a minute elsewhere.

Everything goes to stderr; stdout belongs to data.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from stepsearch.search import Progress
from stepsearch.tables import counting_text

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

EVERY = 60.0  # seconds between lines where there is no terminal
PATIENCE = 2.0  # seconds before `delayed` shows anything


class Display:
    """Shows stages one after the other; use as a context manager."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._started = self._last = time.monotonic()
        self._best: tuple[float, float] | None = None
        self._counting = ""
        self._first: int | None = None  # step of this training

    def __enter__(self) -> Display:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Bar(
                *columns,
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def stage(self, name: str, total: int) -> None:
        """Begin something of `total` steps; the one before is finished."""
        self._started = self._last = time.monotonic()
        self._first = None
        if self._bar is None:
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=total, note="")

    def advance(self, name: str, done: int, total: int) -> None:
        """`done` of `total` like pieces of work are finished."""
        self._advance(name, done, total, done, "")

    def training(self, step: int, total: int, losses: Mapping[float, float]) -> None:
        """One optimiser step, its loss per width."""
        shown = " ".join(f"{w:g}:{loss:.3f}" for w, loss in sorted(losses.items()))
        if self._first is None:
            self._first = step  # one that is resumed starts later
        measured = step - self._first + 1
        self._advance("training", step, total, measured, f"loss per width {shown}")

    def trial(self, p: Progress) -> None:
        """One finished trial."""
        values = p.latest.result.values if p.latest.complete else {}
        if "fid" in values and (self._best is None or values["fid"] < self._best[0]):
            self._best = (values["fid"], values.get("gflops_per_image", float("nan")))
            self._counting = counting_text([p.latest.result.counting])
        measured = p.done - p.replayed
        elapsed = max(time.monotonic() - self._started, 1e-9)
        note = f"generation {p.generation + 1}/{p.generations}, "
        note += f"{3600 * measured / elapsed:.0f} trials/h"
        if self._best is not None:
            note += f", best FID {self._best[0]:.2f} at {self._best[1]:.3g} GFLOPs{self._counting}"
        if p.failed:
            note += f", {p.failed} failed"
        self._advance("search", p.done, p.planned, measured, note)

    def _advance(self, name: str, done: int, total: int, measured: int, note: str) -> None:
        now = time.monotonic()
        left = (now - self._started) / max(measured, 1) * (total - done)
        note = f"{note}, ETA {clock(left)}".removeprefix(", ")
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif now - self._last >= EVERY:
            self._last = now
            print(f"{name}: {done}/{total}, {note}", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def delayed(display: Display, name: str) -> Callable[[int, int], None]:
    """Shows progress from the third second on: what is over sooner needs none."""
    start, shown = time.monotonic(), False

    def advance(done: int, total: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - start > PATIENCE:
            display.stage(name, total)
            shown = True
        if shown:
            display.advance(name, done, total)

    return advance
