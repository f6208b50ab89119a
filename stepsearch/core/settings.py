"""Validated settings: what a recipe and a space file say, with every default filled in."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from stepsearch.core.counting import FULL_COUNT
from stepsearch.core.distill_settings import DistillConfig
from stepsearch.core.relay import Relay
from stepsearch.core.space import NO_GUIDANCE, SearchSpace


def content_hash(data: Mapping[str, Any]) -> str:
    """sha256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Where images come from and what is made of them; None keeps them as they are."""

    kind: str
    path: str | None = None  # absolute; of kind `dataset`, package.module:name
    size: int | None = None  # side in pixels
    channels: int | None = None  # 1 or 3
    corrupt: str = "error"  # one of CORRUPT
    resample: str = "lanczos"  # one of RESAMPLES: how pixels are made smaller
    args: Mapping[str, Any] = field(default_factory=dict, hash=False)  # of kind `dataset`

    def content(self) -> dict[str, Any]:
        """What says more than the hash of the images does: code, which makes them, is told."""
        code = {"dataset": self.path, "args": dict(self.args)} if self.kind == "dataset" else {}
        other = {} if self.resample == "lanczos" else {"resample": self.resample}
        return {"kind": self.kind, "size": self.size} | other | code


CORRUPT = ("error", "skip")  # what is done about images that cannot be decoded
RESAMPLES = ("lanczos", "box")  # box: means of tiles, what a relay's second stage begins from


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # of a recipe, a network, a run
METHODS = ("assignment", "knn")
SCOPES = ("global", "within_class")
PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True, slots=True)
class Immiscible:
    """How noise is given to images; a pool of 1 is plain training."""

    pool: int = 256  # images and noises that are paired; for knn, candidates of each image
    method: str = "assignment"  # one of METHODS
    scope: str | None = None  # one of SCOPES; None is within_class where the network reads labels


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training run; `steps` optimiser steps of `batch` images at some widths each."""

    steps: int
    batch: int = 128
    learning_rate: float = 1e-3  # peak; linear warm-up, then cosine to a tenth
    warmup: int = 100  # steps
    ema: float = 0.999  # cap of the averaging decay
    grad_clip: float = 1.0  # global L2 norm
    seed: int = 0
    checkpoint_every: int = 500  # steps
    threads: int = 1  # on a CPU; fixed, so that the same recipe gives the same weights
    between: int = 1  # random widths a step, beside the widest and the narrowest
    width_weight: float = 0.0  # a loss at width w counts w ** width_weight
    distill: float = 0.0  # part of the target that is the answer of the widest
    flip: bool = False  # mirror half of the images
    accumulate: int = 1  # parts that a batch is cut into, to save memory
    precision: str = "float32"  # one of PRECISIONS; bf16 is autocast
    compile: bool = False  # torch.compile, once for each width
    immiscible: Immiscible | None = None
    trunk: int | None = None  # steps that all networks of a bank have in common

    @property
    def pool(self) -> int:
        """Images and noises that are paired; 1 is plain training."""
        return 1 if self.immiscible is None else self.immiscible.pool

    def content(self) -> dict[str, Any]:
        """What weights depend on; later additions say nothing where they are not used."""
        data = asdict(self)
        del data["trunk"]  # where a recipe branches off from another, it says so
        if self.immiscible is not None and self.immiscible.pool == 1:
            data["immiscible"] = None
        return {k: v for k, v in data.items() if k in FIRST or v != DEFAULTS[k]}

    def rate(self, step: int) -> float:
        """Learning rate of `step`, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))

    def decay(self, step: int) -> float:
        """EMA decay with warm-up, so that early weights are forgotten: min(ema, (1+s)/(10+s))."""
        return min(self.ema, (1 + step) / (10 + step))


DEFAULTS = {f.name: f.default for f in fields(TrainConfig)}
FIRST = tuple(DEFAULTS)[: tuple(DEFAULTS).index("threads") + 1]  # of the first version


@dataclass(frozen=True, slots=True)
class Recipe:
    """A supernet to train; its content is its identity."""

    name: str
    data: DataSettings
    family: str
    net: Mapping[str, Any] = field(hash=False)
    widths: tuple[float, ...]
    train: TrainConfig | None  # None for a fitted family, or weights taken as they are
    relay: Relay | None = None  # of the second stage of a relay
    distill: DistillConfig | None = None  # of a few-step student ...
    teacher: Recipe | None = None  # ... of this network
    file: str = ""  # the recipe's own path, no part of its identity
    init: str = ""  # weights that training starts from, or that are taken as they are
    init_sha256: str = ""  # their identity
    plain: TrainConfig | None = None  # of the recipe that this one of a bank was made from

    def content(self) -> dict[str, Any]:
        """What the weights depend on; where the images lie is no part of it, their hash is."""
        data = asdict(self)
        del data["file"], data["init"], data["plain"]
        if self.plain is not None and self.plain.trunk is not None:
            data["trunk"] = {"steps": self.plain.trunk, "train": self.plain.content()}
        if not self.init_sha256:
            del data["init_sha256"]
        if self.relay is None:
            del data["relay"]
        del data["distill"], data["teacher"]
        if self.distill is not None and self.teacher is not None:
            data |= {"distill": self.distill.content(), "teacher": self.teacher.content()}
        data["data"] = self.data.content()
        data["train"] = None if self.train is None else self.train.content()
        return data

    def sha256(self, data_sha256: str) -> str:
        """Identity of the network that this recipe trains on the images of that hash."""
        return content_hash({**self.content(), "data_sha256": data_sha256})

    def trunk_sha256(self, data_sha256: str) -> str:
        """Identity of the first steps, the same for all networks of a bank."""
        config = self.plain or self.train
        assert config is not None
        common = replace(self, name="", train=config, plain=None).content()
        return content_hash({**common, "steps": config.trunk, "data_sha256": data_sha256})


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of the fidelity ladder: what few images say decides who is measured with more."""

    images: int
    objective: str
    keep: float  # part of a generation that goes on, by rank of non-domination

    @property
    def name(self) -> str:
        """Of its value among those of a measurement, 'kid_1000'."""
        return f"{self.objective}_{self.images}"


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """How a schedule is scored: `images` per candidate in batches of `batch`."""

    images: int = 5000
    batch: int = 500
    seed: int = 0
    features: str = "classifier"
    weights: str | None = None  # local weights file of the extractor
    device: str = "auto"
    reference: str | None = None  # statistics of `stepsearch stats`; None takes those of the data
    counting: str = FULL_COUNT  # one of COUNTINGS: which FLOPs gflops_per_image holds
    ladder: tuple[Rung, ...] = ()  # the cheapest first, before the full evaluation
    report: tuple[str, ...] = ()  # measured beside the objectives, for the tables alone


