"""DDPM's ancestral sampling with both of its variances (Ho et al. 2020, arXiv:2006.11239, alg. 2).

On fewer nodes than were trained, beta is that of the jump between two nodes (Nichol & Dhariwal
2021, arXiv:2102.09672, eq. 19).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stepsearch.core.protocols import Net, SolverState
from stepsearch.core.schedule import Call, Stage
from stepsearch.solvers.ddim import noisy_move, posterior_deviation
from stepsearch.solvers.registry import SOLVERS, check_choice, read_args

if TYPE_CHECKING:
    from torch import Tensor

VARIANCES = ("small", "large")


class DDPM:
    """One call per node; `variance` small is beta-tilde, large is beta (Ho et al. 2020, sec. 3.2).

    In noise levels r and signal scales alpha, a jump from (r_t, alpha_t) to (r_s, alpha_s) has
    beta = alpha_t^2 (r_t^2 - r_s^2) in units of x. The last jump, to no noise at all, adds none.
    """

    def canonical(self, n_calls: int, /, **args: Any) -> tuple[str, dict[str, Any]]:
        """DDIM for one call, which adds no noise."""
        variance = _variance(args)
        return ("ddim", {}) if n_calls == 1 else ("ddpm", {"variance": variance})

    def order(self, /, **args: Any) -> int | None:
        """None: noise is drawn at every step."""
        _variance(args)
        return None

    def nodes(self, n_calls: int, /, **args: Any) -> int:
        """As many nodes as calls."""
        _variance(args)
        return n_calls

    def plan(self, levels: Sequence[float], n_calls: int, /, **args: Any) -> tuple[Call, ...]:
        """A call at every node but the end."""
        return tuple(Call(level) for level in levels[: self.nodes(n_calls, **args)])

    def step(
        self, net: Net, stage: Stage, state: SolverState, i: int, noise: Callable[[], Tensor]
    ) -> SolverState:
        """Call at node i, draw node i + 1 from the reverse transition."""
        start, end = stage.levels[i], stage.levels[i + 1]
        process = net.card.diffusion
        eps = net.eps(state.x, start, width=stage.calls[i].width)
        small = posterior_deviation(start, end)
        added = small
        if _variance(stage.args) == "large" and end > 0:
            beta = process.alpha(start) ** 2 * max(start * start - end * end, 0.0)
            added = beta**0.5 / process.alpha(end)
        x = noisy_move(state.x, eps, start, end, process, removed=small, added=added, noise=noise)
        return SolverState(x)


def _variance(args: Any) -> str:
    given = read_args("ddpm", args, {"variance": "small"})
    return str(check_choice("ddpm", "variance", given["variance"], VARIANCES))


SOLVERS.register("ddpm")(DDPM())
