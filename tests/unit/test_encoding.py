"""Schedules read back into genes: exactly in their own space, by noise level in any other."""

import math
import random
from dataclasses import replace

import pytest
from joint import JOINT_CARDS, JOINT_SPACE
from support import CARD, CARDS, SPACE

from stepsearch.build import build_schedule, gene_levels, plan_stage
from stepsearch.core.guidance import Guidance
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.space import Range
from stepsearch.encoding import distance, nearest_genome

PER_CALL = replace(
    SPACE,
    calls=(3, 5, 8),
    per_call=True,
    width_genes=8,
    solvers=("ddim", ("pfdiff", {"c": Range(0.3, 0.6, 7)}), ("deis", {"order": 3}), "unipc"),
    grids=("quad", ("karras", {"rho": Range(3, 9, 4)})),
)
GUIDED = replace(SPACE, guidances=("none", ("cfg", {"scale": Range(1.5, 4, 6)})))
LABELLED = {"net": replace(CARD, classes=10)}


@pytest.mark.parametrize(
    ("space", "cards"),
    [
        (SPACE, CARDS),
        (replace(SPACE, monotone="non-increasing"), CARDS),
        (PER_CALL, CARDS),
        (GUIDED, LABELLED),
    ],
    ids=["segments", "monotone", "per call", "guided"],
)
def test_a_schedule_of_the_space_itself_is_found_again(space, cards):
    rng = random.Random(0)
    for _ in range(40):
        genome = tuple(rng.randrange(n) for _, n in space.genes)
        schedule = build_schedule(space.decode(genome), cards)
        assert build_schedule(space.decode(nearest_genome(schedule, space, cards)), cards) == (
            schedule
        )


def test_kinds_are_kept_and_most_relays_and_students_are_found_again():
    rng, missed = random.Random(0), 0
    for _ in range(60):
        genome = tuple(rng.randrange(n) for _, n in JOINT_SPACE.genes)
        candidate = JOINT_SPACE.decode(genome)
        schedule = build_schedule(candidate, JOINT_CARDS)
        found = JOINT_SPACE.decode(nearest_genome(schedule, JOINT_SPACE, JOINT_CARDS))
        assert found.kind == candidate.kind
        missed += build_schedule(found, JOINT_CARDS) != schedule
    assert missed <= 3


def test_widths_follow_the_noise_level_when_the_number_of_calls_differs():
    """A width that steps from 0.25 to 1 at a noise level does so there with any other calls."""
    for calls, switch in ((20, 1.0), (40, 0.3), (12, 3.0)):
        plan = plan_stage(CARD, solver="ddim", calls=calls)
        widths = [0.25 if call.level > switch else 1.0 for call in plan.calls]
        schedule = StepSchedule((plan_stage(CARD, solver="ddim", calls=calls, widths=widths),))
        space = replace(SPACE, width_genes=8)
        genome = nearest_genome(schedule, space, CARDS)
        candidate = space.decode(genome)
        assert (candidate.calls, candidate.solver, candidate.grid) == (6, "ddim", "uniform")
        reached = min(call.level for call in plan.calls)
        for level, width in zip(gene_levels(candidate, CARDS), candidate.widths, strict=True):
            if abs(math.log(level / switch)) > 0.7 and level > reached:
                assert width == (0.25 if level > switch else 1.0)


def test_a_network_of_another_name_and_resolution_is_read_alike():
    other = replace(CARD, name="large", image_shape=(3, 64, 64), sha256="ab" * 32)
    genome = (0, 2, 1, 1, 0, 3, 1)
    mine = build_schedule(SPACE.decode(genome), CARDS)
    theirs = build_schedule(SPACE.decode(genome), {"net": replace(other, name="large")})
    assert theirs != mine
    assert build_schedule(SPACE.decode(nearest_genome(theirs, SPACE, CARDS)), CARDS) == mine


def test_gene_levels_are_the_middles_of_the_parts_that_genes_stand_for():
    candidate = replace(SPACE.decode((0,) * 7), widths=(1.0,) * 5)
    levels = [math.log(level) for level in gene_levels(candidate, CARDS)]
    top = math.log(CARD.diffusion.level_at(CARD.diffusion.last_time))
    bottom = math.log(CARD.diffusion.level_at(CARD.diffusion.first_time))
    want = [top - (i + 0.5) / 5 * (top - bottom) for i in range(5)]
    assert levels == pytest.approx(want)


def test_distance_is_zero_for_itself_symmetric_and_blind_to_widths():
    rng = random.Random(1)
    made = [
        build_schedule(SPACE.decode(tuple(rng.randrange(n) for _, n in SPACE.genes)), CARDS)
        for _ in range(12)
    ]
    for one in made:
        assert distance(one, one) == 0
        for other in made:
            assert distance(one, other) == pytest.approx(distance(other, one))
    wide, narrow = (
        StepSchedule((plan_stage(CARD, solver="ddim", calls=4, widths=w),)) for w in (1.0, 0.25)
    )
    assert distance(wide, narrow) == 0


def test_guidance_counts_by_its_scale():
    def guided(scale):
        guidance = Guidance("cfg", scale) if scale else None
        card = LABELLED["net"]
        return StepSchedule((plan_stage(card, solver="ddim", calls=4, guidance=guidance),))

    near, far = (distance(guided(2.0), guided(s)) for s in (2.5, 4.0))
    assert 0 < near < far
    assert distance(guided(2.0), guided(None)) == pytest.approx(2.0)
