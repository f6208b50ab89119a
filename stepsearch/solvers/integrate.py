"""The one integrator: runs a StepSchedule, call by call, on the networks it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepsearch.core.errors import SpaceError
from stepsearch.core.noise import image_noise
from stepsearch.core.protocols import Net, NetCard, Solver, SolverState
from stepsearch.core.schedule import Stage, StepSchedule
from stepsearch.solvers.registry import SOLVERS

if TYPE_CHECKING:
    from torch import Tensor

    OnCall = Callable[[float, float, Tensor], None]


def integrate(
    schedule: StepSchedule,
    nets: Mapping[str, Net],
    x: Tensor,
    *,
    seed: int = 0,
    first_image: int = 0,
    cond: Tensor | None = None,
    on_call: OnCall | None = None,
) -> Tensor:
    """Run `schedule` from `x` to its end and return the images.

    Args:
        nets: network per `Stage.net`.
        x: starting state (B, ...) at the first stage's first level, in the network's own scale.
        seed, first_image: noise of image j depends on (seed, j) only, whatever the batch.
        cond: what conditional networks are given, (B, ...).
        on_call: told (level, width, x) of every network call before it is made.
    """
    draw = 0
    for stage in schedule.stages:
        if stage.net not in nets:
            known = ", ".join(sorted(nets))
            raise SpaceError(f"schedule asks for network '{stage.net}'; given: {known}")
        net = _Watched(nets[stage.net], cond, on_call)
        solver, state = SOLVERS[stage.solver], SolverState(x)
        _check_plan(solver, stage)
        for i in range(len(stage.calls)):
            draw += 1
            noise = _noise(seed, first_image, x, draw)
            state = solver.step(net, stage, state, i, noise)
        x = state.x
    return x


def _check_plan(solver: Solver, stage: Stage) -> None:
    """SpaceError for an edited schedule whose calls are not those that its solver makes."""
    planned = [c.level for c in solver.plan(stage.levels, len(stage.calls), **stage.args)]
    stated = [c.level for c in stage.calls]
    nodes = solver.nodes(len(stage.calls), **stage.args)
    if planned != stated or len(stage.levels) != nodes + 1:
        raise SpaceError(
            f"schedule: stage of '{stage.net}': its calls are not what '{stage.solver}' makes on "
            f"its levels; build it with plan_stage"
        )


@dataclass(frozen=True, slots=True)
class _Watched:
    """A network that carries its condition and tells of its calls."""

    net: Net
    cond: Tensor | None
    on_call: OnCall | None

    @property
    def card(self) -> NetCard:
        return self.net.card

    def eps(
        self, x: Tensor, level: float, *, width: float = 1.0, cond: Tensor | None = None
    ) -> Tensor:
        if self.on_call is not None:
            self.on_call(level, width, x)
        return self.net.eps(x, level, width=width, cond=self.cond)


def _noise(seed: int, first_image: int, x: Tensor, draw: int) -> Callable[[], Tensor]:
    def fresh() -> Tensor:
        return x.new_tensor(image_noise(seed, first_image, tuple(x.shape), draw))

    return fresh
