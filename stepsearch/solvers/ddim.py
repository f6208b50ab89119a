"""DDIM, deterministic: the first-order solver that everything else is measured against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stepsearch.core.errors import SpaceError
from stepsearch.core.process import Process
from stepsearch.core.protocols import Net, SolverState
from stepsearch.core.schedule import Call, Stage
from stepsearch.solvers.registry import SOLVERS

if TYPE_CHECKING:
    from torch import Tensor


def move(x: Tensor, eps: Tensor, start: float, end: float, process: Process) -> Tensor:
    """Carry `x` from noise level `start` to `end` along a constant noise prediction.

    In x / alpha this is x + (end - start) eps: DDIM with eta = 0 (Song et al. 2021, eq. 12) for a
    variance-preserving process and Euler's step for EDM.
    """
    return process.alpha(end) * (x / process.alpha(start) + (end - start) * eps)


class DDIM:
    """One call per node, each prediction carried to the next node."""

    def canonical(self, n_calls: int, /, **args: Any) -> tuple[str, dict[str, Any]]:
        """DDIM itself."""
        return "ddim", args

    def nodes(self, n_calls: int, /, **args: Any) -> int:
        """As many nodes as calls; SpaceError for any argument."""
        if args:
            raise SpaceError(f"ddim takes no arguments, got {sorted(args)}")
        return n_calls

    def plan(self, levels: Sequence[float], n_calls: int, /, **args: Any) -> tuple[Call, ...]:
        """A call at every node but the end."""
        return tuple(Call(level) for level in levels[: self.nodes(n_calls, **args)])

    def step(
        self, net: Net, stage: Stage, state: SolverState, i: int, noise: Callable[[], Tensor]
    ) -> SolverState:
        """Call at node i, move to node i + 1."""
        start, end = stage.levels[i], stage.levels[i + 1]
        eps = net.eps(state.x, start, width=stage.calls[i].width)
        return SolverState(move(state.x, eps, start, end, net.card.diffusion))


SOLVERS.register("ddim")(DDIM())
