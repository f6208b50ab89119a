"""End points against diffusers 0.42, each of its schedulers driven by its own loop.

diffusers is an oracle here and no base to build on (shared/reference/pfdiff.md, d). What its
schedulers do otherwise, and how each case below avoids it:
- DDIM hard-codes prev_t = t - 1000 // N, which fits no spacing but `leading`.
- DPM-Solver++ and DEIS lower their order at the end only under 15 steps. For 2M a last sigma of
  zero says it at every length. DEIS always ends at the least trained sigma, where stepsearch keeps
  the full order, hence `lower_order_final=False`.
- UniPC lowers its order towards the end at every length, though its docstring says under 15 steps;
  with bh1 and a last sigma of zero it returns NaN (B(h) = -inf times no correction), so bh1 ends at
  the least trained sigma, at full order.
- Heun lists every timestep but the first twice, so its calls are asked at `sigmas[i]`, not at t.
- Sigmas and alpha_bar are float32, timesteps are cast to int64: the network is asked, and our stage
  is built, at the float32 sigmas themselves and never at a level looked up from a timestep.
- A scheduler object keeps its history between runs: a fresh one is made for each.
"""

import numpy as np
import pytest
import torch
from torchvision_shim import ensure_torchvision

from stepsearch.core.schedule import Stage, StepSchedule
from stepsearch.nets.gaussian import GaussianMixture
from stepsearch.solvers.integrate import integrate
from stepsearch.solvers.registry import SOLVERS

ensure_torchvision()  # diffusers imports it, and PyPI's build breaks on a CPU-only torch
diffusers = pytest.importorskip("diffusers", reason="an oracle, installed for tests alone")
# diffusers reads tensors the way numpy 1 did
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
TO_ZERO = {**BETAS, "final_sigmas_type": "zero"}


def unipc(order, variant):
    end = {
        "bh1": {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        "bh2": {"final_sigmas_type": "zero"},
    }
    return (
        {"order": order, "variant": variant, "corrector": True},
        "UniPCMultistepScheduler",
        BETAS | end[variant] | {"solver_order": order, "solver_type": variant},
    )


def deis(order):
    return (
        {"order": order, "variable": "log-rho"},
        "DEISMultistepScheduler",
        BETAS | {"solver_order": order, "lower_order_final": False},
    )


DDIM = {"timestep_spacing": "leading", "set_alpha_to_one": True, "clip_sample": False}
CASES = {  # name: (our arguments, scheduler, its options)
    "ddim": ({}, "DDIMScheduler", BETAS | DDIM),
    "heun": ({}, "HeunDiscreteScheduler", BETAS),
    "dpmpp_2m": ({}, "DPMSolverMultistepScheduler", TO_ZERO | {"algorithm_type": "dpmsolver++"}),
    # even in log sigma, the odd nodes of the scheduler are the middles of our steps
    "dpmpp_2s": (
        {},
        "DPMSolverSinglestepScheduler",
        TO_ZERO | {"use_exponential_sigmas": True, "lower_order_final": True},
    ),
    "unipc 2 bh1": unipc(2, "bh1"),
    "unipc 2 bh2": unipc(2, "bh2"),
    "unipc 3 bh1": unipc(3, "bh1"),
    "unipc 3 bh2": unipc(3, "bh2"),
    "deis 2": deis(2),
    "deis 3": deis(3),
}


def mixture():
    rng = np.random.default_rng(0)
    means = rng.uniform(-1, 1, (4, 1, 2, 2))
    return GaussianMixture([0.4, 0.3, 0.2, 0.1], means, [0.04, 0.01, 0.09, 0.02])


def prepared(solver, kind, options, calls):
    """A fresh scheduler and the float32 levels that it asks the network at, with the end."""
    scheduler = getattr(diffusers, kind)(**options)
    steps = (calls + 1) // 2 if solver == "heun" else calls
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == calls
    if solver == "ddim":
        alpha_bar = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], torch.ones(1)])
        return scheduler, ((1 - alpha_bar) / alpha_bar).double().sqrt().tolist()
    return scheduler, scheduler.sigmas.double().tolist()


def their_end(scheduler, asked, net, x):
    """The scheduler's own loop, from x at unit variance in the scale of the network."""
    scaled = isinstance(scheduler, diffusers.HeunDiscreteScheduler)  # its state is x / alpha
    if scaled:
        x = x * (1 + asked[0] ** 2) ** 0.5
    for t, level in zip(scheduler.timesteps, asked, strict=False):
        given = scheduler.scale_model_input(x, t) if scaled else x
        x = scheduler.step(net.eps(given, level), t, x).prev_sample
    return x / (1 + asked[-1] ** 2) ** 0.5 if scaled else x


def nodes_of(solver, asked, calls):
    """The nodes of the fine grid among the levels that are asked, and the end."""
    if solver == "heun":  # s0, s1, s1, s2, s2, ..., 0
        return [*asked[:1], *asked[1:-1:2], asked[-1]]
    if solver == "dpmpp_2s":  # node, middle, node, middle, ..., one or two single nodes
        pairs = (calls - 1) // 2
        return [*asked[: 2 * pairs : 2], *asked[2 * pairs :]]
    return asked


@pytest.mark.parametrize("calls", [6, 10, 20])
@pytest.mark.parametrize("name", CASES)
def test_end_points_are_those_of_diffusers(name, calls):
    solver = name.split()[0]
    args, kind, options = CASES[name]
    calls += solver == "heun"  # 2 N - 1
    net, method = mixture(), SOLVERS[solver]
    scheduler, asked = prepared(solver, kind, options, calls)
    levels = tuple(nodes_of(solver, asked, calls))
    stage = Stage(net.card.key, solver, args, levels, method.plan(levels, calls, **args))
    planned = [call.level for call in stage.calls]
    np.testing.assert_allclose(planned, asked[:-1], rtol=1e-6)  # float32 sigmas

    assert (levels[-1] == 0) == (solver != "deis" and "bh1" not in name)

    x = torch.from_numpy(np.random.default_rng(1).standard_normal((32, 1, 2, 2))).float()
    want = their_end(scheduler, asked, net, x)
    got = integrate(StepSchedule((stage,)), {stage.net: net}, x)
    assert got.dtype == want.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
