"""What an objective is given, and the registries it and feature extractors are filed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from stepsearch.core.protocols import FeatureExtractor, NetCard
from stepsearch.core.registry import Registry
from stepsearch.core.schedule import StepSchedule

if TYPE_CHECKING:
    from stepsearch.objectives.fid import Reference


@dataclass(frozen=True)
class Samples:
    """Generated images as an objective sees them: features (N, D) and what to compare them with."""

    features: np.ndarray
    reference: Reference
    peak_memory_mb: float | None = None  # of a batch, where it was measured

    @cached_property
    def features64(self) -> np.ndarray:
        """The features in float64; statistics in float32 lose the distance."""
        return self.features.astype(np.float64)


class Objective(Protocol):
    """A number to minimise."""

    unit: str
    needs_images: bool

    def __call__(
        self, schedule: StepSchedule, cards: Mapping[str, NetCard], samples: Samples | None
    ) -> float:
        """Score a schedule; `cards` by `Stage.net`, `samples` where `needs_images`."""


@dataclass(frozen=True, slots=True)
class FeatureRequest:
    """All that a feature extractor may be built from."""

    name: str
    weights: str | None  # local weights file, for networks that would be downloaded otherwise
    images: np.ndarray  # uint8 (N, C, H, W), the data set itself
    labels: np.ndarray | None
    data_sha256: str
    cache: Path
    device: str = "cpu"


Extractors = Callable[[FeatureRequest], FeatureExtractor]

OBJECTIVES: Registry[Objective] = Registry("objective")
EXTRACTORS: Registry[Extractors] = Registry("feature extractor")
