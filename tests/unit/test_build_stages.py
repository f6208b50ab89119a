"""Schedules of second stages and students: what their cards fill in, cost and columns."""

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joint import ENDS, HIGH, JOINT_CARDS, JOINT_SPACE, LOW, RELAYING, STUDENT_CARD
from support import CARD, score

import stepsearch.objectives  # noqa: F401 (files the objectives)
from stepsearch.build import build_schedule, plan_stage
from stepsearch.core.distilled import Distilled
from stepsearch.core.errors import SpaceError
from stepsearch.core.guidance import Guidance
from stepsearch.core.kinds import KINDS
from stepsearch.core.relay import LEAST
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.trial import COLUMNS, Trial
from stepsearch.objectives.registry import OBJECTIVES

CARDS_BY_KEY = {card.key: card for card in JOINT_CARDS.values()}
BEGIN = {"logsnr": {"start": 0.8, "end": 0.05}}
RELAYS = st.tuples(*(st.integers(0, n - 1) for _, n in JOINT_SPACE.genes)).map(
    lambda genome: (KINDS.index("relay"), *genome[1:])
)
ALL_WIDTHS = replace(STUDENT_CARD, distilled=Distilled(CARD.key, ENDS, ()))
SPARSE = tuple(CARD.diffusion.level_at(time) for time in (768, 500, 100))
LISTED = replace(STUDENT_CARD, distilled=Distilled(CARD.key, SPARSE, dense=False))


def cost(schedule, name="gflops_per_image"):
    return OBJECTIVES[name](schedule, CARDS_BY_KEY, None)


# --- second stages


def test_the_forward_process_of_a_second_stage_is_that_of_its_card():
    stage = plan_stage(HIGH, solver="relay", calls=5, grid=BEGIN, step="official", eta=0.2)
    assert (stage.solver, stage.net) == ("relay", HIGH.key)
    assert stage.args == {"step": "official", "eta": 0.2, **asdict(HIGH.relay)}
    assert [call.level for call in stage.calls][:2] == pytest.approx(stage.levels[:2])
    assert (len(stage.calls), stage.levels[0], stage.levels[-1]) == (5, 0.8, 0)


def test_what_the_card_says_may_be_said_again_but_not_otherwise():
    plain = plan_stage(HIGH, solver="relay", calls=3, grid=BEGIN)
    assert plan_stage(HIGH, solver="relay", calls=3, grid=BEGIN, **asdict(HIGH.relay)) == plain
    wrong = {"scale": 4, "blur": 3.0, "prob_length": 0.9, "block": 0.0, "normalize": True}
    assert wrong.keys() == asdict(HIGH.relay).keys()
    for name, value in wrong.items():
        with pytest.raises(SpaceError, match=rf"relay: {name} is .*'high', got .*leave it out"):
            plan_stage(HIGH, solver="relay", calls=3, grid=BEGIN, **{name: value})


@pytest.mark.parametrize("solver", ["ddim", "heun", "unipc", "pfdiff", "ddpm", "renoise"])
def test_solvers_that_know_no_blur_are_refused(solver):
    with pytest.raises(SpaceError, match=rf"'high' is the second.*'{solver}' does not.*use relay"):
        plan_stage(HIGH, solver=solver, calls=3, grid=BEGIN)


def test_a_network_of_one_stage_has_no_blur_to_fill_in():
    with pytest.raises(SpaceError, match="relay: scale is missing"):
        plan_stage(CARD, solver="relay", calls=3)


@pytest.mark.parametrize("level", [HIGH.relay.most * 1.01, LEAST * 0.99])
def test_a_second_stage_is_asked_within_the_noise_of_its_blur(level):
    with pytest.raises(SpaceError, match=r"range.* 0\.0075 \.\. 1\.7"):
        plan_stage(HIGH, solver="relay", calls=1, grid=[level])
    whole = plan_stage(HIGH, solver="relay", calls=5, grid="logsnr")
    assert whole.levels[0] == pytest.approx(HIGH.relay.most, rel=1e-12)
    assert whole.levels[-2] == pytest.approx(LEAST, rel=1e-12)


# --- students


@pytest.mark.parametrize("calls", [1, 2, 3, 8])
@pytest.mark.parametrize("grid", ["karras", "logsnr", "cosine", "free"])
def test_grids_of_a_student_span_the_levels_it_was_distilled_at(grid, calls):
    stage = plan_stage(STUDENT_CARD, solver="renoise", calls=calls, grid=grid)
    levels = [call.level for call in stage.calls]
    assert levels[0] == pytest.approx(ENDS[0], rel=1e-9)
    assert calls == 1 or levels[-1] == pytest.approx(ENDS[1], rel=1e-9)
    assert all(ENDS[1] * (1 - 1e-9) <= level <= ENDS[0] * (1 + 1e-9) for level in levels)


