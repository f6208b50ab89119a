"""Genomes, what they mean, and the schedules that they are compiled to."""

import itertools
import json
from bisect import bisect_right
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import CARD, CARDS, SPACE

import stepsearch.objectives  # noqa: F401 (files the objectives)
from stepsearch.build import build_schedule
from stepsearch.core.errors import SpaceError
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.space import Candidate, SearchSpace
from stepsearch.objectives.registry import OBJECTIVES
from stepsearch.solvers.registry import GRIDS, SOLVERS

SIZES = [n for _, n in SPACE.genes]
GENOMES = st.tuples(*(st.integers(0, n - 1) for n in SIZES))
CASES = [("ddim", {}), ("pfdiff", {"k": 1, "l": 1}), ("pfdiff", {"k": 2, "l": 2})]
FINE = replace(CARD, widths=tuple(i / 16 for i in range(1, 17)), flops=tuple(range(1, 17)))


def candidate_with(**changes):
    return replace(SPACE.decode((0,) * len(SIZES)), **changes)


def ends(card):
    """The most and the least noise that a network was trained at."""
    process = card.diffusion
    return process.level_at(process.last_time), process.level_at(process.first_time)


def walks(card, numbers):
    """Candidates of every grid with some solvers and numbers of calls."""
    for (solver, args), grid, calls in itertools.product(CASES, GRIDS, numbers):
        nodes = SOLVERS[solver].nodes(calls, **args)
        listed = {"levels": np.geomspace(*ends(card), nodes).tolist()}
        grid_args = listed if grid == "explicit" else {}
        yield candidate_with(
            solver=solver, solver_args=args, grid=grid, grid_args=grid_args, calls=calls
        )


# --- genomes


@pytest.mark.parametrize(
    ("gene", "field", "choices"),
    [
        ("supernet", "supernet", ("a", "b")),
        ("calls", "calls", SPACE.calls),
        ("grid", "grid", SPACE.grids),
        ("solver", "solver", ("ddim", "pfdiff", "pfdiff")),
        ("solver", "solver_args", ({}, {"k": 1, "l": 1}, {"k": 2, "l": 1})),
    ],
)
def test_every_value_of_a_gene_is_the_choice_at_that_place(gene, field, choices):
    space = replace(SPACE, supernets=("a", "b"))
    place = [name for name, _ in space.genes].index(gene)
    assert space.genes[place][1] == len(choices)
    for value, choice in enumerate(choices):
        genome = [0] * len(space.genes)
        genome[place] = value
        assert getattr(space.decode(tuple(genome)), field) == choice


