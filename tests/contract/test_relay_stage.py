"""Schedules of two stages, the solver of the second one, and the solver of few-step networks."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from walks import TwoWidths, bare_stage, each_process, nodes_on, run, start

from stepsearch.build import plan_stage
from stepsearch.core.errors import SpaceError
from stepsearch.core.noise import generator, image_noise
from stepsearch.core.process import get_process
from stepsearch.core.protocols import SolverState
from stepsearch.core.relay import block_noise
from stepsearch.core.schedule import StepSchedule
from stepsearch.nets.gaussian import GaussianMixture
from stepsearch.solvers.integrate import integrate
from stepsearch.solvers.registry import SOLVERS
from stepsearch.solvers.relay import enlarge
from stepsearch.training.batches import CANDIDATES, EPOCHS, FLIPS, STEPS

RELAY, RENOISE = SOLVERS["relay"], SOLVERS["renoise"]
BLOCK = 0.15


def gaussian(shape, process="edm", variance=0.04, seed=0):
    """Two components, the first far heavier."""
    means = np.random.default_rng(seed).uniform(-1, 1, (2, *shape))
    return GaussianMixture([0.9, 0.1], means, [variance, 2 * variance], process)


LOW = gaussian((1, 4, 4), "vp-linear-1000")


def second(high, levels=(0.7, 0.2, 0.05, 0.0), **args):
    """A relay stage of scale 2, a call more than twice a step but for step `first`."""
    nodes = len(levels) - 1
    calls = nodes if args.get("step") == "first" else 2 * nodes - 1
    return bare_stage(high, "relay", {"scale": 2, "blur": 2.0} | args, levels, calls)


def two_stages(high, low=LOW, **args):
    first = plan_stage(low.card, solver="ddpm", calls=3)
    return StepSchedule((first, second(high, **args))), {
        low.card.key: low,
        high.card.key: high,
    }


def pure_noise(low, count, seed=0):
    return start(low, plan_stage(low.card, solver="ddpm", calls=3), count, seed)


def watched(schedule, nets, x, **options):
    """Every call's level and input, and the end."""
    seen = []
    end = integrate(
        schedule, nets, x, on_call=lambda level, width, x: seen.append((level, x)), **options
    )
    return seen, end


# --- where one stage ends and the next begins


@pytest.mark.parametrize("args", [{}, {"eta": 0.4}, {"eta": 1.0, "step": "official"}], ids=str)
def test_an_image_of_two_stages_does_not_depend_on_its_batch(args):
    schedule, nets = two_stages(gaussian((1, 8, 8)), **args)
    x = pure_noise(LOW, 6)
    whole = integrate(schedule, nets, x, seed=3)
    assert whole.shape == (6, 1, 8, 8)
    for size in (1, 4):
        parts = [
            integrate(schedule, nets, x[i : i + size], seed=3, first_image=i)
            for i in range(0, 6, size)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-11, atol=1e-11)
    assert (integrate(schedule, nets, x, seed=4) - whole).abs().max() > 0.1


@pytest.mark.parametrize("step", ["first", "trapezoid"])
def test_where_the_second_stage_starts_does_not_change_the_calls(step):
    high = gaussian((1, 8, 8))
    for top in (0.2, 0.5, 1.0, 1.7):
        levels = (*np.geomspace(top, 0.01, 4).tolist(), 0.0)
        schedule, nets = two_stages(high, levels=levels, step=step)
        seen, _ = watched(schedule, nets, pure_noise(LOW, 2))
        sides = [x.shape[-1] for _, x in seen]
        assert sides == [4] * 3 + [8] * (4 if step == "first" else 7)
        assert seen[3][0] == top
        assert len(seen) == schedule.nfe


