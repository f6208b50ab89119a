"""Grids: where a solver's fine nodes lie, as descending noise levels without the end node."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stepsearch.core.process import Process
from stepsearch.solvers.registry import GRIDS


def _levels(process: Process, ascending: NDArray[np.float64]) -> tuple[float, ...]:
    """Noise levels of times; a discrete process truncates to whole times as DDIM's code does."""
    times = np.trunc(ascending) if process.discrete else ascending
    return tuple(process.level_at(float(t)) for t in times[::-1])


@GRIDS.register("uniform")
def uniform(process: Process, n: int) -> tuple[float, ...]:
    """Even in the network's time, from the last trained time to the first."""
    if n == 1:
        return (process.level_at(process.last_time),)
    return _levels(process, np.linspace(process.first_time, process.last_time, n))


@GRIDS.register("quad")
def quad(process: Process, n: int) -> tuple[float, ...]:
    """Even in the square root of time, from 0.8 of the range down (Song et al. 2021, app. D.2)."""
    top = 0.8 * (process.last_time + process.discrete)  # 800 of the steps 0..999
    if n == 1:
        return (process.level_at(top),)
    return _levels(process, np.linspace(np.sqrt(process.first_time), np.sqrt(top), n) ** 2)


@GRIDS.register("karras")
def karras(process: Process, n: int, rho: float = 7.0) -> tuple[float, ...]:
    """Even in level ** (1 / rho) over the trained range (Karras et al. 2022, eq. 5).

    A discrete process takes the trained step nearest to each level.
    """
    low, high = (process.level_at(t) for t in (process.first_time, process.last_time))
    if n == 1:
        return (high,)
    ramp = np.linspace(0, 1, n)
    levels = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return tuple(process.level_at(process.time_at(float(level))) for level in levels)
