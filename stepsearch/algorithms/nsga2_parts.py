"""NSGA-II whose operators know what a schedule is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2, RankAndCrowdingSurvival, binary_tournament
from pymoo.core.crossover import Crossover
from pymoo.core.mutation import Mutation
from pymoo.operators.selection.tournament import TournamentSelection

from stepsearch.algorithms.decks import Decks, parts_of
from stepsearch.algorithms.genetic import Genetic
from stepsearch.algorithms.registry import ALGORITHMS, Problem
from stepsearch.core.settings import SearchSettings

WHOLE = 0.75  # chance that all widths of a network are inherited or changed together, not a run
STEP = 0.5  # chance that an ordered gene moves to a neighbouring value, not to any

Parts = Sequence[np.ndarray]


def some_of(part: np.ndarray, random_state: Any) -> np.ndarray:
    """The genes of a part: mostly all, else a run of them."""
    if len(part) == 1 or random_state.random() < WHOLE:
        return part
    begin, end = np.sort(random_state.permutation(len(part) + 1)[:2])
    return part[begin:end]


class PartCrossover(Crossover):
    """Each part comes from either parent; of a network's widths now and then a run alone."""

    def __init__(self, parts: Parts, prob: float) -> None:
        super().__init__(2, 2, prob=prob)
        self.parts = parts

    def _do(self, problem: Any, X: np.ndarray, *, random_state: Any, **kwargs: Any) -> np.ndarray:  # noqa: N803
        swapped = np.zeros(X.shape[1:], dtype=bool)
        for row in swapped:
            for part in self.parts:
                if random_state.random() < 0.5:
                    row[some_of(part, random_state)] = True
        return np.where(swapped, X[::-1], X)


class PartMutation(Mutation):
    """Every part is changed with probability `rate`: moved by one step, or set to one value."""

    def __init__(self, problem: Problem, parts: Parts, rate: float) -> None:
        super().__init__(prob=1.0)  # of an individual; `rate` is what it says
        self.parts, self.rate, self.sizes = parts, rate, problem.sizes
        self.ordered = problem.ordered or (False,) * len(problem.sizes)

    def _do(self, problem: Any, X: np.ndarray, *, random_state: Any, **kwargs: Any) -> np.ndarray:  # noqa: N803
        changed = X.copy()
        for row in changed:
            for part in self.parts:
                if random_state.random() < self.rate:
                    genes = some_of(part, random_state)
                    row[genes] = self._changed(row[genes], genes[0], random_state)
        return changed

    def _changed(self, values: np.ndarray, gene: int, random_state: Any) -> np.ndarray:
        last = self.sizes[gene] - 1
        if self.ordered[gene] and random_state.random() < STEP:
            step = 1 if random_state.random() < 0.5 else -1
            moved = np.clip(values + step, 0, last)
            return moved if (moved != values).any() else np.clip(values - step, 0, last)
        if (values != values[0]).any():
            return np.full_like(values, random_state.integers(last + 1))
        other = random_state.integers(last)  # any but the one that all have
        return np.full_like(values, other + (other >= values[0]))


class Nsga2Parts(Genetic):
    """NSGA-II that inherits and changes the widths of a network together for the most part.

    Parents are the best of all that were told, half as many as a generation has: on digits it finds
    what 120 evaluations can find sooner, and nothing less in 360.

    To begin with, beside the given genomes, it asks such of one width with all settings equally
    often: random widths all cost about the same and are seldom good.
    """

    def __init__(self, problem: Problem, settings: SearchSettings) -> None:
        parts = [np.array(part) for part in parts_of(problem) if problem.sizes[part[0]] > 1]
        rate = 1 / max(1, len(parts)) if settings.mutation is None else settings.mutation
        super().__init__(
            problem,
            settings,
            NSGA2,
            parents=max(2, settings.population // 2),
            crossover=PartCrossover(parts, settings.crossover),
            mutation=PartMutation(problem, parts, rate),
            selection=TournamentSelection(func_comp=binary_tournament),
            survival=RankAndCrowdingSurvival(),
        )
        self._decks = Decks(problem)

    def _draw(self, count: int, tries: int) -> list[np.ndarray]:
        """Random genomes, of one width as long as there are such and too little is known."""
        rows = self._history.draw(count, tries, self._even) if self._is_early() else []
        return rows + super()._draw(count - len(rows), tries)

    def _even(self) -> np.ndarray:
        return np.array(self._decks.deal(self._algorithm.random_state), dtype=np.int64)


ALGORITHMS.register("nsga2-parts")(Nsga2Parts)
