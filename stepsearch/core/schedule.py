"""StepSchedule: the full, explicit list of network calls and of the jumps between them.

The integrator runs exactly this object, cost is a sum over it, the trial store is keyed by its
hash, and export writes it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from stepsearch.core.errors import SpaceError

VERSION = 1


@dataclass(frozen=True, slots=True)
class Call:
    """One network evaluation at noise-to-signal ratio `level`, at a `width` in (0, 1]."""

    level: float
    width: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.level) and self.level > 0):
            raise SpaceError(f"call: level must be positive and finite, got {self.level}")
        if not 0 < self.width <= 1:
            raise SpaceError(f"call: width must lie in (0, 1], got {self.width}")


@dataclass(frozen=True, slots=True)
class Stage:
    """One network walking down `levels`; `calls` are in the order the solver makes them."""

    net: str
    solver: str
    args: Mapping[str, Any] = field(hash=False)
    levels: tuple[float, ...]
    calls: tuple[Call, ...]

    def __post_init__(self) -> None:
        ordered = all(a >= b for a, b in zip(self.levels, self.levels[1:], strict=False))
        if len(self.levels) < 2 or not ordered or self.levels[-1] < 0:
            raise SpaceError(
                f"stage of '{self.net}': levels must descend to 0 or above and hold at least two "
                f"entries, got {self.levels}"
            )
        if not all(math.isfinite(level) for level in self.levels):
            raise SpaceError(f"stage of '{self.net}': levels must be finite, got {self.levels}")
        if not self.calls:
            raise SpaceError(f"stage of '{self.net}': a stage makes at least one call")


@dataclass(frozen=True, slots=True)
class StepSchedule:
    """Everything a sampler does, one stage per network (two or more when relaying)."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise SpaceError("schedule: at least one stage is needed")

    @property
    def nfe(self) -> int:
        """Network evaluations per image."""
        return sum(len(stage.calls) for stage in self.stages)

    @property
    def widths(self) -> tuple[float, ...]:
        """Width of every call in order."""
        return tuple(call.width for stage in self.stages for call in stage.calls)

    def key(self) -> str:
        """Content hash that names the trial; starts with a letter so that no reader of CSV can
        take it for a number."""
        return "s" + hashlib.sha256(self.to_json().encode()).hexdigest()[:15]

    def to_json(self) -> str:
        """Canonical JSON; equal schedules give equal text and floats survive exactly."""
        stages = [
            {
                "net": s.net,
                "solver": s.solver,
                "args": {name: _canonical(value) for name, value in s.args.items()},
                "levels": [float(level) + 0.0 for level in s.levels],  # -0.0 is 0
                "calls": [[float(c.level), float(c.width)] for c in s.calls],
            }
            for s in self.stages
        ]
        return json.dumps({"version": VERSION, "stages": stages}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> StepSchedule:
        """Inverse of `to_json`; SpaceError for another version or a malformed document."""
        try:
            data = json.loads(text)
            if data["version"] != VERSION:
                raise SpaceError(
                    f"schedule: version {data['version']!r} is unknown here, expected {VERSION}"
                )
            return cls(tuple(_stage(s) for s in data["stages"]))
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise SpaceError(
                f"schedule: not a StepSchedule document ({type(error).__name__}: {error})"
            ) from None


def _stage(data: Mapping[str, Any]) -> Stage:
    return Stage(
        net=str(data["net"]),
        solver=str(data["solver"]),
        args=dict(data["args"]),
        levels=tuple(_number(level) for level in data["levels"]),
        calls=tuple(Call(_number(level), _number(width)) for level, width in data["calls"]),
    )


def _canonical(value: Any) -> Any:
    """Equal numbers are written alike."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)


def run_length(widths: Iterable[float]) -> str:
    """Widths as run-length text: (1, 1, 0.5) -> '1.0x2|0.5x1'."""
    return "|".join(f"{float(w)!r}x{len(list(run))}" for w, run in groupby(widths))


def parse_run_length(text: str) -> tuple[float, ...]:
    """Inverse of `run_length`; SpaceError names the text."""
    try:
        runs = [(float(w), int(n)) for w, n in (part.split("x") for part in text.split("|"))]
        if any(not 0 < width <= 1 or count < 1 for width, count in runs):
            raise ValueError(text)
        return tuple(width for width, count in runs for _ in range(count))
    except ValueError:
        raise SpaceError(f"widths '{text}': expected run-length text like '1.0x5|0.5x15'") from None
