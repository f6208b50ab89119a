"""What a search relies on, for every registered algorithm."""

import random
import sys
from itertools import product
from statistics import median

import numpy as np
import pytest
from toy_search import (
    MOST,
    NAMES,
    SIZES,
    STEADY,
    asks_of,
    flat,
    make,
    meaning,
    problem_of,
    steady_asks,
    values_of,
)

from stepsearch.algorithms.registry import ALGORITHMS
from stepsearch.core.pareto import hypervolume

# the Gaussian process takes a second an ask, and asks a generation one by one as in steady mode
BY_GENERATION = [name for name in NAMES if name != "optuna-gp"]
WAYS = [*((name, False) for name in BY_GENERATION), *((name, True) for name in STEADY)]
ways = pytest.mark.parametrize(("name", "steady"), WAYS)


def asked_in(name, steady, problem, generations, **settings):
    """Genomes in the order of asking, by generations or one by one."""
    if steady:
        return steady_asks(name, problem, 10 * generations, **settings)
    return flat(asks_of(name, problem, generations, **settings))


@ways
def test_the_seed_decides_what_is_asked(name, steady):
    one, same, other = (asked_in(name, steady, problem_of(), 6, seed=seed) for seed in (7, 7, 8))
    assert one == same
    assert len(set(one) & set(other)) < len(one) / 2


@ways
def test_the_global_generators_play_no_part(name, steady):
    asked = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        if "torch" in sys.modules:  # as Gaussian processes have it
            sys.modules["torch"].manual_seed(seed)
        asked.append(asked_in(name, steady, problem_of(), 4))
    assert asked[0] == asked[1]


@ways
@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_asked_twice_or_against_a_constraint(name, steady, seed):
    asked = asked_in(name, steady, problem_of(), 40, seed=seed)
    identities = [meaning(genome) for genome in asked]
    assert len(asked) >= MOST.get(name, 300)
    assert None not in identities
    assert len(set(identities)) == len(identities)
    for genome in asked:
        assert len(genome) == len(SIZES)
        assert all(type(g) is int and 0 <= g < n for g, n in zip(genome, SIZES, strict=True))


@ways
def test_the_given_genomes_are_asked_first(name, steady):
    first = [(1, 0, 0, 0, g, g, g) for g in range(4)]
    doubled = [*first, (*first[2][:-1], 3)]  # means what first[2] means
    allowed = [g for g in first if meaning(g) is not None]
    assert 1 < len(allowed) < len(first)
    asked = asked_in(name, steady, problem_of(first=doubled), 1)
    assert asked[: len(allowed)] == allowed
    assert len(asked) == 10


SMALL = {False: (1, 2, 3, 1, 3, 4), True: (1, 2, 1, 1, 1, 4)}  # whether it must be quick


@ways
def test_a_small_space_is_asked_to_its_end_exactly_once(name, steady):
    sizes = SMALL[name in MOST]
    everything = {meaning(g) for g in product(*map(range, sizes))} - {None}
    for seed in range(5):
        asked = asked_in(name, steady, problem_of(sizes), 50, population=8, seed=seed)
        assert sorted(map(meaning, asked)) == sorted(everything)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MOST])
def test_generations_are_full_until_little_is_left(name):
    everything = {meaning(g) for g in product(*map(range, SMALL[False]))} - {None}
    full, rest = divmod(len(everything), 8)
    asked = asks_of(name, problem_of(SMALL[False]), 50, population=8)
    assert [len(generation) for generation in asked] == [8] * full + [rest] * (rest > 0) + [0]


@pytest.mark.parametrize("name", NAMES)
def test_a_space_smaller_than_the_population_is_one_generation(name):
    asked = asks_of(name, problem_of((1, 2, 1, 1, 2, 1), identity=lambda g: g), 3, population=9)
    assert sorted(flat(asked)) == sorted(product((0,), (0, 1), (0,), (0,), (0, 1), (0,)))
    assert [len(generation) for generation in asked] == [4, 0]


