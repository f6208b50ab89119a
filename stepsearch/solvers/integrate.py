"""The one integrator: runs a StepSchedule, call by call, on the networks it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from typing import TYPE_CHECKING

from stepsearch.core.errors import SpaceError
from stepsearch.core.noise import image_noise
from stepsearch.core.protocols import Classifier, Net, NetCard, Solver, SolverState
from stepsearch.core.schedule import Stage, StepSchedule
from stepsearch.solvers import relay
from stepsearch.solvers.guidance import Guided, find_classifier, reads_labels
from stepsearch.solvers.registry import SOLVERS

if TYPE_CHECKING:
    from torch import Tensor

    OnCall = Callable[[float, float, Tensor], None]


def integrate(
    schedule: StepSchedule,
    nets: Mapping[str, Net | Classifier],
    x: Tensor,
    *,
    seed: int = 0,
    first_image: int = 0,
    cond: Tensor | None = None,
    on_call: OnCall | None = None,
) -> Tensor:
    """Run `schedule` from `x` to its end and return the images.

    A stage goes on from the end of the one before; a stage of solver `relay` makes larger images of
    it, unless it is the first, which starts from `x` as any other.

    Args:
        nets: network per `Stage.net`, and classifier per `Stage.guide` that names one.
        x: starting state (B, ...) at the first stage's first level, in the network's own scale.
        seed, first_image: noise of image j depends on (seed, j) only, whatever the batch.
        cond: labels (B,) for conditional networks and for guidance; None samples without any.
        on_call: told (level, width, x) of every call before it is made; a guided call, which asks
            the network with and without its label or a classifier besides, is one call.
    """
    if cond is not None and not reads_labels(schedule, nets):
        raise SpaceError("cond: no network of this schedule is conditional or guided; leave it out")
    guides = [_check_stage(stage, nets, cond) for stage in schedule.stages]  # before any runs
    for before, stage in pairwise(schedule.stages):
        given, wanted = (nets[s.net].card.image_shape for s in (before, stage))
        check_handover(before, stage, given, wanted)
    draws = (_noise(seed, first_image, draw) for draw in count(1))
    for place, (stage, classifier) in enumerate(zip(schedule.stages, guides, strict=True)):
        net, solver = nets[stage.net], SOLVERS[stage.solver]
        if place > 0 and stage.solver == relay.NAME:
            x = relay.begin(x, stage, net.card.diffusion, next(draws))
        state = SolverState(x)
        for i, call in enumerate(stage.calls):
            watched = _Watched(Guided(net, cond, classifier, call.scale), on_call)
            state = solver.step(watched, stage, state, i, partial(next(draws), x))
        x = state.x
    return x


def _check_stage(
    stage: Stage, nets: Mapping[str, Net | Classifier], cond: Tensor | None
) -> Classifier | None:
    """The classifier that guides a stage, if any; SpaceError where the stage cannot be run."""
    if stage.net not in nets:
        known = ", ".join(sorted(nets))
        raise SpaceError(f"schedule asks for network '{stage.net}'; given: {known}")
    _check_plan(SOLVERS[stage.solver], stage)
    for call in stage.calls:
        nets[stage.net].card.check_width(call.width)
    return find_classifier(stage, nets, cond)


def _check_plan(solver: Solver, stage: Stage) -> None:
    """SpaceError for an edited schedule whose calls are not those that its solver makes."""
    n, stated = len(stage.calls), [call.level for call in stage.calls]
    fits = len(stage.levels) == solver.nodes(n, **stage.args) + 1  # else no plan can be made
    if not fits or stated != [c.level for c in solver.plan(stage.levels, n, **stage.args)]:
        raise SpaceError(
            f"schedule: stage of '{stage.net}': its calls are not what '{stage.solver}' makes on "
            f"its levels; build it with plan_stage"
        )


def check_handover(
    before: Stage, stage: Stage, given: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    """SpaceError where a stage cannot go on from the end of the one before.

    Args:
        given, wanted: image shapes of the network before and of the stage's own.
    """
    if stage.solver == relay.NAME:
        relay.check_begin(stage, before, given, wanted)
    elif given != wanted:
        raise SpaceError(
            f"schedule: stage of '{stage.net}' walks images of shape {wanted}, the stage of "
            f"'{before.net}' before it ends with {given}; only solver '{relay.NAME}' makes larger "
            f"images of smaller ones"
        )


@dataclass(frozen=True, slots=True)
class _Watched:
    """A network that tells of its calls."""

    net: Guided
    on_call: OnCall | None

    @property
    def card(self) -> NetCard:
        return self.net.card

    def eps(
        self, x: Tensor, level: float, *, width: float = 1.0, cond: Tensor | None = None
    ) -> Tensor:
        if self.on_call is not None:
            self.on_call(level, width, x)
        return self.net.eps(x, level, width=width)


def _noise(seed: int, first_image: int, draw: int) -> Callable[[Tensor], Tensor]:
    """Noise of the shape of what it is given; another at every call of one draw."""
    times = count()

    def fresh(like: Tensor) -> Tensor:
        noise = image_noise(seed, first_image, tuple(like.shape), draw, next(times))
        return like.new_tensor(noise)

    return fresh
