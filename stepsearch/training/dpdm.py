"""DPDM: a student that answers a few noise levels with images as likely as data.

Diffusion models that predict data (ICLR 2024 submission, from its review thread; no code): the
student d answers noisy data x0 + k e with g, and the Kullback-Leibler divergence of g's
distribution q from that of data p falls, both smoothed by noise of level s: the gradient is that of
<v, g>, where v = s^2 (score of q - score of p) is the answer of an auxiliary network, the score,
which learns to denoise g, less that of the teacher. Unlike the thread's equation 3.4, s is drawn
independently of k by default: tied, few hints reach the levels of most noise.

The score is one network for all of the student's noise levels and widths, so q is the mixture of
what the student answers over them, and one level may make up for what another lacks. Less so with
s <= k (`smoothing: capped`): an answer to x0 + k e is known up to k, and what is wrong on a larger
scale then pulls at higher levels alone. That was surer on a mixture in one dimension, and slower
on digits. Students of all widths at once are experimental.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from stepsearch.core.distill_settings import DistillConfig
from stepsearch.core.distilled import Distilled
from stepsearch.core.errors import ConfigError, Interrupted
from stepsearch.core.files import write_atomic
from stepsearch.core.noise import generator
from stepsearch.core.process import Process
from stepsearch.training.loop import OnStep, moments_of, restore_moments, under

STREAM = (0, 8)  # with seed and step, of all that is drawn in a step; no other stream begins so
DEVIATION = 0.5  # of images (Karras et al. 2022, table 1)
LEAST_ERROR = 1e-3  # of the teacher on an image, for `normalize`; images span 2

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


def student_answers(student: nn.Module, draw: Draw, denoiser: Denoiser) -> Tensor:
    """The student's images g, (B, ...), of noisy data; every row at its width."""
    noisy = draw.x0 + like(draw.levels, draw.x0) * draw.noise
    return torch.cat(
        [
            denoiser.answer(
                student,
                noisy[own],
                draw.levels[own],
                width,
                None if draw.labels is None else draw.labels[own],
            )
            for width, own in draw.rows
        ]
    )


def smoothed(answers: Tensor, draw: Draw) -> Tensor:
    """The student's images under noise of the smoothing levels."""
    return answers + like(draw.smoothing, answers) * draw.smooth


def score_errors(
    score: nn.Module, answers: Tensor, draw: Draw, denoiser: Denoiser, width: float
) -> Tensor:
    """Denoising loss (B,) of the score on the student's images, in the module's own output.

    The weight 1 / gain^2 of the squared error is that of EDM (Karras et al. 2022, table 1), and
    makes it the error of the noise where that is predicted.
    """
    found = denoiser.answer(score, smoothed(answers, draw), draw.smoothing, width, draw.labels)
    error = (found - answers) / like(denoiser.gain(draw.smoothing), answers)
    return error.square().flatten(1).mean(1)


def direction(
    score: nn.Module,
    teacher: nn.Module,
    answers: Tensor,
    draw: Draw,
    denoiser: Denoiser,
    width: float,
    *,
    normalize: bool = False,
) -> Tensor:
    """v, (B, ...): smoothing^2 times the gradient of log q - log p at the smoothed images.

    Both modules drop the same features, so that dropout alone makes no difference. With
    `normalize` v is divided by the teacher's mean error on its image (Yin et al. 2024,
    arXiv:2311.18828, eq. 8).
    """
    noisy, found = smoothed(answers, draw), []
    with torch.no_grad():
        for module in (score, teacher):
            torch.manual_seed(draw.seed)  # dropout takes no generator; the caller forks
            found.append(denoiser.answer(module, noisy, draw.smoothing, width, draw.labels))
        gap = found[0] - found[1]
        if normalize:
            error = (answers - found[1]).abs().flatten(1).mean(1)
            gap = gap / like(error.clamp(min=LEAST_ERROR), gap)
    return gap


def student_weight(levels: Tensor, gain: Tensor) -> Tensor:
    """Weight (B,) of <v, g> at the student's noise levels k: k / (k^2 + DEVIATION^2)^(1/2) / gain.

    That is a constant, the weight of the thread, under EDM's preconditioning. A network of noise,
    whose gain is k, would feel levels of 20 two hundred times as strongly as those of 0.1; with
    1 / (k^2 + DEVIATION^2)^(1/2) its output is pulled at as that of EDM is. The pull ends where
    noise hides nothing: with a plain 1 / gain low levels are driven off the data by what is wrong
    at high ones, since the score sees their mixture.
    """
    return levels / (levels.square() + DEVIATION**2).sqrt() / gain


def student_loss(answers: Tensor, gap: Tensor, draw: Draw, denoiser: Denoiser) -> Tensor:
    """Scalar whose gradient moves the student's images against v."""
    weight = student_weight(draw.levels, denoiser.gain(draw.levels))
    return (like(weight, answers) * gap * answers).mean()


