"""DPM-Solver++(2S): second order from two calls a step and no memory of earlier steps.

Lu et al. 2022, arXiv:2211.01095, algorithm 1 with r1 = 1/2: the image predicted at the middle of a
step, in lambda = -log of the noise level, carries x over the whole of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stepsearch.core.protocols import Net, SolverState
from stepsearch.core.schedule import Call, Stage
from stepsearch.solvers.ddim import data, pull
from stepsearch.solvers.registry import SOLVERS, check_distinct, read_args

if TYPE_CHECKING:
    from torch import Tensor


class DPMpp2S:
    """Steps of two calls, then one of one call, or two where the number of calls is even.

    The middle of a step into level 0 does not exist, hence the first order at the end.
    """

    def canonical(self, n_calls: int, /, **args: Any) -> tuple[str, dict[str, Any]]:
        """DDIM for up to two calls, which leave no room for a step of two."""
        read_args("dpmpp_2s", args, {})
        return ("ddim" if n_calls <= 2 else "dpmpp_2s"), {}

    def order(self, /, **args: Any) -> int | None:
        """Second order; the one or two steps of first order at the end do not lower it."""
        read_args("dpmpp_2s", args, {})
        return 2

    def nodes(self, n_calls: int, /, **args: Any) -> int:
        """One node for every step: (N + 1) / 2 of N calls where N is odd, N / 2 + 1 where even."""
        read_args("dpmpp_2s", args, {})
        return n_calls - _pairs(n_calls)

    def plan(self, levels: Sequence[float], n_calls: int, /, **args: Any) -> tuple[Call, ...]:
        """A call at every node but the end, and one in the middle of each step of two calls."""
        nodes, pairs = self.nodes(n_calls, **args), _pairs(n_calls)
        check_distinct("dpmpp_2s", levels)
        steps = itertools.pairwise(levels[: pairs + 1])
        doubled = (level for start, end in steps for level in (start, math.sqrt(start * end)))
        return tuple(Call(level) for level in (*doubled, *levels[pairs:nodes]))

    def step(
        self, net: Net, stage: Stage, state: SolverState, i: int, noise: Callable[[], Tensor]
    ) -> SolverState:
        """Even calls of a pair go to the middle, odd ones over the whole step from its start."""
        process, pairs = net.card.diffusion, _pairs(len(stage.calls))
        paired = i < 2 * pairs
        node = i // 2 if paired else i - pairs
        level, start, end = stage.calls[i].level, stage.levels[node], stage.levels[node + 1]
        x0 = data(state.x, net.eps(state.x, level, width=stage.calls[i].width), level, process)
        if paired and i % 2 == 0:
            middle = pull(state.x, x0, start, stage.calls[i + 1].level, process)
            return SolverState(middle, (state.x,))
        begin = state.buffer[0] if paired else state.x
        return SolverState(pull(begin, x0, start, end, process))


def _pairs(n_calls: int) -> int:
    """Steps of two calls."""
    return (n_calls - 1) // 2


SOLVERS.register("dpmpp_2s")(DPMpp2S())
