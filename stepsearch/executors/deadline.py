"""How long a candidate may take: seconds grow with its cost, at the rate of those that finished."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

WINDOW = 64  # latest attempts that a rate is measured from


@dataclass(frozen=True, slots=True)
class Limits:
    """When an attempt counts as hung.

    Attempt k may take `factor` times `patience`^(k - 1) what was predicted: 8, 12, 18 times by
    default. Honest times of equal candidates differ less, a node that is 20 times slower does not.
    """

    first: float = 6 * 3600.0  # seconds, until `enough` attempts have finished
    least: float = 10.0  # seconds; below it times are those of Ray and of the operating system
    factor: float = 8.0
    patience: float = 1.5
    enough: int = 5


@dataclass(slots=True)
class Rates:
    """Measured rates, one for each rung of the fidelity ladder."""

    limits: Limits = field(default_factory=Limits)
    _seen: dict[int | None, deque[tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=WINDOW))
    )
    _lines: dict[int | None, _Line] = field(default_factory=dict)

    def note(self, rung: int | None, cost: float, seconds: float) -> None:
        """An attempt that ended after `seconds`, or was ended then.

        Those that were ended count as well: where the machines have become slower the prediction
        follows, and a few that hang do not move a median.
        """
        self._seen[rung].append((cost, seconds))
        self._lines.pop(rung, None)

    def limit(self, rung: int | None, cost: float, tries: int) -> float:
        """Seconds that attempt number `tries` may take."""
        if len(self._seen[rung]) < self.limits.enough:
            return self.limits.first
        if rung not in self._lines:
            self._lines[rung] = _Line.of(self._seen[rung])
        slack = self.limits.factor * self.limits.patience ** (tries - 1)
        return max(self.limits.least, slack * self._lines[rung].seconds(cost))


@dataclass(frozen=True, slots=True)
class _Line:
    """seconds = base + slope * cost, neither negative, up to the dearest that was measured."""

    base: float
    slope: float
    dearest: float

    @classmethod
    def of(cls, seen: Sequence[tuple[float, float]]) -> _Line:
        """The line of median slopes (Theil 1950), which three in ten outliers do not move."""
        from scipy.stats import theilslopes  # slow to import, and workers do without

        cost, seconds = np.array(seen).T
        slope = 0.0
        if np.ptp(cost) > 0:
            slope = max(0.0, float(theilslopes(seconds, cost).slope))
        base = max(0.0, float(np.median(seconds - slope * cost)))
        return cls(base, slope, float(cost.max()))

    def seconds(self, cost: float) -> float:
        """Beyond the dearest in proportion to the cost: no line with a base rises faster."""
        measured = self.base + self.slope * min(cost, self.dearest)
        return measured * (max(1.0, cost / self.dearest) if self.dearest > 0 else 1.0)
