"""What every solver must keep to; run over the registry, whatever is in it."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from walks import (
    CASES,
    EXAMPLES,
    TwoWidths,
    allowed,
    bare_stage,
    each_case,
    each_process,
    grid_of,
    nodes_on,
    run,
    start,
)

from stepsearch.build import plan_stage
from stepsearch.core.errors import SpaceError
from stepsearch.core.guidance import Guidance
from stepsearch.core.noise import image_noise
from stepsearch.core.process import PROCESSES, get_process
from stepsearch.core.protocols import SolverState
from stepsearch.core.schedule import Call, Stage, StepSchedule
from stepsearch.nets.gaussian import GaussianMixture
from stepsearch.solvers.integrate import integrate
from stepsearch.solvers.registry import GRIDS, SOLVERS

PLACES = [
    # the last time of iDDPM's table has 30 times the noise of the one before: no grid to step over
    *((p, "quad" if p == "vp-cosine-1000" else "logsnr") for p in PROCESSES),
    *(("vp-linear-1000", grid) for grid in GRIDS if grid != "logsnr"),
    ("edm", "karras"),
    ("edm", "uniform"),
]
each_place = pytest.mark.parametrize(("process", "grid"), PLACES)
DETERMINISTIC = [(name, a) for name, a in CASES if SOLVERS[name].order(**a) is not None]
WIDTHS = TwoWidths.WIDTHS


def planned(net, process, grid, solver, args, calls, **settings):
    nodes = SOLVERS[solver].nodes(calls, **args)
    grid = grid_of(grid, get_process(process), nodes)
    return plan_stage(net.card, solver=solver, calls=calls, grid=grid, **args, **settings)


def test_every_solver_has_examples():
    assert set(EXAMPLES) == set(SOLVERS), "add arguments for the new solver to tests/walks.py"
    assert all(EXAMPLES.values())


@each_place
@each_case
def test_calls_made_are_calls_planned(process, grid, solver, args):
    """In order and count, and each where the network was trained."""
    p = get_process(process)
    low, high = (p.level_at(t) * s for t, s in ((p.first_time, 1 - 1e-9), (p.last_time, 1 + 1e-9)))
    for wanted in (3, 6):
        net, told, calls = TwoWidths(process), [], allowed(solver, args, wanted)
        widths = [WIDTHS[i % 3 == 0] for i in range(calls)]
        stage = planned(net, process, grid, solver, args, calls, widths=widths)
        run(net, stage, start(net, stage), on_call=lambda *call, told=told: told.append(call[:2]))
        assert told == net.calls == [(call.level, call.width) for call in stage.calls]
        assert [width for _, width in told] == widths
        assert len(told) == calls == StepSchedule((stage,)).nfe
        assert all(low <= level <= high for level, _ in told)
        assert max(told)[0] <= stage.levels[0]


@each_process
@each_case
def test_one_call_is_one_call(process, solver, args):
    """Of noise level 0 at its end: the image that the network sees in the noise."""
    net = TwoWidths(process)
    stage = plan_stage(net.card, solver=solver, calls=1, **args)
    x, (call,) = start(net, stage), stage.calls
    want = x / net.card.diffusion.alpha(call.level) - call.level * net.eps(x, call.level)
    if args.get("buffer") == "clipped-x0":
        want = want.clamp(-1, 1)
    torch.testing.assert_close(run(net, stage, x), want, rtol=1e-10, atol=1e-10)


@each_case
def test_on_call_sees_the_input_of_the_network(solver, args):
    """The first call is asked at the starting state itself, which is left as it was."""
    net, seen = TwoWidths("edm"), []
    stage = planned(net, "edm", "karras", solver, args, allowed(solver, args, 3))
    x = start(net, stage)
    before = x.clone()
    run(net, stage, x, on_call=lambda level, width, x: seen.append(x.clone()))
    assert torch.equal(seen[0], before)
    assert torch.equal(x, before), "the starting state was written to"


@each_process
@each_case
def test_cut_anywhere_and_continued(process, solver, args):
    """State is all there is: copies of it continue bit for bit, whatever ran in between."""
    net, calls = TwoWidths(process), allowed(solver, args, 6)
    stage = planned(net, process, "karras", solver, args, calls)
    x, other = start(net, stage), start(net, stage, seed=1)
    whole = run(net, stage, x)

    def step(state, i, x):
        times = itertools.count()

        def noise():
            return torch.from_numpy(image_noise(0, 0, tuple(x.shape), i + 1, next(times))).to(x)

        return SOLVERS[stage.solver].step(net, stage, state, i, noise)

    for cut in range(1, calls):
        state, between = SolverState(x.clone()), SolverState(other)
        for i in range(calls):
            if i == cut:
                saved = [t.numpy().copy() for t in (state.x, *state.buffer)]
                first, *rest = (torch.from_numpy(array) for array in saved)
                state = SolverState(first, tuple(rest))
            state = step(state, i, x)
            between = step(between, i, other)
        assert torch.equal(state.x, whole), f"cut after step {cut}"


@each_process
@each_case
def test_batch_size_does_not_change_an_image(process, solver, args):
    net = TwoWidths(process)
    stage = planned(net, process, "karras", solver, args, allowed(solver, args, 5))
    x = start(net, stage)
    whole = run(net, stage, x, seed=3)
    for size in (1, 4):
        parts = [run(net, stage, x[i : i + size], seed=3, first_image=i) for i in range(0, 6, size)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-11, atol=1e-11)


@each_case
def test_noise_is_drawn_where_there_is_no_order_and_only_there(solver, args):
    net = TwoWidths("edm")
    stage = planned(net, "edm", "karras", solver, args, allowed(solver, args, 5))
    x = start(net, stage)
    same = torch.equal(run(net, stage, x, seed=0), run(net, stage, x, seed=1))
    assert same == ((solver, args) in DETERMINISTIC)


@each_place
@each_case
def test_float32(process, grid, solver, args):
    """Within 2e-3 of float64 on images of size 1, from up to 160 times as much noise.

    Not at level 20000, the last time of vp-cosine-1000: rounding x there is 1e-3 of an image
    already, and solvers that extrapolate make it 0.1 or more.
    """
    net = TwoWidths(process)
    stage = planned(net, process, grid, solver, args, allowed(solver, args, 8))
    x = start(net, stage, count=32).float()
    got = run(net, stage, x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), run(net, stage, x.double()), rtol=0, atol=2e-3)


@each_process
@pytest.mark.parametrize(("solver", "args"), DETERMINISTIC, ids=str)
def test_end_point_converges(process, solver, args):
    """On one Gaussian the exact flow rescales by the marginal deviation, the same for all."""
    std = 0.3
    net, errors = GaussianMixture([1.0], np.full((1, 2), 0.3), [std**2], process), []
    for wanted in (15, 45, 135):
        stage = planned(net, process, "logsnr", solver, args, allowed(solver, args, wanted))
        top = stage.levels[0]
        x = torch.full((1, 2), net.card.diffusion.start_scale(top), dtype=torch.float64)
        begin = x / net.card.diffusion.alpha(top)
        want = 0.3 + (begin - 0.3) * std / math.hypot(std, top)
        errors.append(float((run(net, stage, x) - want).abs().max()))
    last_jump = stage.levels[-2] ** 2 / (2 * std**2)  # from the least trained level to 0
    assert errors[2] < 0.01
    assert errors[2] < max(0.75 * errors[1], last_jump)


@each_process
@each_case
def test_canonical_changes_no_image(process, solver, args):
    """The canonical solver makes the same walk on the same grid, and is its own canonical form."""
    net = TwoWidths(process)
    for calls in sorted({allowed(solver, args, wanted) for wanted in (1, 2, 3, 4, 6)}):
        name, own = SOLVERS[solver].canonical(calls, **args)
        assert SOLVERS[name].canonical(calls, **own) == (name, own)
        levels = nodes_on(get_process(process), solver, args, calls)
        given, plain = (bare_stage(net, *s, levels, calls) for s in ((solver, args), (name, own)))
        made = [call.level for call in given.calls]
        assert [call.level for call in plain.calls] == pytest.approx(made, rel=1e-9)
        x = start(net, given)
        torch.testing.assert_close(run(net, plain, x), run(net, given, x), rtol=1e-9, atol=1e-9)


DDIM, ANCESTRAL = ("ddim", {}), ("ddpm", {"variance": "small"})
ONE_CALL = [  # a relay is another solver even then: it begins from a first stage
    (name, args) for name, args in CASES if args.get("buffer") != "clipped-x0" and name != "relay"
]


@pytest.mark.parametrize(
    ("calls", "spellings"),
    [
        (5, [DDIM, ("ddim", {"eta": 0}), ("ddim", {"eta": 0.0}), ("pfdiff", {"k": 0, "l": 0})]),
        (5, [DDIM, ("pfdiff", {"k": 0, "l": 0, "buffer": "x0"}), ("ddim", {"eta": -0.0})]),
        (5, [ANCESTRAL, ("ddpm", {}), ("ddim", {"eta": 1}), ("ddim", {"eta": 1.0})]),
        (5, [("ddpm", {"variance": "large"})]),
        (5, [("ddim", {"eta": 0.5})]),
        (5, [("heun", {}), ("heun", {"churn": 0}), ("heun", {"s_noise": 2.0, "s_max": 3.0})]),
        (5, [("heun", {"churn": 1}), ("heun", {"churn": 1.0, "s_min": 0, "s_max": math.inf})]),
        (5, [("heun", {"churn": 40}), ("heun", {"churn": 3 * (math.sqrt(2) - 1)})]),
        (5, [("pfdiff", {"k": 2, "l": 1}), ("pfdiff", {"k": 2, "l": 1, "buffer": "eps"})]),
        (5, [("pfdiff", {"c": 0.5}), ("pfdiff", {"c": 0.5, "k": 1, "l": None, "buffer": "eps"})]),
        (5, [("pfdiff", {"c": 0.5, "k": 2})]),
        (5, [("pfdiff", {"k": 0, "l": 0, "buffer": "clipped-x0"})]),
        (1, [DDIM, *ONE_CALL]),
    ],
    ids=str,
)
def test_equal_runs_are_one_schedule(calls, spellings):
    """And the runs of two rows of the table are two."""
    card = TwoWidths("edm").card
    stages = [plan_stage(card, solver=name, calls=calls, **args) for name, args in spellings]
    assert len({StepSchedule((stage,)).key() for stage in stages}) == 1
    assert (stages[0].solver == "ddim" and not stages[0].args) == (spellings[0] == DDIM)
    json.dumps(stages[0].args, allow_nan=False)  # other readers of JSON know no Infinity


@each_case
def test_an_edited_stage_is_refused_before_anything_runs(solver, args):
    net, calls = TwoWidths("edm"), allowed(solver, args, 5)
    stage = planned(net, "edm", "karras", solver, args, calls)
    before = () if solver == "relay" else (stage,)  # which takes over from smaller images only
    first, *others = stage.calls
    moved = (Call(first.level * 1.001), *others)
    narrow = (*stage.calls[:-1], Call(stage.calls[-1].level, 0.75))
    edits = [
        {"levels": stage.levels[:-1]},
        {"levels": (stage.levels[0] * 2, *stage.levels)},
        {"calls": moved},
        {"calls": stage.calls[:-1]},
        {"calls": narrow},
        {"net": "other@1"},
    ]
    for edit in edits:
        fields = {name: getattr(stage, name) for name in Stage.__dataclass_fields__}
        bad = Stage(**{**fields, **edit})
        with pytest.raises(SpaceError):
            integrate(StepSchedule((*before, bad)), {stage.net: net}, start(net, stage))
        assert net.calls == [], edit


GOOD = {"solver": "pfdiff", "calls": 4, "grid": "uniform", "k": 2, "l": 1}
PLAIN = {"solver": "ddim", "calls": 4}
HEUN = {"solver": "heun", "calls": 5}
C = {"solver": "pfdiff", "calls": 4}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (PLAIN | {"k": 1}, ["ddim", "'k'", "it takes eta"]),
        *((PLAIN | {"eta": bad}, ["eta", "[0, 1]", repr(bad)]) for bad in (-0.1, 1.5, "1", True)),
        (PLAIN | {"solver": "ddpm", "eta": 0.5}, ["ddpm", "'eta'", "ddim takes it"]),
        (PLAIN | {"solver": "ddpm", "variance": "big"}, ["small, large", "'big'"]),
        *((HEUN | {"calls": n}, ["odd", f"{n}", f"{n - 1} or {n + 1}"]) for n in (2, 10)),
        (HEUN | {"churn": -1}, ["churn", "-1"]),
        (HEUN | {"churn": math.nan}, ["churn", "nan"]),
        (HEUN | {"churn": math.inf}, ["churn", "inf"]),
        (HEUN | {"churn": 1, "s_noise": math.inf}, ["s_noise", "inf"]),
        (HEUN | {"churn": 10**400}, ["churn"]),
        (HEUN | {"s_min": 2, "s_max": 1}, ["s_min 2", "s_max 1", "swap"]),
        *((C | {"c": bad}, ["c must", "(0, 1)", repr(bad)]) for bad in (0, 1, 1.2, -0.5, "0.5")),
        (C | {"c": 0.5, "l": 1}, ["c=0.5", "l=1"]),
        (C | {"c": 0.5, "k": 0}, ["k must", "0"]),
        (C | {"c": 0.5, "buffer": "v"}, ["eps, x0, clipped-x0", "'v'"]),
        (C, ["k and l", "{}"]),
        (C | {"k": 1}, ["k and l", "{'k': 1}"]),
        (GOOD | {"m": 1}, ["pfdiff", "'m'", "k, l, c, buffer"]),
        (GOOD | {"k": 1, "l": 2}, ["k=1, l=2"]),
        (GOOD | {"k": 1, "l": 0}, ["k=1, l=0"]),
        (GOOD | {"k": -1, "l": -1}, ["k=-1, l=-1"]),
        (GOOD | {"k": 2.0}, ["2.0"]),
        (GOOD | {"l": True}, ["True"]),
        *((GOOD | {"calls": bad}, ["calls", repr(bad)]) for bad in (0, -3, 2.0, True)),
        (GOOD | {"widths": [1.0] * 3}, ["3 widths", "4 calls"]),
        (GOOD | {"widths": []}, ["0 widths", "4 calls"]),
        (GOOD | {"widths": [1.0, 0.5, 0.75, 1.0]}, ["0.75", "0.5, 1"]),
        (GOOD | {"widths": math.nan}, ["nan", "0.5, 1"]),
        (GOOD | {"solver": "pfdif"}, ["'pfdif'", "did you mean 'pfdiff'", "ddim"]),
        (GOOD | {"grid": "unifrom"}, ["'unifrom'", "did you mean 'uniform'", "karras"]),
        (PLAIN | {"grid": {"karras": {}, "quad": {}}}, ["name one", "karras", "quad"]),
        (PLAIN | {"grid": [90, 5, 1, 0.1]}, ["level 90", "0.002 .. 80"]),
        (PLAIN | {"grid": [70, 5, 1, 0.001]}, ["level 0.001", "0.002 .. 80"]),
        (PLAIN | {"calls": 1, "grid": [0]}, ["level 0 ", "0.002 .. 80"]),
        (PLAIN | {"grid": [70, 5, 1]}, ["3 levels", "4 are needed"]),
        (PLAIN | {"guidance": Guidance("cfg", 2.0)}, ["unconditional", "guidance"]),
        (PLAIN | {"guidance": Guidance("classifier", 2.0, net="a")}, ["no classifier 'a'"]),
    ],
    ids=str,
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(SpaceError) as caught:
        plan_stage(TwoWidths("edm").card, **settings)
    message = str(caught.value)
    assert all(part in message for part in named), message
    assert "\n" not in message


@pytest.mark.parametrize("solver", sorted({name for name, _ in DETERMINISTIC} - {"ddim", "relay"}))
def test_eta_of_a_solver_without_one(solver):
    for args in (a for name, a in DETERMINISTIC if name == solver):
        with pytest.raises(SpaceError, match=f"{solver}: unknown argument 'eta'.*ddim takes it"):
            plan_stage(TwoWidths("edm").card, solver=solver, calls=5, eta=0.5, **args)
