"""The second stage of Relay Diffusion: tiles are sharpened while noise is taken away.

Teng et al. 2024, arXiv:2309.03350, sec. 3.3, for the forward process of core.relay. In units of
x / alpha, with F[a] the filter of every tile by multipliers a, a_c and a_n those of the blur at
levels c and n, and z the mixture of white and block noise, a step from c to n is

    x_n = kept x_c + F[a_n - kept a_c] x0 + eta n z,    kept = sqrt(1 - eta^2) n / c.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from stepsearch.core.errors import SpaceError
from stepsearch.core.process import Process
from stepsearch.core.protocols import Net, SolverState
from stepsearch.core.relay import Relay, blur_scales, filter_tiles
from stepsearch.core.schedule import Call, Stage
from stepsearch.solvers.ddim import data
from stepsearch.solvers.registry import SOLVERS, check_choice, check_number, read_args

if TYPE_CHECKING:
    from torch import Tensor

NAME = "relay"
STEPS = ("first", "official", "trapezoid")
DEFAULTS = {"step": "trapezoid", "eta": 0.0} | asdict(Relay()) | {"scale": None}


class RelaySolver:
    """Which image x0 a step goes towards, and all fields of Relay, of which `scale` has no default.

    `first`: the predicted one, one call a step. `official`: that of the mean of the two noise
    predictions at both ends, as the authors' code; under blur it is of first order all the same.
    `trapezoid`: the mean of the two predicted images, of second order. These two predict the end of
    a step with noise of its own and then go from its start again with fresh noise. Their last step
    is one call, of first order, whether it ends at level 0 or above: N steps are 2 N - 1 calls.

    eta in [0, 1] is the share of the noise, as a deviation, that is drawn afresh; with true images
    x0 any share keeps the marginals.
    """

    def canonical(self, n_calls: int, /, **args: Any) -> tuple[str, dict[str, Any]]:
        """Every argument; never another solver, which could not begin from a first stage."""
        step, eta, relay = _read(args)
        if n_calls == 1:  # the network's image is the end
            step, eta = "first", 0.0
        numbers = {name: float(getattr(relay, name)) for name in ("blur", "prob_length", "block")}
        normalize = relay.normalize and relay.block > 0
        return NAME, {
            "step": step,
            "eta": eta,
            "scale": relay.scale,
            **numbers,
            "normalize": normalize,
        }

    def order(self, /, **args: Any) -> int | None:
        """Second order of the trapezoid, and of the official step where nothing is blurred."""
        step, eta, relay = _read(args)
        if eta:
            return None
        return 2 if step == "trapezoid" or (step == "official" and not relay.blur) else 1

    def nodes(self, n_calls: int, /, **args: Any) -> int:
        """N nodes for N calls of `first`, for 2 N - 1 of the others; SpaceError for even ones."""
        step = _read(args)[0]
        if step == "first":
            return n_calls
        if n_calls % 2 == 0:
            raise SpaceError(
                f"{NAME}: N steps of '{step}' are 2 N - 1 calls, so calls must be odd, got "
                f"{n_calls}; use {n_calls - 1} or {n_calls + 1}, or step 'first'"
            )
        return (n_calls + 1) // 2

    def plan(self, levels: Sequence[float], n_calls: int, /, **args: Any) -> tuple[Call, ...]:
        """A call at every node but the end, and one more where a step of two calls ends."""
        nodes = self.nodes(n_calls, **args)
        if nodes == n_calls:
            return tuple(Call(level) for level in levels[:nodes])
        pairs = pairwise(levels[:nodes])
        return (*(Call(level) for pair in pairs for level in pair), Call(levels[nodes - 1]))

    def step(
        self, net: Net, stage: Stage, state: SolverState, i: int, noise: Callable[[], Tensor]
    ) -> SolverState:
        """Even calls of a pair predict, odd ones correct; the buffer is the start and its noise."""
        how, eta, relay = _read(stage.args)
        process, level = net.card.diffusion, stage.calls[i].level
        node = i if how == "first" else i // 2
        start, end = stage.levels[node], stage.levels[node + 1]
        eps = net.eps(state.x, level, width=stage.calls[i].width)
        corrects = how != "first" and i % 2 == 1
        begin, first = state.buffer if corrects else (state.x, eps)
        if corrects and how == "trapezoid":
            x0 = (data(begin, first, start, process) + data(state.x, eps, level, process)) / 2
        else:
            x0 = data(begin, (first + eps) / 2 if corrects else eps, start, process)
        moved = _move(begin / process.alpha(start), x0, start, end, relay, eta, noise)
        moved = process.alpha(end) * moved
        done = how == "first" or corrects or i + 1 == len(stage.calls)
        return SolverState(moved) if done else SolverState(moved, (state.x, eps))


def check_begin(stage: Stage, before: Stage, given: Sequence[int], wanted: Sequence[int]) -> None:
    """SpaceError where a relay stage cannot take over from the stage before it.

    Args:
        given, wanted: image shapes of the network before and of the stage's own.
    """
    scale = _read(stage.args)[2].scale
    owner = f"schedule: relay stage of '{stage.net}'"
    if before.levels[-1] != 0:
        raise SpaceError(
            f"{owner}: it begins from finished images, but the stage of '{before.net}' before it "
            f"ends at noise level {before.levels[-1]:g}; let that end at 0"
        )
    channels, *sides = given
    large = (channels, *(scale * side for side in sides))
    if len(sides) != 2 or tuple(wanted) != large:
        raise SpaceError(
            f"{owner}: with scale {scale} it makes images of shape {large} of those before it, "
            f"{tuple(given)}, but its network wants {tuple(wanted)}; choose networks (C, H, W) "
            f"that fit"
        )


def begin(
    images: Tensor, stage: Stage, process: Process, noise: Callable[[Tensor], Tensor]
) -> Tensor:
    """The state that a relay stage starts from: images of the stage before, enlarged, and noise.

    Sec. 3.3: at the first level all that is left of an image is close to the means of its tiles,
    which are the pixels of the smaller one.

    Args:
        images: finished, (B, C, H, W).
        noise: draws noise of the shape that it is given, at every call another.

    Returns:
        (B, C, scale H, scale W), in the network's scale.
    """
    relay, level = _read(stage.args)[2], stage.levels[0]
    large = enlarge(images, relay.scale)
    return process.alpha(level) * (large + level * _mixture(relay, lambda: noise(large)))


def enlarge(images: Tensor, scale: int) -> Tensor:
    """Every pixel of (..., H, W) repeated in a tile of scale x scale."""
    return images.repeat_interleave(scale, -2).repeat_interleave(scale, -1)


def _move(
    x: Tensor,
    x0: Tensor,
    start: float,
    end: float,
    relay: Relay,
    eta: float,
    noise: Callable[[], Tensor],
) -> Tensor:
    """The step of this file's equation."""
    if end == 0:  # nothing is blurred there and no noise is kept
        return x0
    kept = math.sqrt(1 - eta * eta) * end / start
    if relay.blur:
        before, after = (blur_scales(relay.scale, relay.blur_at(a), x) for a in (start, end))
        moved = kept * x + filter_tiles(x0, after - kept * before)
    else:
        moved = kept * x + (1 - kept) * x0
    return moved + eta * end * _mixture(relay, noise) if eta else moved


def _mixture(relay: Relay, noise: Callable[[], Tensor]) -> Tensor:
    """White noise, drawn first, and where there is any the block noise of a second draw."""
    white = noise()
    return relay.noise(white, noise()) if relay.block else white


def _read(args: Any) -> tuple[str, float, Relay]:
    """Step, eta and the forward process."""
    given = read_args(NAME, args, DEFAULTS)
    step = check_choice(NAME, "step", given.pop("step"), STEPS)
    eta = check_number(NAME, "eta", given.pop("eta"), 0, 1)
    if given["scale"] is None:
        raise SpaceError(
            f"{NAME}: scale is missing; plan_stage fills it in from the card of a second stage's "
            f"network, otherwise give the side of a tile in pixels, e.g. 2"
        )
    return step, eta, Relay(**given)


SOLVERS.register(NAME)(RelaySolver())
