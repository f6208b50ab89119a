"""Orders of convergence, closed forms, and what the solvers are worth on a known mixture."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

from stepsearch.build import plan_stage
from stepsearch.core.errors import SpaceError
from stepsearch.core.schedule import Stage, StepSchedule
from stepsearch.nets.gaussian import GaussianMixture
from stepsearch.solvers.integrate import integrate
from stepsearch.solvers.registry import SOLVERS
from stepsearch.solvers.unipc import blend

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


# Arguments to measure each solver with; one that always draws noise needs none.
ARGUMENTS = {
    "ddim": [{}],
    "heun": [{}],
    "pfdiff": [{"c": 0.5}, {"c": 0.4}, EARLY, LATE],
    "dpmpp_2m": [{}],
    "dpmpp_2s": [{}],
    "unipc": [
        {"order": order, "variant": variant, "corrector": corrector}
        for order in (1, 2, 3)
        for variant in ("bh1", "bh2")
        for corrector in (False, True)
    ],
    "deis": [
        {"order": order, "variable": variable}
        for order in (1, 2, 3)
        for variable in ("time", "rho", "log-rho")
    ],
    "relay": [{"scale": 2, "blur": 0, "step": step} for step in ("first", "official", "trapezoid")],
}
MEAN, DEVIATION = 0.5, 0.7  # of the data
# Far above the data the flow is a straight line, so that the steps of low order with which a
# multistep method warms up leave nothing behind, and the order is that of the steps after them.
TOP = 200.0
# No end is 0, where every method of high order ends with a step of first order. Two of them, as
# the leading error of a method may vanish at one.
BOTTOMS = (0.7, 0.15)


def walk(process, solver, args, levels, calls):
    """End of x / alpha from two deviations above the mean, and the exact end."""
    net = GaussianMixture([1.0], np.full((1, 2), MEAN), [DEVIATION**2], process)
    alpha = net.card.diffusion.alpha
    stage = Stage(net.card.key, solver, args, levels, SOLVERS[solver].plan(levels, calls, **args))
    flow = [MEAN + 2 * math.hypot(DEVIATION, level) for level in (levels[0], levels[-1])]
    x = torch.full((1, 2), flow[0] * alpha(levels[0]), dtype=torch.float64)
    end = integrate(StepSchedule((stage,)), {stage.net: net}, x)
    return float(end[0, 0]) / alpha(levels[-1]), flow[1]


def measured_order(process, solver, args):
    """Slope of the worst error at the ends against the number of calls."""
    errors, counts = [], [65, 129, 257]  # odd, as heun wants
    for calls in counts:
        nodes = SOLVERS[solver].nodes(calls, **args)
        grids = [tuple(np.geomspace(TOP, bottom, nodes + 1).tolist()) for bottom in BOTTOMS]
        ends = [walk(process, solver, args, levels, calls) for levels in grids]
        errors.append(max(abs(got - want) for got, want in ends))
    return -np.polyfit(np.log2(counts), np.log2(errors), 1)[0]


def test_every_solver_that_has_an_order_is_measured():
    unknown = [name for name in SOLVERS if name not in ARGUMENTS]
    assert [name for name in unknown if SOLVERS[name].order() is not None] == []


@pytest.mark.parametrize("process", ["edm", "vp-linear"])
@pytest.mark.parametrize(
    ("solver", "args"), [(name, args) for name, rows in ARGUMENTS.items() for args in rows], ids=str
)
def test_error_falls_with_the_stated_order(process, solver, args):
    """UniPC states the order of its predictor; with the corrector 2.0, 3.0 and 4.0 are measured
    for orders 1, 2 and 3, one more as the paper promises.
    """
    order = SOLVERS[solver].order(**args) + args.get("corrector", False)
    assert abs(measured_order(process, solver, args) - order) < 0.15


LEVELS = (9.0, 4.0, 1.5, 0.4)


def traced(solver, args, levels, net, calls=None):
    """x / alpha at every call, and at the end."""
    calls = calls or len(levels) - 1
    stage = Stage(net.card.key, solver, args, levels, SOLVERS[solver].plan(levels, calls, **args))
    seen, alpha = [], net.card.diffusion.alpha
    x = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(5, 2) * levels[0] * alpha(levels[0])
    end = integrate(
        StepSchedule((stage,)),
        {stage.net: net},
        x,
        on_call=lambda level, width, x: seen.append(x / alpha(level)),
    )
    return [*seen, end / alpha(levels[-1])]


def two_components(process="vp-linear"):
    return GaussianMixture([0.6, 0.4], [[0.5, -0.2], [-1.0, 0.7]], [0.3, 0.1], process)


def image(net, x, level):
    """x0 at x / alpha."""
    return x - level * net.eps(x * net.card.diffusion.alpha(level), level)


def toward(x, x0, start, end):
    return end / start * x + (1 - end / start) * x0


def test_dpmpp_2m_by_hand():
    net, (a, b, c, d) = two_components(), LEVELS
    x0, x1, x2, x3 = traced("dpmpp_2m", {}, LEVELS, net)
    at = [image(net, x, level) for x, level in ((x0, a), (x1, b), (x2, c))]
    torch.testing.assert_close(x1, toward(x0, at[0], a, b))
    q = np.log(a / b) / np.log(b / c)
    torch.testing.assert_close(x2, toward(x1, at[1] + (at[1] - at[0]) / (2 * q), b, c))
    q = np.log(b / c) / np.log(c / d)
    torch.testing.assert_close(x3, toward(x2, at[2] + (at[2] - at[1]) / (2 * q), c, d))


def test_dpmpp_2s_by_hand():
    net, (a, b, c, end) = two_components(), (9.0, 4.0, 1.5, 0.0)
    x0, u, x1, v, x2, x3 = traced("dpmpp_2s", {}, (a, b, c, end), net, calls=5)
    for x, middle, then, start, stop in ((x0, u, x1, a, b), (x1, v, x2, b, c)):
        half = (start * stop) ** 0.5
        torch.testing.assert_close(middle, toward(x, image(net, x, start), start, half))
        torch.testing.assert_close(then, toward(x, image(net, middle, half), start, stop))
    torch.testing.assert_close(x3, image(net, x2, c))


@pytest.mark.parametrize(("calls", "nodes"), [(3, 2), (4, 3), (5, 3), (6, 4), (10, 6), (11, 6)])
def test_dpmpp_2s_asks_at_nodes_and_middles(calls, nodes):
    levels = (*np.geomspace(8, 1, nodes).tolist(), 0.0)
    plan = [call.level for call in SOLVERS["dpmpp_2s"].plan(levels, calls)]
    single = 1 if calls % 2 else 2
    want = [x for a, b in pairwise(levels[: nodes - single + 1]) for x in (a, math.sqrt(a * b))]
    assert SOLVERS["dpmpp_2s"].nodes(calls) == nodes
    assert plan == [*want, *levels[nodes - single : nodes]]
    assert len(plan) == calls


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_of_order_one_by_hand(variant):
    """The corrector moves again from the last corrected state, with half of the new image."""
    net, (a, b, c) = two_components(), LEVELS[:3]
    args = {"order": 1, "variant": variant, "corrector": True}
    x0, x1, x2 = traced("unipc", args, (a, b, c), net)
    m0, m1 = image(net, x0, a), image(net, x1, b)
    torch.testing.assert_close(x1, toward(x0, m0, a, b))
    share = {"bh1": np.log(b / a) / (b / a - 1), "bh2": 1.0}[variant] / 2
    corrected = toward(x0, m0 + share * (m1 - m0), a, b)
    torch.testing.assert_close(x2, toward(corrected, m1, b, c))


@pytest.mark.parametrize("end", [8.991, 4.0, 2e-4])  # steps of 0.001, 0.8 and 10.7 in lambda
@pytest.mark.parametrize("corrects", [False, True])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_integrates_polynomials_in_lambda(variant, corrects, end):
    """n other images give a D that is exact where x0 is a polynomial of degree n in lambda."""
    start = 9.0
    asked = [start, 20.0, 45.0] + [end] * corrects
    weights = blend(asked, end, variant)
    h = np.log(start / end)

    def mean(power):  # of s^power, s in 0..h, as the flow weighs x0: with e^(s - h)
        top, scale = quad(lambda s: s**power * np.exp(s - h), 0, h)[0], -np.expm1(-h)
        return top / scale

    for power in range(len(asked)):
        got = sum(
            w * np.log(start / level) ** power for w, level in zip(weights, asked, strict=True)
        )
        assert got == pytest.approx(mean(power), rel=1e-9)


TAU = {"time": lambda process, r: process.continuous_time(r)}
TAU |= {"rho": lambda process, r: r, "log-rho": lambda process, r: math.log(r)}


class Polynomial:
    """A network whose noise prediction is tau^power, whatever the image."""

    def __init__(self, process, variable, power):
        self.card = two_components(process).card
        self.value = lambda level: TAU[variable](self.card.diffusion, level) ** power

    def eps(self, x, level, *, width=1.0, cond=None):
        return torch.full_like(x, self.value(level))


@pytest.mark.parametrize("process", ["edm", "vp-linear", "vp-cosine"])
@pytest.mark.parametrize("variable", TAU)
@pytest.mark.parametrize("order", [2, 3])
def test_deis_integrates_polynomials_in_its_variable(order, variable, process):
    """The step with a full history is exact for degree order - 1, over decades of noise too."""
    levels = (30.0, 7.0, 3.0, 0.004)[3 - order :]
    for power in range(order):
        net = Polynomial(process, variable, power)
        *_, last, end = traced("deis", {"order": order, "variable": variable}, levels, net)
        low, high = (math.log(level) for level in (levels[-1], levels[-2]))
        area = quad(lambda u, f=net.value: f(math.exp(u)) * math.exp(u), low, high, epsabs=1e-13)[0]
        torch.testing.assert_close(last - end, torch.full_like(end, area), rtol=1e-11, atol=1e-11)


UNIP = {"variant": "bh2", "corrector": False}


@pytest.mark.parametrize(
    ("solver", "args", "plainer"),
    [
        ("unipc", {"order": 1, **UNIP}, "ddim"),
        ("unipc", {"order": 1, **UNIP, "variant": "bh1"}, "ddim"),
        ("unipc", {"order": 2, **UNIP}, "dpmpp_2m"),
        *(("deis", {"order": 1, "variable": variable}, "ddim") for variable in TAU),
    ],
    ids=str,
)
def test_a_plainer_solver_of_the_same_walk_is_the_canonical_one(solver, args, plainer):
    assert SOLVERS[solver].canonical(5, **args) == (plainer, {})
    got, want = (
        traced(name, a, LEVELS, two_components()) for name, a in ((solver, args), (plainer, {}))
    )
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("levels", [(9.0, 0.0), (9.0, 2.0, 0.0)])
@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpmpp_2s", "unipc", "deis"])
def test_two_calls_to_the_end_of_noise_are_ddim(solver, levels):
    assert SOLVERS[solver].canonical(len(levels) - 1) == ("ddim", {})
    got, want = (traced(name, {}, levels, two_components())[-1] for name in (solver, "ddim"))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("solver", "full"),
    [
        ("dpmpp_2m", {}),
        ("dpmpp_2s", {}),
        ("unipc", {"order": 2, "variant": "bh2", "corrector": True}),
        ("deis", {"order": 3, "variable": "time"}),
    ],
)
def test_canonical_arguments_are_all_of_them(solver, full):
    assert SOLVERS[solver].canonical(4) == (solver, full)
    assert SOLVERS[solver].canonical(3)[0] == solver


@pytest.mark.parametrize(("solver", "calls", "most"), [("deis", 3, 2), ("unipc", 4, 2)])
def test_an_order_that_is_never_reached_is_not_another_schedule(solver, calls, most):
    """The order rises by one a call from 1, and the step into level 0 is of first order."""
    high, low = (SOLVERS[solver].canonical(calls, order=order) for order in (3, most))
    assert high == low
    levels = (*np.geomspace(9.0, 0.5, calls).tolist(), 0.0)
    got, want = (traced(solver, {"order": order}, levels, two_components()) for order in (3, most))
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert SOLVERS[solver].canonical(calls + 1, order=3)[1]["order"] == 3


@pytest.mark.parametrize(
    ("solver", "args", "told"),
    [
        ("dpmpp_2m", {"eta": 1.0}, "ddpm"),
        ("dpmpp_2s", {"order": 2}, "it takes no arguments"),
        ("unipc", {"ordr": 2}, "did you mean 'order'"),
        ("unipc", {"order": 4}, "1, 2, 3, got 4"),
        ("unipc", {"order": 2.0}, "got 2.0"),
        ("unipc", {"variant": "bh3"}, "bh1, bh2, got 'bh3'"),
        ("unipc", {"corrector": 1}, "True, False, got 1"),
        ("deis", {"order": 0}, "1, 2, 3, got 0"),
        ("deis", {"order": True}, "got True"),
        ("deis", {"variable": "sigma"}, "time, rho, log-rho, got 'sigma'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_told_in_one_line(solver, args, told):
    method = SOLVERS[solver]
    for ask in (method.canonical, method.nodes, partial(method.plan, LEVELS)):
        with pytest.raises(SpaceError) as caught:
            ask(3, **args)
        assert str(caught.value).startswith(solver)
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(SpaceError, match=solver):
        method.order(**args)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpmpp_2s", "unipc", "deis"])
def test_equal_neighbouring_levels_are_refused(solver):
    calls = 5 if solver == "dpmpp_2s" else 3
    with pytest.raises(SpaceError, match=f"{solver}: nodes 1 and 2 .* share noise level 4"):
        SOLVERS[solver].plan((9.0, 4.0, 4.0, 0.0), calls)


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
