"""DEIS, tAB: Adams-Bashforth with the exact integral of an extrapolated noise prediction.

Zhang & Chen 2023, arXiv:2204.13902. In x / alpha and the noise level r the flow is
dx / dr = eps, so a step adds sum_j C_j eps_j with C_j the integral over r of the Lagrange basis
polynomial j through the last calls. What it is a polynomial in is a choice: time is the paper's
tAB, rho = r its rhoAB, log-rho what diffusers implements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stepsearch.core.process import Process, get_process
from stepsearch.core.protocols import Net, SolverState
from stepsearch.core.schedule import Call, Stage
from stepsearch.solvers.ddim import move
from stepsearch.solvers.multistep import every_node, weighted
from stepsearch.solvers.registry import SOLVERS, check_choice, read_args

if TYPE_CHECKING:
    from torch import Tensor

DEFAULTS = {"order": 3, "variable": "time"}
VARIABLES: dict[str, Callable[[Process, float], float]] = {
    "time": lambda process, level: process.continuous_time(level),
    "rho": lambda process, level: level,
    "log-rho": lambda process, level: math.log(level),
}
POINTS, WEIGHTS = np.polynomial.legendre.leggauss(64)  # 1e-12 over five decades of r in one step


class DEIS:
    """One call per node; the order rises from 1, and the step into level 0 is of first order."""

    def canonical(self, n_calls: int, /, **args: Any) -> tuple[str, dict[str, Any]]:
        """All arguments, the order no higher than it ever gets; DDIM for order 1."""
        given = _read(args)
        given["order"] = min(given["order"], n_calls - 1)  # the step into level 0 is of first order
        return ("ddim", {}) if given["order"] <= 1 else ("deis", given)

    def order(self, /, **args: Any) -> int | None:
        """As asked for."""
        return int(_read(args)["order"])

    def nodes(self, n_calls: int, /, **args: Any) -> int:
        """As many nodes as calls."""
        _read(args)
        return n_calls

    def plan(self, levels: Sequence[float], n_calls: int, /, **args: Any) -> tuple[Call, ...]:
        """A call at every node but the end."""
        return every_node("deis", levels, self.nodes(n_calls, **args))

    def step(
        self, net: Net, stage: Stage, state: SolverState, i: int, noise: Callable[[], Tensor]
    ) -> SolverState:
        """Call at node i, move to node i + 1 along the mean of the last predictions."""
        given, process = _read(stage.args), net.card.diffusion
        start, end = stage.levels[i], stage.levels[i + 1]
        eps = net.eps(state.x, start, width=stage.calls[i].width)
        order = min(given["order"], i + 1) if end > 0 else 1
        outputs = (eps, *state.buffer)[: given["order"]]
        asked = tuple(reversed(stage.levels[i + 1 - order : i + 1]))
        mean = weighted(shares(asked, end, given["variable"], process.name), outputs[:order])
        return SolverState(move(state.x, mean, start, end, process), outputs)


@lru_cache(maxsize=4096)
def shares(asked: tuple[float, ...], end: float, variable: str, process: str) -> tuple[float, ...]:
    """Weights C_j / (end - asked[0]) of the predictions at levels `asked`, newest first.

    Gauss-Legendre in log r, where the integrand is smooth however many decades a step spans.
    """
    if len(asked) == 1:
        return (1.0,)
    place = partial(VARIABLES[variable], get_process(process))
    low, high = math.log(end), math.log(asked[0])
    levels = np.exp(low + (high - low) * (1 + POINTS) / 2)
    mass = WEIGHTS * levels
    tau = np.array([place(float(level)) for level in levels])
    nodes = [place(level) for level in asked]
    basis = [
        math.prod((tau - other) / (node - other) for m, other in enumerate(nodes) if m != j)
        for j, node in enumerate(nodes)
    ]
    return tuple(float(mass @ column / mass.sum()) for column in basis)


def _read(args: Any) -> dict[str, Any]:
    given = read_args("deis", args, DEFAULTS)
    check_choice("deis", "order", given["order"], (1, 2, 3))
    check_choice("deis", "variable", given["variable"], tuple(VARIABLES))
    return given


SOLVERS.register("deis")(DEIS())
