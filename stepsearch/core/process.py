"""Diffusion processes: the link between a network's time, its noise level and its input scale.

`level` is the noise-to-signal ratio sigma/alpha everywhere in stepsearch; a noisy image is
x = alpha * (x0 + level * eps).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stepsearch.core.errors import SpaceError


class Process(Protocol):
    """What grids, solvers and networks need to know of a forward process; times grow with noise."""

    @property
    def name(self) -> str: ...
    @property
    def discrete(self) -> bool:
        """Whether networks are asked at whole trained times only."""

    @property
    def first_time(self) -> float:
        """Of the least noise that is trained."""

    @property
    def last_time(self) -> float:
        """Of the most noise that is trained."""

    def level_at(self, time: float) -> float:
        """Noise level of a time that networks may be asked at."""

    def time_at(self, level: float) -> float:
        """The time that a network is asked at for `level`."""

    def continuous_time(self, level: float) -> float:
        """Time as a continuous function of `level`, for discrete processes too."""

    def alpha(self, level: float) -> float:
        """Signal scale of the network's input."""

    def start_scale(self, level: float) -> float:
        """Standard deviation of the pure-noise start at `level`."""


class _VariancePreserving:
    """alpha^2 + sigma^2 = 1, so that alpha follows from the level alone."""

    def alpha(self, level: float) -> float:
        """sqrt(alpha_bar) at `level`."""
        return 1.0 / math.sqrt(1.0 + level * level)

    def start_scale(self, level: float) -> float:
        """1 as in every DDPM code."""
        return 1.0


@dataclass(frozen=True)
class Table(_VariancePreserving):
    """Trained at whole times 0 .. T - 1 with a table of noise levels.

    With `discrete` False networks are asked at times between, interpolated in log noise level.
    """

    name: str
    levels: NDArray[np.float64] = field(repr=False, compare=False)
    discrete: bool = True
    first_time: float = 0.0

    @classmethod
    def of_betas(cls, name: str, betas: NDArray[np.float64]) -> Table:
        """From the variances of the forward steps (Ho et al. 2020, eq. 4)."""
        alpha_bar = np.cumprod(1.0 - betas)
        return cls(name, np.asarray(np.sqrt((1.0 - alpha_bar) / alpha_bar), dtype=np.float64))

    @property
    def last_time(self) -> float:
        return float(len(self.levels) - 1)

    def level_at(self, time: float) -> float:
        """Noise level of a time in 0 .. T - 1, whole where the process is discrete."""
        if self.discrete or float(time).is_integer():
            return float(self.levels[int(time)])
        return float(np.exp(np.interp(time, np.arange(len(self.levels)), self._log)))

    def time_at(self, level: float) -> float:
        """The trained time nearest to `level` in log noise level, or the time between."""
        time = self.continuous_time(level)
        return float(math.floor(time + 0.5)) if self.discrete else time

    def continuous_time(self, level: float) -> float:
        """Interpolated in log noise level; the ends of the table outside it."""
        place = math.log(level) if level > 0 else -math.inf
        return float(np.interp(place, self._log, np.arange(len(self.levels))))

    @cached_property
    def _log(self) -> NDArray[np.float64]:
        return np.asarray(np.log(self.levels), dtype=np.float64)


@dataclass(frozen=True)
class LinearVP(_VariancePreserving):
    """Continuous time, beta linear from 0.1 to 20 (Song et al. 2021, arXiv:2011.13456, eq. 33)."""

    name: str = "vp-linear"
    discrete: bool = False
    first_time: float = 1e-3
    last_time: float = 1.0
    beta_min: float = 0.1
    beta_max: float = 20.0

    def level_at(self, time: float) -> float:
        """sqrt(1 / alpha_bar - 1) with -log alpha_bar the integral of beta."""
        slope = self.beta_max - self.beta_min
        return math.sqrt(math.expm1(0.5 * slope * time * time + self.beta_min * time))

    def time_at(self, level: float) -> float:
        """Inverse of `level_at`, the positive root of a quadratic."""
        slope, integral = self.beta_max - self.beta_min, math.log1p(level * level)
        return 2 * integral / (self.beta_min + math.sqrt(self.beta_min**2 + 2 * slope * integral))

    continuous_time = time_at


@dataclass(frozen=True)
class CosineVP(_VariancePreserving):
    """Continuous time, alpha_bar a squared cosine (Nichol & Dhariwal 2021, eq. 17, s = 0.008)."""

    name: str = "vp-cosine"
    discrete: bool = False
    first_time: float = 1e-3
    last_time: float = 0.9946  # Lu et al. 2022, arXiv:2206.00927, app. D.4; alpha_bar(1) is 0
    shift: float = 0.008

    def level_at(self, time: float) -> float:
        """sqrt(1 / alpha_bar - 1)."""
        alpha_bar = (math.cos(self._angle(time)) / math.cos(self._angle(0.0))) ** 2
        return math.sqrt(1.0 / alpha_bar - 1.0)

    def time_at(self, level: float) -> float:
        """Inverse of `level_at`."""
        angle = math.acos(self.alpha(level) * math.cos(self._angle(0.0)))
        return angle * 2 / math.pi * (1 + self.shift) - self.shift

    continuous_time = time_at

    def _angle(self, time: float) -> float:
        return (time + self.shift) / (1 + self.shift) * math.pi / 2


@dataclass(frozen=True)
class VarianceExploding:
    """The image is never scaled down and the time of a network is its noise level."""

    name: str
    first_time: float
    last_time: float
    discrete: bool = False

    def level_at(self, time: float) -> float:
        """The time itself."""
        return float(time)

    def time_at(self, level: float) -> float:
        """The level itself."""
        return float(level)

    continuous_time = time_at

    def alpha(self, level: float) -> float:
        """1."""
        return 1.0

    def start_scale(self, level: float) -> float:
        """The level itself."""
        return level


def _cosine_betas(steps: int) -> NDArray[np.float64]:
    """Betas of `CosineVP` in whole steps, at most 0.999 (Nichol & Dhariwal 2021, sec. 3.2)."""
    shift = CosineVP().shift
    angle = (np.arange(steps + 1) / steps + shift) / (1 + shift) * np.pi / 2
    alpha_bar = np.cos(angle) ** 2
    return np.asarray(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999), dtype=np.float64)


_ALL: tuple[Process, ...] = (
    Table.of_betas("vp-linear-1000", np.linspace(1e-4, 0.02, 1000, dtype=np.float64)),
    Table.of_betas("vp-cosine-1000", _cosine_betas(1000)),
    LinearVP(),
    CosineVP(),
    VarianceExploding("edm", 0.002, 80.0),  # Karras et al. 2022, table 1
    VarianceExploding("ve", 0.01, 50.0),  # Song et al. 2021, app. C, for CIFAR-10
)
TRAINED = "vp-linear-1000"  # what supernets are trained on; betas linear from 1e-4 to 0.02
PROCESSES: dict[str, Process] = {p.name: p for p in _ALL}
_CONTINUOUS = {
    p.name: Table(p.name, p.levels, discrete=False) for p in _ALL if isinstance(p, Table)
}


def get_process(name: str, *, continuous: bool = False) -> Process:
    """The process called `name`; SpaceError names the known ones.

    With `continuous` the network of a discrete process may be asked between its trained times.
    """
    if name not in PROCESSES:
        known = ", ".join(sorted(PROCESSES))
        raise SpaceError(f"unknown process '{name}'; known: {known}")
    return _CONTINUOUS.get(name, PROCESSES[name]) if continuous else PROCESSES[name]
