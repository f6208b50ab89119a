"""What every solver and every grid must keep to; run over the registries."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from stepsearch.build import plan_stage
from stepsearch.core.errors import SpaceError
from stepsearch.core.noise import image_noise
from stepsearch.core.process import PROCESSES, get_process
from stepsearch.core.protocols import SolverState
from stepsearch.core.schedule import (
    StepSchedule,
)
from stepsearch.nets.gaussian import GaussianMixture
from stepsearch.solvers.integrate import integrate
from stepsearch.solvers.registry import GRIDS, SOLVERS

EXAMPLES = {  # arguments to test each solver with; a new solver adds its own
    "ddim": [{}],
    "pfdiff": [{"k": 0, "l": 0}] + [{"k": k, "l": l} for k in (1, 2, 3) for l in range(1, k + 1)],  # noqa: E741
}
CASES = [(name, args) for name in SOLVERS for args in EXAMPLES.get(name, [])]
each_case = pytest.mark.parametrize(("solver", "args"), CASES, ids=str)
each_grid = pytest.mark.parametrize("grid", GRIDS)
each_process = pytest.mark.parametrize("process", PROCESSES)

WIDTHS = (0.5, 1.0)


class TwoWidths:
    """An exact mixture at width 1, its first component alone at width 0.5."""

    def __init__(self, process):
        rng = np.random.default_rng(0)
        means, weights = rng.uniform(-1, 1, (3, 1, 2, 2)), np.array([0.5, 0.3, 0.2])
        variances = np.array([0.04, 0.01, 0.09])
        self.parts = {
            width: GaussianMixture(weights[:keep], means[:keep], variances[:keep], process)
            for width, keep in zip(WIDTHS, (1, 3), strict=True)
        }
        self.card = dataclasses.replace(self.parts[1.0].card, widths=WIDTHS, flops=(1.0, 3.0))
        self.calls = []

    def eps(self, x, level, *, width=1.0, cond=None):
        self.calls.append((level, width))
        return self.parts[width].eps(x, level, cond=cond)


def start(net, stage, count=6, seed=0):
    noise = torch.from_numpy(image_noise(seed, 0, (count, *net.card.image_shape)))
    return noise.double() * net.card.diffusion.start_scale(stage.levels[0])


def run(net, stage, x, **options):
    return integrate(StepSchedule((stage,)), {stage.net: net}, x, **options)


def test_every_solver_has_examples():
    assert set(EXAMPLES) == set(SOLVERS), "add arguments for the new solver to EXAMPLES"


class TestSolvers:
    @each_process
    @each_grid
    @each_case
    @pytest.mark.parametrize("calls", [1, 2, 7])
    def test_calls_made_are_calls_planned(self, process, grid, solver, args, calls):
        net = TwoWidths(process)
        widths = [WIDTHS[i % 3 == 0] for i in range(calls)]
        stage = plan_stage(net.card, solver=solver, calls=calls, grid=grid, widths=widths, **args)
        told = []
        run(
            net,
            stage,
            start(net, stage),
            on_call=lambda level, width, x: told.append((level, width)),
        )
        planned = [(call.level, call.width) for call in stage.calls]
        assert told == net.calls == planned
        assert [width for _, width in told] == widths
        assert len(told) == calls == StepSchedule((stage,)).nfe

    @each_case
    def test_on_call_sees_the_input_of_the_network(self, solver, args):
        """The first call is asked at the starting state itself."""
        net, seen = TwoWidths("edm"), []
        stage = plan_stage(net.card, solver=solver, calls=3, **args)
        x = start(net, stage)
        before = x.clone()
        run(net, stage, x, on_call=lambda level, width, x: seen.append(x.clone()))
        assert torch.equal(seen[0], before)
        assert torch.equal(x, before), "the starting state was written to"

    @each_process
    @each_case
    def test_cut_anywhere_and_continued(self, process, solver, args):
        """State is all there is: copies of it continue bit for bit, whatever ran in between."""
        net = TwoWidths(process)
        stage = plan_stage(net.card, solver=solver, calls=6, grid="karras", **args)
        x, other = start(net, stage), start(net, stage, seed=1)
        whole = run(net, stage, x)

        def step(state, i, x):
            noise = torch.from_numpy(image_noise(0, 0, tuple(x.shape), i + 1)).to(x)
            return SOLVERS[stage.solver].step(net, stage, state, i, lambda: noise)

        for cut in range(1, 6):
            state, between = SolverState(x.clone()), SolverState(other)
            for i in range(6):
                if i == cut:
                    saved = [t.numpy().copy() for t in (state.x, *state.buffer)]
                    first, *rest = (torch.from_numpy(array) for array in saved)
                    state = SolverState(first, tuple(rest))
                state = step(state, i, x)
                between = step(between, i, other)
            assert torch.equal(state.x, whole), f"cut after step {cut}"

    @each_process
    @each_case
    def test_batch_size_does_not_change_an_image(self, process, solver, args):
        net = TwoWidths(process)
        stage = plan_stage(net.card, solver=solver, calls=5, grid="karras", **args)
        x = start(net, stage)
        whole = run(net, stage, x, seed=3)
        for size in (1, 2, 4):
            parts = [
                run(net, stage, x[i : i + size], seed=3, first_image=i) for i in range(0, 6, size)
            ]
            torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)

    @each_process
    @each_grid
    @each_case
    def test_float32(self, process, grid, solver, args):
        """Within 2e-3 of float64, on images of size 1 (long jumps extrapolate, hence the room)."""
        net = TwoWidths(process)
        stage = plan_stage(net.card, solver=solver, calls=8, grid=grid, **args)
        x = start(net, stage, count=32).float()
        got = run(net, stage, x)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), run(net, stage, x.double()), rtol=0, atol=2e-3)

    @each_process
    @each_grid
    @each_case
    def test_end_point_converges(self, process, grid, solver, args):
        """On one Gaussian the exact flow rescales by the marginal deviation."""
        std = {"vp-linear-1000": 0.7, "edm": 5.0}[process]  # wide enough for an even EDM grid
        net, errors = GaussianMixture([1.0], np.full((1, 2), 0.3), [std**2], process), []
        for calls in (16, 64, 256):
            stage = plan_stage(net.card, solver=solver, calls=calls, grid=grid, **args)
            top = stage.levels[0]
            x = torch.full((1, 2), net.card.diffusion.start_scale(top), dtype=torch.float64)
            begin = x / net.card.diffusion.alpha(top)
            want = 0.3 + (begin - 0.3) * std / math.hypot(std, top)
            errors.append(float((run(net, stage, x) - want).abs().max()) / std)
        assert errors[2] < 0.03
        assert errors[2] < 0.6 * errors[1]
        assert errors[2] < 0.4 * errors[0]

    @each_case
    def test_fine_grid(self, solver, args):
        """The grid holds as many nodes as the solver asks for, and the end."""
        net = TwoWidths("edm")
        for calls in (1, 2, 9):
            stage = plan_stage(net.card, solver=solver, calls=calls, **args)
            assert len(stage.levels) == SOLVERS[solver].nodes(calls, **args) + 1
            assert stage.levels[-1] == 0.0
            assert {call.level for call in stage.calls} <= set(stage.levels[:-1])

    def test_unknown_network_in_a_schedule(self):
        net = TwoWidths("edm")
        stage = plan_stage(net.card, solver="ddim", calls=2)
        with pytest.raises(SpaceError, match=rf"'{net.card.key}'.*other@1"):
            integrate(StepSchedule((stage,)), {"other@1": net}, start(net, stage))


@each_process
@each_grid
@pytest.mark.parametrize(("k", "l"), [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)])
def test_springboard_lies_on_the_line_of_the_last_prediction(process, grid, k, l):  # noqa: E741
    """In (xb, sb) = (x / alpha, level), where a block of k + 1 nodes begins at node i:
    xb_{i+l} = xb_{i-(k+1)} + (sb_{i+l} - sb_{i-(k+1)}) buffer.
    """
    net, asked = TwoWidths(process), []
    stage = plan_stage(net.card, solver="pfdiff", calls=6, grid=grid, k=k, l=l)
    x, alpha = start(net, stage), net.card.diffusion.alpha
    run(net, stage, x, on_call=lambda level, width, x: asked.append((level, x / alpha(level))))
    origin, origin_level = x / alpha(stage.levels[0]), stage.levels[0]
    for i, (level, y) in enumerate(asked):
        if i:
            line = origin + (level - origin_level) * buffer  # noqa: F821 (set in the round before)
            torch.testing.assert_close(y, line, rtol=1e-11, atol=1e-11)
            begin = stage.levels[1 + (k + 1) * (i - 1)]
            origin, origin_level = origin + (begin - origin_level) * buffer, begin  # noqa: F821
        buffer = net.eps(y * alpha(level), level)
    end = origin + (stage.levels[-1] - origin_level) * buffer
    torch.testing.assert_close(run(net, stage, x), end, rtol=1e-11, atol=1e-11)


@each_process
@each_grid
class TestGrids:
    @pytest.mark.parametrize("n", [1, 2, 3, 7, 50, 999])
    def test_shape(self, process, grid, n):
        levels, p = GRIDS[grid](get_process(process), n), get_process(process)
        low, high = p.level_at(p.first_time), p.level_at(p.last_time)
        assert len(levels) == n
        assert all(type(level) is float for level in levels)
        assert p.time_at(levels[0]) >= 0.75 * p.last_time
        assert high >= levels[0] >= levels[-1] >= low
        if p.discrete:  # close nodes may fall on one trained step
            assert all(a >= b for a, b in itertools.pairwise(levels))
            assert set(levels) <= {p.level_at(t) for t in range(int(p.last_time) + 1)}
        else:
            assert all(a > b for a, b in itertools.pairwise(levels))
        if n > 1:
            np.testing.assert_allclose(levels[-1], low, rtol=1e-12)

    def test_more_nodes_than_trained_steps(self, process, grid):
        levels = GRIDS[grid](get_process(process), 2500)
        assert len(levels) == 2500
        assert all(a >= b for a, b in itertools.pairwise(levels))


GOOD = {"solver": "pfdiff", "calls": 4, "grid": "uniform", "k": 2, "l": 1}
DDIM = {"solver": "ddim", "calls": 4}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (DDIM | {"k": 1}, ["ddim", "'k'"]),
        (DDIM | {"k": 0, "l": 0}, ["ddim", "'k'", "'l'"]),
        (DDIM | {"solver": "pfdiff"}, ["k and l", "{}"]),
        (DDIM | {"solver": "pfdiff", "k": 1}, ["k and l", "{'k': 1}"]),
        (DDIM | {"solver": "pfdiff", "l": 1}, ["k and l", "{'l': 1}"]),
        (GOOD | {"m": 1}, ["k and l", "'m': 1"]),
        (GOOD | {"k": 1, "l": 2}, ["k=1, l=2"]),
        (GOOD | {"k": 1, "l": 0}, ["k=1, l=0"]),
        (GOOD | {"k": -1, "l": -1}, ["k=-1, l=-1"]),
        (GOOD | {"k": -2, "l": 1}, ["k=-2, l=1"]),
        (GOOD | {"k": 2.0}, ["2.0"]),
        (GOOD | {"l": 1.5}, ["1.5"]),
        (GOOD | {"l": True}, ["True"]),
        (GOOD | {"k": None}, ["None"]),
        (GOOD | {"calls": 0}, ["calls", "0"]),
        (GOOD | {"calls": -3}, ["calls", "-3"]),
        (GOOD | {"calls": 2.0}, ["calls", "2.0"]),
        (GOOD | {"calls": True}, ["calls", "True"]),
        (GOOD | {"widths": [1.0] * 3}, ["3 widths", "4 calls"]),
        (GOOD | {"widths": [1.0] * 5}, ["5 widths", "4 calls"]),
        (GOOD | {"widths": []}, ["0 widths", "4 calls"]),
        (GOOD | {"widths": 0.33}, ["0.33", "0.5, 1"]),
        (GOOD | {"widths": [1.0, 0.5, 0.75, 1.0]}, ["0.75", "0.5, 1"]),
        (GOOD | {"widths": float("nan")}, ["nan", "0.5, 1"]),
        (GOOD | {"widths": 0}, ["width 0", "0.5, 1"]),
        (GOOD | {"solver": "pfdif"}, ["'pfdif'", "did you mean 'pfdiff'", "ddim"]),
        (GOOD | {"grid": "unifrom"}, ["'unifrom'", "did you mean 'uniform'", "karras"]),
        (GOOD | {"solver": "zzz"}, ["'zzz'", "known: ddim, pfdiff"]),
    ],
    ids=str,
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(SpaceError) as caught:
        plan_stage(TwoWidths("edm").card, **settings)
    message = str(caught.value)
    assert all(part in message for part in named), message
    assert "\n" not in message