def test_an_end_may_be_chosen_within_the_levels_of_a_student_alone():
    end = CARD.diffusion.level_at(300)
    stage = plan_stage(STUDENT_CARD, solver="renoise", calls=3, grid={"karras": {"end": end}})
    assert stage.levels[-2] == pytest.approx(end, rel=1e-9)
    for grid in ({"karras": {"end": 0.05}}, {"logsnr": {"start": 40}}, "uniform"):
        with pytest.raises(SpaceError, match=r"'student' was distilled.*choose a grid within them"):
            plan_stage(STUDENT_CARD, solver="renoise", calls=3, grid=grid)


def test_a_student_of_listed_levels_is_asked_there_and_nowhere_else():
    for levels in (SPARSE, SPARSE[:2], SPARSE[1:], SPARSE[:1]):
        stage = plan_stage(LISTED, solver="renoise", calls=len(levels), grid=levels)
        assert stage.levels == (*levels, 0.0)
    between = CARD.diffusion.level_at(600)
    with pytest.raises(SpaceError, match=r"distilled at noise levels 19\.9\d*, .*not at"):
        plan_stage(LISTED, solver="renoise", calls=2, grid=[SPARSE[0], between])


@pytest.mark.parametrize("grid", ["karras", "logsnr", "cosine", [20.0]])
def test_a_student_of_one_level_is_asked_there_once(grid):
    one = replace(STUDENT_CARD, distilled=Distilled(CARD.key, ENDS[:1]))
    stage = plan_stage(one, solver="renoise", calls=1, grid=grid)
    (call,) = stage.calls
    assert CARD.diffusion.time_at(call.level) == CARD.diffusion.time_at(ENDS[0])
    if isinstance(grid, str):
        with pytest.raises(SpaceError, match="was distilled at noise levels"):
            plan_stage(one, solver="renoise", calls=2, grid=grid)


def test_widths_of_a_student_come_from_its_card():
    """Equal parts of the log range, most noise first; the middle one belongs to the second."""
    stage = plan_stage(STUDENT_CARD, solver="renoise", calls=5, grid="logsnr")
    middle = (ENDS[0] * ENDS[1]) ** 0.5
    assert {call.width for call in stage.calls} == {0.5, 1.0}
    for call in stage.calls:
        if abs(call.level / middle - 1) > 0.01:
            assert call.width == (0.5 if call.level > middle else 1.0)
    typed = [call.width for call in stage.calls]
    again = plan_stage(STUDENT_CARD, solver="renoise", calls=5, grid="logsnr", widths=typed)
    assert again == stage
    with pytest.raises(SpaceError, match=r"at width 0\.5 for noise level .*got 1; leave widths to"):
        plan_stage(STUDENT_CARD, solver="renoise", calls=5, grid="logsnr", widths=1.0)


def test_a_student_of_all_widths_takes_those_of_the_candidate():
    candidate = JOINT_SPACE.decode((2, *(0,) * (len(JOINT_SPACE.genes) - 1)))
    candidate = replace(candidate, calls=4, widths=(0.25, 0.75))
    own = build_schedule(candidate, JOINT_CARDS).widths
    chosen = build_schedule(candidate, JOINT_CARDS | {"student": ALL_WIDTHS}).widths
    assert set(own) <= {0.5, 1.0}
    assert set(chosen) == {0.25, 0.75}
    assert list(chosen) == sorted(chosen)
    for width in (0.25, 1.0):
        stage = plan_stage(ALL_WIDTHS, solver="renoise", calls=2, grid="karras", widths=width)
        assert {call.width for call in stage.calls} == {width}


@pytest.mark.parametrize("solver", ["pfdiff", "ddim", "unipc", "ddpm"])
@pytest.mark.parametrize("net", [STUDENT_CARD, ALL_WIDTHS, LISTED])
def test_solvers_of_an_equation_are_refused_for_a_student(net, solver):
    with pytest.raises(SpaceError, match=rf"'student' is distilled.*'{solver}' could.*use renoise"):
        plan_stage(net, solver=solver, calls=2, grid="karras")


# --- cost


@given(RELAYS)
def test_the_cost_of_a_relay_is_the_sum_over_stages_at_their_own_sizes(genome):
    candidate = JOINT_SPACE.decode(genome)
    schedule = build_schedule(candidate, JOINT_CARDS)
    assert [stage.net for stage in schedule.stages] == [LOW.key, HIGH.key]
    parts = [StepSchedule((stage,)) for stage in schedule.stages]
    assert cost(schedule) == pytest.approx(sum(map(cost, parts)), rel=1e-12)
    small, large = (dict(zip(c.widths, c.flops, strict=True)) for c in (LOW, HIGH))
    want = sum(small[call.width] for call in schedule.stages[0].calls)
    want += sum(large[call.width] for call in schedule.stages[1].calls)
    assert cost(schedule) == pytest.approx(want / 1e9, rel=1e-12)
    assert schedule.nfe == cost(schedule, "nfe") == candidate.calls + candidate.second.calls
    assert schedule.widths == (*parts[0].widths, *parts[1].widths)