@dataclass(frozen=True, slots=True)
class _State:
    """What distillation changes, and a checkpoint holds."""

    student: nn.Module
    score: nn.Module
    ema: dict[str, Tensor]
    optimizers: dict[str, torch.optim.Optimizer]  # of `student` and `score`


def distill(
    student: nn.Module,
    score: nn.Module,
    teacher: nn.Module,
    images: np.ndarray,
    *,
    config: DistillConfig,
    denoiser: Denoiser,
    checkpoint: Path,
    on_step: OnStep,
    labels: np.ndarray | None = None,
    offered: Sequence[float] = (1.0,),
    device: str = "cpu",
    stop: int | None = None,
) -> dict[str, Tensor]:
    """Make `student` a few-step network of `teacher`; returns the EMA of its weights.

    Args:
        student, score: modules like the teacher; they take its weights over first.
        images, labels: as of `Draws`; labels where the teacher takes them.
        checkpoint: written every `checkpoint_every` steps, and by an Interrupted that `on_step`
            raises; distillation continues from it if it is there.
        on_step: called after every step with the step's number from 1 and, by width of the
            student, the loss of the score on its images.
        offered: widths of the supernet; score and teacher are asked at the widest alone.
        stop: end after this many steps of the run and write a checkpoint; None is all of it.
    """
    draws = Draws(images, labels, config, denoiser, offered, device)
    for module in (student, score):
        module.load_state_dict(teacher.state_dict())
    for module in (student, score, teacher):
        module.train().to(device, memory_format=torch.channels_last)
    student.eval()  # without dropout: samples are drawn without
    optimizers = {
        name: torch.optim.Adam(module.parameters(), betas=(0.0, 0.999), fused=True)
        for name, module in (("student", student), ("score", score))
    }
    ema = {k: v.detach().clone() for k, v in student.state_dict().items()}
    state = _State(student, score, ema, optimizers)
    first = _restore(checkpoint, state)
    last = config.steps if stop is None else stop
    cuda = [torch.cuda.current_device()] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=cuda):
        for step in range(first, last):
            losses = _step(state, teacher, draws(step), step, config, denoiser, max(offered))
            try:
                on_step(step + 1, losses)
            except Interrupted:
                _save(checkpoint, state, step + 1)
                raise
            if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
                _save(checkpoint, state, step + 1)
    if stop is not None:
        _save(checkpoint, state, last)
    return ema


def _step(
    state: _State,
    teacher: nn.Module,
    draws: Sequence[Draw],
    step: int,
    config: DistillConfig,
    denoiser: Denoiser,
    widest: float,
) -> dict[float, float]:
    """Updates of the score, then one of the student; returns the score's loss by width."""
    found: dict[float, list[Tensor]] = {}
    for draw in draws[:-1]:
        with torch.no_grad():
            answers = student_answers(state.student, draw, denoiser)
        torch.manual_seed(draw.seed)
        errors = score_errors(state.score, answers, draw, denoiser, widest)
        rate = config.score_rate * config.pace(step)
        _update(state.score, state.optimizers["score"], errors.mean(), rate, config)
        for width, rows in draw.rows:
            found.setdefault(width, []).append(errors[rows].detach())
    draw = draws[-1]
    answers = student_answers(state.student, draw, denoiser)
    frozen = (answers.detach(), draw, denoiser, widest)
    gap = direction(state.score, teacher, *frozen, normalize=config.normalize)
    loss = student_loss(answers, gap, draw, denoiser)
    rate = config.learning_rate * config.pace(step)
    _update(state.student, state.optimizers["student"], loss, rate, config)
    with torch.no_grad():
        for name, value in state.student.state_dict().items():
            state.ema[name].lerp_(value, 1 - config.decay(step))
    return {width: float(torch.cat(parts).mean()) for width, parts in found.items()}


def _update(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    rate: float,
    config: DistillConfig,
) -> None:
    optimizer.param_groups[0]["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), config.grad_clip)
    optimizer.step()


def _save(path: Path, state: _State, step: int) -> None:
    tensors = {f"student.{k}": v for k, v in state.student.state_dict().items()}
    tensors |= {f"score.{k}": v for k, v in state.score.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in state.ema.items()}
    for name, optimizer in state.optimizers.items():
        tensors |= {f"optimizer.{name}.{k}": v for k, v in moments_of(optimizer).items()}
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomic(path, save(plain, {"step": str(step)}))


def _restore(path: Path, state: _State) -> int:
    """Load a checkpoint if there is one; returns the number of steps it has behind it."""
    if not path.is_file():
        return 0
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state.student.load_state_dict(under("student.", tensors))
    state.score.load_state_dict(under("score.", tensors))
    for name, value in under("ema.", tensors).items():
        state.ema[name].copy_(value)
    for name, optimizer in state.optimizers.items():
        restore_moments(optimizer, under(f"optimizer.{name}.", tensors))
    return step
