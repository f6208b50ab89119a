"""NSGA-II by parts: what is inherited and changed together."""

from collections import Counter

import numpy as np
import pytest
from pymoo.core.population import Population
from scipy.stats import binomtest
from toy_search import asks_of, make, problem_of

from stepsearch.algorithms.decks import Decks, is_even, parts_of
from stepsearch.algorithms.nsga2_parts import WHOLE, PartCrossover, PartMutation, some_of
from stepsearch.core.noise import generator

SIZES = (3, 4, 7, 7, 7, 7, 7, 7)
WIDTHS = ((2, 3, 4, 5, 6, 7),)


def problem(ordered=(False, True, *(True,) * 6), **more):
    return problem_of(SIZES, identity=lambda g: g, width_genes=WIDTHS, ordered=ordered, **more)


PARTS = [np.array(part) for part in parts_of(problem())]


def mutated(before, rate=1.0, **more):
    mutation = PartMutation(problem(**more), PARTS, rate)
    rows, rng = np.array(before), generator(3)
    after = mutation(None, Population.new(X=rows), inplace=False, random_state=rng)
    return rows, after.get("X")


def test_parts_are_the_widths_of_a_network_and_every_other_gene():
    assert parts_of(problem()) == (WIDTHS[0], (0,), (1,))
    two = problem_of((2, 3, 3, 4, 5, 5), width_genes=((1, 2), (4, 5)))
    assert parts_of(two) == ((1, 2), (4, 5), (0,), (3,))
    assert parts_of(problem_of((2, 3))) == ((0,), (1,))


def test_of_a_long_part_mostly_all_is_taken_and_any_run_may_be():
    rng, part = generator(1), np.arange(4)
    taken = Counter(tuple(some_of(part, rng).tolist()) for _ in range(8000))
    runs = {tuple(range(a, b)) for a in range(4) for b in range(a + 1, 5)}
    assert set(taken) == runs
    share = WHOLE + (1 - WHOLE) / 10  # the whole is one of ten runs, too
    assert binomtest(taken[0, 1, 2, 3], 8000, share).pvalue > 1e-3
    assert some_of(np.array([5]), rng).tolist() == [5]


def test_a_child_has_every_part_of_one_parent_but_for_runs_of_widths():
    parents = np.array([[(0,) * 8] * 2000, [(1,) * 8] * 2000])
    one, two = PartCrossover(PARTS, 1.0)._do(None, parents, random_state=generator(2))
    assert (one + two == 1).all()  # what one has the other has not
    widths = one[:, 2:]
    pure = (widths == widths[:, :1]).all(axis=1)
    # a run of six genes, and not the whole, is drawn in 20 of 21 cases
    assert binomtest(int((~pure).sum()), 2000, 0.5 * (1 - WHOLE) * 20 / 21).pvalue > 1e-3
    changes = (np.diff(widths[~pure]) != 0).sum(axis=1)
    assert set(changes.tolist()) == {1, 2}
    for gene in (0, 1):
        assert binomtest(int(one[:, gene].sum()), 2000, 0.5).pvalue > 1e-3


@pytest.mark.parametrize("rate", [0.1, 0.6, 1.0])
def test_a_part_changes_at_the_rate_and_is_never_left_as_it_was(rate):
    before, after = mutated([(1, 2, 3, 3, 3, 3, 3, 3)] * 3000, rate)
    assert ((after >= 0) & (after < SIZES)).all()
    for part in PARTS:
        changed = (before[:, part] != after[:, part]).any(axis=1)
        assert binomtest(int(changed.sum()), 3000, rate).pvalue > 1e-3


def test_an_ordered_part_moves_by_one_step_every_other_time_and_stays_within_its_ends():
    _, after = mutated([(0, 0, 0, 0, 0, 0, 0, 0)] * 4000)
    calls = Counter(after[:, 1].tolist())
    # one step up, as there is none down, or any of the three others
    assert binomtest(calls[1], 4000, 0.5 + 0.5 / 3).pvalue > 1e-3
    assert set(calls) == {1, 2, 3}
    kinds = Counter(after[:, 0].tolist())
    assert binomtest(kinds[1], 4000, 0.5).pvalue > 1e-3  # not ordered: both others alike


def test_widths_that_differ_are_moved_together_or_made_one():
    before, after = mutated([(0, 0, 1, 2, 3, 4, 5, 6)] * 2000)
    steps = (after - before)[:, 2:]
    whole = (steps != 0).sum(axis=1) >= 5
    up = (steps[:, :5] == 1).all(axis=1) & (steps[:, 5] == 0)  # the widest cannot
    down = (steps == -1).all(axis=1)
    even = (after[:, 2:] == after[:, 2:3]).all(axis=1)
    assert min(up.sum(), down.sum(), even.sum()) > 300
    assert (up | down | even)[whole].mean() > 0.9


def test_the_first_generation_is_of_one_width_beside_the_given_genomes():
    given = [(0, 0, 0, 1, 2, 3, 4, 5), (1, 1, 1, 1, 1, 1, 1, 1)]
    (asked,) = asks_of("nsga2-parts", problem(first=given), 1, population=30)
    assert asked[:2] == given
    assert all(is_even(genome, problem()) for genome in asked[2:])
    steady = make("nsga2-parts", problem(first=given), population=30).ask(30)
    assert steady[:2] == given
    assert all(is_even(genome, problem()) for genome in steady[2:])


def test_decks_deal_every_value_of_every_part_equally_often():
    decks, rng = Decks(problem()), generator(5)
    dealt = [decks.deal(rng) for _ in range(84)]  # 28 of 3, 21 of 4, 12 of 7
    for gene, count in ((0, 28), (1, 21), (2, 12)):
        assert set(Counter(genome[gene] for genome in dealt).values()) == {count}
    assert len(set(dealt)) > 40


def test_parents_are_the_better_half():
    """A child has a value of a parent where nothing mutates; the worse half is in none of them."""
    problem = problem_of((10**6,) * 4, identity=lambda g: g)
    algorithm = make("nsga2-parts", problem, population=20, mutation=0.0)
    front = [(i,) * 4 for i in range(20)]
    algorithm.tell([(float(i), float(i)) for i in range(20)], front)
    algorithm.tell([(1e6, 1e6)], [(999,) * 4])
    bred = [algorithm.ask(1)[0] for _ in range(40)]
    assert all(max(genome) < 10 for genome in bred)


def test_widths_that_want_to_be_alike_are_found_sooner_than_by_single_genes():
    """As on real networks: a schedule is good at one width or near it, and cost is its sum."""

    def value(genome):
        widths, calls = np.array(genome[2:]), genome[1] + 1
        rough = np.abs(np.diff(widths)).sum()
        return 30.0 / calls + (6 - widths.mean()) ** 2 + rough + 4 * genome[0], calls * widths.sum()

    best = {}
    for name in ("nsga2", "nsga2-parts"):
        found = []
        for seed in range(5):
            asked = asks_of(name, problem(), 8, value=value, seed=seed)
            points = [value(genome) for generation in asked for genome in generation]
            found.append(min(quality + 0.3 * cost for quality, cost in points))
        best[name] = np.median(found)
    assert best["nsga2-parts"] < best["nsga2"] - 1
