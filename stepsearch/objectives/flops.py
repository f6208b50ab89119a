"""Cost of a schedule: sums over the calls that the integrator makes."""

from __future__ import annotations

from collections.abc import Mapping

from stepsearch.core.protocols import NetCard
from stepsearch.core.schedule import StepSchedule
from stepsearch.objectives.registry import OBJECTIVES, Samples


class GflopsPerImage:
    """Network FLOPs per image; one multiply-add is 2 FLOPs."""

    unit = "GFLOPs"
    needs_images = False

    def __call__(
        self, schedule: StepSchedule, cards: Mapping[str, NetCard], samples: Samples | None
    ) -> float:
        """Sum over all calls of all stages."""
        return sum(cards[s.net].gflops(c.width) for s in schedule.stages for c in s.calls)


class Nfe:
    """Network evaluations per image."""

    unit = "calls"
    needs_images = False

    def __call__(
        self, schedule: StepSchedule, cards: Mapping[str, NetCard], samples: Samples | None
    ) -> float:
        """Calls of all stages."""
        return float(schedule.nfe)


OBJECTIVES.register("gflops_per_image")(GflopsPerImage())
OBJECTIVES.register("nfe")(Nfe())