@pytest.mark.parametrize("name", NAMES)
def test_a_space_where_all_is_ruled_out_asks_nothing(name):
    problem = problem_of(identity=lambda g: None)
    assert asks_of(name, problem, 2) == [[]]
    assert make(name, problem).ask(3) == []


@pytest.mark.parametrize("name", NAMES)
def test_as_many_are_asked_as_are_wanted(name):
    algorithm = make(name, problem_of())
    seen = set()
    for count in (1, 3, 7, 1) if name == "optuna-gp" else (1, 3, 7, 24, 1, 15):
        asked = algorithm.ask(count)
        assert len(asked) == count
        assert seen.isdisjoint(map(meaning, asked))
        seen |= set(map(meaning, asked))
        algorithm.tell([values_of(genome) for genome in asked])


@ways
@pytest.mark.parametrize("bad", ["all", "the first ten", "every second"])
def test_failed_trials_do_not_stop_an_algorithm(name, steady, bad):
    told = []

    def value(genome):
        fails = {"all": True, "the first ten": len(told) < 10, "every second": len(told) % 2 == 0}
        told.append(genome)
        return None if fails[bad] else values_of(genome)

    asked = asked_in(name, steady, problem_of(), 5, value=value)
    assert len(asked) >= min(50, MOST.get(name, 50))
    assert told == asked


@pytest.mark.parametrize("name", STEADY)
def test_what_was_told_of_another_process_is_never_asked_again(name):
    count = MOST.get(name, 60)
    before = steady_asks(name, problem_of(), count)
    again = make(name, problem_of())
    again.tell([values_of(genome) for genome in before], before)
    more = 2 if name == "optuna-gp" else 60
    after = [genome for _ in range(more) for genome in again.ask(1)]
    assert len(before) >= count
    assert len(after) == more
    assert set(map(meaning, after)).isdisjoint(map(meaning, before))


@pytest.mark.parametrize("name", STEADY)
def test_a_long_journal_is_told_at_once_and_search_goes_on(name):
    """As many trials as a long search makes, but for slow algorithms."""
    sizes = (12,) * 8
    count = {"optuna-gp": 20, "optuna-tpe": 100}.get(name, 1000)
    told = asks_of("random", problem_of(sizes, identity=lambda g: g), 1, population=count)[0]
    algorithm = make(name, problem_of(sizes, identity=lambda g: g))
    algorithm.tell([values_of(genome) for genome in told], told)
    (new,) = algorithm.ask(1)
    assert new not in told


@pytest.mark.parametrize("name", NAMES)
def test_an_algorithm_says_whether_values_move_it(name):
    def other(genome):
        return values_of(tuple(4 - g for g in genome))

    one, two = (flat(asks_of(name, problem_of(), 4, value=value)) for value in (values_of, other))
    assert (one != two) == ALGORITHMS[name].adaptive


def reached(name, steady):
    """Hypervolumes of five seeds after 240 genomes."""
    volumes, sizes = [], (6,) * 12
    for seed in range(5):
        problem = problem_of(sizes, identity=lambda g: g, ordered=(True,) * len(sizes))
        asked = asked_in(name, steady, problem, 24, population=10, seed=seed)
        assert len(asked) == 240
        volumes.append(hypervolume([values_of(g) for g in asked], (60.0, 50.0)))
    return volumes


@pytest.fixture(scope="module")
def chance():
    return reached("random", steady=False)


# one weighted sum says nothing of a front; what models are worth, test_optuna_samplers.py asks
FRONTS = [(n, s) for n, s in WAYS if ALGORITHMS[n].adaptive and n not in {"ddsm-ga", *MOST}]


@pytest.mark.parametrize(("name", "steady"), FRONTS)
def test_who_learns_beats_random_search(name, steady, chance):
    """By the median over seeds, and by more than what seeds alone make of random search."""
    assert median(reached(name, steady)) > 1.03 * max(chance)
