"""Orders of convergence, and what the solvers are worth on a known mixture."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from stepsearch.build import plan_stage
from stepsearch.core.schedule import Call, Stage, StepSchedule
from stepsearch.nets.gaussian import GaussianMixture
from stepsearch.solvers.integrate import integrate

CALLS = np.array([64, 128, 256, 512])
STD = 20.0  # of the data; the uniform EDM grid then resolves the flow at every one of CALLS
MIDPOINT, EARLY, LATE = [{"k": 1, "l": 1}, {"k": 3, "l": 2}], {"k": 2, "l": 1}, {"k": 2, "l": 2}


def springboard(stage):
    """Where in each block the network is asked, (from start) / (whole block), in the level."""
    block = stage.args["k"] + 1
    starts = np.array(stage.levels[1::block])
    calls = np.array([call.level for call in stage.calls[1:]])
    return (starts[:-1] - calls) / (starts[:-1] - starts[1:])


def signed_error(calls, **settings):
    """Relative error on data N(0, STD^2), where the flow rescales by the marginal deviation."""
    net = GaussianMixture([1.0], np.zeros((1, 2)), [STD**2], "edm")
    stage = plan_stage(net.card, calls=int(calls), grid="uniform", **settings)
    x = torch.ones(1, 2, dtype=torch.float64)
    end = integrate(StepSchedule((stage,)), {stage.net: net}, x)
    return float(end[0, 0]) * np.hypot(STD, stage.levels[0]) / STD - 1


def slope(errors):
    return -np.polyfit(np.log2(CALLS), np.log2(np.abs(errors)), 1)[0]


@pytest.mark.parametrize(
    ("settings", "order"),
    [
        ({"solver": "ddim"}, 1),
        ({"solver": "pfdiff", "k": 0, "l": 0}, 1),
        *(({"solver": "pfdiff", **args}, 2) for args in MIDPOINT),
        ({"solver": "pfdiff", **EARLY}, 1),
        ({"solver": "pfdiff", **LATE}, 1),
    ],
)
def test_order_on_gaussian_data(settings, order):
    errors = [signed_error(n, **settings) for n in CALLS]
    assert abs(slope(errors) - order) < 0.06


@pytest.mark.parametrize(
    ("args", "want"), [*((args, 1 / 2) for args in MIDPOINT), (EARLY, 1 / 3), (LATE, 2 / 3)]
)
def test_springboard_position_on_an_even_grid(args, want):
    net = GaussianMixture([1.0], np.zeros((1, 2)), [1.0], "edm")
    stage = plan_stage(net.card, solver="pfdiff", calls=20, grid="uniform", **args)
    inner = springboard(stage)[:-1]  # the last block ends on the shorter interval to 0
    np.testing.assert_allclose(inner, want, rtol=1e-9)


def test_first_order_error_follows_the_distance_from_the_midpoint():
    """1/3 and 2/3 lie equally far on either side of 1/2, so the leading errors cancel."""
    early, late = (signed_error(CALLS[-1], solver="pfdiff", **args) for args in (EARLY, LATE))
    assert early < 0 < late
    assert abs(early + late) < 0.05 * abs(late)


def test_ddim_is_first_order_on_a_variance_preserving_process():
    net = GaussianMixture([1.0], np.full((1, 2), 0.5), [0.49], "vp-linear-1000")
    top, bottom, errors = 50.0, 0.05, []
    alpha = net.card.diffusion.alpha
    x = torch.ones(1, 2, dtype=torch.float64)
    for n in CALLS:
        levels = tuple(np.geomspace(top, bottom, n + 1).tolist())
        stage = Stage(net.card.key, "ddim", {}, levels, tuple(Call(level) for level in levels[:-1]))
        end = integrate(StepSchedule((stage,)), {stage.net: net}, x)
        want = 0.5 + (1 / alpha(top) - 0.5) * np.hypot(0.7, bottom) / np.hypot(0.7, top)
        errors.append(float(end[0, 0]) / alpha(bottom) - want)
    assert abs(slope(errors) - 1) < 0.05


def exact_flow(net, x, level):
    """End of dx/dlevel = eps in units of x / alpha, from `level` to 0, to about 1e-7."""
    alpha = net.card.diffusion.alpha

    def gradient(level, flat):
        state = torch.from_numpy(flat.reshape(-1, 8)) * alpha(level)
        return net.eps(state, level).numpy().ravel()

    start = (x / alpha(level)).numpy().ravel()
    solved = solve_ivp(gradient, (level, 0.0), start, method="DOP853", rtol=1e-7, atol=1e-8)
    assert solved.success, solved.message
    return torch.from_numpy(solved.y[:, -1].reshape(-1, 8))


@pytest.mark.parametrize(
    ("process", "time", "name"),
    [
        ("vp-linear-1000", 999, "ode_from_t999_to_abar1"),
        ("vp-linear-1000", 800, "ode_from_t800_to_abar1"),
        ("edm", 80, "edm_ode_from_sigma80_to_0"),
    ],
)
def test_the_reference_flow_itself(golden, mixture_net, process, time, name):
    net = mixture_net(process)
    x = torch.tensor(golden("pfdiff")["meta"]["x_T"], dtype=torch.float64)
    level = net.card.diffusion.level_at(time)
    end = exact_flow(net, x * net.card.diffusion.start_scale(level), level)
    np.testing.assert_allclose(end, golden("pfdiff")["references"][name], rtol=0, atol=1e-7)


# Mean L2 distance to the exact end point over 2048 starts: pfdiff.md, table of section c.
KNOWN = {
    ("vp-linear-1000", "quad"): {
        (0, 0): {4: 0.435, 6: 0.266, 10: 0.148},
        (1, 1): {6: 0.133, 10: 0.042},
        (2, 1): {4: 0.262, 6: 0.054, 10: 0.032},
        (3, 1): {4: 0.187, 6: 0.090, 10: 0.062},
        (3, 3): {4: 3.10, 6: 0.344},
    },
    ("vp-linear-1000", "uniform"): {
        (0, 0): {6: 0.498, 10: 0.283},
        (2, 1): {6: 0.268, 10: 0.055},
        (2, 2): {6: 0.919, 10: 0.387},
    },
    ("edm", "karras"): {
        (0, 0): {6: 0.564, 10: 0.281},
        (2, 1): {6: 0.415, 10: 0.077},
        (3, 1): {6: 0.406, 10: 0.103},
    },
}


@pytest.mark.parametrize(("process", "grid"), KNOWN)
def test_known_errors_on_the_toy(mixture_net, rng, process, grid):
    net = mixture_net(process)
    level = plan_stage(net.card, solver="ddim", calls=4, grid=grid).levels[0]
    x = torch.from_numpy(rng.standard_normal((2048, 8)))
    x = x * net.card.diffusion.start_scale(level)
    exact, got, want = exact_flow(net, x, level), {}, {}
    for (k, l), row in KNOWN[process, grid].items():  # noqa: E741 (the paper's letter)
        for calls, error in row.items():
            stage = plan_stage(net.card, solver="pfdiff", calls=calls, grid=grid, k=k, l=l)
            end = integrate(StepSchedule((stage,)), {stage.net: net}, x)
            got[k, l, calls] = float((end - exact).norm(dim=1).mean())
            want[k, l, calls] = error
    names = list(want)
    np.testing.assert_allclose([got[n] for n in names], [want[n] for n in names], rtol=0.1)
