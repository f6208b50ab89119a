"""The registries that solver and grid files register themselves in."""

from __future__ import annotations

from collections.abc import Callable

from stepsearch.core.process import Process
from stepsearch.core.protocols import Solver
from stepsearch.core.registry import Registry

Grid = Callable[[Process, int], tuple[float, ...]]  # (process, n) -> n descending noise levels

SOLVERS: Registry[Solver] = Registry("solver")
GRIDS: Registry[Grid] = Registry("grid")