@pytest.mark.parametrize("process", ["edm", "vp-linear"])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_second_stage_starts_from_the_enlarged_image_and_two_noises_of_its_own(
    process, normalize
):
    """The draw after those of the first stage, and its second noise for the blocks."""
    schedule, nets = two_stages(gaussian((1, 8, 8), process), normalize=normalize)
    (first, stage), x = schedule.stages, pure_noise(LOW, 5)
    low = integrate(StepSchedule((first,)), nets, x, seed=3, first_image=7)
    seen, _ = watched(schedule, nets, x, seed=3, first_image=7)
    white, blocks = (torch.from_numpy(image_noise(3, 7, (5, 1, 8, 8), 4, k)) for k in (0, 1))
    mixed = white.double() + BLOCK * block_noise(blocks.double(), 2)
    top, scale = stage.levels[0], math.sqrt(1 + BLOCK**2) if normalize else 1.0
    want = get_process(process).alpha(top) * (enlarge(low, 2) + top * mixed / scale)
    torch.testing.assert_close(seen[3][1], want, rtol=0, atol=1e-12)


def test_every_step_of_the_second_stage_draws_two_noises_of_its_own():
    """With eta = 1 nothing but the predicted image and the fresh mixture is left."""
    high = gaussian((1, 8, 8))
    args = {"step": "first", "eta": 1.0, "blur": 0}
    schedule, nets = two_stages(high, **args)
    seen, _ = watched(schedule, nets, pure_noise(LOW, 5), seed=3)
    for call, draw in ((4, 5), (5, 6)):
        (before, x), (level, moved) = seen[call - 1 : call + 1]
        white, blocks = (torch.from_numpy(image_noise(3, 0, (5, 1, 8, 8), draw, k)) for k in (0, 1))
        mixed = white.double() + BLOCK * block_noise(blocks.double(), 2)
        want = x - before * high.eps(x, before) + level * mixed
        torch.testing.assert_close(moved, want, rtol=0, atol=1e-12)


def test_the_small_image_is_in_the_means_of_the_tiles():
    """And what noise is added to them has the variance of the mixture's tile means."""
    count, top = 2000, 0.7
    schedule, nets = two_stages(gaussian((1, 8, 8)))
    first, x = schedule.stages[0], pure_noise(LOW, 2000)
    low = integrate(StepSchedule((first,)), nets, x)
    seen, _ = watched(schedule, nets, x)
    means = seen[3][1].reshape(count, 1, 4, 2, 4, 2).mean((3, 5))
    # two neighbours in a row of a tile share half of their blocks: 2 + 2 / 2 of 4 pairs
    variance = top**2 * (1 / 4 + BLOCK**2 * (3 / 4) ** 2)
    added = means - low
    assert added.mean((0, 1)).abs().max() < 5 * math.sqrt(variance / count)
    assert float(added.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / added.numel()))
    assert abs(np.corrcoef(added.flatten(), low.flatten())[0, 1]) < 5 / math.sqrt(low.numel())


def test_a_stage_of_another_solver_goes_on_from_the_state_as_it_is():
    net = gaussian((1, 4, 4))
    levels = (9.0, 3.0, 1.0, 0.3, 0.0)
    parts = [bare_stage(net, "ddim", {}, part, len(part) - 1) for part in (levels[:3], levels[2:])]
    whole = bare_stage(net, "ddim", {}, levels, 4)
    x, nets = start(net, whole), {net.card.key: net}
    got, want = (integrate(StepSchedule(s), nets, x) for s in (tuple(parts), (whole,)))
    assert torch.equal(got, want)


HIGH = gaussian((1, 8, 8))


@pytest.mark.parametrize(
    ("low", "high", "named"),
    [
        ((1, 4, 4), (1, 16, 16), ["scale 2", "(1, 8, 8)", "(1, 4, 4)", "(1, 16, 16)"]),
        ((1, 4, 4), (3, 8, 8), ["(1, 8, 8)", "(3, 8, 8)"]),
        ((1, 4, 4), (1, 8, 4), ["(1, 8, 8)", "(1, 8, 4)"]),
        ((1, 4, 4), (1, 4, 4), ["(1, 8, 8)", "wants (1, 4, 4)"]),
        ((4,), (4,), ["(4,)", "(C, H, W)"]),
    ],
    ids=str,
)
def test_a_relay_of_shapes_that_do_not_fit_is_refused_before_anything_runs(low, high, named):
    low, high = gaussian(low, "vp-linear-1000"), gaussian(high)
    schedule, nets = two_stages(high, low)
    refused(schedule, nets, pure_noise(low, 2), [high.card.key, *named])


