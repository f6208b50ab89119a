"""Schedules of a space, against all of its genomes."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from support import CARDS, SPACE

from stepsearch import space_size as module
from stepsearch.build import build_schedule
from stepsearch.core.space import Range
from stepsearch.space_size import space_size

PF = ("pfdiff", {"c": Range(0.3, 0.6, 3)})
SPACES = {
    "segments": SPACE,
    "more segments than calls": replace(SPACE, calls=(1, 2, 3), width_genes=5, grids=("uniform",)),
    "per call": replace(SPACE, calls=(2, 3, 4), per_call=True, width_genes=4),
    "sorted": replace(SPACE, monotone="non-increasing", width_genes=4),
    "sorted per call": replace(
        SPACE, calls=(2, 3), per_call=True, width_genes=3, monotone="non-decreasing"
    ),
    "ranges": replace(SPACE, solvers=("ddim", PF), width_genes=2),
    "one width": replace(SPACE, width_choices=(1.0,)),
}


def by_brute_force(space):
    """Different schedules of all genomes, by their keys."""
    genomes = itertools.product(*(range(n) for _, n in space.genes))
    return len({build_schedule(space.decode(g), CARDS).key() for g in genomes})


@pytest.mark.parametrize("name", SPACES)
def test_the_count_is_that_of_all_genomes_compiled(name, rng):
    space = SPACES[name]
    found = space_size(space, CARDS, rng)
    assert found.exact
    assert found.schedules == by_brute_force(space)
    assert found.genomes == np.prod([n for _, n in space.genes])


@pytest.mark.parametrize("name", ["segments", "ranges", "per call"])
def test_an_estimate_is_within_four_standard_errors(name, rng, monkeypatch):
    monkeypatch.setattr(module, "BUILDS", 0)
    found = space_size(SPACES[name], CARDS, rng)
    assert not found.exact
    assert abs(found.schedules - by_brute_force(SPACES[name])) <= 4 * found.error
    assert found.error < 0.2 * found.schedules


def test_genes_that_no_call_reads_add_nothing(rng):
    few = replace(SPACE, calls=(1,), width_genes=2)
    assert space_size(replace(few, width_genes=40), CARDS, rng).schedules == pytest.approx(
        space_size(few, CARDS, rng).schedules
    )
