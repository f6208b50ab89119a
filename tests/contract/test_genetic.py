"""Operators of the genetic algorithms, and what each of them promises beyond the contract."""

import warnings

import numpy as np
import pytest
from pymoo.core.population import Population
from scipy.stats import binomtest
from toy_search import asks_of, flat, make, problem_of, values_of

from stepsearch.algorithms.ddsm_ga import first_of, weights_of
from stepsearch.algorithms.genetic import ResetMutation
from stepsearch.algorithms.nsga3 import directions
from stepsearch.core.errors import ConfigError
from stepsearch.core.pareto import hypervolume
from stepsearch.core.settings import SearchSettings


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


@pytest.mark.parametrize("steady", [False, True])
def test_nsga2_breeds_from_no_failed_trial_once_there_are_enough_good_ones(steady):
    """Genes are not mutated here, so a failed parent is seen in its children.

    The space is so large that a random immigrant shares no gene with anyone.
    """
    population, sizes = 40, (100_000,) * 6
    first = [(i,) * 6 for i in range(population)]
    algorithm = make(
        "nsga2",
        problem_of(sizes, first, identity=lambda g: g),
        population=population,
        mutation=1e-12,
    )
    good, early, late = 0, [], []
    for _ in range(5 * population if steady else 8):
        asked = algorithm.ask(1 if steady else None)
        fails = [any(gene < 5 for gene in genome) for genome in asked]  # the cheapest
        (late if good >= population else early).extend(fails)
        good += fails.count(False)
        values = [None if f else values_of(g) for f, g in zip(fails, asked, strict=True)]
        algorithm.tell(values, asked if steady else None)
    assert sum(early) >= 5
    assert len(late) > 50
    assert not any(late)


def test_steady_nsga2_begins_with_the_given_then_with_random_ones_then_it_breeds():
    """What is bred of ones and twos has no other value; what is random has."""
    sizes, first = (10**6,) * 6, [(1,) * 6, (2,) * 6]
    algorithm = make("nsga2", problem_of(sizes, first, identity=lambda g: g), mutation=1e-12)
    early = [algorithm.ask(1)[0] for _ in range(4)]  # nothing is told yet
    assert early[:2] == first
    assert all(set(genome).isdisjoint({1, 2}) for genome in early[2:])
    algorithm.tell([values_of(g) if g in first else None for g in early], early)
    random = algorithm.ask(6)
    assert all(set(genome).isdisjoint({1, 2}) for genome in random)
    values = [(1e6 + i, 1e6 + i) for i in range(6)]  # beaten by both
    algorithm.tell(values, random)
    known = set(np.ravel(early + random))
    bred = [algorithm.ask(1)[0] for _ in range(8)]
    assert all(set(genome) <= known for genome in bred)


def test_the_population_of_steady_nsga2_is_the_best_of_all_that_was_told():
    """Children of the front alone, however much worse has been told after it."""
    sizes, identity = (1000,) * 6, lambda g: g
    algorithm = make("nsga2", problem_of(sizes, identity=identity), mutation=1e-12, population=10)
    front = [(i,) * 6 for i in range(10)]
    algorithm.tell([(float(i), float(9 - i)) for i in range(10)], front)
    worse = [(500 + i,) * 6 for i in range(50)]
    for i, genome in enumerate(worse):
        algorithm.tell([(20.0 + i, 20.0 + i)], [genome])
    assert all(max(algorithm.ask(1)[0]) < 10 for _ in range(30))


# --- nsga3


@pytest.mark.parametrize(("objectives", "population"), [(2, 2), (2, 24), (3, 24), (4, 100), (6, 7)])
def test_directions_are_even_and_no_more_than_the_population(objectives, population):
    rows = directions(objectives, population)
    assert objectives <= len(rows) <= population
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    assert len(np.unique(rows.round(9), axis=0)) == len(rows)
    assert (np.eye(objectives)[:, None] == rows).all(axis=2).any(axis=1).all()  # every corner
    if objectives == 2:
        assert len(rows) == population


@pytest.mark.parametrize(("objectives", "population"), [(1, 24), (3, 2)])
def test_nsga3_says_what_it_cannot_do(objectives, population):
    with pytest.raises(ConfigError, match="nsga3 needs"):
        make("nsga3", problem_of(objectives=objectives), population=population)


