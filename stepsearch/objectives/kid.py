"""Kernel inception distance (Binkowski et al. 2018, arXiv:1801.01401): unbiased at any size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from stepsearch.core.protocols import NetCard
from stepsearch.core.schedule import StepSchedule
from stepsearch.objectives.registry import OBJECTIVES, Samples

BLOCK = 1024  # rows of the kernel matrix that are held at a time


def polynomial_mmd2(x: np.ndarray, y: np.ndarray, block: int = BLOCK) -> float:
    """Unbiased squared maximum mean discrepancy of the kernel (x.y / D + 1)^3, eq. 4.

    Over all pairs, where the authors average random subsets: nothing is drawn, so equal features
    give equal values. Expected to be 0 for samples of one distribution; it may be negative.

    Args:
        x, y: features (N, D) and (M, D), at least two rows each.
        block: rows of the kernel matrix at a time; memory alone.
    """
    within = [mean_within(one, block) for one in (x, y)]
    return sum(within) - 2 * _sum(x, y, block) / (len(x) * len(y))


def mean_within(x: np.ndarray, block: int = BLOCK) -> float:
    """Mean kernel of two different rows of x (N, D)."""
    own = _kernel((x * x).sum(1) / x.shape[1]).sum()
    return float(_sum(x, x, block) - own) / (len(x) * (len(x) - 1))


def _sum(x: np.ndarray, y: np.ndarray, block: int) -> float:
    starts = range(0, len(x), block)
    return float(sum(_kernel(x[i : i + block] @ y.T / x.shape[1]).sum() for i in starts))


def _kernel(products: np.ndarray) -> np.ndarray:
    """(x.y / D + 1)^3 of x.y / D, in place: a power of an array is ten times as slow."""
    products += 1
    return products * products * products


class Kid:
    """Squared distance in the kernel's space of generated and real features; lower is better."""

    unit = ""
    needs_images = True

    def __call__(
        self, schedule: StepSchedule, cards: Mapping[str, NetCard], samples: Samples | None
    ) -> float:
        """KID of the samples, which must be given with real features in the reference."""
        assert samples is not None
        assert samples.reference.features is not None
        x, real = samples.features64, samples.reference.features.astype(np.float64)
        cross = _sum(x, real, BLOCK) / (len(x) * len(real))
        return mean_within(x) + samples.reference.kernel_mean - 2 * cross


OBJECTIVES.register("kid")(Kid())
