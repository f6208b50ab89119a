"""Cost of a schedule: sums over the calls that the integrator makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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

        def once(net: str, width: float) -> float:
            return cards[net].gflops(width)

        return sum(call_cost(call, s, once) for s in schedule.stages for call in s.calls)


def call_cost(call: Call, stage: Stage, once: Callable[[str, float], float]) -> float:
    """Cost of one call, where asking a network once costs `once(net, width)`.

    Classifier-free guidance asks the network twice unless its scale is 0.
    """
    own = once(stage.net, call.width)
    if call.scale is None or stage.guide is None:
        return own
    if stage.guide == CFG:
        return 2 * own if call.scale else own
    return own + once(stage.guide, 1.0)


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
