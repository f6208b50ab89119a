"""Numeric genes, settings with arguments, monotone widths and guidance: what their genes mean."""

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import CARD, SPACE

from stepsearch.build import build_schedule
from stepsearch.core.errors import SpaceError
from stepsearch.core.guidance import Guidance
from stepsearch.core.space import MONOTONE, Candidate, Range

RHO, C, WEIGHT = Range(3, 9, 7), Range(0.3, 0.6, 7), Range(0, 4, 5)
RICH = replace(
    SPACE,
    grids=("uniform", ("karras", {"rho": RHO}), ("free", {"spacing": (WEIGHT,) * 8, "gap": 0.2})),
    solvers=("ddim", ("pfdiff", {"c": C}), ("unipc", {"order": Range(1, 3, 3), "variant": "bh1"})),
    guidances=("none", ("cfg", {"scale": Range(1.5, 3, 4), "low": 0.5})),
)
CARDS = {"net": replace(CARD, classes=10)}
GENES = dict(RICH.genes)
GENOMES = st.tuples(*(st.integers(0, n - 1) for n in GENES.values()))


def genome_with(**values):
    """The first choice of every gene but of those that are named."""
    assert set(values) <= set(GENES)
    return tuple(values.get(name, 0) for name in GENES)


def values(r):
    return [r.value(i) for i in range(r.steps)]


# --- ranges


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 200))
def test_a_range_is_even_and_ends_exactly_at_its_ends(low, span, steps):
    found = values(Range(low, low + span, steps))
    assert (found[0], found[-1]) == (low, low + span)
    assert found == sorted(found)
    for i, value in enumerate(found):
        assert value == pytest.approx(low + span * i / (steps - 1), rel=1e-9, abs=1e-6)


@given(st.floats(1e-6, 1e3), st.floats(1.01, 1e6), st.integers(2, 200))
def test_a_logarithmic_range_has_even_ratios_and_exact_ends(low, ratio, steps):
    found = values(Range(low, low * ratio, steps, log=True))
    assert (found[0], found[-1]) == (low, low * ratio)
    assert found == sorted(found)
    for i, value in enumerate(found):
        assert value == pytest.approx(low * ratio ** (i / (steps - 1)), rel=1e-5)


@given(st.integers(-50, 50), st.integers(1, 9), st.integers(1, 30))
def test_whole_numbers_stay_whole(low, step, count):
    found = values(Range(low, low + step * count, count + 1))
    assert found == list(range(low, low + step * count + 1, step))
    assert {type(value) for value in found} == {int}


def test_decimals_are_those_that_a_person_would_write():
    assert values(C) == [0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6]
    assert values(Range(1, 4, 3)) == [1, 2.5, 4]
    assert values(Range(0.01, 100, 5, log=True)) == [0.01, 0.1, 1, 10, 100]
    assert values(Range(1e-15, 3e-15, 3)) == [1e-15, 2e-15, 3e-15]


@pytest.mark.parametrize(
    ("low", "high", "steps", "log", "says"),
    [
        (2, 1, 3, False, "2 and 1"),
        (1, 1, 3, False, "1 and 1"),
        (0, math.inf, 3, False, "inf"),
        (math.nan, 1, 3, False, "nan"),
        (0, 1, 1, False, "at least 2 values are needed, got 1"),
        (0, 1, 2.0, False, "at least 2"),
        (0, 1, 3, True, "above 0, got 0"),
    ],
)
def test_a_range_of_nothing_is_refused(low, high, steps, log, says):
    with pytest.raises(SpaceError, match=says):
        Range(low, high, steps, log)


# --- genes of arguments


def test_a_space_without_ranges_and_guidance_has_no_further_genes():
    names = ["supernet", "calls", "grid", "solver", "width_0", "width_1", "width_2"]
    assert [name for name, _ in SPACE.genes] == names
    alone = replace(SPACE, guidances=(("cfg", {"scale": 2}),))
    assert alone.genes == SPACE.genes  # one choice is no gene


def test_every_range_is_one_gene_and_a_vector_one_per_entry():
    more = [name for name in GENES if name not in dict(SPACE.genes)]
    sizes = [GENES[name] for name in more]
    assert sorted(sizes) == sorted([2, RHO.steps, *[WEIGHT.steps] * 8, C.steps, 3, 4])
    assert len({name for name, _ in RICH.genes}) == len(RICH.genes)


@pytest.mark.parametrize(
    ("chosen", "gene", "read", "want"),
    [
        ({"grid": 1}, "grid_1_karras_rho", lambda c: c.grid_args["rho"], values(RHO)),
        ({"solver": 1}, "solver_1_pfdiff_c", lambda c: c.solver_args["c"], values(C)),
        ({"solver": 2}, "solver_2_unipc_order", lambda c: c.solver_args["order"], [1, 2, 3]),
        ({"guidance": 1}, "guidance_1_cfg_scale", lambda c: c.guidance.scale, [1.5, 2, 2.5, 3]),
        ({"grid": 2}, "grid_2_free_spacing_7", lambda c: c.grid_args["spacing"][7], values(WEIGHT)),
    ],
)
def test_a_gene_of_an_argument_is_its_value(chosen, gene, read, want):
    found = [RICH.decode(genome_with(**chosen, **{gene: i})) for i in range(GENES[gene])]
    assert [read(candidate) for candidate in found] == want


