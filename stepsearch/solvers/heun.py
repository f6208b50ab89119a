"""Heun's method of EDM, deterministic and with churn (Karras et al. 2022, arXiv:2206.00364).

Algorithms 1 and 2, written in x / alpha and the noise level, so that one file serves every process.
A step from node to node costs two calls, the last one to level 0 costs one: N steps are 2 N - 1
calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stepsearch.core.errors import SpaceError
from stepsearch.core.protocols import Net, SolverState
from stepsearch.core.schedule import Call, Stage
from stepsearch.solvers.ddim import move
from stepsearch.solvers.registry import SOLVERS, check_number, read_args

if TYPE_CHECKING:
    from torch import Tensor

DEFAULTS = {"churn": 0.0, "s_min": 0.0, "s_max": math.inf, "s_noise": 1.0}
MOST = math.sqrt(2) - 1  # no step is raised to more than twice its variance


class Heun:
    """Arguments of algorithm 2: `churn` over the whole walk, within levels s_min .. s_max.

    churn = 0 is algorithm 1. Noise is never raised above the first level of the grid, where no
    network was trained; the paper's text leaves this open.
    """

    def canonical(self, n_calls: int, /, **args: Any) -> tuple[str, dict[str, Any]]:
        """No argument where nothing is churned, no more churn than is heeded; DDIM for one call."""
        given = _read(args)
        if n_calls == 1:
            return "ddim", {}
        if not given["churn"]:
            return "heun", {}
        given["churn"] = min(given["churn"], MOST * self.nodes(n_calls))
        return "heun", {k: v for k, v in given.items() if v != DEFAULTS[k]}

    def order(self, /, **args: Any) -> int | None:
        """Second order without churn."""
        return None if _read(args)["churn"] else 2

    def nodes(self, n_calls: int, /, **args: Any) -> int:
        """N nodes for 2 N - 1 calls; SpaceError for an even number of calls."""
        _read(args)
        if n_calls % 2 == 0:
            raise SpaceError(
                f"heun: N steps are 2 N - 1 calls, so calls must be odd, got {n_calls}; use "
                f"{n_calls - 1} or {n_calls + 1}"
            )
        return (n_calls + 1) // 2

    def plan(self, levels: Sequence[float], n_calls: int, /, **args: Any) -> tuple[Call, ...]:
        """A call where the step begins, after churn, and one where it ends."""
        steps = self.nodes(n_calls, **args)
        raised = [_raised(levels, n, steps, args) for n in range(steps)]
        pairs = ((Call(up), Call(end)) for up, end in zip(raised, levels[1:steps], strict=False))
        return (*(call for pair in pairs for call in pair), Call(raised[-1]))

    def step(
        self, net: Net, stage: Stage, state: SolverState, i: int, noise: Callable[[], Tensor]
    ) -> SolverState:
        """Even calls make Euler's step, odd ones correct it; the buffer is its start and slope."""
        process, node = net.card.diffusion, i // 2
        level, end = stage.calls[i].level, stage.levels[node + 1]
        if i % 2:
            begin, slope = state.buffer
            eps = net.eps(state.x, level, width=stage.calls[i].width)
            up = stage.calls[i - 1].level
            return SolverState(move(begin, (slope + eps) / 2, up, end, process))
        x, low = state.x, stage.levels[node]
        if level > low:
            added = _read(stage.args)["s_noise"] * math.sqrt(level**2 - low**2)
            x = process.alpha(level) * (x / process.alpha(low) + added * noise())
        eps = net.eps(x, level, width=stage.calls[i].width)
        moved = move(x, eps, level, end, process)
        last = i + 1 == len(stage.calls)
        return SolverState(moved) if last else SolverState(moved, (x, eps))


def _read(args: Any) -> dict[str, float]:
    given = read_args("heun", args, DEFAULTS)
    for name, value in given.items():
        if name != "s_max" or value != math.inf:
            given[name] = check_number("heun", name, value, 0)
    if given["s_min"] > given["s_max"]:
        raise SpaceError(
            f"heun: s_min {given['s_min']:g} exceeds s_max {given['s_max']:g}; swap them"
        )
    return given


def _raised(levels: Sequence[float], node: int, steps: int, args: Any) -> float:
    """The level t-hat at which step `node` begins (algorithm 2, lines 4 to 5)."""
    level, given = levels[node], _read(args)
    if not given["s_min"] <= level <= given["s_max"]:
        return level
    return min(level * (1 + min(given["churn"] / steps, MOST)), levels[0])


SOLVERS.register("heun")(Heun())
