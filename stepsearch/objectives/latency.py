"""Milliseconds per image of a schedule: a sum of measured times over its calls."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from stepsearch.core.errors import ConfigError
from stepsearch.core.latency import LatencyTable, TimedCard
from stepsearch.core.protocols import Classifier, Net, NetCard
from stepsearch.core.schedule import StepSchedule
from stepsearch.objectives.flops import call_cost
from stepsearch.objectives.registry import OBJECTIVES, Samples

WARM_UP, REPEATS = 2, 9  # rounds over all networks and widths


class LatencyMs:
    """Time of the network calls, without that of the solver's own arithmetic."""

    unit = "ms"
    needs_images = False

    def __call__(
        self, schedule: StepSchedule, cards: Mapping[str, NetCard], samples: Samples | None
    ) -> float:
        """Sum over all calls of all stages, guidance included."""

        def once(net: str, width: float) -> float:
            card = cards[net]
            if not isinstance(card, TimedCard):
                raise ConfigError(
                    f"latency_ms: the calls of network '{card.name}' were not timed on this "
                    f"machine; measure_latency does that before a search"
                )
            return card.milliseconds_at(width)

        return sum(call_cost(call, s, once) for s in schedule.stages for call in s.calls)


def measure_latency(
    nets: Mapping[str, Net | Classifier], batch: int, device: str, repeats: int = REPEATS
) -> LatencyTable:
    """Median times of one call of every network at every width, by key of the network.

    Rounds go over all of them in turn, so that a machine that slows down for a while slows all.
    """
    calls = {
        (key, width): _call(net, width, batch, device)
        for key, net in nets.items()
        for width in net.card.widths
    }
    times: dict[tuple[str, float], list[float]] = {one: [] for one in calls}
    for i in range(WARM_UP + repeats):
        for one, call in calls.items():
            seconds = _seconds(call, device)
            if i >= WARM_UP:
                times[one].append(1000 * seconds / batch)
    found = {
        key: tuple(statistics.median(times[key, width]) for width in net.card.widths)
        for key, net in nets.items()
    }
    return LatencyTable(processor(device), device, batch, found)


def _call(net: Net | Classifier, width: float, batch: int, device: str) -> Callable[[], object]:
    """A call at the highest trained noise; how long it takes depends on no values."""
    process = net.card.diffusion
    level = process.level_at(process.last_time)
    x = torch.full((batch, *net.card.image_shape), 0.5, device=device)
    x *= process.start_scale(level)
    if hasattr(net, "gradient"):
        labels = torch.zeros(batch, dtype=torch.long, device=device)
        return lambda: net.gradient(x, level, labels)
    return lambda: net.eps(x, level, width=width)


def _seconds(call: Callable[[], object], device: str) -> float:
    """Wall time until the device has done the call."""
    _finish(device)
    start = time.perf_counter()
    call()
    _finish(device)
    return time.perf_counter() - start


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def processor(device: str) -> str:
    """Name of what computes, with the threads of a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads != 1)}"


OBJECTIVES.register("latency_ms")(LatencyMs())
