"""What the layers ask of each other; every implementation lives in one file of its package."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from stepsearch.core.distilled import Distilled
from stepsearch.core.errors import SpaceError
from stepsearch.core.process import PROCESSES, Process, VarianceExploding, get_process
from stepsearch.core.relay import LEAST, Relay

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from stepsearch.core.schedule import Call, Stage, StepSchedule
    from stepsearch.core.trial import Failure, Measurement

Genome = tuple[int, ...]
PREDICTIONS = ("eps", "x0", "v", "F")  # what the output of a network means
TIMES = ("nearest", "continuous")  # when a network of whole trained times may be asked


@dataclass(frozen=True, slots=True)
class NetCard:
    """All that is known of a network without loading it."""

    name: str
    sha256: str  # of the weights file
    family: str
    process: str
    image_shape: tuple[int, ...]  # (C, H, W); (D,) for a network of vectors
    widths: tuple[float, ...]  # ascending
    flops: tuple[float, ...]  # per image and call, at each of `widths`; one multiply-add is 2
    arch: Mapping[str, Any] = field(default_factory=dict, hash=False)
    training: Mapping[str, Any] = field(default_factory=dict, hash=False)
    prediction: str = "eps"  # one of PREDICTIONS; F is EDM's raw output
    times: str = "nearest"  # one of TIMES; says nothing for a continuous process
    classes: int = 0  # 0 for an unconditional network; labels are 0 .. classes - 1
    sigma_data: float = 0.5  # deviation of the data, for F
    relay: Relay | None = None  # of a second stage: how its images are blurred
    distilled: Distilled | None = None  # of a few-step network

    def __post_init__(self) -> None:
        shape, widths = self.image_shape, self.widths
        fine = {
            "name": isinstance(self.name, str) and self.name != "",
            "sha256": isinstance(self.sha256, str),
            "family": isinstance(self.family, str),
            "process": self.process in PROCESSES,
            "image_shape": bool(shape) and all(type(n) is int and n > 0 for n in shape),
            "widths": bool(widths) and all(_is_number(w) and 0 < w <= 1 for w in widths),
            "flops": len(self.flops) == len(widths) and all(map(_is_number, self.flops)),
            "arch": isinstance(self.arch, Mapping),
            "training": isinstance(self.training, Mapping),
            "prediction": self.prediction in PREDICTIONS,
            "times": self.times in TIMES,
            "classes": type(self.classes) is int and self.classes >= 0,
            "sigma_data": _is_number(self.sigma_data) and self.sigma_data > 0,
            "relay": self.relay is None or self.process == "edm",
        }
        for name, ok in fine.items():
            if not ok:
                raise ValueError(f"network card: {name}: {getattr(self, name)!r} makes no sense")

    @property
    def key(self) -> str:
        """Name in schedules; retraining changes it."""
        return f"{self.name}@{self.sha256[:8]}"

    @property
    def diffusion(self) -> Process:
        """The forward process that the network was trained for."""
        if self.relay is not None:  # within the noise that belongs to its blur
            return VarianceExploding(self.process, LEAST, self.relay.most)
        return get_process(self.process, continuous=self.times == "continuous")

    def check_width(self, width: float) -> float:
        """The offered width equal to `width`; SpaceError lists what is offered."""
        for offered in self.widths:
            if abs(offered - width) < 1e-9:
                return offered
        known = ", ".join(f"{w:g}" for w in self.widths)
        raise SpaceError(
            f"width {width:g} is not offered by network '{self.name}' (it offers {known})"
        )

    def gflops(self, width: float) -> float:
        """Cost of one call on one image, in GFLOPs."""
        return self.flops[self.widths.index(self.check_width(width))] / 1e9

    def to_json(self) -> str:
        """Readable JSON, inverse of `from_json`."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> NetCard:
        """Read a card; ValueError, KeyError or TypeError where the text is no card."""
        data = json.loads(text)
        for name in ("image_shape", "widths", "flops"):
            data[name] = tuple(data[name])
        if data.get("relay") is not None:
            data["relay"] = Relay(**data["relay"])
        if data.get("distilled") is not None:
            lists = {name: tuple(data["distilled"][name]) for name in ("levels", "widths")}
            data["distilled"] = Distilled(**data["distilled"] | lists)
        return cls(**data)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Net(Protocol):
    """What a solver sees: one parameterisation, adapted once at the boundary."""

    card: NetCard

    def eps(
        self, x: Tensor, level: float, *, width: float = 1.0, cond: Tensor | None = None
    ) -> Tensor:
        """Predicted noise of x = alpha (x0 + level eps); same shape and dtype as `x`.

        `cond` (B,) holds labels; None asks a conditional network for its unconditional answer.
        """


