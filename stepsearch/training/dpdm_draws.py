"""What a distillation draws in a step, and how a module is asked for images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stepsearch.core.distill_settings import DistillConfig
from stepsearch.core.distilled import Distilled
from stepsearch.core.errors import ConfigError
from stepsearch.core.noise import generator
from stepsearch.core.process import Process

STREAM = (0, 8)  # with seed and step, of all that is drawn in a step; no other stream begins so

# (module, noisy (B, ...), levels (B,), width, labels (B,) or None) -> images (B, ...)
Answer = Callable[[nn.Module, Tensor, Tensor, float, Tensor | None], Tensor]


@dataclass(frozen=True, slots=True)
class Denoiser:
    """How a module is asked for the images in x0 + level e, and where.

    `gain` (B,) -> (B,) is how much an image changes with the module's output at a noise level: the
    level itself where noise is predicted, c_out in EDM's preconditioning. It levels the losses, so
    that a module is pulled at with like strength at all noise levels.
    """

    answer: Answer
    gain: Callable[[Tensor], Tensor]
    least: float  # noise level that was trained
    most: float
    table: Tensor | None = None  # (T,) ascending levels that alone were trained, where not all were

    def snap(self, levels: Tensor) -> Tensor:
        """The trained levels nearest to `levels`, in log."""
        if self.table is None:
            return levels.clamp(self.least, self.most)
        return self.table.to(levels)[nearest(self.table, levels)]


def nearest(table: Tensor, levels: Tensor) -> Tensor:
    """Index (B,) of the entry of an ascending table that is nearest to each level, in log."""
    logs = table.to(levels).log()
    return torch.bucketize(levels.log(), (logs[1:] + logs[:-1]) / 2)


def eps_denoiser(process: Process) -> Denoiser:
    """For slimmable modules that predict the noise of alpha (x0 + level e) at whole times."""
    if not process.discrete:
        raise ConfigError(
            f"distill: asks at whole trained times, which process '{process.name}' has not"
        )
    levels = [process.level_at(time) for time in range(int(process.last_time) + 1)]
    table = torch.tensor(levels, dtype=torch.float64)
    alphas = torch.tensor([process.alpha(level) for level in levels], dtype=torch.float64)

    def answer(
        module: nn.Module, noisy: Tensor, levels: Tensor, width: float, labels: Tensor | None
    ) -> Tensor:
        times = nearest(table, levels)
        given = () if labels is None else (labels,)
        scaled = like(alphas.to(noisy)[times], noisy) * noisy
        return noisy - like(levels, noisy) * module(scaled, times, *given, width=width)

    return Denoiser(answer, lambda levels: levels, levels[0], levels[-1], table)


def like(values: Tensor, images: Tensor) -> Tensor:
    """Values (B,) that multiply images (B, ...)."""
    return values.to(images).reshape(-1, *[1] * (images.ndim - 1))


@dataclass(frozen=True, slots=True)
class Draw:
    """All that one update is made of; rows of one width lie together."""

    x0: Tensor  # (B, ...)
    noise: Tensor  # (B, ...), that the student sees
    levels: Tensor  # (B,) of it
    smooth: Tensor  # (B, ...), noise on the student's answers
    smoothing: Tensor  # (B,), levels of it
    rows: tuple[tuple[float, slice], ...]  # of each width that the student has in the batch
    seed: int = 0  # of dropout
    labels: Tensor | None = None  # (B,)


class Draws:
    """What is drawn for the updates of a step: a function of (seed, step).

    Args:
        images: (N, ...) uint8, or floats as the teacher knows them; drawn with replacement.
        labels: (N,), for a conditional teacher.
        offered: widths of the supernet.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None,
        config: DistillConfig,
        denoiser: Denoiser,
        offered: Sequence[float],
        device: str = "cpu",
    ) -> None:
        self._images, self._config, self._denoiser = images, config, denoiser
        self._labels = None if labels is None else torch.from_numpy(labels.astype(np.int64))
        self._offered, self._device = tuple(offered), device
        levels = student_levels(config, denoiser)
        self._student = Distilled("", levels, config.widths, dense=not config.levels)

    def __call__(self, step: int) -> list[Draw]:
        """Those of the score's updates, then that of the student's."""
        rng = generator(*STREAM, self._config.seed, step)
        return [self._draw(rng) for _ in range(self._config.score_updates + 1)]

    def _draw(self, rng: np.random.Generator) -> Draw:
        levels, widths = self._asked(rng)
        chosen = rng.integers(len(self._images), size=len(levels))
        x0 = torch.from_numpy(self._images[chosen])
        x0 = x0.float() / 127.5 - 1 if x0.dtype == torch.uint8 else x0.float()
        spread = self._config.smoothing_mean, self._config.smoothing_std
        normal = torch.from_numpy(rng.normal(*spread, len(levels)))
        smoothing = self._denoiser.snap(normal.exp())
        if self._config.smoothing != "independent":
            tied = self._config.smoothing == "tied"
            smoothing = levels if tied else torch.minimum(smoothing, levels)
        torch_rng = torch.Generator().manual_seed(int(rng.integers(2**63)))
        noise, smooth = (torch.randn(x0.shape, generator=torch_rng) for _ in range(2))
        ends = np.flatnonzero(np.diff(widths)) + 1
        bounds = zip([0, *ends], [*ends, len(widths)], strict=True)
        tensors = (x0, noise, levels.float(), smooth, smoothing.float())
        return Draw(
            *(tensor.to(self._device, non_blocking=True) for tensor in tensors),
            rows=tuple((float(widths[a]), slice(int(a), int(b))) for a, b in bounds),
            seed=int(rng.integers(2**63)),
            labels=None if self._labels is None else self._labels[chosen].to(self._device),
        )

    def _asked(self, rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
        """Noise levels (B,) float64 of a batch and the student's widths there, by width."""
        own, count = self._student.levels, self._config.batch
        if self._student.dense:  # evenly in log noise level
            logs = torch.from_numpy(rng.uniform(np.log(own[-1]), np.log(own[0]), count))
            levels = self._denoiser.snap(logs.exp()).clamp(own[-1], own[0])
        else:
            levels = torch.tensor(own, dtype=torch.float64)[rng.integers(len(own), size=count)]
        if self._student.widths:
            widths = np.array([self._student.width_at(float(level)) for level in levels])
        else:
            widths = rng.choice(self._offered, count)
        order = np.argsort(widths, kind="stable")
        return levels[order], widths[order]


def student_levels(config: DistillConfig, denoiser: Denoiser) -> tuple[float, ...]:
    """What the student's card says as `Distilled.levels`: trained ones, descending.

    Those that are listed, or the ends of the range.
    """
    asked = config.levels or (config.high, config.low)
    snapped = denoiser.snap(torch.tensor(asked, dtype=torch.float64)).tolist()
    if len(set(snapped)) < len(asked):
        name = "levels" if config.levels else "low"
        raise ConfigError(
            f"distill.{name}: of {', '.join(f'{level:g}' for level in asked)} two mean the same "
            f"trained noise level ({denoiser.least:g} .. {denoiser.most:g} were trained); leave "
            f"one out"
        )
    return tuple(snapped)
