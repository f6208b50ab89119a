"""Solvers that draw noise: end variances in closed form, and distributions on known data.

On Gaussian data eps is linear in x, so every step is affine in x and in the fresh noise. The end
is the sum of gain times noise over all that was drawn, and the gains are read off exactly by
handing the solver one noise at a time.
"""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from walks import CASES

from stepsearch.build import plan_stage
from stepsearch.core.protocols import SolverState
from stepsearch.core.schedule import Stage, StepSchedule
from stepsearch.nets.gaussian import GaussianMixture
from stepsearch.solvers.integrate import integrate
from stepsearch.solvers.registry import SOLVERS

VARIANCE, MEAN = 0.3, 0.4
PROCESSES = ["vp-linear-1000", "vp-cosine", "edm"]
each_process = pytest.mark.parametrize("process", PROCESSES)


def gaussian(process, mean=0.0):
    return GaussianMixture([1.0], [[mean]], [VARIANCE], process)


def planned(net, solver, calls, args):
    """A stage of this very solver on the grid even in log level."""
    levels = plan_stage(net.card, solver="ddim", calls=calls, grid="logsnr").levels
    return on_levels(net, solver, args, levels, calls)


def on_levels(net, solver, args, levels, calls):
    plan = SOLVERS[solver].plan(levels, calls, **args)
    return Stage(net.card.key, solver, args, tuple(levels), plan)


def gains(net, stage):
    """Of the start and of each call's noise, at the end; data of mean 0."""
    count = len(stage.calls) + 1
    unit = torch.eye(count, dtype=torch.float64)
    state = SolverState(unit[0][:, None] * net.card.diffusion.start_scale(stage.levels[0]))
    for i in range(len(stage.calls)):
        state = SOLVERS[stage.solver].step(net, stage, state, i, lambda i=i: unit[i + 1][:, None])
    return state.x[:, 0].numpy()


def end_variance(process, solver, args, calls=7):
    net = gaussian(process)
    return float((gains(net, planned(net, solver, calls, args)) ** 2).sum())


def ddpm_by_hand(process, calls, variance):
    """Ho et al. 2020, algorithm 2, in alpha_bar: x_s = (x - beta eps / sqrt(1 - ab)) / sqrt(1 -
    beta) + deviation z, with eps = sqrt(1 - ab) x / (ab v + 1 - ab) on data N(0, v).
    """
    levels = planned(gaussian(process), "ddpm", calls, {}).levels
    ab = [1 / (1 + level**2) for level in levels]
    var = 1.0
    for here, there in pairwise(ab):
        beta = 1 - here / there
        small = (1 - there) / (1 - here) * beta
        shrink = (1 - beta / (here * VARIANCE + 1 - here)) / math.sqrt(1 - beta)
        added = {"small": small, "large": beta if there < 1 else 0.0}[variance]
        var = shrink**2 * var + added
    return var


def ancestral_by_hand(calls, eta):
    """On EDM: Euler down to sigma_down, then sigma_up of noise (Song et al. 2021, eq. 16)."""
    levels = planned(gaussian("edm"), "ddpm", calls, {}).levels
    var = levels[0] ** 2
    for here, there in pairwise(levels):
        up = eta * there / here * math.sqrt(here**2 - there**2)
        down = math.sqrt(there**2 - up**2)
        var *= (1 + (down - here) * here / (VARIANCE + here**2)) ** 2
        var += up**2
    return var


@pytest.mark.parametrize("calls", [2, 7, 30])
@pytest.mark.parametrize("process", ["vp-linear-1000", "vp-cosine"])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_ends_with_the_variance_of_its_paper(process, calls, variance):
    got = end_variance(process, "ddpm", {"variance": variance}, calls)
    assert got == pytest.approx(ddpm_by_hand(process, calls, variance), rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.8, 1.0])
def test_ddim_with_eta_ends_with_the_variance_of_its_paper(eta):
    got = end_variance("edm", "ddim", {"eta": eta})
    assert got == pytest.approx(ancestral_by_hand(7, eta), rel=1e-9)


@each_process
def test_eta_goes_from_ddim_to_ddpm(process):
    """Gain by gain at both ends; in between the noise of a step is eta times that of eta = 1."""
    net = gaussian(process)
    none, half, one = (gains(net, planned(net, "ddim", 7, {"eta": e})) for e in (0.0, 0.5, 1.0))
    small = gains(net, planned(net, "ddpm", 7, {"variance": "small"}))
    np.testing.assert_allclose(one, small, rtol=1e-12)
    np.testing.assert_array_equal(none[1:], 0)
    assert (small[1:-1] > 0).all()
    assert small[-1] == 0  # the jump to level 0 adds none
    levels = planned(net, "ddim", 7, {}).levels[-3:]  # the last noise that is drawn, and its jump
    assert half[-2] / one[-2] == pytest.approx(0.5, rel=1e-12)
    assert levels[-1] == 0
    assert abs(none[0]) > abs(half[0]) > abs(one[0])


