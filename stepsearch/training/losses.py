"""The losses of a training run as a table beside its weights, to be plotted.

It is written with every checkpoint, just before it, so that a resumed run continues the table
without a gap and without a step twice.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from stepsearch.core.errors import ConfigError
from stepsearch.core.files import write_atomic

WINDOW = 20  # steps that a row is the mean of
COLUMNS = ("step", "width", "loss", "n_steps")
Row = tuple[int, float, float, int]  # last step, width, mean loss, steps in which it was trained


class LossLog:
    """Mean loss of every width in windows of `WINDOW` steps."""

    def __init__(self, path: Path) -> None:
        self._path, self._last = path, 0
        self._rows: dict[tuple[int, float], Row] = {}  # by window and width
        self._new: list[tuple[int, Mapping[float, float]]] = []  # since the last write

    def add(self, step: int, losses: Mapping[float, float]) -> None:
        """A step that was done; rows of a file that are past it are forgotten."""
        if not self._last:
            kept = [row for row in read_losses(self._path) if row[0] < step]
            self._rows = {(_window(row[0]), row[1]): row for row in kept}
        self._last = step
        self._new.append((step, losses))

    def write(self) -> None:
        """All steps so far, in place of what the file held."""
        for step, losses in self._new:
            for width, loss in losses.items():
                key = (_window(step), width)
                _, _, mean, count = self._rows.get(key, (0, width, 0.0, 0))
                mean = (mean * count + loss) / (count + 1)
                self._rows[key] = (step, width, mean, count + 1)
        self._new = []
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(self._rows[key] for key in sorted(self._rows))
        write_atomic(self._path, text.getvalue().encode())


def read_losses(path: Path) -> list[Row]:
    """Rows of a table; none where there is no file, ConfigError where it is no such table."""
    if not path.is_file():
        return []
    try:
        header, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
        if tuple(header) != COLUMNS:
            raise ValueError(header)
        return [(int(s), float(w), float(loss), int(n)) for s, w, loss, n in rows]
    except ValueError:
        raise ConfigError(f"{path}: no table of losses; move it away or delete it") from None


def recent_losses(path: Path, steps: int) -> dict[str, float]:
    """Mean loss of each width over the last `steps` steps of a table, by its name."""
    rows = read_losses(path)
    since = max((step for step, *_ in rows), default=0) - steps
    sums: dict[float, tuple[float, int]] = {}
    for step, width, loss, count in rows:
        if step > since:
            total, steps_of = sums.get(width, (0.0, 0))
            sums[width] = (total + loss * count, steps_of + count)
    # digits that do not tell a run that was stopped and resumed from one that was not
    return {f"{w:g}": float(f"{total / n:.6g}") for w, (total, n) in sorted(sums.items())}


def _window(step: int) -> int:
    return (step - 1) // WINDOW
