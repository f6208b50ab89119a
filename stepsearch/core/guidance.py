"""Guidance as a setting: its strength and the interval of noise levels in which it acts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepsearch.core.errors import SpaceError
from stepsearch.core.schedule import CFG

CLASSIFIER = "classifier"
KINDS = (CFG, CLASSIFIER)


@dataclass(frozen=True, slots=True)
class Guidance:
    """How calls are guided at noise levels `low` .. `high` (Kynkaanniemi et al. 2024,
    arXiv:2404.07724).

    `cfg`: classifier-free; scale 1 is the conditional network, 0 the unconditional one.
    `classifier`: by the gradient of the classifier named `net`; scale 0 is none.
    """

    kind: str
    scale: float
    low: float = 0.0
    high: float = math.inf
    net: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SpaceError(f"guidance: unknown kind '{self.kind}'; known: {', '.join(KINDS)}")
        for name in ("scale", "low", "high"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
                raise SpaceError(f"guidance: {name} must be a number from 0, got {value!r}")
        if not math.isfinite(self.scale):
            raise SpaceError(f"guidance: scale must be finite, got {self.scale}")
        if self.low > self.high:
            raise SpaceError(f"guidance: low {self.low:g} exceeds high {self.high:g}; swap them")
        if (self.kind == CLASSIFIER) != bool(self.net):
            raise SpaceError(
                f"guidance: '{self.kind}' {'needs' if not self.net else 'takes no'} net, the name "
                f"of a classifier"
            )

    @classmethod
    def of(cls, kind: str, args: Mapping[str, Any]) -> Guidance:
        """From a setting such as {cfg: {scale: 2}}; SpaceError for an unknown or missing key."""
        known = ("scale", "low", "high", "net")
        for name in args:
            if name not in known:
                raise SpaceError(f"guidance: unknown key '{name}'; known: {', '.join(known)}")
        if "scale" not in args:
            raise SpaceError(f"guidance: '{kind}' needs a scale")
        return cls(kind, **args)

    def at(self, level: float) -> float | None:
        """Scale of a call at `level`, None where it is not guided at all."""
        plain = 1.0 if self.kind == CFG else 0.0
        return self.scale if self.low <= level <= self.high and self.scale != plain else None
