"""Examples of every solver and grid, and a small exact network, for the contract tests."""

import dataclasses

import numpy as np
import pytest
import torch

from stepsearch.core.errors import SpaceError
from stepsearch.core.noise import image_noise
from stepsearch.core.process import PROCESSES
from stepsearch.core.schedule import Stage, StepSchedule
from stepsearch.nets.gaussian import GaussianMixture
from stepsearch.solvers.integrate import integrate
from stepsearch.solvers.registry import GRIDS, SOLVERS

EXAMPLES = {  # arguments to test each solver with; a new solver adds its own
    "ddim": [{}, {"eta": 0.5}],
    "ddpm": [{}, {"variance": "large"}],
    "heun": [{}, {"churn": 4.0}, {"churn": 9, "s_min": 0.1, "s_max": 20.0, "s_noise": 1.007}],
    "pfdiff": [
        {"k": 0, "l": 0},
        *({"k": k, "l": l} for k in (1, 2, 3) for l in range(1, k + 1)),  # noqa: E741
        {"c": 0.5},
        {"c": 0.4, "k": 2},
        {"k": 2, "l": 1, "buffer": "x0"},
        {"c": 0.5, "buffer": "clipped-x0"},
    ],
    "dpmpp_2m": [{}],
    "dpmpp_2s": [{}],
    "unipc": [{}, {"order": 3, "variant": "bh1"}, {"order": 3, "corrector": False}],
    "relay": [  # blur, that the exact networks here know nothing of, where noise is drawn too
        {"scale": 2, "blur": 0, "step": "first"},
        {"scale": 2, "blur": 0, "step": "official"},
        {"scale": 2, "blur": 0},
        {"scale": 2, "blur": 1.0, "step": "first", "eta": 0.5, "block": 0},
        {"scale": 2, "blur": 1.5, "eta": 0.3, "normalize": True},
    ],
    "renoise": [{}],
    "deis": [{}, {"order": 2, "variable": "rho"}, {"order": 3, "variable": "log-rho"}],
}
CASES = [(name, args) for name in SOLVERS for args in EXAMPLES.get(name, [])]
each_case = pytest.mark.parametrize(("solver", "args"), CASES, ids=str)
each_process = pytest.mark.parametrize("process", PROCESSES)


def _any_levels(process, n):
    low, high = (process.level_at(t) for t in (process.first_time, process.last_time))
    return {"levels": np.geomspace(0.9 * high, 1.1 * low, n).tolist()}


def _spacing(process, n):
    return {"spacing": [0, 3, 1, 0, 0.5]}


def _nothing(process, n):
    return {}


GRID_EXAMPLES = {  # arguments for n nodes on a process; a new grid adds its own
    "uniform": _nothing,
    "quad": _nothing,
    "karras": _nothing,
    "logsnr": _nothing,
    "cosine": _nothing,
    "explicit": _any_levels,
    "free": _spacing,
}


def grid_of(name, process, n):
    """A grid with its example arguments, as a setting."""
    return {name: GRID_EXAMPLES[name](process, n)}


def allowed(solver, args, calls):
    """The least number of calls from `calls` up that a solver knows."""
    for n in range(calls, calls + 10):
        try:
            SOLVERS[solver].nodes(n, **args)
        except SpaceError:
            continue
        return n
    raise AssertionError(f"{solver} knows no number of calls from {calls} to {calls + 9}")


def bare_stage(net, solver, args, levels, calls, widths=1.0):
    """A stage of this very solver and its arguments, nothing made canonical."""
    plan = SOLVERS[solver].plan(levels, calls, **args)
    made = tuple(dataclasses.replace(call, width=widths) for call in plan)
    return Stage(net.card.key, solver, args, tuple(levels), made)


def nodes_on(process, solver, args, calls, grid="karras"):
    """Levels of a stage, the end among them."""
    nodes = SOLVERS[solver].nodes(calls, **args)
    return (*GRIDS[grid](process, nodes, **GRID_EXAMPLES[grid](process, nodes)), 0.0)


class TwoWidths:
    """An exact mixture at width 1, its first component alone at width 0.5."""

    WIDTHS = (0.5, 1.0)

    def __init__(self, process):
        rng = np.random.default_rng(0)
        means, weights = rng.uniform(-1, 1, (3, 1, 2, 2)), np.array([0.5, 0.3, 0.2])
        variances = np.array([0.04, 0.01, 0.09])
        self.parts = {
            width: GaussianMixture(weights[:keep], means[:keep], variances[:keep], process)
            for width, keep in zip(self.WIDTHS, (1, 3), strict=True)
        }
        self.card = dataclasses.replace(self.parts[1.0].card, widths=self.WIDTHS, flops=(1.0, 3.0))
        self.calls = []

    def eps(self, x, level, *, width=1.0, cond=None):
        self.calls.append((level, width))
        return self.parts[width].eps(x, level, cond=cond)


def start(net, stage, count=6, seed=0):
    """Pure noise at the first level, in the scale of the network."""
    noise = torch.from_numpy(image_noise(seed, 0, (count, *net.card.image_shape)))
    return noise.double() * net.card.diffusion.start_scale(stage.levels[0])


def run(net, stage, x, **options):
    """The images at the end of one stage."""
    return integrate(StepSchedule((stage,)), {stage.net: net}, x, **options)
