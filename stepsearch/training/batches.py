"""What every training step sees: images, times and noise, prepared ahead of the step.

All of it is a function of (seed, step), so training resumes, and is cut over workers, exactly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from stepsearch.core.errors import ConfigError
from stepsearch.core.noise import generator
from stepsearch.core.protocols import NoisyBatch
from stepsearch.core.settings import TrainConfig
from stepsearch.training.immiscible import assign_noise, nearest_noise
from stepsearch.training.noising import Noising

# streams: order of the images, everything drawn inside a step, mirrored images, and further
# candidates of knn; four words each, and none of them a stream of sampling noise or its labels
EPOCHS, STEPS, FLIPS, CANDIDATES = (0, 0), (0, 1), (0, 3), (0, 4)
AHEAD = 2  # steps that are prepared beyond those of one pool


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step: what each of its widths is trained on, and the seed of dropout."""

    parts: tuple[tuple[float, NoisyBatch], ...]
    seed: int


@dataclass(frozen=True, slots=True)
class _Draw:
    """A step before noise is assigned; one row of places, noise and chance for every width."""

    rows: np.ndarray  # (B,) image numbers
    x0: Tensor  # (B, C, H, W) in [-1, 1]
    widths: tuple[float, ...]
    place: Tensor  # on the noise scale, (K, B)
    noise: Tensor  # (K, B, C, H, W)
    chance: Tensor  # (K, B)
    seed: int


def sandwich_widths(
    widths: Sequence[float], rng: np.random.Generator, between: int = 1
) -> tuple[float, ...]:
    """Widest, narrowest and `between` random others (Yu & Huang 2019, arXiv:1903.05134)."""
    ordered = sorted(widths)
    others = ordered[1:-1]
    if between == 1:
        middle = [others[rng.integers(len(others))]] if others else []
    else:
        middle = [others[i] for i in rng.permutation(len(others))[:between]]
    return tuple(dict.fromkeys([ordered[-1], ordered[0], *middle]))


class Batches:
    """The batches of a training run, by step.

    Args:
        images: uint8, (N, C, H, W); a memory map is read row by row.
        noising: what is drawn of noise, and made of images with it.
        labels: (N,), for the network.
        groups: (N,) labels that noise stays within, or None for one pool of all.
    """

    def __init__(
        self,
        images: np.ndarray,
        widths: Sequence[float],
        noising: Noising,
        config: TrainConfig,
        *,
        labels: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> None:
        if len(images) < config.batch:
            raise ConfigError(f"train.batch: {config.batch} exceeds the {len(images)} images")
        self._images, self._widths, self._config = images, tuple(widths), config
        self._labels = None if labels is None else torch.from_numpy(labels.astype(np.int64))
        self._groups = None if groups is None else torch.from_numpy(groups.astype(np.int64))
        self._noising = noising
        pool = config.immiscible
        self._pool = pool.pool if pool is not None and pool.method == "assignment" else 1
        self._candidates = pool.pool if pool is not None and pool.method == "knn" else 1
        self._span = -(-self._pool // config.batch) + 1  # steps that a pool may touch
        self._order = lru_cache(1)(self._order_of_epoch)
        self._draw = lru_cache(self._span + 1)(self._draw_step)
        self._assigned = lru_cache(-(-config.batch // self._pool) + 1)(self._assign_pool)

    def __call__(self, step: int) -> StepBatch:
        """The batch of `step`, counted from 0."""
        draw, noise = self._draw(step), self._noise(step)
        labels = None if self._labels is None else self._labels[draw.rows]
        parts = []
        for i, width in enumerate(draw.widths):
            noised = self._noising(draw.x0, draw.place[i], noise[i])
            parts.append((width, NoisyBatch(*noised, draw.chance[i], labels)))
        return StepBatch(tuple(parts), draw.seed)

    def ahead(self, first: int, stop: int) -> Iterator[StepBatch]:
        """Batches of steps first .. stop - 1, made in a thread while earlier ones are trained."""
        with ThreadPoolExecutor(1, "batches") as loader:
            steps, waiting = iter(range(first, stop)), deque()
            try:
                for step in steps:
                    waiting.append(loader.submit(self, step))
                    if len(waiting) > self._span + AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                loader.shutdown(wait=False, cancel_futures=True)

    def _draw_step(self, step: int) -> _Draw:
        config = self._config
        rng = generator(*STEPS, config.seed, step)
        widths = sandwich_widths(self._widths, rng, config.between)
        torch_rng = torch.Generator().manual_seed(int(rng.integers(2**63)))
        seed = int(rng.integers(2**63))
        rows = self._rows(step)
        x0 = torch.from_numpy(self._images[rows]).float() / 127.5 - 1
        if config.flip:
            mirrored = generator(*FLIPS, config.seed, step).random(len(rows)) < 0.5
            x0 = torch.where(torch.from_numpy(mirrored)[:, None, None, None], x0.flip(3), x0)
        # fresh places and noise for every width
        drawn = [self._noising.draw(tuple(x0.shape), torch_rng) for _ in widths]
        places, noises = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        chance = torch.rand((len(widths), len(x0)), generator=torch_rng)
        return _Draw(rows, x0, widths, places, noises, chance, seed)

    def _rows(self, step: int) -> np.ndarray:
        """Image numbers: epochs without replacement, the ragged end of an epoch dropped."""
        count, batch = len(self._images), self._config.batch
        per_epoch = count // batch
        start = step % per_epoch * batch
        return self._order(step // per_epoch)[start : start + batch]

    def _order_of_epoch(self, epoch: int) -> np.ndarray:
        return generator(*EPOCHS, self._config.seed, epoch).permutation(len(self._images))

    def _noise(self, step: int) -> Tensor:
        """Noise (K, B, C, H, W) of a step after assignment."""
        if self._candidates > 1:
            return self._nearest(step)
        if self._pool == 1:
            return self._draw(step).noise
        batch, pool = self._config.batch, self._pool
        start, stop = step * batch, (step + 1) * batch
        parts = []
        for number in range(start // pool, (stop - 1) // pool + 1):
            first = number * pool
            own = slice(max(start - first, 0), min(stop - first, pool))
            parts.append(self._assigned(number)[:, own])
        return torch.cat(parts, 1)

    def _assign_pool(self, number: int) -> Tensor:
        """Noise (K, pool, C, H, W) of images number * pool .. of the whole run, in their order."""
        batch, pool = self._config.batch, self._pool
        first, last = number * pool, (number + 1) * pool - 1
        draws = [self._draw(step) for step in range(first // batch, last // batch + 1)]
        own = slice(first % batch, first % batch + pool)
        x0 = torch.cat([draw.x0 for draw in draws])[own]
        rows = np.concatenate([draw.rows for draw in draws])[own]
        groups = None if self._groups is None else self._groups[rows]
        noise = torch.cat([draw.noise for draw in draws], 1)[:, own]
        return torch.stack([n[assign_noise(x0, n, labels=groups)] for n in noise])

    def _nearest(self, step: int) -> Tensor:
        draw, chosen = self._draw(step), []
        rng = generator(*CANDIDATES, self._config.seed, step)
        for noise in draw.noise:
            shape = (len(noise), self._candidates - 1, *noise.shape[1:])
            more = torch.from_numpy(rng.standard_normal(shape, np.float32))
            pool = torch.cat([noise[:, None], more], 1)
            chosen.append(pool[torch.arange(len(noise)), nearest_noise(draw.x0, pool)])
        return torch.stack(chosen)
