"""DDIM: the first-order solver that everything else is measured against (Song et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stepsearch.core.process import Process
from stepsearch.core.protocols import Net, SolverState
from stepsearch.core.schedule import Call, Stage
from stepsearch.solvers.registry import SOLVERS, check_number, read_args

if TYPE_CHECKING:
    from torch import Tensor


def move(x: Tensor, eps: Tensor, start: float, end: float, process: Process) -> Tensor:
    """Carry `x` from noise level `start` to `end` along a constant noise prediction.

    In x / alpha this is x + (end - start) eps: DDIM with eta = 0 (Song et al. 2021, eq. 12) for a
    variance-preserving process and Euler's step for EDM.
    """
    return process.alpha(end) * (x / process.alpha(start) + (end - start) * eps)


def pull(x: Tensor, x0: Tensor, start: float, end: float, process: Process) -> Tensor:
    """Carry `x` from noise level `start` to `end` along a constant data prediction.

    The exponential-integrator form of `move` (Lu et al. 2022, arXiv:2211.01095, eq. 9, first
    order); equal to it where eps and x0 belong to this very x.
    """
    ratio = end / start
    return process.alpha(end) * (ratio * x / process.alpha(start) + (1 - ratio) * x0)


def data(x: Tensor, eps: Tensor, level: float, process: Process) -> Tensor:
    """The image that a noise prediction at `level` means, x0 = x / alpha - level eps."""
    return x / process.alpha(level) - level * eps


def posterior_deviation(start: float, end: float) -> float:
    """Deviation, in units of x / alpha, of the noise that one ancestral step from `start` adds.

    sigma_t of Song et al. 2021, eq. 16, with eta = 1, which is DDPM's beta-tilde; in noise levels
    it is end sqrt(start^2 - end^2) / start for every process.
    """
    return end * max(start * start - end * end, 0.0) ** 0.5 / start


def noisy_move(
    x: Tensor,
    eps: Tensor,
    start: float,
    end: float,
    process: Process,
    *,
    removed: float,
    added: float,
    noise: Callable[[], Tensor],
) -> Tensor:
    """Move with less of the predicted and more of fresh noise (Song et al. 2021, eq. 12).

    Args:
        removed: deviation that is taken from the predicted noise, in units of x / alpha.
        added: deviation of the fresh noise, same unit; equal to `removed` but for DDPM's large
            variance.
    """
    kept = max(end * end - removed * removed, 0.0) ** 0.5
    mean = x / process.alpha(start) + (kept - start) * eps
    return process.alpha(end) * (mean + added * noise() if added > 0 else mean)


class DDIM:
    """One call per node, each prediction carried to the next node; `eta` in [0, 1] adds noise.

    eta = 0 is the deterministic, first-order solver; eta = 1 is DDPM with its small variance.
    """

    def canonical(self, n_calls: int, /, **args: Any) -> tuple[str, dict[str, Any]]:
        """No argument where no noise is added; `ddpm` where eta is 1."""
        eta = _eta(args) if n_calls > 1 else 0.0 * _eta(args)  # the jump to level 0 adds none
        if eta == 1:
            return "ddpm", {"variance": "small"}
        return "ddim", {"eta": eta} if eta else {}

    def order(self, /, **args: Any) -> int | None:
        """First order."""
        return None if _eta(args) else 1

    def nodes(self, n_calls: int, /, **args: Any) -> int:
        """As many nodes as calls."""
        _eta(args)
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
        process, sd = net.card.diffusion, _eta(stage.args) * posterior_deviation(start, end)
        if not sd:
            return SolverState(move(state.x, eps, start, end, process))
        x = noisy_move(state.x, eps, start, end, process, removed=sd, added=sd, noise=noise)
        return SolverState(x)


def _eta(args: Any) -> float:
    return check_number("ddim", "eta", read_args("ddim", args, {"eta": 0.0})["eta"], 0, 1)


SOLVERS.register("ddim")(DDIM())
