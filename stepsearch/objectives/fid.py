"""Frechet distance between Gaussians fitted to features (Heusel et al. 2017, eq. 6), in float64."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from stepsearch.core.errors import ConfigError
from stepsearch.core.noise import generator
from stepsearch.core.protocols import NetCard
from stepsearch.core.schedule import StepSchedule
from stepsearch.objectives.kid import mean_within
from stepsearch.objectives.registry import OBJECTIVES, Samples

GROUPS = 10  # of the jackknife
MOST = 5000  # real features that are kept
STREAM = (0, 6)  # four words in all; labels and training have names that begin otherwise


def frechet_distance(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """Squared Frechet distance of N(mean1, cov1) and N(mean2, cov2).

    With R R^T = cov2, tr (cov1 cov2)^(1/2) is the sum of the roots of the eigenvalues of the
    symmetric R^T cov1 R, which stays real whatever the rank.

    Args:
        mean1, mean2: (D,).
        cov1, cov2: (D, D), symmetric and positive semi-definite.
    """
    return Reference(np.asarray(mean2, np.float64), np.asarray(cov2, np.float64)).distance(
        np.asarray(mean1, np.float64), np.asarray(cov1, np.float64)
    )


@dataclass(frozen=True)
class Reference:
    """Gaussian statistics of real images with the root of the covariance computed once.

    `features` (M, D) of some of the images, for distances that no Gaussian tells.
    """

    mean: np.ndarray
    cov: np.ndarray
    features: np.ndarray | None = None

    @classmethod
    def of(cls, features: np.ndarray) -> Reference:
        """Statistics of features (N, D); ConfigError where N does not exceed D."""
        count, dim = features.shape
        if count <= dim:
            raise ConfigError(
                f"evaluation.features: {count} reference images cannot fit a covariance of {dim} "
                f"features; use more images or an extractor with fewer features"
            )
        return cls(*moments(features.astype(np.float64)), chosen(features))

    @cached_property
    def root(self) -> np.ndarray:
        """R with R R^T = cov; rounding below zero is cut off."""
        values, vectors = np.linalg.eigh(self.cov)
        return vectors * np.sqrt(np.clip(values, 0, None))

    @cached_property
    def kernel_mean(self) -> float:
        """Mean kernel of two different `features`, which must be given."""
        assert self.features is not None
        return mean_within(self.features.astype(np.float64))

    @property
    def sha256(self) -> str:
        """Hash of the statistics; `features` are those of the same images."""
        return hashlib.sha256(self.mean.tobytes() + self.cov.tobytes()).hexdigest()

    def distance(self, mean: np.ndarray, cov: np.ndarray) -> float:
        """Squared Frechet distance from N(mean, cov) to the reference."""
        values = np.linalg.eigvalsh(self.root.T @ cov @ self.root)
        cross = np.sqrt(np.clip(values, 0, None)).sum()
        shift = ((mean - self.mean) ** 2).sum()
        return float(max(shift + np.trace(cov) + np.trace(self.cov) - 2 * cross, 0.0))


def chosen(features: np.ndarray) -> np.ndarray:
    """All rows of features (N, D), or MOST of them drawn once and for all, in their order."""
    if len(features) <= MOST:
        return features
    rows = generator(*STREAM, 0, 0).choice(len(features), MOST, replace=False)
    return features[np.sort(rows)]


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), N at least 2."""
    return features.mean(0), np.cov(features, rowvar=False).reshape(2 * (features.shape[1],))


class Fid:
    """Distance between generated and reference features; lower is better."""

    unit = ""
    needs_images = True

    def __call__(
        self, schedule: StepSchedule, cards: Mapping[str, NetCard], samples: Samples | None
    ) -> float:
        """FID of the samples, which must be given."""
        assert samples is not None
        return samples.reference.distance(*moments(samples.features64))


class FidStandardError:
    """Delete-a-group jackknife standard error of `fid` (Efron & Tibshirani 1993, ch. 11)."""

    unit = ""
    needs_images = True

    def __call__(
        self, schedule: StepSchedule, cards: Mapping[str, NetCard], samples: Samples | None
    ) -> float:
        """Spread that another set of as many images would show; blind to the bias of small sets."""
        assert samples is not None
        features = samples.features64
        groups = np.array_split(np.arange(len(features)), min(GROUPS, len(features) // 2))
        left_out = np.array(
            [samples.reference.distance(*moments(np.delete(features, g, axis=0))) for g in groups]
        )
        n = len(groups)
        return float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))


OBJECTIVES.register("fid")(Fid())
OBJECTIVES.register("fid_se")(FidStandardError())
