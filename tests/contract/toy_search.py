"""A search without schedules: genomes with meanings, values, and loops that ask and tell."""

from stepsearch.algorithms.registry import ALGORITHMS, Problem
from stepsearch.core.settings import SearchSettings

NAMES = list(ALGORITHMS)
STEADY = [name for name in NAMES if ALGORITHMS[name].steady]
# Genomes that a slow algorithm is asked in a test: their models begin after ten values.
MOST = {"optuna-gp": 12, "optuna-tpe": 30}
SIZES = (3, 2, 5, 1, 4, 4, 4)


def meaning(genome):
    """Two genomes share a meaning, and a fifth of all is ruled out."""
    return None if sum(genome) % 5 == 0 else (*genome[:-1], genome[-1] // 2)


def problem_of(sizes=SIZES, first=(), identity=meaning, **more):
    return Problem(
        **{"sizes": sizes, "first": tuple(first), "objectives": 2, "identity": identity, **more}
    )


def values_of(genome):
    """Cost against quality, where every gene matters more than the one after it."""
    worst = [0.5**i * (5 - g) ** 2 for i, g in enumerate(genome)]
    return (float(sum(genome)), sum(worst))


def make(name, problem, **settings):
    settings = {"population": 10, "algorithm": name, **settings}
    return ALGORITHMS[name](problem, SearchSettings(**settings))


def asks_of(name, problem, generations, value=values_of, **settings):
    """Generations as they were asked, of a slow algorithm not more than MOST genomes."""
    algorithm = make(name, problem, **settings)
    asked = []
    for _ in range(generations):
        left = MOST.get(name, 10**9) - len(flat(asked))
        asked.append(algorithm.ask(left if left < 10 else None))
        if not asked[-1]:
            break
        algorithm.tell([value(genome) for genome in asked[-1]])
    return asked


def steady_asks(name, problem, count, value=values_of, workers=4, **settings):
    """Genomes in the order of asking, `workers` of them unanswered; not many more than MOST."""
    algorithm = make(name, problem, **settings)
    count = min(count, MOST.get(name, count) + workers - 1)
    flying = algorithm.ask(workers)
    asked = list(flying)
    while flying:
        genome = flying.pop(0)
        algorithm.tell([value(genome)], [genome])
        more = algorithm.ask(1) if len(asked) < count else []
        flying, asked = flying + more, asked + more
    return asked


def flat(asked):
    return [genome for generation in asked for genome in generation]
