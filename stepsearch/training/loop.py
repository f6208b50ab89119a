"""Supernet training by the sandwich rule, resumable to the bit on a CPU.

Every random number of a step is drawn from a stream named by (seed, step), so nothing but weights,
moments and the step number is state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from stepsearch.core.errors import ConfigError, Interrupted
from stepsearch.core.files import write_atomic
from stepsearch.core.noise import generator
from stepsearch.core.process import Process
from stepsearch.core.settings import TrainConfig

# streams: order of the images, and everything drawn inside a step; four words each, so that none
# is a stream of sampling noise
EPOCHS, STEPS = (0, 0), (0, 1)

OnStep = Callable[[int, Mapping[float, float]], None]


class Loss(Protocol):
    """What training lowers; `loss` of a network family."""

    def __call__(
        self,
        module: nn.Module,
        noisy: Tensor,
        time: Tensor,
        noise: Tensor,
        labels: Tensor | None,
        width: float,
        rng: torch.Generator,
    ) -> Tensor: ...


def sandwich_widths(widths: Sequence[float], rng: np.random.Generator) -> tuple[float, ...]:
    """Widest, narrowest and one random width between (Yu & Huang 2019, arXiv:1903.05134)."""
    ordered = sorted(widths)
    between = ordered[1:-1]
    middle = [between[rng.integers(len(between))]] if between else []
    return tuple(dict.fromkeys([ordered[-1], ordered[0], *middle]))


def train_supernet(
    module: nn.Module,
    images: np.ndarray,
    widths: Sequence[float],
    process: Process,
    config: TrainConfig,
    *,
    loss: Loss,
    checkpoint: Path,
    on_step: OnStep,
    labels: np.ndarray | None = None,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Lower `loss` on noisy images at many widths; returns the EMA weights.

    Args:
        images: uint8, (N, C, H, W).
        labels: whole numbers, (N,), for a loss that reads them.
        checkpoint: written every `checkpoint_every` steps; training continues from it if it is
            there and removes it at the end.
        on_step: called after every step with the step's number from 1 and its loss per width.
    """
    if not process.discrete:
        raise ConfigError(f"training draws whole times, which process '{process.name}' has not")
    if len(images) < config.batch:
        raise ConfigError(f"train.batch: {config.batch} exceeds the {len(images)} images")
    module.train().to(device, memory_format=torch.channels_last)
    data = torch.from_numpy(images)
    marks = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    alpha_bar = torch.tensor(
        [process.alpha(process.level_at(t)) ** 2 for t in range(int(process.last_time) + 1)],
        dtype=torch.float32,
    )
    optimizer = torch.optim.Adam(module.parameters(), lr=config.learning_rate, fused=True)
    ema = {k: v.detach().clone() for k, v in module.state_dict().items()}
    first = _restore(checkpoint, module, ema, optimizer)
    alpha_bar = alpha_bar.to(device)
    cuda = [torch.cuda.current_device()] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=cuda):
        for step in range(first, config.steps):
            rows = _batch(len(data), step, config)
            x0 = (data[rows].float() / 127.5 - 1).to(device)
            shown = None if marks is None else marks[rows].to(device)
            losses = _step(module, loss, optimizer, x0, shown, step, widths, alpha_bar, config)
            decay = config.decay(step)
            with torch.no_grad():
                for name, value in module.state_dict().items():
                    ema[name].lerp_(value, 1 - decay)
            try:
                on_step(step + 1, losses)
            except Interrupted:
                _save(checkpoint, module, ema, optimizer, step + 1)
                raise
            if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
                _save(checkpoint, module, ema, optimizer, step + 1)
    checkpoint.unlink(missing_ok=True)
    return ema


def _step(
    module: nn.Module,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    x0: Tensor,
    labels: Tensor | None,
    step: int,
    widths: Sequence[float],
    alpha_bar: Tensor,
    config: TrainConfig,
) -> dict[float, float]:
    rng = generator(*STEPS, config.seed, step)
    optimizer.param_groups[0]["lr"] = config.rate(step)
    optimizer.zero_grad()
    chosen = sandwich_widths(widths, rng)
    torch_rng = torch.Generator().manual_seed(int(rng.integers(2**63)))
    torch.manual_seed(int(rng.integers(2**63)))  # dropout takes no generator; the caller forks
    losses = {}
    for width in chosen:  # fresh times and noise for every width
        time = torch.randint(len(alpha_bar), (len(x0),), generator=torch_rng).to(x0.device)
        noise = torch.randn(x0.shape, generator=torch_rng).to(x0.device)
        signal = alpha_bar[time][:, None, None, None]
        noisy = signal.sqrt() * x0 + (1 - signal).sqrt() * noise
        value = loss(module, noisy, time, noise, labels, width, torch_rng)
        (value / len(chosen)).backward()
        losses[width] = float(value.detach())
    nn.utils.clip_grad_norm_(module.parameters(), config.grad_clip)
    optimizer.step()
    return losses


def _batch(count: int, step: int, config: TrainConfig) -> np.ndarray:
    """Image numbers of `step`: epochs without replacement, the ragged end of an epoch dropped."""
    per_epoch = count // config.batch
    order = generator(*EPOCHS, config.seed, step // per_epoch).permutation(count)
    start = step % per_epoch * config.batch
    return order[start : start + config.batch]


def _save(
    path: Path,
    module: nn.Module,
    ema: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    tensors = {f"model.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomic(path, save(plain, {"step": str(step)}))


def _restore(
    path: Path, module: nn.Module, ema: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> int:
    """Load a checkpoint if there is one; returns the number of steps it has behind it."""
    if not path.is_file():
        return 0
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    module.load_state_dict(_under("model.", tensors))
    for name, value in _under("ema.", tensors).items():
        ema[name].copy_(value)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _under("optimizer.", tensors).items():
        index, slot = name.split(".", 1)
        state.setdefault(int(index), {})[slot] = value
    # moments must lie in memory as their weights do: the fused step walks memory, not indices
    for index, parameter in enumerate(module.parameters()):
        for slot, value in state.get(index, {}).items():
            if value.shape == parameter.shape:
                state[index][slot] = torch.empty_like(parameter).copy_(value)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return step


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