class Classifier(Protocol):
    """What guides a network that was trained without labels."""

    card: NetCard

    def gradient(self, x: Tensor, level: float, labels: Tensor) -> Tensor:
        """Gradient in `x` of log p(labels | x) at noise `level`; same shape and dtype as `x`."""


@dataclass(frozen=True, slots=True)
class SolverState:
    """All that a solver carries from step to step; cut anywhere and continue bit for bit."""

    x: Tensor
    buffer: tuple[Tensor, ...] = ()


class Solver(Protocol):
    """An integrator in plan/step form; step i makes call i of the stage."""

    def canonical(self, n_calls: int, /, **args: Any) -> tuple[str, dict[str, Any]]:
        """The plainest solver and all its arguments that do the same: equal runs are one trial."""

    def order(self, /, **args: Any) -> int | None:
        """Order of convergence; None where noise is drawn and there is no end to converge to."""

    def nodes(self, n_calls: int, /, **args: Any) -> int:
        """Nodes of the fine grid, without the end node, that give `n_calls` network calls.

        SpaceError for arguments or a number of calls that the solver does not know.
        """

    def plan(self, levels: Sequence[float], n_calls: int, /, **args: Any) -> tuple[Call, ...]:
        """The calls on a grid whose last entry is the end; SpaceError for bad arguments."""

    def step(
        self, net: Net, stage: Stage, state: SolverState, i: int, noise: Callable[[], Tensor]
    ) -> SolverState:
        """Advance over call i; `noise()` draws fresh noise where a solver is stochastic."""


@dataclass(frozen=True, slots=True)
class NoisyBatch:
    """What a network is trained on: images at the noise of their time; B rows in every tensor."""

    noisy: Tensor  # what the network is given, (B, C, H, W)
    time: Tensor  # as the network counts it, (B,)
    target: Tensor  # what it is to answer, e.g. the noise in `noisy`, (B, C, H, W)
    chance: Tensor  # evenly in [0, 1), (B,): for whatever a loss decides at random of an image
    labels: Tensor | None = None  # (B,)


class FeatureExtractor(Protocol):
    """Maps images to the vectors whose Gaussian statistics a Frechet distance compares."""

    name: str
    dim: int
    sha256: str  # of whatever fixes its output

    def __call__(self, images: Tensor) -> np.ndarray:
        """(B, C, H, W) uint8 -> (B, dim) float32."""


class Algorithm(Protocol):
    """Proposes genomes; knows nothing of networks, workers or files."""

    adaptive: bool  # whether what is asked depends on what was told
    steady: bool  # whether one result may be told and one genome asked at a time

    def ask(self, count: int | None = None) -> list[Genome]:
        """Up to `count` genomes that mean something new, None for a whole generation; empty when
        the space is exhausted."""

    def tell(
        self,
        values: Sequence[tuple[float, ...] | None],
        genomes: Sequence[Genome] | None = None,
    ) -> None:
        """Objective values of `genomes`, or of the last ask in its order; None marks a failure.

        Where `steady`, genomes that were never asked may be told too, as when a run is resumed.
        """


class Executor(Protocol):
    """Runs schedules somewhere and yields each result as it is finished."""

    def map(
        self, schedules: Iterable[StepSchedule], rung: int | None = None
    ) -> Iterator[tuple[str, Measurement | Failure]]:
        """(key, result) once per schedule, in any order.

        A schedule is taken from `schedules` only when a worker is free, after every result that was
        yielded before: what is asked next may depend on them. `rung` is the step of the fidelity
        ladder to measure, None for the full evaluation.
        """

    def close(self) -> None:
        """Release workers; safe to call twice."""
