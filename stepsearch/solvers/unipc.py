"""UniPC: a multistep predictor, and a corrector that costs no call (Zhao et al. 2023).

arXiv:2302.04867, algorithms 1 and 2 in data prediction. In x / alpha and the noise level r, with
lambda = -log r and z = -h the negative step in lambda, both carry x from r_s to r_t along

    D = x0_s + B(h) / (e^z - 1) sum_k a_k (x0_k - x0_s) / q_k,   q_k = (lambda_k - lambda_s) / h,

over the other image predictions at hand; for the corrector that of r_t itself, q = 1, is one of
them. `bh1` is B(h) = z, `bh2` is B(h) = e^z - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stepsearch.core.protocols import Net, SolverState
from stepsearch.core.schedule import Call, Stage
from stepsearch.solvers.ddim import data, pull
from stepsearch.solvers.multistep import every_node, weighted
from stepsearch.solvers.registry import SOLVERS, check_choice, read_args

if TYPE_CHECKING:
    from torch import Tensor

DEFAULTS = {"order": 2, "variant": "bh2", "corrector": True}
POINTS, WEIGHTS = np.polynomial.legendre.leggauss(32)  # exact to rounding for steps up to h = 30


class UniPC:
    """One call per node, at the predicted state; its answer corrects that state, then predicts.

    The answer itself is kept as it is, never asked again at the corrected state. The order rises
    from 1 at the start and falls to 1 at an end of level 0, as in the authors' code.
    """

    def canonical(self, n_calls: int, /, **args: Any) -> tuple[str, dict[str, Any]]:
        """All arguments, the order no higher than it ever gets; the plainer solver where prediction
        alone is DDIM or DPM-Solver++(2M)."""
        given = _read(args)
        given["order"] = min(given["order"], (n_calls + 1) // 2)  # rises by 1 a call, then falls
        plain = not given["corrector"]
        if n_calls <= 2 or (plain and given["order"] == 1):  # x0 of the last call is the end
            return "ddim", {}
        if plain and given["order"] == 2 and given["variant"] == "bh2":
            return "dpmpp_2m", {}
        return "unipc", given

    def order(self, /, **args: Any) -> int | None:
        """That of the predictor; the corrector lowers the error and may raise the order."""
        return int(_read(args)["order"])

    def nodes(self, n_calls: int, /, **args: Any) -> int:
        """As many nodes as calls."""
        _read(args)
        return n_calls

    def plan(self, levels: Sequence[float], n_calls: int, /, **args: Any) -> tuple[Call, ...]:
        """A call at every node but the end."""
        return every_node("unipc", levels, self.nodes(n_calls, **args))

    def step(
        self, net: Net, stage: Stage, state: SolverState, i: int, noise: Callable[[], Tensor]
    ) -> SolverState:
        """Correct node i, predict node i + 1; the buffer holds node i corrected and the x0s."""
        given, process, levels = _read(stage.args), net.card.diffusion, stage.levels
        eps = net.eps(state.x, levels[i], width=stage.calls[i].width)
        x, x0, past = state.x, data(state.x, eps, levels[i], process), state.buffer[1:]

        def carry(x: Tensor, outputs: Sequence[Tensor], asked: Sequence[float], to: int) -> Tensor:
            weights = blend(asked, levels[to], given["variant"])
            return pull(x, weighted(weights, outputs), asked[0], levels[to], process)

        known = tuple(reversed(levels[: i + 1]))
        if i and given["corrector"]:
            p = _order_at(stage, i - 1, given["order"])
            x = carry(state.buffer[0], (*past[:p], x0), (*known[1 : p + 1], levels[i]), i)
        outputs, p = (x0, *past), _order_at(stage, i, given["order"])
        return SolverState(carry(x, outputs[:p], known[:p], i + 1), (x, *outputs[: given["order"]]))


def blend(asked: Sequence[float], end: float, variant: str) -> list[float]:
    """Weights of the x0s of levels `asked` in D, for a step from asked[0] to `end`.

    The a_k solve R a = b (theorem 3.1, corollary 3.2): sum_k a_k q_k^(j - 1) = j! phi_{j+1} z / B
    for j = 1, 2, ..., with j! phi_{j+1}(z) the integral of e^((1 - u) z) u^j over [0, 1]. One
    unknown alone is set to 1/2 whatever the step, as the authors do: only there is B(h) felt.
    """
    if len(asked) == 1:
        return [1.0]
    start, *others = asked
    z = math.log(end / start)
    q = np.array([math.log(level / start) for level in others]) / z
    b = {"bh1": z, "bh2": math.expm1(z)}[variant]
    if len(q) == 1:
        a = np.array([0.5])
    else:
        rows = np.arange(len(q))[:, None]
        u = (1 + POINTS) / 2
        phi = u ** (rows + 1) @ (WEIGHTS / 2 * np.exp((1 - u) * z))
        a = np.linalg.solve(q**rows, phi * z / b)
    past = b / math.expm1(z) * a / q
    return [float(1 - past.sum()), *past.tolist()]


def _order_at(stage: Stage, i: int, order: int) -> int:
    """Order of the prediction from node i."""
    left = len(stage.calls) - i if stage.levels[-1] == 0 else order
    return min(order, i + 1, left)


def _read(args: Any) -> dict[str, Any]:
    given = read_args("unipc", args, DEFAULTS)
    check_choice("unipc", "order", given["order"], (1, 2, 3))
    check_choice("unipc", "variant", given["variant"], ("bh1", "bh2"))
    check_choice("unipc", "corrector", given["corrector"], (True, False))
    return given


SOLVERS.register("unipc")(UniPC())
