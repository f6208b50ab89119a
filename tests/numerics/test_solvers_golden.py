"""Solvers against official code, known numbers and their papers, in float64.

Conventions of the golden files: golden/README.md. Known numbers: shared/reference/pfdiff.md, c.
"""

import numpy as np
import pytest
import torch
from test_orders import exact_flow

from stepsearch.build import plan_stage
from stepsearch.core.noise import image_noise
from stepsearch.core.process import get_process
from stepsearch.core.schedule import StepSchedule
from stepsearch.nets.gaussian import GaussianMixture
from stepsearch.solvers.integrate import integrate
from stepsearch.solvers.registry import SOLVERS

SETS = {  # name: (process, grid)
    "vp_uniform": ("vp-linear-1000", "uniform"),
    "vp_quad": ("vp-linear-1000", "quad"),
    "edm_karras": ("edm", "karras"),
}


def settings_of(row):
    """What reproduces a row: pfdiff, and ddim as well where k = l = 0."""
    pfdiff = {"solver": "pfdiff", "k": row["k"], "l": row["l"]}
    return [{"solver": "ddim"}, pfdiff] if row["method"] == "origin" else [pfdiff]


def cases(golden, name):
    return [(row, s) for row in golden("pfdiff")["sets"][name] for s in settings_of(row)]


def test_every_set_is_covered(golden):
    assert set(golden("pfdiff")["sets"]) == set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_end_points(golden, mixture_net, name):
    process, grid = SETS[name]
    net = mixture_net(process)
    x = torch.tensor(golden("pfdiff")["meta"]["x_T"], dtype=torch.float64)
    x = 80 * x if process == "edm" else x
    for row, settings in cases(golden, name):
        stage = plan_stage(net.card, calls=row["nfe"], grid=grid, **settings)
        out = integrate(StepSchedule((stage,)), {stage.net: net}, x)
        label = f"{settings} nfe={row['nfe']}"
        np.testing.assert_allclose(out, row["x0"], rtol=0, atol=1e-9, err_msg=label)


@pytest.mark.parametrize("name", SETS)
def test_grids_and_calls(golden, mixture_net, name):
    process, grid = SETS[name]
    net = mixture_net(process)
    x = torch.tensor(golden("pfdiff")["meta"]["x_T"], dtype=torch.float64)
    x = 80 * x if process == "edm" else x
    for row, settings in cases(golden, name):
        stage = plan_stage(net.card, calls=row["nfe"], grid=grid, **settings)
        schedule, made, norms = StepSchedule((stage,)), [], []

        def watch(level, width, x, made=made, norms=norms):
            made.append(level)
            norms.append(float(x[0].norm()))

        integrate(schedule, {stage.net: net}, x, on_call=watch)
        label = f"{settings} nfe={row['nfe']}"
        assert len(made) == schedule.nfe == row["nfe"], label
        assert [call.level for call in stage.calls] == made, label
        assert len(stage.levels) == row["T_step"] + 1, label
        if process == "edm":
            np.testing.assert_allclose(made, row["calls_sigma"], rtol=1e-9, err_msg=label)
            np.testing.assert_allclose(stage.levels, row["sigmas"], rtol=1e-9, err_msg=label)
        else:
            level_at = net.card.diffusion.level_at
            assert made == [level_at(t) for t in row["calls"]], label
            assert stage.levels == (*map(level_at, row["grid_descending"]), 0.0), label
        if "call_x_norm_row0" in row:
            want = row["call_x_norm_row0"]
            np.testing.assert_allclose(norms, want, rtol=1e-9, err_msg=label)


def test_exact_network(golden, mixture_net):
    meta, net = golden("pfdiff")["meta"], mixture_net()
    x = torch.tensor(meta["x_T"], dtype=torch.float64)
    times = [t for t in meta["eps_check"] if t != "note"]
    assert times == ["0", "500", "999"]
    for t in times:
        got = net.eps(x, net.card.diffusion.level_at(int(t)))
        np.testing.assert_allclose(got, meta["eps_check"][t], rtol=0, atol=1e-9, err_msg=t)


def test_alpha_bar(golden):
    process = get_process("vp-linear-1000")
    for t, want in golden("pfdiff")["meta"]["abar_check"].items():
        level = process.level_at(int(t))
        np.testing.assert_allclose(process.alpha(level) ** 2, want, rtol=1e-11)
        assert process.time_at(level) == int(t)


CALLS = (4, 6, 8, 10, 20)
# Mean L2 distance to the exact end point over 2048 starts, for CALLS.
SPRINGBOARD = {
    ("quad", 0.5): (0.345, 0.062, 0.030, 0.022, 0.008),
    ("quad", 0.45): (0.309, 0.057, 0.027, 0.020, 0.009),
    ("uniform", 0.5): (0.509, 0.154, 0.072, 0.041, 0.013),
    ("uniform", 0.45): (0.474, 0.165, 0.076, 0.045, 0.015),
}


@pytest.fixture(scope="module")
def distances(mixture_net):
    """Builds the mean distance to the exact end on a grid; starts and ends are made once."""
    net, known = mixture_net(), {}
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((2048, 8)))

    def distance(grid, calls, **settings):
        stage = plan_stage(net.card, solver="pfdiff", calls=calls, grid=grid, **settings)
        if grid not in known:
            known[grid] = exact_flow(net, noise, stage.levels[0])
        end = integrate(StepSchedule((stage,)), {stage.net: net}, noise)
        return float((end - known[grid]).norm(dim=1).mean())

    return distance