def test_arguments_that_are_no_ranges_stay_as_they_are():
    free, unipc = RICH.decode(genome_with(grid=2)), RICH.decode(genome_with(solver=2))
    assert free.grid_args == {"spacing": (0,) * 8, "gap": 0.2}
    assert unipc.solver_args == {"order": 1, "variant": "bh1"}
    assert RICH.decode(genome_with()).solver_args == RICH.decode(genome_with()).grid_args == {}


def test_a_vector_is_read_in_order():
    genes = {f"grid_2_free_spacing_{i}": i % 5 for i in range(8)}
    candidate = RICH.decode(genome_with(grid=2, **genes))
    assert candidate.grid_args["spacing"] == (0, 1, 2, 3, 4, 0, 1, 2)


@given(GENOMES)
def test_a_candidate_survives_strict_json(genome):
    candidate = RICH.decode(genome)
    text = json.dumps(candidate.to_dict(), allow_nan=False)
    again = Candidate.from_dict(json.loads(text))
    assert again == candidate
    assert hash(again) == hash(candidate)


def test_uniform_strategies_take_the_first_guidance_and_the_middle_of_every_range():
    space = replace(RICH, grids=RICH.grids[1:], solvers=RICH.solvers[1:])
    space = replace(space, guidances=RICH.guidances[1:])
    for genome in space.uniform_genomes(8):
        candidate = space.decode(genome)
        assert (candidate.grid_args, candidate.solver_args) == ({"rho": 6}, {"c": 0.45})
        assert candidate.guidance == Guidance("cfg", 2.5, 0.5)


# --- one schedule, one key


def key(space, genome):
    return build_schedule(space.decode(genome), CARDS).key()


@pytest.mark.parametrize("gene", [name for name in GENES if "_karras_" in name or "_cfg_" in name])
def test_the_range_of_what_is_not_chosen_changes_nothing(gene):
    kind = gene.partition("_")[0]
    idle = {key(RICH, genome_with(**{gene: i})) for i in range(GENES[gene])}
    used = {key(RICH, genome_with(**{kind: 1, gene: i})) for i in range(GENES[gene])}
    assert len(idle) == 1
    assert len(used) == GENES[gene]


def test_spacings_in_equal_proportion_are_one_schedule():
    ones = {f"grid_2_free_spacing_{i}": 1 for i in range(8)}
    threes = dict.fromkeys(ones, 3)
    uneven = ones | {"grid_2_free_spacing_0": 4}
    keys = [key(RICH, genome_with(grid=2, **genes)) for genes in (ones, threes, uneven)]
    assert keys[0] == keys[1] != keys[2]


def test_guidance_that_reaches_no_call_is_no_guidance():
    space = replace(SPACE, guidances=("none", ("cfg", {"scale": 2, "low": 1e6})))
    first = (0,) * len(SPACE.genes)
    assert key(space, (*first, 0)) == key(space, (*first, 1)) == key(SPACE, first)


# --- monotone widths

WIDTH_GENES = st.lists(st.integers(0, 3), min_size=6, max_size=6)


@pytest.mark.parametrize("monotone", MONOTONE)
@pytest.mark.parametrize("per_call", [False, True])
@given(genes=WIDTH_GENES, calls=st.integers(0, 2), grid=st.integers(0, 1))
def test_monotone_widths_are_those_of_the_genes_in_order(monotone, per_call, genes, calls, grid):
    """Repaired by sorting: no genome is refused."""
    space = replace(SPACE, width_genes=6, per_call=per_call, monotone=monotone)
    candidate = space.decode((0, calls, grid, 0, *genes))
    assert Counter(candidate.widths) == Counter(space.width_choices[g] for g in genes)
    for widths in (candidate.widths, build_schedule(candidate, CARDS).widths):
        assert list(widths) == sorted(widths, reverse=monotone == "non-increasing")


@pytest.mark.parametrize("monotone", MONOTONE)
def test_genomes_that_are_sorted_alike_are_one_schedule(monotone):
    space = replace(SPACE, monotone=monotone)
    keys = {key(space, (0, 2, 0, 0, *genes)) for genes in [(0, 1, 3), (3, 0, 1), (1, 3, 0)]}
    assert len(keys) == 1


def test_an_order_that_nobody_knows_is_refused():
    with pytest.raises(SpaceError, match=r"non-increasing.*'increasing'"):
        replace(SPACE, monotone="increasing")


# --- guidance


@pytest.mark.parametrize(
    ("setting", "want"),
    [
        ("none", None),
        (("cfg", {"scale": 2}), Guidance("cfg", 2)),
        (("cfg", {"scale": 2, "low": 0.5, "high": 5}), Guidance("cfg", 2, 0.5, 5)),
        (("classifier", {"scale": 1, "net": "judge"}), Guidance("classifier", 1, net="judge")),
    ],
)
def test_a_guidance_is_decoded_to_its_settings(setting, want):
    space = replace(SPACE, guidances=(("cfg", {"scale": 9}), setting))
    place = [name for name, _ in space.genes].index("guidance")
    genome = [0] * len(space.genes)
    genome[place] = 1
    assert space.decode(tuple(genome)).guidance == want
