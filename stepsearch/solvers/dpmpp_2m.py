"""DPM-Solver++(2M): second order from one call a node and one buffered image prediction.

Lu et al. 2022, arXiv:2211.01095, algorithm 2. In x / alpha and the noise level r, with
lambda = -log r, the solver carries x from r_s to r_t along D = (1 + 1 / (2 q)) x0 - x0_before /
(2 q), where q is the last step in lambda over this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stepsearch.core.protocols import Net, SolverState
from stepsearch.core.schedule import Call, Stage
from stepsearch.solvers.ddim import data, pull
from stepsearch.solvers.multistep import every_node, weighted
from stepsearch.solvers.registry import SOLVERS, read_args

if TYPE_CHECKING:
    from torch import Tensor


class DPMpp2M:
    """One call per node; the first step and the one into level 0 are of first order."""

    def canonical(self, n_calls: int, /, **args: Any) -> tuple[str, dict[str, Any]]:
        """DDIM for up to two calls: on the way to level 0 no step of second order is left."""
        read_args("dpmpp_2m", args, {})
        return ("ddim" if n_calls <= 2 else "dpmpp_2m"), {}

    def order(self, /, **args: Any) -> int | None:
        """Second order."""
        read_args("dpmpp_2m", args, {})
        return 2

    def nodes(self, n_calls: int, /, **args: Any) -> int:
        """As many nodes as calls."""
        read_args("dpmpp_2m", args, {})
        return n_calls

    def plan(self, levels: Sequence[float], n_calls: int, /, **args: Any) -> tuple[Call, ...]:
        """A call at every node but the end."""
        return every_node("dpmpp_2m", levels, self.nodes(n_calls, **args))

    def step(
        self, net: Net, stage: Stage, state: SolverState, i: int, noise: Callable[[], Tensor]
    ) -> SolverState:
        """Call at node i, move to node i + 1 along the extrapolated image."""
        process, start, end = net.card.diffusion, stage.levels[i], stage.levels[i + 1]
        eps = net.eps(state.x, start, width=stage.calls[i].width)
        x0 = data(state.x, eps, start, process)
        ahead = x0
        if i and end > 0:
            past = 0.5 * math.log(start / end) / math.log(stage.levels[i - 1] / start)
            ahead = weighted((1 + past, -past), (x0, *state.buffer))
        return SolverState(pull(state.x, ahead, start, end, process), (x0,))


SOLVERS.register("dpmpp_2m")(DPMpp2M())
