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

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stepsearch.core.distill_settings import DistillConfig
from stepsearch.core.errors import Interrupted
from stepsearch.training.dpdm_draws import Denoiser, Draw, Draws, like
from stepsearch.training.loop import (
    OnStep,
    moments_of,
    read_checkpoint,
    restore_moments,
    under,
    write_checkpoint,
)

DEVIATION = 0.5  # of images (Karras et al. 2022, table 1)
LEAST_ERROR = 1e-3  # of the teacher on an image, for `normalize`; images span 2


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
    write_checkpoint(path, tensors, step)


def _restore(path: Path, state: _State) -> int:
    """Load a checkpoint if there is one; returns the number of steps it has behind it."""
    if not path.is_file():
        return 0
    tensors, step = read_checkpoint(path)
    state.student.load_state_dict(under("student.", tensors))
    state.score.load_state_dict(under("score.", tensors))
    for name, value in under("ema.", tensors).items():
        state.ema[name].copy_(value)
    for name, optimizer in state.optimizers.items():
        restore_moments(optimizer, under(f"optimizer.{name}.", tensors))
    return step
