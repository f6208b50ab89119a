"""Cost of a schedule: sums over the calls that the integrator makes."""

from __future__ import annotations

from collections.abc import Mapping

from stepsearch.core.protocols import NetCard
from stepsearch.core.schedule import CFG, Call, Stage, StepSchedule
from stepsearch.objectives.registry import OBJECTIVES, Samples


class GflopsPerImage:
    """Network FLOPs per image; one multiply-add is 2 FLOPs."""

    unit = "GFLOPs"
    needs_images = False

    def __call__(
        self, schedule: StepSchedule, cards: Mapping[str, NetCard], samples: Samples | None
    ) -> float:
        """Sum over all calls of all stages, guidance included."""
        return sum(_gflops(call, stage, cards) for stage in schedule.stages for call in stage.calls)


def _gflops(call: Call, stage: Stage, cards: Mapping[str, NetCard]) -> float:
    """Cost of one call; classifier-free guidance asks the network twice unless its scale is 0."""
    once = cards[stage.net].gflops(call.width)
    if call.scale is None or stage.guide is None:
        return once
    if stage.guide == CFG:
        return 2 * once if call.scale else once
    return once + cards[stage.guide].gflops(1.0)


class Nfe:
    """Network evaluations per image; a guided call is one, as papers count it."""

    unit = "calls"
    needs_images = False

    def __call__(
        self, schedule: StepSchedule, cards: Mapping[str, NetCard], samples: Samples | None
    ) -> float:
        """Calls of all stages."""
        return float(schedule.nfe)


OBJECTIVES.register("gflops_per_image")(GflopsPerImage())
OBJECTIVES.register("nfe")(Nfe())