def spherical(genome):
    """DTLZ2 of four objectives (Deb et al. 2005) on genes 0 .. 10: the front is a unit sphere."""
    angles = [gene / 10 * np.pi / 2 for gene in genome[:3]]
    radius = 1 + sum((gene / 10 - 0.5) ** 2 for gene in genome[3:])
    sines = np.cumprod([1.0, *np.sin(angles)])
    return tuple((radius * sines * [*np.cos(angles), 1.0]).tolist())


def test_nsga3_beats_random_search_in_four_objectives():
    volumes = {"nsga3": [], "random": []}
    for name, found in volumes.items():
        for seed in range(3):
            problem = problem_of((11,) * 10, identity=lambda g: g, objectives=4)
            asked = flat(asks_of(name, problem, 12, value=spherical, population=20, seed=seed))
            found.append(hypervolume([spherical(g) for g in asked], (1.6,) * 4))
    assert min(volumes["nsga3"]) > 1.05 * max(volumes["random"])


def test_nsga3_does_not_mind_the_unit_of_an_objective():
    """GFLOPs of small networks are thousandths, and pymoo takes so little for nothing."""
    asked = []
    for unit in (1.0, 2.0**-12):

        def value(genome, unit=unit):
            cost, quality = values_of(genome)
            return cost * unit, quality

        asked.append(asks_of("nsga3", problem_of((6,) * 8, identity=lambda g: g), 8, value=value))
    assert asked[0] == asked[1]


def test_nsga3_leaves_the_users_warnings_alone():
    asks_of("nsga3", problem_of(), 4)
    with pytest.warns(UserWarning, match="still here"):
        warnings.warn("still here", UserWarning, stacklevel=1)


# --- the search of DDSM


def weighted(genome):
    return sum(w * v for w, v in zip((1.0, 0.5), values_of(genome), strict=True))


def test_ddsm_minimises_its_weighted_sum_better_than_chance():
    best = {"ddsm-ga": [], "random": []}
    for name, sums in best.items():
        for seed in range(5):
            problem = problem_of((6,) * 12, identity=lambda g: g)
            asked = flat(asks_of(name, problem, 15, population=16, seed=seed))
            sums.append(min(map(weighted, asked)))
    assert np.median(best["ddsm-ga"]) < min(best["random"])


def test_ddsm_has_weights_for_fid_and_compute_alone():
    pair = problem_of(names=("gflops_per_image", "fid"))
    assert weights_of(pair, SearchSettings()) == (0.5, 1.0)
    assert weights_of(pair, SearchSettings(weights=(2.0, 3.0))) == (2.0, 3.0)
    for names in (("fid", "latency_ms"), ("fid", "gflops_per_image", "nfe")):
        problem = problem_of(names=names, objectives=len(names))
        with pytest.raises(ConfigError, match=r"search\.weights: .*give one each"):
            make("ddsm-ga", problem)
    with pytest.raises(ConfigError, match="2 objectives and has 3 weights"):
        make("ddsm-ga", pair, weights=(1.0, 1.0, 1.0))


def test_ddsm_begins_with_four_uniform_strategies_from_narrow_to_wide():
    uniform = [(s, 1, w, w, w) for s in (0, 1) for w in range(7)]
    warm = (1, 0, 3, 2, 1)
    problem = problem_of((2, 2, 7, 7, 7), [warm, *uniform], width_genes=((2, 3, 4),))
    assert first_of(problem) == [warm, *((0, 1, w, w, w) for w in (0, 2, 4, 6))]


def test_ddsm_mutates_a_gene_in_a_thousand():
    """Children of parents without a gene in common: what no parent has is a mutation."""
    sizes, first, genes = (1000,) * 200, [(i,) * 200 for i in range(10)], []
    for seed in range(20):
        problem = problem_of(sizes, first, identity=lambda g: g)
        generations = asks_of("ddsm-ga", problem, 2, seed=seed)
        genes += [gene for genome in generations[1] for gene in genome]
    mutated = sum(gene >= 10 for gene in genes)
    assert binomtest(mutated, len(genes), 0.001).pvalue > 1e-3
