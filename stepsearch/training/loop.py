"""Supernet training by the sandwich rule, resumable to the bit on a CPU.

Every random number of a step is drawn from a stream named by (seed, step), so nothing but weights,
moments and the step number is state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from stepsearch.core.errors import ConfigError, Interrupted
from stepsearch.core.files import write_atomic
from stepsearch.core.protocols import NoisyBatch
from stepsearch.core.settings import TrainConfig
from stepsearch.training.batches import Batches, StepBatch

Loss = Callable[[nn.Module, NoisyBatch, float], Tensor]  # `loss` of a network family
OnStep = Callable[[int, Mapping[float, float]], None]


@dataclass(frozen=True, slots=True)
class Team:
    """Workers that train one network together, each on its rows of every batch."""

    rank: int = 0
    size: int = 1
    average: Callable[[Tensor], None] = lambda tensor: None  # over the team, in place

    def rows(self, batch: int, parts: int) -> list[slice]:
        """This worker's rows of a batch, in `parts`; ConfigError where they are not whole."""
        shares = self.size * parts
        if batch % shares:
            raise ConfigError(
                f"train.batch: {batch} does not divide into {self.size} workers x "
                f"{parts} parts (accumulate); choose a multiple of {shares}"
            )
        share = batch // shares
        first = self.rank * share * parts
        return [slice(first + i * share, first + (i + 1) * share) for i in range(parts)]


ALONE = Team()


@dataclass(frozen=True, slots=True)
class _State:
    """What training changes, and a checkpoint holds."""

    module: nn.Module
    ema: dict[str, Tensor]
    optimizer: torch.optim.Optimizer


def train_supernet(
    module: nn.Module,
    batches: Batches,
    config: TrainConfig,
    *,
    loss: Loss,
    checkpoint: Path,
    on_step: OnStep,
    device: str = "cpu",
    team: Team = ALONE,
    stop: int | None = None,
) -> dict[str, Tensor]:
    """Lower `loss` at many widths; returns the EMA weights.

    Args:
        checkpoint: written every `checkpoint_every` steps, and by an Interrupted that `on_step`
            raises; training continues from it if it is there.
        on_step: called after every step with the step's number from 1 and its loss per width.
        team: workers that share every batch; all call this alike, the first writes checkpoints.
        stop: end after this many steps of the run and write a checkpoint; None is all of it.
    """
    rows = team.rows(config.batch, config.accumulate)
    module.train().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(module.parameters(), lr=config.learning_rate, fused=True)
    ema = {k: v.detach().clone() for k, v in module.state_dict().items()}
    state = _State(module, ema, optimizer)
    first = _restore(checkpoint, state)
    last = config.steps if stop is None else stop
    called = torch.compile(module) if config.compile else module
    cuda = [torch.cuda.current_device()] if device.startswith("cuda") else []
    prepared = batches.ahead(first, last)
    with torch.random.fork_rng(devices=cuda), contextlib.closing(prepared):
        for step, batch in enumerate(prepared, first):
            losses = _step(called, state, loss, batch, step, config, rows, device, team)
            try:
                on_step(step + 1, losses)
            except Interrupted:
                _save(checkpoint, state, step + 1, team)
                raise
            if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
                _save(checkpoint, state, step + 1, team)
    if stop is not None:
        _save(checkpoint, state, last, team)
    return ema


def _step(
    called: nn.Module,
    state: _State,
    loss: Loss,
    batch: StepBatch,
    step: int,
    config: TrainConfig,
    rows: Sequence[slice],
    device: str,
    team: Team,
) -> dict[float, float]:
    """One optimiser step; returns the loss of every width, before weighting."""
    state.optimizer.param_groups[0]["lr"] = config.rate(step)
    state.optimizer.zero_grad()
    torch.manual_seed(batch.seed + team.rank)  # dropout takes no generator; the caller forks
    weights = [width**config.width_weight for width, _ in batch.parts]
    means = torch.zeros(len(batch.parts), device=device)
    for i, (width, part) in enumerate(batch.parts):
        for own in rows:
            with torch.autocast(
                device.partition(":")[0], torch.bfloat16, enabled=config.precision == "bf16"
            ):
                value = loss(called, _take(part, own, device), width)
            (value * (weights[i] / sum(weights) / len(rows))).backward()
            means[i] += value.detach() / len(rows)
    if team.size > 1:
        _average(state.module, means, team)
    nn.utils.clip_grad_norm_(state.module.parameters(), config.grad_clip)
    state.optimizer.step()
    decay = config.decay(step)
    with torch.no_grad():
        for name, value in state.module.state_dict().items():
            state.ema[name].lerp_(value, 1 - decay)
    return {width: float(mean) for (width, _), mean in zip(batch.parts, means, strict=True)}


def _take(batch: NoisyBatch, rows: slice, device: str) -> NoisyBatch:
    """Some rows of a batch on the device that trains."""

    def part(tensor: Tensor) -> Tensor:
        return tensor[rows].to(device, non_blocking=True)

    labels = None if batch.labels is None else part(batch.labels)
    return NoisyBatch(*map(part, (batch.noisy, batch.time, batch.target, batch.chance)), labels)


def _average(module: nn.Module, means: Tensor, team: Team) -> None:
    """Gradients and losses become those of the whole batch, sent as one vector."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([means, *(g.reshape(-1) for g in gradients)])
    team.average(flat)
    sizes = [len(means), *(g.numel() for g in gradients)]
    for tensor, part in zip((means, *gradients), flat.split(sizes), strict=True):
        tensor.copy_(part.view(tensor.shape))


def _save(path: Path, state: _State, step: int, team: Team) -> None:
    if team.rank:
        return
    tensors = {f"model.{k}": v for k, v in state.module.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in state.ema.items()}
    tensors |= {f"optimizer.{k}": v for k, v in moments_of(state.optimizer).items()}
    write_checkpoint(path, tensors, step)


def _restore(path: Path, state: _State) -> int:
    """Load a checkpoint if there is one; returns the number of steps it has behind it."""
    if not path.is_file():
        return 0
    tensors, step = read_checkpoint(path)
    state.module.load_state_dict(under("model.", tensors))
    for name, value in under("ema.", tensors).items():
        state.ema[name].copy_(value)
    restore_moments(state.optimizer, under("optimizer.", tensors))
    return step


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], step: int) -> None:
    """Write what a run has become after so many steps, atomically."""
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomic(path, save(plain, {"step": str(step)}))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], int]:
    """Inverse of `write_checkpoint`."""
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
        return {name: file.get_tensor(name) for name in file.keys()}, step  # noqa: SIM118


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers, by `index of the parameter.slot`."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{slot}": v for i, slots in state.items() for slot, v in slots.items()}


def restore_moments(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `moments_of`, for an optimiser of one group of the same parameters."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, slot = name.split(".", 1)
        moments.setdefault(int(index), {})[slot] = value
    groups = optimizer.state_dict()["param_groups"]
    # moments must lie in memory as their weights do: the fused step walks memory, not indices
    for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
        for slot, value in moments.get(index, {}).items():
            if value.shape == parameter.shape:
                moments[index][slot] = torch.empty_like(parameter).copy_(value)
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose names begin with `prefix`, by the rest of their names."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
