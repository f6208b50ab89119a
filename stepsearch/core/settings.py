"""Validated settings: what a recipe and a space file say, with every default filled in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stepsearch.core.space import NO_GUIDANCE, SearchSpace


def content_hash(data: Mapping[str, Any]) -> str:
    """sha256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Where images come from; `path` is absolute, `size` None keeps the images as they are."""

    kind: str
    path: str | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training run; `steps` optimiser steps of `batch` images at three widths each."""

    steps: int
    batch: int = 128
    learning_rate: float = 1e-3  # peak; linear warm-up, then cosine to a tenth
    warmup: int = 100  # steps
    ema: float = 0.999  # cap of the averaging decay
    grad_clip: float = 1.0  # global L2 norm
    seed: int = 0
    checkpoint_every: int = 500  # steps
    threads: int = 1  # on a CPU; fixed, so that the same recipe gives the same weights

    def rate(self, step: int) -> float:
        """Learning rate of `step`, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))

    def decay(self, step: int) -> float:
        """EMA decay with warm-up, so that early weights are forgotten: min(ema, (1+s)/(10+s))."""
        return min(self.ema, (1 + step) / (10 + step))


@dataclass(frozen=True, slots=True)
class Recipe:
    """A supernet to train; its content is its identity."""

    name: str
    data: DataSettings
    family: str
    net: Mapping[str, Any] = field(hash=False)
    widths: tuple[float, ...]
    train: TrainConfig | None  # None for a family that is fitted in closed form
    file: str = ""  # the recipe's own path, no part of its identity

    def content(self) -> dict[str, Any]:
        """What the weights depend on; where the images lie is no part of it, their hash is."""
        data = asdict(self)
        del data["file"]
        data["data"] = {k: v for k, v in data["data"].items() if k != "path"}
        return data

    def sha256(self, data_sha256: str) -> str:
        """Identity of the network that this recipe trains on the images of that hash."""
        return content_hash({**self.content(), "data_sha256": data_sha256})


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """How a schedule is scored: `images` per candidate in batches of `batch`."""

    images: int = 5000
    batch: int = 500
    seed: int = 0
    features: str = "classifier"
    weights: str | None = None  # local weights file of the extractor
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """The algorithm and its budget of `population` new schedules in each of `generations`."""

    algorithm: str = "nsga2"
    population: int = 24
    generations: int = 8
    seed: int = 0
    crossover: float = 0.9  # probability that a pair of parents is crossed
    mutation: float | None = None  # rate per gene; None = 1 / number of genes


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Everything that decides what a run measures; workers and places do not."""

    name: str
    space: SearchSpace
    recipes: tuple[Recipe, ...]
    objectives: tuple[str, ...]
    constraints: Mapping[str, tuple[float, float]] = field(hash=False)  # objective -> range
    evaluation: EvaluationSettings = EvaluationSettings()
    search: SearchSettings = SearchSettings()
    guides: tuple[Recipe, ...] = ()  # classifiers that guidance of the space names

    @property
    def networks(self) -> tuple[Recipe, ...]:
        """Everything to train: supernets, then guides."""
        return (*self.recipes, *self.guides)

    def content(self) -> dict[str, Any]:
        """What the results depend on; two runs are the same search if this is equal."""
        data = asdict(self)
        data["recipes"] = [r.content() for r in self.recipes]
        data["guides"] = [r.content() for r in self.guides]
        # what a space does not use says nothing, so that its hash outlives new features
        if not self.guides:
            del data["guides"]
        if self.space.monotone is None:
            del data["space"]["monotone"]
        if self.space.guidances == (NO_GUIDANCE,):
            del data["space"]["guidances"]
        del data["evaluation"]["device"]
        return data
