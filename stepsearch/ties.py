"""How far measurements of few and of many images agree, and which of them cannot be told apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stepsearch.core.noise import generator

RESAMPLES = 2000
STREAM = (0, 9, 0)  # with the resample; no other stream begins so
TIE = 2.0  # standard errors of a difference


@dataclass(frozen=True, slots=True)
class Agreement:
    """Kendall's tau-b of two measurements of the same `count` things, with its 95 % interval."""

    tau: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.tau:.2f} (95 % interval {self.low:.2f} to {self.high:.2f})"


def rank_agreement(one: ArrayLike, other: ArrayLike, resamples: int = RESAMPLES) -> Agreement:
    """Kendall's tau-b (1945), and percentiles of it over resampled things (bootstrap).

    A thing that is drawn twice is tied with itself in both measurements, and tau-b leaves such
    pairs out, so that resampling does not pull it down. Resamples of which one measurement says
    nothing, because all of it is equal, are left out.

    Raises:
        ValueError: fewer than three things, or a measurement in which all are equal.
    """
    x, y = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 3:
        raise ValueError(f"two measurements of at least 3 things are needed: {x.shape}, {y.shape}")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("a measurement in which all things are equal ranks nothing")
    count = len(x)
    drawn = [generator(*STREAM, b).integers(count, size=count) for b in range(resamples)]
    often = np.array([np.bincount(rows, minlength=count) for rows in drawn], np.float64)
    low, high = np.nanpercentile(_taus(x, y, often), [2.5, 97.5])
    (tau,) = _taus(x, y, np.ones((1, count)))
    return Agreement(float(tau), float(low), float(high), count)


def _taus(
    x: NDArray[np.float64], y: NDArray[np.float64], often: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Tau-b of sets in which thing i is `often[k, i]` times; NaN where all of one is equal.

    Kendall 1945, eq. 3: with s and t the signs of differences, sum s t / sqrt(sum s^2 sum t^2)
    over all pairs.
    """
    s, t = (np.sign(values[:, None] - values) for values in (x, y))
    both, one, other = (((often @ m) * often).sum(1) for m in (s * t, s * s, t * t))
    norm = np.sqrt(one * other)
    return np.divide(both, norm, out=np.full(len(often), np.nan), where=norm > 0)


def standard_error(deviations: ArrayLike) -> float:
    """Of an estimate whose bootstrap replicates deviate from their mean by these."""
    return float(np.std(np.asarray(deviations, np.float64), ddof=1))


def tied_with(
    costs: Sequence[float],
    values: Sequence[float],
    deviations: ArrayLike,
    front: Sequence[bool],
) -> list[list[int]]:
    """For every row those that it cannot be told apart from, by `TIE` standard errors.

    Compared are the rows of the front with each other, and each with the row that is next cheaper,
    of the front or not. A difference's error is that of the paired replicates' difference.

    Args:
        deviations: (rows, replicates); replicate b resampled the same images for all rows.
    """
    replicates = np.asarray(deviations, np.float64)
    order = sorted(range(len(costs)), key=lambda i: (costs[i], i))
    members = [i for i in order if front[i]]
    pairs = {tuple(sorted(pair)) for pair in itertools.combinations(members, 2)}
    pairs |= {tuple(sorted(pair)) for pair in itertools.pairwise(order) if front[pair[1]]}
    found: list[list[int]] = [[] for _ in costs]
    for i, j in sorted(pairs):
        error = standard_error(replicates[i] - replicates[j])
        if abs(values[i] - values[j]) < TIE * error:
            found[i].append(j)
            found[j].append(i)
    return found
