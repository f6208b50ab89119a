"""PFDiff-k_l: past and future gradients around a first-order solver (Wang et al. 2025).

arXiv:2408.08822. A fine grid of (k + 1) N - k nodes is walked with N calls. The first call covers
one interval; every further one covers a block of k + 1 intervals: the last gradient, free of cost,
carries the state l intervals ahead to the *springboard*, the network is asked there, and its answer
carries the state over the whole block from where the block began.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stepsearch.core.errors import SpaceError
from stepsearch.core.protocols import Net, SolverState
from stepsearch.core.schedule import Call, Stage
from stepsearch.solvers.ddim import move
from stepsearch.solvers.registry import SOLVERS

if TYPE_CHECKING:
    from torch import Tensor


def jump(i: int, k: int, l: int) -> tuple[int, int, int]:  # noqa: E741 (the paper's letter)
    """Nodes (start, springboard, end) of call i on the fine grid."""
    if i == 0:
        return 0, 0, 1
    start = 1 + (k + 1) * (i - 1)
    return start, start + l, start + k + 1


class PFDiff:
    """Arguments k >= 1 and 1 <= l <= k; k = l = 0 is DDIM on the same number of calls."""

    def canonical(self, n_calls: int, /, **args: Any) -> tuple[str, dict[str, Any]]:
        """DDIM where there is no block to skip."""
        k, _ = _k_l(args)
        return ("ddim", {}) if k == 0 or n_calls == 1 else ("pfdiff", args)

    def nodes(self, n_calls: int, /, **args: Any) -> int:
        """Fine nodes for `n_calls`; SpaceError for k, l that are missing or out of range."""
        k, _ = _k_l(args)
        return (k + 1) * n_calls - k

    def plan(self, levels: Sequence[float], n_calls: int, /, **args: Any) -> tuple[Call, ...]:
        """A call at the first node and at every springboard."""
        k, l = _k_l(args)  # noqa: E741
        return tuple(Call(levels[jump(i, k, l)[1]]) for i in range(n_calls))

    def step(
        self, net: Net, stage: Stage, state: SolverState, i: int, noise: Callable[[], Tensor]
    ) -> SolverState:
        """Springboard by the buffered prediction, call, block move; the buffer holds eps."""
        process = net.card.diffusion
        start, spring, end = (stage.levels[n] for n in jump(i, *_k_l(stage.args)))
        ahead = move(state.x, state.buffer[0], start, spring, process) if i else state.x
        eps = net.eps(ahead, spring, width=stage.calls[i].width)
        return SolverState(move(state.x, eps, start, end, process), (eps,))


def _k_l(args: Any) -> tuple[int, int]:
    if set(args) != {"k", "l"} or not all(type(v) is int for v in args.values()):
        raise SpaceError(f"pfdiff takes two whole numbers k and l, got {dict(args)}")
    k, l = args["k"], args["l"]  # noqa: E741
    if not (1 <= l <= k or k == l == 0):
        raise SpaceError(f"pfdiff: need 1 <= l <= k, got k={k}, l={l}")
    return k, l


SOLVERS.register("pfdiff")(PFDiff())
