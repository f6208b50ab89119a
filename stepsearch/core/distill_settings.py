"""Validated settings of a distillation: how a few-step student is made from a supernet."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from stepsearch.core.errors import ConfigError

# level of the smoothing: drawn alone, drawn but at most the student's level, or that very level
SMOOTHINGS = ("independent", "capped", "tied")
MOST = 10.0  # of a log noise level


@dataclass(frozen=True, slots=True)
class DistillConfig:
    """One distillation; a step is one update of the student and `score_updates` of its score.

    Raises:
        ConfigError: a value that makes no sense, by its name in a recipe.
    """

    steps: int
    batch: int = 128
    learning_rate: float = 1e-4  # peak, as of `pace`
    score_learning_rate: float | None = None  # None is that of the student
    warmup: int = 100  # steps
    ema: float = 0.999  # cap of the averaging decay of the student
    grad_clip: float = 1.0  # global L2 norm
    seed: int = 0
    checkpoint_every: int = 500  # steps
    threads: int = 1  # on a CPU; fixed, so that the same recipe gives the same weights
    levels: tuple[float, ...] = ()  # the only ones the student is for, descending; empty is dense
    high: float = 20.0  # a dense student is for all noise levels from here ...
    low: float = 0.1  # ... to here
    widths: tuple[float, ...] = (1.0,)  # as of `Distilled`; empty is every width of the supernet
    smoothing: str = "independent"  # one of SMOOTHINGS
    smoothing_mean: float = -1.2  # of its log level (Karras et al. 2022, table 1) ...
    smoothing_std: float = 1.2  # ... and its deviation; nothing for `tied`
    score_updates: int = 1  # of the score for each of the student; 5 in DMD2
    normalize: bool = False  # DMD's: by the mean error of the teacher on each image

    def __post_init__(self) -> None:
        rates = (self.learning_rate, self.score_rate, self.grad_clip)
        fine = {
            "steps": self.steps >= 1,
            "batch": self.batch >= 1,
            "learning_rate": _positive(rates[0]),
            "score_learning_rate": _positive(rates[1]),
            "warmup": self.warmup >= 0,
            "ema": 0 <= self.ema < 1,
            "grad_clip": _positive(rates[2]),
            "seed": self.seed >= 0,
            "checkpoint_every": self.checkpoint_every >= 1,
            "threads": self.threads >= 1,
            "levels": all(map(_positive, self.levels))
            and all(a > b for a, b in pairwise(self.levels)),
            "high": _positive(self.high),
            "low": 0 < self.low < self.high,
            "widths": all(0 < width <= 1 for width in self.widths),
            "smoothing": self.smoothing in SMOOTHINGS,
            "smoothing_mean": abs(self.smoothing_mean) <= MOST,
            "smoothing_std": 0 <= self.smoothing_std <= MOST,
            "score_updates": self.score_updates >= 1,
        }
        for name, ok in fine.items():
            if not ok:
                raise ConfigError(
                    f"distill.{name}: {getattr(self, name)!r} is out of range; {REMEDIES[name]}"
                )

    @property
    def score_rate(self) -> float:
        """Peak learning rate of the score."""
        own = self.score_learning_rate
        return self.learning_rate if own is None else own

    def content(self) -> dict[str, Any]:
        """What weights depend on; what is not used says nothing."""
        data = asdict(self)
        del data["checkpoint_every"]
        for name in ("high", "low") if self.levels else ("levels",):
            del data[name]
        if self.smoothing == "tied":
            del data["smoothing_mean"], data["smoothing_std"]
        if self.score_rate == self.learning_rate:
            del data["score_learning_rate"]
        return {k: v for k, v in data.items() if k not in OPTIONAL or v != DEFAULTS[k]}

    def pace(self, step: int) -> float:
        """Part of the peak learning rates at `step`, counted from 0.

        A linear warm-up, then a cosine to a tenth: student and score chase each other, and what is
        left of that at the end goes with the rate.
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * done))

    def decay(self, step: int) -> float:
        """EMA decay with warm-up, so that early weights are forgotten: min(ema, (1+s)/(10+s))."""
        return min(self.ema, (1 + step) / (10 + step))


def _positive(value: float) -> bool:
    return value > 0 and math.isfinite(value)


DEFAULTS = {f.name: f.default for f in fields(DistillConfig)}
OPTIONAL = ("smoothing", "smoothing_mean", "smoothing_std", "score_updates", "normalize")
_FROM_ONE = dict.fromkeys(
    ("steps", "batch", "checkpoint_every", "threads", "score_updates"), "use a number from 1 up"
)
_POSITIVE = dict.fromkeys(
    ("learning_rate", "score_learning_rate", "grad_clip", "high"), "use a positive number"
)
REMEDIES = {
    **_FROM_ONE,
    **_POSITIVE,
    "warmup": "use a number of steps from 0 up",
    "seed": "use a number from 0 up",
    "ema": "use a number in [0, 1)",
    "levels": "list positive noise levels, most noise first",
    "low": "use a positive noise level below distill.high",
    "widths": "list widths in (0, 1]",
    "smoothing_mean": f"use a number in [-{MOST:g}, {MOST:g}]",
    "smoothing_std": f"use a number in [0, {MOST:g}]",
    "smoothing": f"use one of {', '.join(SMOOTHINGS)}",
}
