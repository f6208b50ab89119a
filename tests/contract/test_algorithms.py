"""What a search relies on, for every registered algorithm."""

import random
from itertools import product

import numpy as np
import pytest
from pymoo.core.population import Population
from scipy.stats import binomtest

from stepsearch.algorithms.nsga2 import ResetMutation
from stepsearch.algorithms.registry import ALGORITHMS, Problem
from stepsearch.core.pareto import hypervolume
from stepsearch.core.settings import SearchSettings

NAMES = list(ALGORITHMS)
SIZES = (3, 2, 5, 1, 4, 4, 4)


def meaning(genome):
    """Two genomes share a meaning, and a fifth of all is ruled out."""
    return None if sum(genome) % 5 == 0 else (*genome[:-1], genome[-1] // 2)


def problem_of(sizes=SIZES, first=(), identity=meaning):
    return Problem(sizes=sizes, first=tuple(first), objectives=2, identity=identity)


def values_of(genome):
    """Cost against quality, where every gene matters more than the one after it."""
    worst = [0.5**i * (5 - g) ** 2 for i, g in enumerate(genome)]
    return (float(sum(genome)), sum(worst))


def asks_of(name, problem, generations, value=values_of, **settings):
    algorithm = ALGORITHMS[name](problem, SearchSettings(**{"population": 10, **settings}))
    asked = []
    for _ in range(generations):
        asked.append(algorithm.ask())
        if not asked[-1]:
            break
        algorithm.tell([value(genome) for genome in asked[-1]])
    return asked


def flat(asked):
    return [genome for generation in asked for genome in generation]


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_what_is_asked(name):
    one, same, other = (asks_of(name, problem_of(), 6, seed=seed) for seed in (7, 7, 8))
    assert one == same
    assert all(a != b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_global_generators_play_no_part(name):
    asked = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        asked.append(asks_of(name, problem_of(), 4))
    assert asked[0] == asked[1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_asked_twice_or_against_a_constraint(name, seed):
    asked = flat(asks_of(name, problem_of(), 40, seed=seed))
    identities = [meaning(genome) for genome in asked]
    assert len(asked) > 300
    assert None not in identities
    assert len(set(identities)) == len(identities)
    for genome in asked:
        assert len(genome) == len(SIZES)
        assert all(type(g) is int and 0 <= g < n for g, n in zip(genome, SIZES, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_given_genomes_are_asked_first(name):
    first = [(1, 0, 0, 0, g, g, g) for g in range(4)]
    doubled = [*first, (*first[2][:-1], 3)]  # means what first[2] means
    allowed = [g for g in first if meaning(g) is not None]
    assert 1 < len(allowed) < len(first)
    asked = asks_of(name, problem_of(first=doubled), 1)[0]
    assert asked[: len(allowed)] == allowed
    assert len(asked) == 10


SMALL = (1, 2, 3, 1, 3, 4)


@pytest.mark.parametrize("name", NAMES)
def test_a_small_space_is_asked_to_its_end_exactly_once(name):
    everything = {meaning(g) for g in product(*map(range, SMALL))} - {None}
    full, rest = divmod(len(everything), 8)
    for seed in range(10):
        asked = asks_of(name, problem_of(SMALL), 50, population=8, seed=seed)
        assert [len(generation) for generation in asked] == [8] * full + [rest] * (rest > 0) + [0]
        assert sorted(map(meaning, flat(asked))) == sorted(everything)


@pytest.mark.parametrize("name", NAMES)
def test_a_space_smaller_than_the_population_is_one_generation(name):
    asked = asks_of(name, problem_of((1, 2, 1, 1, 2, 1), identity=lambda g: g), 3, population=9)
    assert sorted(flat(asked)) == sorted(product((0,), (0, 1), (0,), (0,), (0, 1), (0,)))
    assert [len(generation) for generation in asked] == [4, 0]


@pytest.mark.parametrize("name", NAMES)
def test_a_space_where_all_is_ruled_out_asks_nothing(name):
    assert asks_of(name, problem_of(identity=lambda g: None), 2) == [[]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", ["all", "first generation", "every second"])
def test_failed_trials_do_not_stop_an_algorithm(name, bad):
    algorithm = ALGORITHMS[name](problem_of(), SearchSettings(population=10))
    for generation in range(5):
        asked = algorithm.ask()
        assert len(asked) == 10
        fails = {
            "all": lambda i: True,
            "first generation": lambda i, g=generation: g == 0,
            "every second": lambda i: i % 2 == 0,
        }[bad]
        algorithm.tell([None if fails(i) else values_of(g) for i, g in enumerate(asked)])


def test_nsga2_never_breeds_from_failed_trials_once_there_are_enough_good_ones():
    """Genes are not mutated here, so a failed parent is seen in its children.

    The space is so large that a random immigrant shares no gene with anyone.
    """
    population, sizes = 40, (100_000,) * 6
    first = [(i,) * 6 for i in range(population)]
    algorithm = ALGORITHMS["nsga2"](
        problem_of(sizes, first, identity=lambda g: g),
        SearchSettings(population=population, mutation=1e-12),
    )
    good, early, late = 0, [], []
    for _ in range(8):
        asked = algorithm.ask()
        fails = [any(gene < 5 for gene in genome) for genome in asked]  # the cheapest
        (late if good >= population else early).extend(fails)
        good += fails.count(False)
        algorithm.tell([None if f else values_of(g) for f, g in zip(fails, asked, strict=True)])
    assert sum(early) > 5
    assert len(late) > 100
    assert not any(late)


@pytest.mark.parametrize("seed", range(3))
def test_nsga2_beats_random_search(seed):
    sizes = (6,) * 12
    volumes = {}
    for name in ("nsga2", "random"):
        asked = asks_of(name, problem_of(sizes, identity=lambda g: g), 15, population=16, seed=seed)
        assert len(flat(asked)) == 240
        volumes[name] = hypervolume([values_of(g) for g in flat(asked)], (60.0, 50.0))
    assert volumes["nsga2"] > 1.05 * volumes["random"]


# --- operators of nsga2


@pytest.mark.parametrize("rate", [0.02, 0.3, 1.0])
def test_a_gene_is_reset_at_the_rate_and_always_to_another_value(rate):
    sizes, draws = np.array([2, 7, 1, 3]), 4000
    before = np.random.default_rng(1).integers(sizes, size=(draws, 4))
    mutation = ResetMutation(sizes, rate)
    after = mutation(
        None, Population.new(X=before), inplace=False, random_state=np.random.default_rng(2)
    ).get("X")
    assert ((after >= 0) & (after < sizes)).all()
    changed = (after != before).sum(axis=0)
    assert changed[2] == 0  # a single choice
    for gene in (0, 1, 3):
        assert binomtest(int(changed[gene]), draws, rate).pvalue > 1e-3
    hit = after[:, 1] != before[:, 1]
    steps = np.bincount((after - before)[hit, 1] % 7, minlength=7)[1:]
    assert abs(steps - hit.sum() / 6).max() < 5 * (hit.sum() / 6) ** 0.5  # all others as likely


def test_children_have_their_parents_values_gene_by_gene():
    population, sizes = 12, (30,) * 7
    first = [(i,) * 7 for i in range(population)]
    asked = asks_of(
        "nsga2",
        problem_of(sizes, first, identity=lambda g: g),
        2,
        population=population,
        mutation=1e-12,
    )
    assert asked[0] == first
    children = [set(genome) for genome in asked[1]]
    assert len(children) == population
    assert all(len(parents) == 2 for parents in children)  # two parents, neither copied whole
    assert max(max(parents) for parents in children) < population