MODES = ("generational", "steady")  # tell a generation, or one result, before asking again


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """The algorithm and its budget of `population` new schedules in each of `generations`."""

    algorithm: str = "nsga2-parts"
    population: int = 24
    generations: int = 8
    seed: int = 0
    crossover: float = 0.9  # probability that a pair of parents is crossed
    mutation: float | None = None  # rate per gene; None = 1 / number of genes
    mode: str = MODES[0]
    weights: tuple[float, ...] = ()  # of the objectives, for an algorithm that adds them up
    warm_start: tuple[str, ...] = ()  # runs, tables and schedules to begin from, absolute paths


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
    seconds: tuple[Recipe, ...] = ()  # second stages of relays

    @property
    def measured(self) -> tuple[str, ...]:
        """Objectives, and what is measured beside them."""
        return (*self.objectives, *self.evaluation.report)

    @property
    def networks(self) -> tuple[Recipe, ...]:
        """Everything to train: supernets, second stages, then guides."""
        return (*self.recipes, *self.seconds, *self.guides)

    def trained(self, network: str) -> dict[str, Any]:
        """What tells the training of a supernet from plain training, or from others of its bank."""
        bank = self.space.bank
        recipe = next((r for r in self.recipes if r.name == network), None)
        if recipe is None or recipe.distill is not None:
            return {}
        values = {} if bank is None else bank.values(network)
        config = recipe.train
        if config is not None and (values or config.pool > 1):
            values["immiscible.pool"] = config.pool
        return values

    def content(self) -> dict[str, Any]:
        """What the results depend on; two runs are the same search if this is equal."""
        data = asdict(self)
        data["recipes"] = [r.content() for r in self.recipes]
        for kind in ("guides", "seconds"):
            data[kind] = [r.content() for r in getattr(self, kind)]
        # what a space does not use says nothing, so that its hash outlives new features
        for kind in ("guides", "seconds"):
            if not data[kind]:
                del data[kind]
        for section in ("relay", "distilled"):
            if getattr(self.space, section) is None:
                del data["space"][section]
        if self.space.monotone is None:
            del data["space"]["monotone"]
        if self.space.guidances == (NO_GUIDANCE,):
            del data["space"]["guidances"]
        if self.space.bank is None:
            del data["space"]["bank"]
        for name in ("mode", "weights", "warm_start"):
            if getattr(self.search, name) == getattr(SearchSettings(), name):
                del data["search"][name]
        del data["evaluation"]["device"]
        if self.evaluation.counting == FULL_COUNT:
            del data["evaluation"]["counting"]
        for name in ("ladder", "report"):
            if not getattr(self.evaluation, name):
                del data["evaluation"][name]
        del data["evaluation"]["reference"]  # the metric's id says more than where it lies
        return data
