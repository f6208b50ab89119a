"""PFDiff: past and future gradients around a first-order solver (Wang et al. 2025).

arXiv:2408.08822. A fine grid of (k + 1) N - k nodes is walked with N calls. The first call covers
one interval; every further one covers a block of k + 1 intervals: the last gradient, free of cost,
carries the state ahead to the *springboard*, the network is asked there, and its answer carries the
state over the whole block from where the block began.

The paper places the springboard l intervals into the block. What decides accuracy is its place in
the noise level, c = (start - springboard) / (start - end of block): a block is a midpoint rule
whose stage was predicted with the lagged gradient, of second order at c = 1/2 and of first order
with an error proportional to c - 1/2 elsewhere. So `c` may be given instead of l, anywhere in
(0, 1). Only the block that ends at level 0 is asked no lower than the last node before it: below
the grid no network was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stepsearch.core.errors import SpaceError
from stepsearch.core.process import Process
from stepsearch.core.protocols import Net, SolverState
from stepsearch.core.schedule import Call, Stage
from stepsearch.solvers.ddim import data, move, pull
from stepsearch.solvers.registry import SOLVERS, check_choice, check_number, read_args

if TYPE_CHECKING:
    from torch import Tensor

BUFFERS = ("eps", "x0", "clipped-x0")


def block(i: int, k: int) -> tuple[int, int]:
    """Nodes (start, end) of call i on the fine grid."""
    start = 1 + (k + 1) * (i - 1)
    return (start, start + k + 1) if i else (0, 1)


class PFDiff:
    """`{k, l}` with 1 <= l <= k as in the paper, or `{c}` in (0, 1) with k = 1 unless given.

    k = l = 0 is DDIM on the same number of calls. `buffer` is what a call leaves behind: eps, or
    the x0 and clipped-x0 of other official codes. Warning: these are other methods with other best
    settings; on the golden mixture x0 with (2, 1) has three to four times the error of eps, and
    clipping is biased wherever data lie outside [-1, 1].
    """

    def canonical(self, n_calls: int, /, **args: Any) -> tuple[str, dict[str, Any]]:
        """DDIM where there is no block to skip; the default buffer and k are left out."""
        given = _read(args)
        plain = given["k"] == 0 or n_calls == 1
        if plain and given["buffer"] != "clipped-x0":
            return "ddim", {}
        kept = {"k": given["k"], "l": given["l"]}
        if given["c"] is not None:
            kept = {"c": given["c"]} | ({"k": given["k"]} if given["k"] != 1 else {})
        if plain:  # every call is made where its interval begins: only clipping is left
            kept = {"k": 0, "l": 0}
        return "pfdiff", kept | ({"buffer": given["buffer"]} if given["buffer"] != "eps" else {})

    def order(self, /, **args: Any) -> int | None:
        """First order; second where c is exactly 1/2 and the buffer holds eps."""
        given = _read(args)
        return 2 if given["c"] == 0.5 and given["buffer"] == "eps" else 1

    def nodes(self, n_calls: int, /, **args: Any) -> int:
        """Fine nodes for `n_calls`."""
        k = _read(args)["k"]
        return (k + 1) * n_calls - k

    def plan(self, levels: Sequence[float], n_calls: int, /, **args: Any) -> tuple[Call, ...]:
        """A call at the first node and at every springboard."""
        given = _read(args)
        return tuple(Call(_springboard(levels, i, given)) for i in range(n_calls))

    def step(
        self, net: Net, stage: Stage, state: SolverState, i: int, noise: Callable[[], Tensor]
    ) -> SolverState:
        """Springboard by the buffered prediction, call, block move."""
        given, process = _read(stage.args), net.card.diffusion
        begin, end = (stage.levels[n] for n in block(i, given["k"]))
        spring, carry = stage.calls[i].level, _CARRY[given["buffer"]]
        ahead = carry(state.x, state.buffer[0], begin, spring, process) if i else state.x
        eps = net.eps(ahead, spring, width=stage.calls[i].width)
        kept = eps
        if given["buffer"] != "eps":
            kept = data(ahead, eps, spring, process)
        if given["buffer"] == "clipped-x0":
            kept = kept.clamp(-1, 1)
        return SolverState(carry(state.x, kept, begin, end, process), (kept,))


_CARRY: dict[str, Callable[[Tensor, Tensor, float, float, Process], Tensor]] = {
    "eps": move,
    "x0": pull,
    "clipped-x0": pull,
}


def _springboard(levels: Sequence[float], i: int, given: dict[str, Any]) -> float:
    """Noise level of call i."""
    begin, end = block(i, given["k"])
    if i == 0:
        return levels[begin]
    if given["c"] is None:
        return levels[begin + given["l"]]
    spring = levels[begin] - given["c"] * (levels[begin] - levels[end])
    return spring if levels[end] > 0 else max(spring, levels[end - 1])


def _read(args: Any) -> dict[str, Any]:
    given = read_args("pfdiff", args, {"k": None, "l": None, "c": None, "buffer": "eps"})
    check_choice("pfdiff", "buffer", given["buffer"], BUFFERS)
    k, l, c = given["k"], given["l"], given["c"]  # noqa: E741 (the paper's letter)
    if c is not None:
        if l is not None:
            raise SpaceError(f"pfdiff: c and l both place the springboard, got c={c}, l={l}")
        given["c"] = check_number("pfdiff", "c", c, 0, 1, open_ends=True)
        given["k"] = k = 1 if k is None else k
        if type(k) is not int or k < 1:
            raise SpaceError(f"pfdiff: k must be a whole number of at least 1, got {k!r}")
        return given
    if type(k) is not int or type(l) is not int:
        raise SpaceError(f"pfdiff takes two whole numbers k and l, or c, got {dict(args)}")
    if not (1 <= l <= k or k == l == 0):
        raise SpaceError(f"pfdiff: need 1 <= l <= k, got k={k}, l={l}")
    return given


SOLVERS.register("pfdiff")(PFDiff())
