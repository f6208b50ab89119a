"""DDIM and PFDiff against the official code, run in float64 (conventions: golden/README.md)."""

import numpy as np
import pytest
import torch

from stepsearch.build import plan_stage
from stepsearch.core.process import get_process
from stepsearch.core.schedule import StepSchedule
from stepsearch.solvers.integrate import integrate

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
        np.testing.assert_allclose(process.alpha_bar[int(t)], want, rtol=1e-11)
        np.testing.assert_allclose(process.alpha(level) ** 2, want, rtol=1e-11)
        assert process.time_at(level) == int(t)
