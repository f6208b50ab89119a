"""What a few-step network was distilled for: where, and at which widths, it may be asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from stepsearch.core.errors import SpaceError

SLACK = 0.01  # relative; a level means the nearest trained time, and is typed with few digits


@dataclass(frozen=True, slots=True)
class Distilled:
    """Noise levels and widths that a student was trained at, on its card.

    `levels` descend; with `dense` the student was trained everywhere between the first and the
    last, otherwise at these alone. `widths` belong to equal parts of the range of log noise level,
    most noise first; empty where all widths were trained at once.
    """

    teacher: str  # key of the network it was distilled from
    levels: tuple[float, ...]
    widths: tuple[float, ...] = (1.0,)
    dense: bool = True

    def __post_init__(self) -> None:
        levels = self.levels
        falling = all(a > b for a, b in pairwise(levels))
        if not levels or not falling or not (levels[-1] > 0 and math.isfinite(levels[0])):
            raise SpaceError(f"distilled: levels must descend and be positive, got {levels}")
        if not all(0 < width <= 1 for width in self.widths):
            raise SpaceError(f"distilled: widths must lie in (0, 1], got {self.widths}")

    def width_at(self, level: float) -> float | None:
        """The width that is distilled at a noise level; None where every width is."""
        if not self.widths:
            return None
        top, bottom = math.log(self.levels[0]), math.log(self.levels[-1])
        if top == bottom:
            return self.widths[0]
        part = int((top - math.log(level)) / (top - bottom) * len(self.widths))
        return self.widths[min(max(part, 0), len(self.widths) - 1)]

    def check_levels(self, name: str, levels: Sequence[float]) -> None:
        """SpaceError for a call where the student of that name was not trained."""
        high, low = self.levels[0], self.levels[-1]
        for level in levels:
            if self.dense and low * (1 - SLACK) <= level <= high * (1 + SLACK):
                continue
            if not self.dense and any(abs(level - own) <= SLACK * own for own in self.levels):
                continue
            listed = ", ".join(f"{own:g}" for own in self.levels)
            where = f"{low:g} .. {high:g}" if self.dense else listed
            raise SpaceError(
                f"network '{name}' was distilled at noise levels {where}, not at {level:g}; "
                f"choose a grid within them"
            )