@given(st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_width_genes_are_the_widths_in_order(genes):
    candidate = SPACE.decode((0, 0, 0, 0, *genes))
    assert candidate.widths == tuple(SPACE.width_choices[g] for g in genes)


@given(GENOMES, st.booleans())
def test_a_candidate_survives_json(genome, per_call):
    candidate = replace(SPACE, per_call=per_call).decode(genome)
    again = Candidate.from_dict(json.loads(json.dumps(candidate.to_dict())))
    assert again == candidate
    assert hash(again) == hash(candidate)
    assert again.per_call is per_call


def test_candidates_do_not_share_the_arguments_of_a_solver():
    genome = (0, 0, 0, 1, 0, 0, 0)
    SPACE.decode(genome).solver_args["k"] = 9
    assert SPACE.decode(genome).solver_args == {"k": 1, "l": 1}


@pytest.mark.parametrize("place", range(len(SIZES)))
@pytest.mark.parametrize("beyond", [-1, None])
def test_an_index_out_of_range_is_refused(place, beyond):
    genome = [0] * len(SIZES)
    genome[place] = SIZES[place] if beyond is None else beyond
    with pytest.raises(SpaceError, match="does not fit"):
        SPACE.decode(tuple(genome))


@pytest.mark.parametrize("length", [0, len(SIZES) - 1, len(SIZES) + 1])
def test_a_genome_of_another_length_is_refused(length):
    with pytest.raises(SpaceError, match="does not fit"):
        SPACE.decode((0,) * length)


@pytest.mark.parametrize("name", ["supernets", "calls", "grids", "solvers", "width_choices"])
def test_a_space_without_choices_is_refused(name):
    with pytest.raises(SpaceError, match=name):
        replace(SPACE, **{name: ()})
    with pytest.raises(SpaceError, match="width_genes"):
        replace(SPACE, width_genes=0)


# --- uniform strategies


def uniform(widths, calls, limit):
    space = SearchSpace(
        supernets=("net", "other"),
        calls=tuple(range(10, 10 + calls)),
        grids=("uniform", "quad"),
        solvers=(("ddim", {}), ("pfdiff", {"k": 1, "l": 1})),
        width_choices=tuple((i + 1) / widths for i in range(widths)),
        width_genes=3,
    )
    return space, [space.decode(g) for g in space.uniform_genomes(limit)]


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 50))
def test_uniform_strategies_have_one_width_and_the_first_of_everything_else(widths, calls, limit):
    _, found = uniform(widths, calls, limit)
    assert 1 <= len(found) <= limit
    assert len({(c.calls, c.widths) for c in found}) == len(found)
    for c in found:
        assert len(set(c.widths)) == 1
        assert (c.supernet, c.grid, c.solver) == ("net", "uniform", "ddim")


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 41))
def test_all_widths_come_once_per_number_of_calls_middle_first(widths, calls, more):
    space, found = uniform(widths, calls, widths + more)
    sets = [found[i : i + widths] for i in range(0, len(found), widths)]
    assert len(sets) == min(calls, (widths + more) // widths)
    for one in sets:
        assert sorted(c.widths[0] for c in one) == list(space.width_choices)
        assert len({c.calls for c in one}) == 1
    assert len({one[0].calls for one in sets}) == len(sets)
    assert abs(space.calls.index(sets[0][0].calls) - (calls - 1) / 2) <= 0.5


@given(st.integers(2, 30), st.data())
def test_too_small_a_limit_spreads_the_widths_evenly(widths, data):
    limit = data.draw(st.integers(1, widths - 1))
    space, found = uniform(widths, 3, limit)
    places = [space.width_choices.index(c.widths[0]) for c in found]
    assert len(places) == limit
    assert {c.calls for c in found} == {space.calls[1]}
    if limit > 1:
        assert (places[0], places[-1]) == (0, widths - 1)
        gaps = np.diff(places)
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1


# --- schedules


@pytest.mark.parametrize("process", ["vp-linear-1000", "edm"])
@pytest.mark.parametrize("segments", [1, 3, 5, 16])
def test_widths_follow_equal_parts_of_log_noise_level(process, segments):
    card = replace(FINE, process=process)
    edges = np.geomspace(*ends(card), segments + 1)[1:-1]
    genes = card.widths[:segments]  # all different: a width names its gene
    checked = set()
    for candidate in walks(card, (1, 2, 7, 20, 50)):
        made = build_schedule(replace(candidate, widths=genes), {"net": card}).stages[0].calls
        assert len(made) == candidate.calls
        for call in made:
            if all(abs(call.level / edge - 1) > 1e-6 for edge in edges):
                part = bisect_right([-e for e in edges], -call.level)
                assert call.width == genes[part]
                checked.add(part)
    assert checked == set(range(segments))


@pytest.mark.parametrize("process", ["vp-linear-1000", "edm"])
def test_with_as_many_calls_as_genes_gene_i_is_call_i(process):
    card = replace(FINE, process=process)
    for candidate in walks(card, (1, 5, 16)):
        genes = card.widths[: candidate.calls]
        candidate = replace(candidate, widths=genes, per_call=True)
        assert build_schedule(candidate, {"net": card}).widths == genes


@pytest.mark.parametrize("process", ["vp-linear-1000", "edm"])
def test_with_fewer_calls_each_reads_the_gene_of_the_nearest_noise_level(process):
    """Nearest in log level, among the calls of the same solver and grid with a call per gene."""
    card = replace(FINE, process=process)
    seen = set()
    for candidate in walks(card, (1, 2, 3, 7, 15)):
        if candidate.grid == "explicit":
            continue  # its list fits one number of calls
        candidate = replace(candidate, widths=card.widths, per_call=True)
        full = build_schedule(replace(candidate, calls=16), {"net": card}).stages[0].calls
        made = build_schedule(candidate, {"net": card}).stages[0].calls
        assert len(made) == candidate.calls
        for call in made:
            distance = {c.width: abs(np.log(c.level / call.level)) for c in full}
            assert distance[call.width] == pytest.approx(min(distance.values()), abs=1e-12)
            seen.add(call.width)
    assert len(seen) > 12


@pytest.mark.parametrize(
    ("calls", "want"),
    [(1, (0.25,)), (2, (0.25, 1.0)), (3, (0.25, 0.75, 1.0)), (4, (0.25, 0.5, 0.75, 1.0))],
)
def test_per_call_genes_of_a_uniform_walk_by_hand(calls, want):
    """Four calls are made at times 999, 666, 333 and 0, three at 999, 499 and 0."""
    candidate = candidate_with(widths=(0.25, 0.5, 0.75, 1.0), calls=calls, per_call=True)
    assert build_schedule(candidate, CARDS).widths == want


def unused_gene():
    """Two genomes that differ in a segment which no call falls into."""
    space = replace(SPACE, calls=(2,), width_genes=9)
    base = (0,) * 13
    used = build_schedule(space.decode(base), CARDS)
    for gene in range(4, 13):
        other = (*base[:gene], 1, *base[gene + 1 :])
        schedule = build_schedule(space.decode(other), CARDS)
        if schedule.widths == used.widths:
            return used, schedule
    raise AssertionError("two calls cannot use nine segments")


def test_genomes_that_mean_the_same_calls_are_one_schedule():
    one, other = unused_gene()
    assert one == other
    assert one.key() == other.key()


@given(GENOMES, GENOMES)
def test_schedules_share_a_key_only_if_they_are_equal(one, other):
    a, b = (build_schedule(SPACE.decode(g), CARDS) for g in (one, other))
    assert (a.key() == b.key()) == (a == b)
    assert StepSchedule.from_json(a.to_json()).key() == a.key()


def test_another_network_of_the_same_name_is_another_schedule():
    candidate = candidate_with()
    retrained = {"net": replace(CARD, sha256="f" * 64)}
    keys = {build_schedule(candidate, cards).key() for cards in (CARDS, retrained)}
    assert len(keys) == 2


@given(GENOMES)
def test_cost_is_the_sum_over_the_calls(genome):
    candidate = SPACE.decode(genome)
    schedule = build_schedule(candidate, CARDS)
    cards = {CARD.key: CARD}
    cost = dict(zip(CARD.widths, CARD.flops, strict=True))
    assert schedule.nfe == len(schedule.widths) == candidate.calls
    assert OBJECTIVES["nfe"](schedule, cards, None) == candidate.calls
    got = OBJECTIVES["gflops_per_image"](schedule, cards, None)
    assert got == pytest.approx(sum(cost[w] for w in schedule.widths) / 1e9, rel=1e-12)


def test_an_unknown_supernet_and_a_width_it_lacks_are_named():
    with pytest.raises(SpaceError, match=r"'else'; known: net"):
        build_schedule(candidate_with(supernet="else"), CARDS)
    with pytest.raises(SpaceError, match=r"0\.3 .*'net'.*0\.25, 0\.5, 0\.75, 1"):
        build_schedule(candidate_with(widths=(0.3,)), CARDS)


def test_every_other_setting_is_tried_once_at_the_middle_width():
    found = [SPACE.decode(genome) for genome in SPACE.setting_genomes(100)]
    settings = [(c.grid, c.solver, tuple(c.solver_args.items())) for c in found]
    assert len(set(settings)) == len(settings) == len(SPACE.grids) * len(SPACE.solvers) - 1
    assert ("uniform", "ddim", ()) not in settings  # the first, whose widths are tried anyway
    assert {c.widths for c in found} == {(0.75,) * 3}
    assert {c.calls for c in found} == {4}


def test_where_settings_are_many_they_are_taken_evenly():
    found = [SPACE.decode(genome) for genome in SPACE.setting_genomes(2)]
    assert len(found) == 2
    assert {c.grid for c in found} == {"uniform", "quad"}
    assert SPACE.setting_genomes(0) == []
