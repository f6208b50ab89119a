"""Where a run runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Resources:
    """Where a run runs; no part of what it measures."""

    workers: int = 1
    executor: str = "auto"  # local in this process, ray; auto is ray for two workers or more
    address: str | None = None
    gpus_per_worker: float | None = None  # None shares the GPUs evenly

    @property
    def alone(self) -> bool:
        """Whether this process does without Ray."""
        return self.workers == 1 and self.address is None


ALONE = Resources()


def gpus_per_worker(resources: Resources, device: str) -> float:
    """GPUs of one worker: as asked for, else an even share."""
    if resources.gpus_per_worker is not None:
        return resources.gpus_per_worker
    share = torch.cuda.device_count() / resources.workers if device == "cuda" else 0.0
    return float(int(share)) if share >= 1 else share