def refused(schedule, nets, x, named):
    seen = []
    with pytest.raises(SpaceError) as caught:
        integrate(schedule, nets, x, on_call=lambda *call: seen.append(call))
    assert all(part in str(caught.value) for part in named), str(caught.value)
    assert "\n" not in str(caught.value)
    assert seen == []


def test_a_relay_after_an_unfinished_image_is_refused():
    first = bare_stage(LOW, "ddim", {}, (9.0, 0.5), 1)
    nets = {LOW.card.key: LOW, HIGH.card.key: HIGH}
    schedule = StepSchedule((first, second(HIGH)))
    refused(schedule, nets, start(LOW, first), [LOW.card.key, "ends at noise level 0.5"])


@pytest.mark.parametrize("solver", ["ddim", "renoise"])
def test_no_other_solver_takes_over_from_images_of_another_shape(solver):
    first = plan_stage(LOW.card, solver="ddim", calls=2)
    schedule = StepSchedule((first, bare_stage(HIGH, solver, {}, (0.7, 0.2, 0.0), 2)))
    nets = {LOW.card.key: LOW, HIGH.card.key: HIGH}
    refused(schedule, nets, start(LOW, first), ["(1, 8, 8)", "(1, 4, 4)", "'relay'"])


# --- several noises of one step


def test_the_first_noise_of_a_draw_is_the_stream_of_draw_seed_and_image():
    got = image_noise(3, 5, (1, 2, 4), 2)[0]
    assert np.array_equal(got, generator(2, 3, 5).standard_normal((2, 4)).astype(np.float32))


def test_further_noises_of_a_draw_do_not_depend_on_the_batch():
    whole = image_noise(5, 10, (6, 2, 3), 4, 2)
    parts = [image_noise(5, 10 + i, (2, 2, 3), 4, 2) for i in (0, 2, 4)]
    assert (np.concatenate(parts) == whole).all()


def test_every_further_noise_is_another():
    """As are all noises of training, whose streams have as many words."""
    names = itertools.product(range(3), repeat=4)  # seed, image, draw, again
    rows = {image_noise(s, j, (1, 6), d, k).tobytes() for s, j, d, k in names}
    for stream in (EPOCHS, STEPS, FLIPS, CANDIDATES):
        for s, step in itertools.product(range(3), repeat=2):
            rows.add(generator(*stream, s, step).standard_normal(6).astype(np.float32).tobytes())
    assert len(rows) == 3**4 + 4 * 3**2


@pytest.mark.parametrize("other", [(0, 0, 0, 0), (0, 1, 0, 1), (0, 0, 1, 1), (0, 0, 0, 2)])
def test_further_noises_are_uncorrelated_with_all_others(other):
    seed, image, draw, again = other
    a = image_noise(0, 0, (1, 200, 200), 0, 1).ravel()
    b = image_noise(seed, image, (1, 200, 200), draw, again).ravel()
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / a.size**0.5
    assert a.var() == pytest.approx(1, abs=4 * (2 / a.size) ** 0.5)


# --- the solver of the second stage


