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
CFG = "cfg"  # the guide that is the network itself without its condition


@dataclass(frozen=True, slots=True)
class Call:
    """One network evaluation at noise-to-signal ratio `level`, at a `width` in (0, 1].

    `scale` is the strength of guidance at this call, None where it is not guided.
    """

    level: float
    width: float = 1.0
    scale: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.level) and self.level > 0):
            raise SpaceError(f"call: level must be positive and finite, got {self.level}")
        if not 0 < self.width <= 1:
            raise SpaceError(f"call: width must lie in (0, 1], got {self.width}")
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale >= 0):
            raise SpaceError(f"call: guidance scale must be finite and from 0, got {self.scale}")


@dataclass(frozen=True, slots=True)
class Stage:
    """One network walking down `levels`; `calls` are in the order the solver makes them.

    `guide` says what calls with a `scale` are guided by: CFG, the same network without its
    condition, or the name@sha256 of a classifier; None where no call is guided.
    """

    net: str
    solver: str
    args: Mapping[str, Any] = field(hash=False)
    levels: tuple[float, ...]
    calls: tuple[Call, ...]
    guide: str | None = None

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
        if (self.guide is None) != all(call.scale is None for call in self.calls):
            raise SpaceError(
                f"stage of '{self.net}': guide is {self.guide!r}, but "
                f"{sum(c.scale is not None for c in self.calls)} calls have a guidance scale; "
                f"give both or neither"
            )


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
        stages = [_plain(stage) for stage in self.stages]
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
            _only(data, {"version", "stages"})
            return cls(tuple(_stage(s) for s in data["stages"]))
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise SpaceError(
                f"schedule: not a StepSchedule document ({type(error).__name__}: {error})"
            ) from None


def _plain(stage: Stage) -> dict[str, Any]:
    """JSON data of a stage; what says nothing is left out."""
    data: dict[str, Any] = {
        "net": stage.net,
        "solver": stage.solver,
        "args": {name: _canonical(value) for name, value in stage.args.items()},
        "levels": [float(level) + 0.0 for level in stage.levels],  # -0.0 is 0
        "calls": [
            [float(n) for n in (c.level, c.width, c.scale) if n is not None] for c in stage.calls
        ],
    }
    return data if stage.guide is None else data | {"guide": stage.guide}


def _stage(data: Mapping[str, Any]) -> Stage:
    _only(data, {"net", "solver", "args", "levels", "calls", "guide"})
    guide = data.get("guide")
    return Stage(
        net=_text(data["net"]),
        solver=_text(data["solver"]),
        args=_arguments(data["args"]),
        levels=tuple(_number(level) for level in data["levels"]),
        calls=tuple(_call(*call) for call in data["calls"]),
        guide=None if guide is None else _text(guide),
    )


def _call(level: object, width: object, scale: object = None) -> Call:
    return Call(_number(level), _number(width), None if scale is None else _number(scale))


def _only(data: object, known: set[str]) -> None:
    """A key that means nothing here would be ignored, and another schedule run than was written."""
    if unknown := sorted(set(_mapping(data)) - known):
        raise KeyError(f"unknown key '{unknown[0]}'")


def _mapping(data: object) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise TypeError(f"expected a mapping, got {data!r}")
    return data


def _arguments(data: object) -> dict[str, Any]:
    args = _mapping(data)
    return {name: tuple(v) if isinstance(v, list) else v for name, v in args.items()}


def _canonical(value: Any) -> Any:
    """Equal numbers are written alike."""
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


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
