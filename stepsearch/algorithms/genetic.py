"""What the genetic algorithms share: operators on integer genomes, and pymoo's ask and tell.

A generation is pymoo's own step. One at a time, the population is the best that were told so far,
and a child of two tournament winners is asked whenever one is wanted: the asynchronous form.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.evaluator import Evaluator
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem as PymooProblem
from pymoo.core.sampling import Sampling
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.pntx import PointCrossover
from pymoo.problems.static import StaticProblem

from stepsearch.algorithms.registry import Problem
from stepsearch.core.protocols import Genome
from stepsearch.core.settings import SearchSettings

FAILED = 1e9  # objective of a failed trial; the violated constraint is what ranks it last
TRIES = 200  # draws per missing genome before less than what was wanted is asked


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


def resets(problem: Problem, settings: SearchSettings, rate: float | None = None) -> ResetMutation:
    """At the settings' rate, else at `rate`, else so that one gene of a genome is redrawn."""
    rates = (settings.mutation, rate, 1 / len(problem.sizes))
    return ResetMutation(
        np.asarray(problem.sizes, dtype=np.int64), next(r for r in rates if r is not None)
    )


def splices(points: int, settings: SearchSettings) -> PointCrossover:
    """Two parents cut at so many places and spliced."""
    return PointCrossover(n_points=points, prob=settings.crossover)


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

    def draw(self, count: int, tries: int, deal: Callable[[], np.ndarray]) -> list[np.ndarray]:
        """Up to `count` genomes that `deal` gives and that mean something new; noted as asked."""
        rows: dict[Hashable, np.ndarray] = {}
        for _ in range(tries):
            if len(rows) == count:
                break
            row = deal()
            identity = self.identity(row)
            if identity is not None and identity not in self.asked:
                rows.setdefault(identity, row)
        self.asked.update(rows)
        return list(rows.values())

    def _do(self, pop: Any, other: Any, is_duplicate: np.ndarray) -> np.ndarray:
        seen = {self.identity(row) for row in other.get("X")} if other is not None else set()
        for i, row in enumerate(pop.get("X")):
            identity = self.identity(row)
            is_duplicate[i] |= identity is None or identity in seen or identity in self.asked
            seen.add(identity)
        return is_duplicate


class Genetic:
    """Ask a generation, or some genomes; the same seed and values give the same asks.

    Args:
        kind: pymoo's algorithm.
        objectives: how many it is told of, those of the problem unless said.
        first: genomes to begin with, those of the problem unless said.
        parents: the best so many are bred from; as many as a generation unless said.
        operators: of pymoo's algorithm.
    """

    adaptive = True
    steady = True

    def __init__(
        self,
        problem: Problem,
        settings: SearchSettings,
        kind: type[GeneticAlgorithm],
        *,
        objectives: int | None = None,
        first: Sequence[Genome] | None = None,
        parents: int | None = None,
        **operators: Any,
    ) -> None:
        given = problem.first if first is None else first
        self._objectives = problem.objectives if objectives is None else objectives
        self._population = settings.population
        self._parents = settings.population if parents is None else parents
        self._history = History(problem)
        self._waiting = iter(given)
        self._algorithm = kind(
            pop_size=settings.population,
            sampling=FirstGeneration(given, self._history),
            eliminate_duplicates=self._history,
            **operators,
        )
        self._sizes = np.asarray(problem.sizes, dtype=np.int64)
        space = PymooProblem(
            n_var=len(self._sizes),
            n_obj=self._objectives,
            n_ieq_constr=1,
            xl=0,
            xu=self._sizes - 1,
        )
        self._algorithm.setup(space, termination=NoTermination(), seed=settings.seed)
        self._good = 0  # trials told that did not fail
        self._last: list[Genome] = []

    def ask(self, count: int | None = None) -> list[Genome]:
        """A generation, or up to `count`; smaller where little is left, empty where nothing is.

        Where mating finds too little that is new, as in a small space, random genomes fill up.
        """
        wanted = self._population if count is None else count
        rows = self._generation() if count is None else self._some(count)
        if (missing := wanted - len(rows)) > 0:
            tries = TRIES * (missing if count is None else max(missing, self._population))
            rows += self._draw(missing, tries)
        self._last = [tuple(int(g) for g in row) for row in rows]
        return list(self._last)

    def tell(
        self,
        values: Sequence[tuple[float, ...] | None],
        genomes: Sequence[Genome] | None = None,
    ) -> None:
        """Values of `genomes`, else of the last ask; a failed trial, None, enters no front."""
        rows = np.array(self._last if genomes is None else genomes, dtype=np.int64)
        self._history.note(rows)
        for begin in range(0, len(rows), self._population):  # more at once would all survive
            part = slice(begin, begin + self._population)
            self._tell(values[part], rows[part])

    def _tell(self, values: Sequence[tuple[float, ...] | None], rows: np.ndarray) -> None:
        failed = np.array([v is None for v in values])
        f = np.array(
            [(FAILED,) * self._objectives if v is None else self._scored(v) for v in values]
        )
        evaluated = StaticProblem(
            self._algorithm.problem, F=f, G=np.where(failed, 1.0, -1.0)[:, None]
        )
        told = Population.new("X", rows)
        Evaluator().eval(evaluated, told)
        self._algorithm.tell(infills=told)
        self._algorithm.pop_size = self._parents  # from the second on; the first survive all
        self._good += int((~failed).sum())

    def _scored(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """What pymoo is told of the values of a trial."""
        return values

    def _generation(self) -> list[np.ndarray]:
        self._algorithm.n_offsprings = self._population
        return self._bred()

    def _some(self, count: int) -> list[np.ndarray]:
        """What is left of the first genomes, then random ones until there is something to breed."""
        rows = list(itertools.islice(self._left(), count))
        early = count if self._is_early() else self._population - len(self._history.asked)
        if (random := min(early, count - len(rows))) > 0:
            rows += self._draw(random, TRIES * max(random, self._population))
        self._algorithm.n_offsprings = count - len(rows)
        return rows + self._bred() if len(rows) < count and self._good else rows

    def _left(self) -> Iterator[np.ndarray]:
        """Of the first genomes, those that mean something new."""
        for genome in self._waiting:
            row = np.asarray(genome, dtype=np.int64)
            identity = self._history.identity(row)
            if identity is not None and identity not in self._history.asked:
                self._history.note([row])
                yield row

    def _is_early(self) -> bool:
        """Whether too little is known to breed from."""
        return self._good < max(2, self._population // 2)

    def _draw(self, count: int, tries: int) -> list[np.ndarray]:
        """Random genomes that mean something new."""
        return self._history.draw(count, tries, self._random)

    def _random(self) -> np.ndarray:
        """A genome of which all are as likely."""
        part = self._algorithm.random_state.random(len(self._sizes))
        return np.asarray(np.floor(part * self._sizes), dtype=np.int64)

    def _bred(self) -> list[np.ndarray]:
        """pymoo's own step: what it begins with, or children of what was told."""
        offspring = self._algorithm.ask()
        self._algorithm.termination.force_termination = False  # as where nothing new was found
        rows = [] if offspring is None else list(offspring.get("X"))
        self._history.note(rows)
        return rows
