"""Diffusion processes: the link between a network's time, its noise level and its input scale.

`level` is the noise-to-signal ratio sigma/alpha everywhere in stepsearch; a noisy image is
x = alpha * (x0 + level * eps).
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stepsearch.core.errors import SpaceError


class Process(Protocol):
    """What grids and networks need to know of a forward process; times grow with noise."""

    name: str
    discrete: bool  # only whole times are trained
    first_time: float  # least noise
    last_time: float  # most noise

    def level_at(self, time: float) -> float: ...
    def time_at(self, level: float) -> float: ...
    def alpha(self, level: float) -> float: ...
    def start_scale(self, level: float) -> float: ...


class VPLinear1000:
    """Variance preserving, 1000 steps, beta linear from 1e-4 to 0.02 (Ho et al. 2020, sec. 4)."""

    name = "vp-linear-1000"
    discrete = True
    first_time = 0.0
    last_time = 999.0

    def __init__(self) -> None:
        betas = np.linspace(1e-4, 0.02, 1000, dtype=np.float64)
        self.alpha_bar = np.asarray(np.cumprod(1.0 - betas), dtype=np.float64)
        ratio = np.asarray((1.0 - self.alpha_bar) / self.alpha_bar, dtype=np.float64)
        self.levels: NDArray[np.float64] = np.sqrt(ratio)
        self._midpoints = np.sqrt(self.levels[1:] * self.levels[:-1])

    def level_at(self, time: float) -> float:
        """Noise level of the trained step `time`, a whole number in 0..999."""
        return float(self.levels[int(time)])

    def time_at(self, level: float) -> float:
        """The trained step nearest to `level` in log noise level."""
        return float(np.searchsorted(self._midpoints, level))

    def alpha(self, level: float) -> float:
        """Signal scale sqrt(alpha_bar) at `level`."""
        return 1.0 / math.sqrt(1.0 + level * level)

    def start_scale(self, level: float) -> float:
        """Standard deviation of the pure-noise start, 1 as in every DDPM code."""
        return 1.0


class EDM:
    """Variance exploding in EDM's units, sigma from 0.002 to 80 (Karras et al. 2022, table 1)."""

    name = "edm"
    discrete = False
    first_time = 0.002
    last_time = 80.0

    def level_at(self, time: float) -> float:
        """EDM's time is its noise level."""
        return float(time)

    def time_at(self, level: float) -> float:
        """EDM's time is its noise level."""
        return float(level)

    def alpha(self, level: float) -> float:
        """The image is never scaled down."""
        return 1.0

    def start_scale(self, level: float) -> float:
        """Standard deviation of the pure-noise start."""
        return level


PROCESSES: dict[str, Process] = {p.name: p for p in (VPLinear1000(), EDM())}


def get_process(name: str) -> Process:
    """The process called `name`; SpaceError names the known ones."""
    if name not in PROCESSES:
        known = ", ".join(sorted(PROCESSES))
        raise SpaceError(f"unknown process '{name}'; known: {known}")
    return PROCESSES[name]