@given(RELAYS)
def test_where_the_second_stage_starts_changes_levels_and_no_number_of_calls(genome):
    place = [name for name, _ in JOINT_SPACE.genes].index("relay_start")
    seen = []
    for i, start in enumerate(RELAYING.starts):
        moved = (*genome[:place], i, *genome[place + 1 :])
        schedule = build_schedule(JOINT_SPACE.decode(moved), JOINT_CARDS)
        assert schedule.stages[1].levels[0] == start
        seen.append(([len(stage.calls) for stage in schedule.stages], schedule.stages[0]))
    assert all(one == seen[0] for one in seen)


def test_guided_calls_of_either_stage_count_twice():
    cards = {n: replace(c, classes=3) for n, c in JOINT_CARDS.items()}
    candidate = JOINT_SPACE.decode((1, *(0,) * (len(JOINT_SPACE.genes) - 1)))
    plain = build_schedule(candidate, cards)
    both = replace(
        candidate,
        guidance=Guidance("cfg", 2.0),
        second=replace(candidate.second, guidance=Guidance("cfg", 2.0)),
    )
    guided = build_schedule(both, cards)
    assert cost(guided) == pytest.approx(2 * cost(plain), rel=1e-12)
    assert guided.nfe == plain.nfe
    high = replace(both, guidance=Guidance("cfg", 2.0, low=2.0))
    high = replace(high, second=replace(high.second, guidance=high.guidance))
    part = build_schedule(high, cards)  # no level of the second stage is as high
    assert {call.scale for call in part.stages[1].calls} == {None}
    assert part.stages[1].guide is None
    assert cost(plain) < cost(part) < cost(guided)


def test_both_stages_are_bound_to_their_weights():
    candidate = JOINT_SPACE.decode((1, *(0,) * (len(JOINT_SPACE.genes) - 1)))
    keys = {build_schedule(candidate, JOINT_CARDS).key()}
    for name in ("low", "high"):
        retrained = JOINT_CARDS | {name: replace(JOINT_CARDS[name], sha256="f" * 64)}
        keys.add(build_schedule(candidate, retrained).key())
    assert len(keys) == 3
    with pytest.raises(SpaceError, match="unknown supernet 'high'"):
        build_schedule(candidate, {"low": LOW})


@given(RELAYS)
def test_a_schedule_of_two_stages_survives_json(genome):
    schedule = build_schedule(JOINT_SPACE.decode(genome), JOINT_CARDS)
    assert StepSchedule.from_json(schedule.to_json()) == schedule


# --- tables


def row_of(kind, **genes):
    names = [name for name, _ in JOINT_SPACE.genes]
    genome = [0] * len(names)
    for name, value in {"supernet": KINDS.index(kind), **genes}.items():
        genome[names.index(name)] = value
    candidate = JOINT_SPACE.decode(tuple(genome))
    schedule = build_schedule(candidate, JOINT_CARDS)
    result = score(schedule)
    trial = Trial(0, 0, schedule.key(), schedule.to_json(), candidate, schedule.widths, result)
    again = Trial.from_dict(trial.to_dict())
    assert again == trial
    row = again.row(0)
    assert list(row) == COLUMNS
    return row


def test_a_row_of_a_relay_tells_of_both_stages():
    row = row_of("relay", calls=1, relay_start=2, relay_calls=1, relay_width_0=3, relay_width_1=1)
    want = {
        "kind": "relay",
        "supernet": "low",
        "solver": "ddim",
        "grid": "uniform",
        "relay_supernet": "high",
        "relay_start": 1.2,
        "relay_calls": 3,
        "relay_grid": "karras",
        "relay_grid_args": "end=0.02",
        "relay_solver_args": "eta=0;step=trapezoid",
        "nfe": 4 + 3,
    }
    assert {name: row[name] for name in want} == want
    assert row["widths"].startswith("0.25x4|")


@pytest.mark.parametrize("kind", ["single", "distilled"])
def test_a_row_without_a_second_stage_leaves_its_columns_empty(kind):
    row = row_of(kind)
    assert (row["kind"], row["supernet"]) == (kind, {"single": "net"}.get(kind, "student"))
    relay = [name for name in row if name.startswith("relay_")]
    assert len(relay) == 6
    assert {row[name] for name in relay} == {None}


def test_a_row_of_a_student_says_what_ran():
    row = row_of("distilled", distilled_calls=2)
    assert (row["solver"], row["grid"], row["nfe"]) == ("renoise", "karras", 4)
    assert row["widths"] == "0.5x2|1.0x2"
    assert row["mean_width"] == 0.75
