"""Peak memory of sampling one batch of a schedule, as torch's allocators know it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from stepsearch.core.errors import ConfigError, StepsearchError
from stepsearch.core.protocols import NetCard
from stepsearch.core.schedule import StepSchedule
from stepsearch.objectives.registry import OBJECTIVES, Samples

MEGABYTE = 1e6
EVENT = "[memory]"  # torch's name of an allocation, or of its end, in a profile

T = TypeVar("T")


class PeakMemoryMb:
    """Megabytes that sampling one batch takes beyond the networks themselves."""

    unit = "MB"
    needs_images = True

    def __call__(
        self, schedule: StepSchedule, cards: Mapping[str, NetCard], samples: Samples | None
    ) -> float:
        """What was measured while the samples were made."""
        assert samples is not None
        assert samples.peak_memory_mb is not None
        return samples.peak_memory_mb


def peak_memory(work: Callable[[], T], device: str) -> tuple[T, float]:
    """What `work` returns, and the most megabytes it had allocated at a time.

    Memory that was allocated before counts for nothing, so neither do the networks that happen to
    be loaded. On a CPU the process's own size would not do: what is freed stays with it.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = work()
        return result, (torch.cuda.max_memory_allocated(device) - before) / MEGABYTE
    check_memory(device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of every profile on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        result = work()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == EVENT]
    if not events:
        raise StepsearchError(
            f"peak_memory_mb: torch {torch.__version__} tells no allocations on this CPU; leave it "
            f"out, or use a CUDA device"
        )
    events.sort(key=lambda e: e.start_ns())
    return result, max(itertools.accumulate(e.nbytes() for e in events)) / MEGABYTE


def check_memory(device: str) -> None:
    """ConfigError for a device whose allocator tells nothing."""
    if device.startswith("cuda") or (device == "cpu" and torch.profiler.kineto_available()):
        return
    raise ConfigError(
        f"peak_memory_mb: cannot be measured on device '{device}' with torch "
        f"{torch.__version__}; leave it out, or use a CUDA device"
    )


OBJECTIVES.register("peak_memory_mb")(PeakMemoryMb())
