import itertools

import numpy as np
import pytest

from stepsearch.core.settings import MODES
from stepsearch.simulate import Driver, simulate

GENERATIONAL, STEADY = MODES


def best_makespan(costs, workers):
    """Over every way to give each candidate to a worker."""
    return min(
        max(
            sum(c for c, w in zip(costs, to, strict=True) if w == worker)
            for worker in range(workers)
        )
        for to in itertools.product(range(workers), repeat=len(costs))
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("workers", "population", "generations"), [(4, 8, 3), (1, 5, 2), (16, 16, 1)]
)
def test_equal_costs_keep_all_workers_busy_where_they_divide_the_population(
    mode, workers, population, generations
):
    got = simulate([2.0] * population * generations, workers, mode, population)
    assert got.utilisation == 1
    assert got.makespan == 2.0 * population * generations / workers


@pytest.mark.parametrize(
    ("workers", "population", "generations"), [(4, 6, 3), (64, 100, 2), (8, 3, 5)]
)
def test_equal_costs_waste_what_a_generation_leaves_over(workers, population, generations):
    rounds = -(-population // workers)
    got = simulate([1.0] * population * generations, workers, GENERATIONAL, population)
    assert got.utilisation == pytest.approx(population / (rounds * workers), rel=1e-12)


def test_a_single_worker_waits_for_the_driver_between_all_candidates(rng):
    costs, driver = rng.uniform(1, 3, 12), Driver(ask=0.1, dispatch=0.2, collect=0.3, per_running=9)
    for mode in MODES:
        got = simulate(costs, 1, mode, 4, driver)
        assert got.makespan == pytest.approx(costs.sum() + 12 * 0.6, rel=1e-12)


def test_a_driver_that_is_slower_than_the_workers_sets_the_pace():
    """Its own seconds, and the one candidate that nothing hides: the last that is handed out."""
    driver = Driver(ask=0.5, dispatch=1.0, collect=2.0)
    got = simulate([0.25] * 50, 50, STEADY, 50, driver)
    # the pool is filled first, while results wait; then all of them are taken in
    assert got.makespan == pytest.approx(50 * 1.5 + 50 * 2.0, rel=1e-12)


def test_each_running_candidate_makes_waiting_longer():
    got = simulate([100.0] * 4, 4, STEADY, 4, Driver(per_running=1.0))
    assert got.makespan == 100 + 3 + 2 + 1


@pytest.mark.parametrize("seed", range(20))
def test_longest_first_is_within_a_third_of_the_best(seed):
    """Graham 1969: (4/3 - 1/(3 m)) times the best makespan at most."""
    rng = np.random.default_rng(seed)
    workers, costs = 2 + seed % 2, rng.integers(1, 20, 7).astype(float)
    got = simulate(costs, workers, GENERATIONAL, 7).makespan
    best = best_makespan(costs, workers)
    assert best <= got <= (4 / 3 - 1 / (3 * workers)) * best


def test_longest_first_is_what_makes_the_generation_short():
    """In the order of asking the long one would come last and end at 2 + 4."""
    assert simulate([1.0, 1.0, 1.0, 1.0, 4.0], 2, GENERATIONAL, 5).makespan == 4
    assert simulate([1.0, 1.0, 1.0, 1.0, 4.0], 2, STEADY, 5).makespan == 6


@pytest.mark.parametrize("seed", range(5))
def test_steady_search_ends_within_one_candidate_of_the_ideal(seed):
    """Graham 1966: any order without idling ends by sum / m + (1 - 1 / m) max."""
    rng = np.random.default_rng(seed)
    workers, costs = int(rng.integers(2, 40)), rng.exponential(1.0, 400)
    ideal = costs.sum() / workers
    got = simulate(costs, workers, STEADY, 20).makespan
    assert max(ideal, costs.max()) <= got <= ideal + (1 - 1 / workers) * costs.max() + 1e-9


def test_a_steady_search_never_waits_for_a_generation(rng):
    costs = rng.exponential(1.0, 640)
    steady, waiting = (simulate(costs, 8, mode, 16) for mode in (STEADY, GENERATIONAL))
    assert steady.utilisation > waiting.utilisation
    assert steady.busy == waiting.busy == pytest.approx(costs.sum())