@each_process
@pytest.mark.parametrize(
    ("step", "plainer"), [("first", "ddim"), ("official", "heun")], ids=["first", "official"]
)
@pytest.mark.parametrize("calls", [1, 3, 7])
def test_without_blur_and_noise_it_is_a_plain_solver(process, step, plainer, calls):
    net, args = TwoWidths(process), {"scale": 2, "blur": 0, "block": 0, "step": step}
    levels = nodes_on(get_process(process), "relay", args, calls)
    ours, plain = (
        bare_stage(net, solver, own, levels, calls)
        for solver, own in (("relay", args), (plainer, {}))
    )
    assert ours.calls == plain.calls
    x = start(net, ours)
    torch.testing.assert_close(run(net, ours, x), run(net, plain, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("step", ["official", "trapezoid"])
def test_the_last_step_is_one_call_even_above_level_0(step):
    levels, args = (0.9, 0.4, 0.1), {"scale": 2, "step": step}
    stage = bare_stage(HIGH, "relay", args, levels, 3)
    assert [call.level for call in stage.calls] == [0.9, 0.4, 0.4]
    seen, end = watched(StepSchedule((stage,)), {HIGH.card.key: HIGH}, start(HIGH, stage))
    last = bare_stage(HIGH, "relay", {"scale": 2, "step": "first"}, levels[1:], 1)
    assert torch.equal(end, run(HIGH, last, seen[2][1]))


FULL = {
    "step": "trapezoid",
    "eta": 0.0,
    "scale": 2,
    "blur": 3.0,
    "prob_length": 0.93,
    "block": 0.15,
    "normalize": False,
}


@pytest.mark.parametrize(
    ("calls", "args", "full"),
    [
        (5, {}, FULL),
        (5, {"blur": 3, "eta": 0, "block": 0.15}, FULL),
        (1, {"eta": 0.3, "step": "official"}, FULL | {"step": "first"}),
        (5, {"block": 0, "normalize": True}, FULL | {"block": 0.0}),
        (5, {"normalize": True, "eta": 1}, FULL | {"normalize": True, "eta": 1.0}),
        (4, {"step": "first", "scale": 4}, FULL | {"step": "first", "scale": 4}),
    ],
    ids=str,
)
def test_canonical_arguments_are_all_of_them(calls, args, full):
    assert RELAY.canonical(calls, **{"scale": 2} | args) == ("relay", full)
    read = json.loads(json.dumps(full))
    assert RELAY.canonical(calls, **read) == ("relay", full)
    types = {name: type(value) for name, value in full.items()}
    got = RELAY.canonical(calls, **{"scale": 2} | args)[1]
    assert {name: type(value) for name, value in got.items()} == types


@pytest.mark.parametrize(
    ("args", "order"),
    [
        ({}, 2),
        ({"eta": 0.1}, None),
        ({"step": "first"}, 1),
        ({"step": "first", "eta": 1}, None),
        ({"step": "official"}, 1),
        ({"step": "official", "blur": 0}, 2),
    ],
    ids=str,
)
def test_order(args, order):
    assert RELAY.order(scale=2, **args) == order


@pytest.mark.parametrize(
    ("calls", "args", "named"),
    [
        (5, {"scale": None}, ["relay: scale", "plan_stage", "card"]),
        (5, {"scale": 1}, ["relay: scale: 1"]),
        (5, {"scale": 2.0}, ["relay: scale: 2.0"]),
        (5, {"step": "heun"}, ["relay: step", "first, official, trapezoid", "'heun'"]),
        (5, {"eta": 1.5}, ["relay: eta", "[0, 1]", "1.5"]),
        (5, {"blur": -1}, ["relay: blur: -1"]),
        (5, {"prob_length": 0}, ["relay: prob_length: 0"]),
        (5, {"block": math.inf}, ["relay: block: inf"]),
        (5, {"normalize": 1}, ["relay: normalize: 1"]),
        (5, {"blurr": 1}, ["relay", "'blurr'", "did you mean 'blur'"]),
        (4, {}, ["relay", "'trapezoid'", "odd", "got 4", "3 or 5", "'first'"]),
        (2, {"step": "official"}, ["'official'", "got 2"]),
    ],
    ids=str,
)
def test_wrong_arguments_are_told_in_one_line(calls, args, named):
    with pytest.raises(SpaceError) as caught:
        RELAY.nodes(calls, **{"scale": 2} | args)
    assert all(part in str(caught.value) for part in named), str(caught.value)
    assert "\n" not in str(caught.value)


# --- the solver of few-step networks


@each_process
def test_renoising_once_is_ddim(process):
    net = TwoWidths(process)
    levels = nodes_on(get_process(process), "renoise", {}, 1)
    ours, plain = (bare_stage(net, solver, {}, levels, 1) for solver in ("renoise", "ddim"))
    x = start(net, ours)
    torch.testing.assert_close(run(net, ours, x), run(net, plain, x), rtol=1e-12, atol=1e-12)
    assert RENOISE.canonical(1) == ("ddim", {})
    assert RENOISE.canonical(2) == ("renoise", {})
    assert RENOISE.order() is None
    with pytest.raises(SpaceError, match="renoise: unknown argument 'k'; it takes no arguments"):
        RENOISE.nodes(3, k=1)


MEAN, VARIANCE = 0.3, 0.5


def shrunk(levels):
    """Variance at the end of a walk from noise of the first level through means of N(m, v).

    E[x0 | x] - m is the share v / (v + level^2) of x - m, and so node i's noise reaches the end
    with the product of the shares of all nodes from i on.
    """
    nodes = np.array(levels[:-1])
    shares = VARIANCE / (VARIANCE + nodes**2)
    left = np.cumprod(shares[::-1])[::-1]
    return float((nodes**2 * left**2).sum())


@each_process
@pytest.mark.parametrize("end", [0.0, 0.1])
def test_means_of_a_gaussian_end_with_less_variance_by_this_much(process, end):
    """Exact, by the gain of every noise; at an end above 0 its own noise is added."""
    net = GaussianMixture([1.0], [[MEAN]], [VARIANCE], process)
    alpha, levels = net.card.diffusion.alpha, (40.0, 3.0, 0.9, 0.4, end)
    stage = bare_stage(net, "renoise", {}, levels, 4)
    unit = torch.eye(6, dtype=torch.float64)[:, :, None]  # of the start and each call; none
    top = alpha(levels[0])
    state = SolverState(top * (MEAN + levels[0] * unit[0]))
    for i in range(4):
        state = RENOISE.step(net, stage, state, i, lambda i=i: unit[i + 1])
    x = (state.x / alpha(end))[:, 0].numpy()
    assert x[-1] == pytest.approx(MEAN, rel=1e-9)
    assert ((x[:-1] - x[-1]) ** 2).sum() == pytest.approx(shrunk(levels) + end**2, rel=1e-9)
    assert shrunk(levels) < 0.9 * VARIANCE


def test_drawn_noise_gives_that_variance_too():
    net = GaussianMixture([1.0], np.full((1, 4, 4), MEAN)[None], [VARIANCE], "edm")
    levels = (40.0, 3.0, 0.9, 0.4, 0.0)
    stage = bare_stage(net, "renoise", {}, levels, 4)
    end = run(net, stage, start(net, stage, count=2000) + MEAN)
    spread = 5 / math.sqrt(end.numel())
    assert float(end.mean()) == pytest.approx(MEAN, abs=spread * math.sqrt(VARIANCE))
    assert float(end.var()) == pytest.approx(shrunk(levels), rel=spread * math.sqrt(2))


class FewStep:
    """A perfect few-step network of N(m, v): it answers with samples of x0 given x."""

    def __init__(self):
        plain = GaussianMixture([1.0], np.full((1, 4, 4), MEAN)[None], [VARIANCE], "edm")
        self.plain, self.card = plain, dataclasses.replace(plain.card, name="few-step")
        self.draws = torch.Generator().manual_seed(0)

    def eps(self, x, level, *, width=1.0, cond=None):
        left = math.sqrt(VARIANCE * level**2 / (VARIANCE + level**2))
        drawn = left * torch.randn(x.shape, generator=self.draws, dtype=x.dtype)
        return self.plain.eps(x, level) - drawn / level


@pytest.mark.parametrize("levels", [(80.0, 0.0), (80.0, 0.8, 0.0), (80.0, 3.0, 0.9, 0.4, 0.0)])
def test_a_perfect_few_step_network_keeps_the_marginals(levels):
    net = FewStep()
    stage = bare_stage(net, "renoise", {}, levels, len(levels) - 1)
    seen, end = watched(StepSchedule((stage,)), {stage.net: net}, start(net, stage, count=2000))
    for level, x in [*seen[1:], (0.0, end)]:
        variance = VARIANCE + level**2
        spread = 5 / math.sqrt(x.numel())
        assert float(x.mean()) == pytest.approx(MEAN, abs=spread * math.sqrt(variance))
        assert float(x.var()) == pytest.approx(variance, rel=spread * math.sqrt(2))