@each_process
def test_the_large_variance_is_beta(process):
    """One jump between two levels: the noise alone, in units of x."""
    net, (here, there) = gaussian(process), (3.0, 0.7)
    alpha = net.card.diffusion.alpha
    ratio = (alpha(here) / alpha(there)) ** 2
    beta = 1 - ratio if process != "edm" else here**2 - there**2
    small = beta * (alpha(there) * there / (alpha(here) * here)) ** 2
    for variance, want in (("small", small), ("large", beta)):
        stage = on_levels(net, "ddpm", {"variance": variance}, (here, there), 1)
        assert gains(net, stage)[1] ** 2 == pytest.approx(want, rel=1e-9)


@each_process
@pytest.mark.parametrize(
    ("solver", "args"),
    [
        ("ddim", {"eta": 0.5}),
        ("ddpm", {"variance": "small"}),
        ("ddpm", {"variance": "large"}),
        ("heun", {"churn": 3.0}),
    ],
    ids=str,
)
def test_samples_have_the_exact_end_variance(process, solver, args):
    """The noise that a run draws is standard, and independent of step, image and pixel."""
    calls, many = 5, 100_000
    net = gaussian(process)
    nodes = SOLVERS[solver].nodes(calls, **args)
    levels = planned(net, "ddim", nodes, {}).levels
    g = gains(net, on_levels(net, solver, args, levels, calls))
    wide = Pixels(GaussianMixture([1.0], [[MEAN]], [VARIANCE], process), many)
    stage = on_levels(wide, solver, args, levels, calls)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, many)))
    x = x * wide.card.diffusion.start_scale(levels[0])
    end = integrate(StepSchedule((stage,)), {stage.net: wide}, x, seed=5).numpy()
    exact, spread = float((g**2).sum()), 5 / math.sqrt(end.size)  # five standard errors
    assert end.var() == pytest.approx(exact, rel=spread * math.sqrt(2))
    quiet = mean_end(wide, solver, args, levels, calls)
    assert end.mean() == pytest.approx(quiet, abs=spread * math.sqrt(exact))
    assert abs(np.corrcoef(end)[0, 1]) < 5 / math.sqrt(many)


def mean_end(net, solver, args, levels, calls):
    """End of the mean: no start, no noise."""
    stage = on_levels(net, solver, args, levels, calls)
    nothing = torch.zeros(1, *net.card.image_shape, dtype=torch.float64)
    state = SolverState(nothing)
    for i in range(calls):
        state = SOLVERS[solver].step(net, stage, state, i, lambda: nothing)
    return float(state.x.mean())


class Pixels:
    """Many independent pixels of one distribution as one image, so that samples cost little."""

    def __init__(self, net, pixels):
        self.net = net
        self.card = dataclasses.replace(net.card, image_shape=(pixels,))

    def eps(self, x, level, *, width=1.0, cond=None):
        return self.net.eps(x.reshape(-1, 1), level).reshape(x.shape)


STOCHASTIC = [
    ("ddim", {"eta": 0.5}),
    ("ddpm", {"variance": "small"}),
    ("ddpm", {"variance": "large"}),
    ("heun", {"churn": 20.0}),
    ("heun", {"churn": 40.0, "s_min": 0.05, "s_max": 10.0}),
    ("relay", {"scale": 2, "blur": 0, "block": 0, "eta": 0.1}),  # eta^2 of the noise in every step
]


def test_every_stochastic_solver_is_here():
    noisy = {name for name, args in CASES if SOLVERS[name].order(**args) is None}
    assert noisy - {"renoise"} == {name for name, _ in STOCHASTIC}  # of few-step networks alone


@each_process
@pytest.mark.parametrize(("solver", "args"), STOCHASTIC, ids=str)
def test_many_calls_end_at_the_data(process, solver, args):
    """A mixture in one dimension. Five standard errors of 10000 samples are 0.03 of the mean, 0.06
    of the variance and 0.02 of a share; 201 calls leave up to 0.02
    of the variance, and 0.17 of that of a component.
    """
    weights, means, variances = np.array([0.7, 0.3]), np.array([-0.5, 0.9]), np.array([0.02, 0.05])
    net = Pixels(GaussianMixture(weights, means[:, None], variances, process), 5000)
    grid = "karras" if process == "edm" else "uniform"
    stage = plan_stage(net.card, solver=solver, calls=201, grid=grid, **args)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 5000)))
    x = x * net.card.diffusion.start_scale(stage.levels[0])
    end = integrate(StepSchedule((stage,)), {stage.net: net}, x, seed=1).numpy()
    mean = float(weights @ means)
    variance = float(weights @ (variances + means**2)) - mean**2
    assert end.mean() == pytest.approx(mean, abs=0.03)
    assert end.var() == pytest.approx(variance, rel=0.06)
    assert (end > 0.2).mean() == pytest.approx(0.3, abs=0.025)
    for upper, part in ((False, 0), (True, 1)):
        own = end[(end > 0.2) == upper]
        assert own.var() == pytest.approx(variances[part], rel=0.25)
