"""Optuna's samplers behind our ask and tell."""

import logging
import warnings

import pytest
from toy_search import asks_of, flat, make, problem_of, values_of

from stepsearch.algorithms.optuna_samplers import distributions
from stepsearch.core.errors import ConfigError

NAMES = ("optuna-tpe", "optuna-nsga2", "optuna-nsga3", "optuna-gp")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_said_and_verbosity_stays_as_it_was(name, capfd):
    optuna = pytest.importorskip("optuna")
    before = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asks_of(name, problem_of(), 2)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == before == logging.INFO


def test_ordered_genes_are_numbers_and_others_categories():
    made = distributions(problem_of((3, 5, 1), ordered=(False, True, True)))
    assert [type(d).__name__ for d in made.values()] == [
        "CategoricalDistribution",
        "IntDistribution",
        "IntDistribution",
    ]
    assert made["gene_0000"].choices == (0, 1, 2)
    assert (made["gene_0001"].low, made["gene_0001"].high) == (0, 4)
    assert not any(hasattr(d, "low") for d in distributions(problem_of((3, 5))).values())


@pytest.mark.parametrize(("name", "asks"), [("optuna-gp", 5), ("optuna-tpe", 40)])
def test_models_find_what_order_gives_away(name, asks):
    """An optimum in the middle of two long genes, which ten random genomes do not hit."""

    def far(genome):
        return (float(abs(genome[0] - 23) + abs(genome[1] - 31)),)

    problem = problem_of((60, 60), identity=lambda g: g, ordered=(True, True), objectives=1)
    algorithm = make(name, problem)
    asked = algorithm.ask()
    algorithm.tell([far(g) for g in asked])
    begun = min(map(far, asked))
    for _ in range(asks):
        new = algorithm.ask(1)
        algorithm.tell([far(g) for g in new], new)
        asked += new
    assert min(map(far, asked))[0] < begun[0] / 2


@pytest.mark.parametrize("name", ["optuna-nsga2", "optuna-nsga3"])
def test_genetic_samplers_need_a_pair(name):
    with pytest.raises(ConfigError, match=r"search\.population: .* at least 2, got 1"):
        make(name, problem_of(), population=1)


def test_a_seed_may_be_larger_than_numpys_old_generator_takes():
    problem = problem_of()
    big = flat(asks_of("optuna-nsga2", problem, 1, seed=2**40 + 7))
    assert len(big) == 10
    assert big != flat(asks_of("optuna-nsga2", problem, 1, seed=8))


def test_what_fails_is_not_bred_from():
    """The given genomes are the first parents, but for those whose trials failed."""
    sizes, first = (100,) * 6, [(i,) * 6 for i in range(20)]
    algorithm = make(
        "optuna-nsga2",
        problem_of(sizes, first, identity=lambda g: g),
        population=10,
        mutation=0.0,
    )
    asked = algorithm.ask(20)
    algorithm.tell([None if max(g) < 10 else values_of(g) for g in asked])
    bred = algorithm.ask(10)
    assert all(min(genome) >= 10 and max(genome) < 20 for genome in bred)
    assert any(len(set(genome)) == 2 for genome in bred)
