"""Predict and re-noise: the solver of few-step denoisers, DPDM's and consistency models alike.

Song et al. 2023, arXiv:2303.01469, algorithm 1. Its samples are the data's only where the network
answers with samples; a plain denoiser answers with means, which vary too little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stepsearch.core.protocols import Net, SolverState
from stepsearch.core.schedule import Call, Stage
from stepsearch.solvers.ddim import data
from stepsearch.solvers.registry import SOLVERS, read_args

if TYPE_CHECKING:
    from torch import Tensor

NAME = "renoise"


class Renoise:
    """One call per node; the predicted image gets all the noise of the next node afresh."""

    def canonical(self, n_calls: int, /, **args: Any) -> tuple[str, dict[str, Any]]:
        """DDIM for one call, which adds no noise."""
        read_args(NAME, args, {})
        return ("ddim" if n_calls == 1 else NAME), {}

    def order(self, /, **args: Any) -> int | None:
        """None: noise is drawn at every step."""
        read_args(NAME, args, {})
        return None

    def nodes(self, n_calls: int, /, **args: Any) -> int:
        """As many nodes as calls."""
        read_args(NAME, args, {})
        return n_calls

    def plan(self, levels: Sequence[float], n_calls: int, /, **args: Any) -> tuple[Call, ...]:
        """A call at every node but the end."""
        return tuple(Call(level) for level in levels[: self.nodes(n_calls, **args)])

    def step(
        self, net: Net, stage: Stage, state: SolverState, i: int, noise: Callable[[], Tensor]
    ) -> SolverState:
        """Call at node i, add the noise of node i + 1; none at level 0."""
        start, end = stage.levels[i], stage.levels[i + 1]
        process = net.card.diffusion
        eps = net.eps(state.x, start, width=stage.calls[i].width)
        x0 = data(state.x, eps, start, process)
        return SolverState(process.alpha(end) * (x0 + end * noise() if end > 0 else x0))


SOLVERS.register(NAME)(Renoise())
