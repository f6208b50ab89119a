"""NSGA-II over integer genomes (Deb et al. 2002) through pymoo's ask and tell."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2, RankAndCrowdingSurvival, binary_tournament
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.evaluator import Evaluator
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem as PymooProblem
from pymoo.core.sampling import Sampling
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.pntx import PointCrossover
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.problems.static import StaticProblem

from stepsearch.algorithms.registry import ALGORITHMS, Problem
from stepsearch.core.protocols import Genome
from stepsearch.core.settings import SearchSettings

FAILED = 1e9  # objective of a failed trial; the violated constraint is what ranks it last
TRIES = 200  # draws per missing genome before the first generation is left smaller


class ResetMutation(Mutation):
    """Every gene is redrawn from its other values with probability `rate`.

    pymoo's `prob` is the chance that an individual is mutated at all; it stays 1, so that `rate`
    is what it says.
    """

    def __init__(self, sizes: np.ndarray, rate: float) -> None:
        super().__init__(prob=1.0)
        self.sizes, self.rate = sizes, rate

    def _do(self, problem: Any, X: np.ndarray, *, random_state: Any, **kwargs: Any) -> np.ndarray:  # noqa: N803
        hit = (random_state.random(X.shape) < self.rate) & (self.sizes > 1)
        step = 1 + np.floor(random_state.random(X.shape) * (self.sizes - 1)).astype(np.int64)
        return np.where(hit, (X + step) % self.sizes, X)


def random_rows(count: int, sizes: np.ndarray, history: History, random_state: Any) -> list[Any]:
    """Up to `count` uniformly random genomes that mean something new."""
    rows: dict[Hashable, np.ndarray] = {}
    for _ in range(TRIES * count):
        if len(rows) == count:
            break
        row = np.floor(random_state.random(len(sizes)) * sizes).astype(np.int64)
        identity = history.identity(row)
        if identity is not None and identity not in history.asked:
            rows.setdefault(identity, row)
    return list(rows.values())


class FirstGeneration(Sampling):
    """The given genomes that are allowed, each meaning once."""

    def __init__(self, first: Sequence[Genome], history: History) -> None:
        super().__init__()
        self.first, self.history = first, history

    def _do(self, problem: Any, n_samples: int, **kwargs: Any) -> np.ndarray:
        rows: dict[Hashable, np.ndarray] = {}
        for genome in self.first:
            row = np.asarray(genome, dtype=np.int64)
            identity = self.history.identity(row)
            if identity is not None:
                rows.setdefault(identity, row)
        return np.array(list(rows.values())[:n_samples], dtype=np.int64).reshape(-1, problem.n_var)


class History(DuplicateElimination):
    """Refuses genomes whose schedule was ever asked before, occurs twice or breaks a constraint.

    pymoo's own elimination only looks at the current population.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        self.asked: set[Hashable] = set()

    def identity(self, row: np.ndarray) -> Hashable | None:
        return self.problem.identity(tuple(int(g) for g in row))

    def note(self, rows: Sequence[np.ndarray]) -> None:
        """Remember that these were asked."""
        self.asked.update(self.identity(row) for row in rows)

    def _do(self, pop: Any, other: Any, is_duplicate: np.ndarray) -> np.ndarray:
        seen = {self.identity(row) for row in other.get("X")} if other is not None else set()
        seen |= self.asked
        for i, row in enumerate(pop.get("X")):
            identity = self.identity(row)
            is_duplicate[i] |= identity is None or identity in seen
            seen.add(identity)
        return is_duplicate


class Nsga2:
    """Ask a generation, tell its values; the same seed and values give the same asks."""

    def __init__(self, problem: Problem, settings: SearchSettings) -> None:
        sizes = np.asarray(problem.sizes, dtype=np.int64)
        self._sizes, self._objectives = sizes, problem.objectives
        self._population = settings.population
        self._history = History(problem)
        rate = 1 / len(sizes) if settings.mutation is None else settings.mutation
        self._algorithm = NSGA2(
            pop_size=settings.population,
            sampling=FirstGeneration(problem.first, self._history),
            selection=TournamentSelection(func_comp=binary_tournament),
            crossover=PointCrossover(n_points=2, prob=settings.crossover),
            mutation=ResetMutation(sizes, rate),
            survival=RankAndCrowdingSurvival(),
            eliminate_duplicates=self._history,
        )
        space = PymooProblem(
            n_var=len(sizes), n_obj=problem.objectives, n_ieq_constr=1, xl=0, xu=sizes - 1
        )
        self._algorithm.setup(space, termination=NoTermination(), seed=settings.seed)
        self._asked: Any = None

    def ask(self) -> list[Genome]:
        """The next generation; smaller where few new schedules are left, empty where none is.

        Where mating finds too little that is new, as in a small space, random genomes fill up.
        """
        offspring = self._algorithm.ask()
        rows = [] if offspring is None else list(offspring.get("X"))
        self._history.note(rows)
        if len(rows) < self._population:
            missing = self._population - len(rows)
            found = random_rows(missing, self._sizes, self._history, self._algorithm.random_state)
            self._history.note(found)
            rows += found
        self._asked = Population.new("X", np.array(rows)) if rows else None
        return [tuple(int(g) for g in row) for row in rows]

    def tell(self, values: Sequence[tuple[float, ...] | None]) -> None:
        """Values in ask order; None for a failed trial, which never enters the front."""
        failed = np.array([v is None for v in values])
        f = np.array([(FAILED,) * self._objectives if v is None else v for v in values])
        evaluated = StaticProblem(
            self._algorithm.problem, F=f, G=np.where(failed, 1.0, -1.0)[:, None]
        )
        Evaluator().eval(evaluated, self._asked)
        self._algorithm.tell(infills=self._asked)


ALGORITHMS.register("nsga2")(Nsga2)