@pytest.mark.parametrize(("grid", "c"), SPRINGBOARD)
def test_known_errors_of_a_springboard_at_c(distances, grid, c):
    got = [distances(grid, calls, c=c) for calls in CALLS]
    want = SPRINGBOARD[grid, c]
    np.testing.assert_allclose(got[:-1], want[:-1], rtol=0.1)
    # a few starts near the border of two components make up the last: 0.006 to 0.009 over seeds
    np.testing.assert_allclose(got[-1], want[-1], rtol=0.35)


def test_known_errors_of_the_x0_buffer(distances):
    got = [distances("quad", calls, k=2, l=1, buffer="x0") for calls in (6, 10)]
    np.testing.assert_allclose(got, (0.224, 0.098), rtol=0.1)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("c", [0.1, 0.4, 0.5, 0.9])
def test_the_springboard_lies_at_c_of_its_block(c, k):
    """Of the block's noise levels, but never below the last node before level 0."""
    card = GaussianMixture([1.0], np.zeros((1, 2)), [1.0], "edm").card
    for grid in ("uniform", "karras"):
        stage = plan_stage(card, solver="pfdiff", calls=9, grid=grid, c=c, k=k)
        starts, ends = np.array(stage.levels[1 : -k - 1 : k + 1]), stage.levels[k + 2 :: k + 1]
        want = np.maximum(starts - c * (starts - np.array(ends)), stage.levels[-2])
        made = [call.level for call in stage.calls]
        assert made[0] == stage.levels[0]
        np.testing.assert_allclose(made[1:], want, rtol=1e-14)


def two_pieces(process="edm"):
    return GaussianMixture([0.6, 0.4], [[0.5, -0.2], [-1.0, 0.7]], [0.3, 0.1], process)


def heun_as_printed(net, x, t, gamma, s_noise, draws):
    """Algorithm 2 of Karras et al. 2022 line by line; without churn it is algorithm 1."""

    def slope(x, t):
        denoised = x - t * net.eps(x, t)
        return (x - denoised) / t

    for i in range(len(t) - 1):
        t_hat = t[i] + gamma[i] * t[i]
        x_hat = x
        if gamma[i] > 0:
            x_hat = x + (t_hat**2 - t[i] ** 2) ** 0.5 * s_noise * next(draws)
        d = slope(x_hat, t_hat)
        x = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            d_prime = slope(x, t[i + 1])
            x = x_hat + (t[i + 1] - t_hat) * (d / 2 + d_prime / 2)
    return x


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"churn": 1.5},
        {"churn": 40.0},
        {"churn": 2.0, "s_min": 0.05, "s_max": 30.0, "s_noise": 1.007},
    ],
    ids=str,
)
def test_heun_is_the_printed_algorithm(args):
    steps, net = 8, two_pieces()
    x = 80 * torch.from_numpy(np.random.default_rng(0).standard_normal((5, 2)))
    stage = plan_stage(net.card, solver="heun", calls=2 * steps - 1, grid="karras", **args)
    t = stage.levels
    churn = min(args.get("churn", 0) / steps, 2**0.5 - 1)
    within = [args.get("s_min", 0) <= level <= args.get("s_max", np.inf) for level in t[:-1]]
    gamma = [churn if ok else 0.0 for ok in within]
    gamma[0] = 0.0  # ours: no noise above the first level
    assert all(b * (1 + g) <= t[0] for b, g in zip(t[1:-1], gamma[1:], strict=True))

    raised = np.array([level * (1 + g) for level, g in zip(t[:-1], gamma, strict=True)])
    np.testing.assert_allclose([call.level for call in stage.calls[::2]], raised, rtol=1e-12)
    assert [call.level for call in stage.calls[1::2]] == list(t[1:-1])

    draws = [torch.tensor(image_noise(3, 0, (5, 2), 2 * i + 1)).double() for i in range(steps)]
    used = (draw for draw, g in zip(draws, gamma, strict=True) if g > 0)
    want = heun_as_printed(net, x, t, gamma, args.get("s_noise", 1), used)
    got = integrate(StepSchedule((stage,)), {stage.net: net}, x, seed=3)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_churn_never_asks_above_the_first_level():
    """On a fine grid, where the next nodes would be raised past it."""
    levels = (*np.geomspace(80, 40, 20).tolist(), 0.0)
    asked = [call.level for call in SOLVERS["heun"].plan(levels, 39, churn=1000.0)][::2]
    want = np.minimum(np.array(levels[:-1]) * 2**0.5, 80.0)
    np.testing.assert_allclose(asked, want, rtol=1e-12)
    assert max(asked) == 80.0


def test_the_clipped_buffer_keeps_images_within_one():
    """Bias and all, where data lie outside."""
    net = GaussianMixture([1.0], [[3.0, -3.0]], [0.01], "edm")
    x = 80 * torch.from_numpy(np.random.default_rng(0).standard_normal((4, 2)))
    for buffer, size in (("x0", 3), ("clipped-x0", 1)):
        for k, l in ((0, 0), (2, 1)):  # noqa: E741 (the paper's letter)
            args = {"k": k, "l": l, "buffer": buffer}
            stage = plan_stage(net.card, solver="pfdiff", calls=20, grid="karras", **args)
            end = integrate(StepSchedule((stage,)), {stage.net: net}, x)
            want = torch.tensor([[size, -size]], dtype=torch.float64).expand(4, 2)
            torch.testing.assert_close(end, want, rtol=0, atol=0.5 if size == 3 else 0.01)
            assert size == 3 or end.abs().max() <= 1
