"""The registries that solver and grid files register themselves in, and how they read arguments."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from stepsearch.core.errors import SpaceError
from stepsearch.core.process import Process
from stepsearch.core.protocols import Solver
from stepsearch.core.registry import Registry, did_you_mean


class Grid(Protocol):
    """Where a solver's fine nodes lie."""

    def __call__(self, process: Process, n: int, /, **args: Any) -> tuple[float, ...]:
        """`n` descending noise levels without the end node; SpaceError for bad arguments."""


SOLVERS: Registry[Solver] = Registry("solver")
GRIDS: Registry[Grid] = Registry("grid")


def read_args(owner: str, args: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with their defaults filled in; SpaceError for one that `owner` does not know."""
    for name in args:
        if name not in defaults:
            known = f"it takes {', '.join(defaults)}" if defaults else "it takes no arguments"
            hint = did_you_mean(name, defaults)
            if name == "eta":
                hint = " (ddim takes it; eta = 1 is ddpm)"
            raise SpaceError(f"{owner}: unknown argument '{name}'{hint}; {known}")
    return {**defaults, **args}


def check_number(
    owner: str,
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    open_ends: bool = False,
) -> float:
    """`value` as a finite float in [low, high], or in (low, high) with `open_ends`; else
    SpaceError."""
    number = not isinstance(value, bool) and isinstance(value, (int, float))
    inside = number and (low < value < high if open_ends else low <= value <= high)
    if not inside or value > sys.float_info.max:
        ends = f"({low:g}, {high:g})" if open_ends else f"[{low:g}, {high:g}]"
        ends = ends.replace("inf]", "inf)")
        raise SpaceError(f"{owner}: {name} must be a number in {ends}, got {value!r}")
    return float(value)


def check_choice(owner: str, name: str, value: Any, known: Sequence[Any]) -> Any:
    """`value` if it is one of `known`, of the same type too; else SpaceError."""
    if not any(value == k and type(value) is type(k) for k in known):
        shown = ", ".join(str(k) for k in known)
        raise SpaceError(f"{owner}: {name} must be one of {shown}, got {value!r}")
    return value


def check_distinct(owner: str, levels: Sequence[float]) -> None:
    """SpaceError where two neighbouring levels are equal: a multistep formula divides by their gap.

    Fine grids of discrete networks may hold a trained step twice.
    """
    for i in range(len(levels) - 1):
        if levels[i] <= levels[i + 1]:
            raise SpaceError(
                f"{owner}: nodes {i} and {i + 1} of the grid share noise level {levels[i]:g}; use "
                f"fewer calls or another grid"
            )
