"""NSGA-III over integer genomes (Deb and Jain 2014), for three objectives and more."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.util.ref_dirs import get_reference_directions

from stepsearch.algorithms.genetic import Genetic, resets, splices
from stepsearch.algorithms.registry import ALGORITHMS, Problem
from stepsearch.core.errors import ConfigError
from stepsearch.core.protocols import Genome
from stepsearch.core.settings import SearchSettings

# Values are told in this unit: pymoo takes differences below 1e-3 for none at all.
LARGE = 1e4


def directions(objectives: int, population: int) -> np.ndarray:
    """Das and Dennis' (1998) reference directions, at most one per member of the population.

    Returns:
        (directions, objectives), rows that sum to 1.

    Raises:
        ConfigError: a single objective, or fewer members than objectives.
    """
    if objectives < 2:
        raise ConfigError("search.algorithm: nsga3 needs two objectives or more; use nsga2")
    if population < objectives:
        raise ConfigError(
            f"search.population: nsga3 needs at least {objectives}, one per objective, got "
            f"{population}"
        )
    parts = 1
    while comb(parts + objectives, objectives - 1) <= population:
        parts += 1
    return np.asarray(get_reference_directions("das-dennis", objectives, n_partitions=parts))


def either(pop: Any, pairs: np.ndarray, random_state: Any, **kwargs: Any) -> np.ndarray:
    """Of each pair one at random, one that did not fail where there is one; (N, 2) -> (N, 1).

    pymoo's own tournament draws ties of failed trials from an unseeded generator (its issue 794).
    """
    failed = np.array([[pop[i].CV[0] > 0 for i in pair] for pair in pairs])
    pick = random_state.integers(2, size=len(pairs))
    pick = np.where(failed[:, 0] == failed[:, 1], pick, failed[:, 0].astype(int))
    return pairs[np.arange(len(pairs)), pick][:, None]


class Nsga3(Genetic):
    """Survival by niches around reference directions, in units of the first values told."""

    steady = False

    def __init__(self, problem: Problem, settings: SearchSettings) -> None:
        super().__init__(
            problem,
            settings,
            NSGA3,
            crossover=splices(2, settings),
            mutation=resets(problem, settings),
            ref_dirs=directions(problem.objectives, settings.population),
            selection=TournamentSelection(func_comp=either),
        )
        self._unit: np.ndarray | None = None

    def tell(
        self,
        values: Sequence[tuple[float, ...] | None],
        genomes: Sequence[Genome] | None = None,
    ) -> None:
        """As `Genetic.tell`; pymoo's normalisation would switch off all warnings."""
        good = [v for v in values if v is not None]
        if self._unit is None and good:
            spread = np.ptp(np.array(good), axis=0)
            self._unit = np.where(spread > 0, spread, 1.0) / LARGE
        with warnings.catch_warnings():
            super().tell(values, genomes)

    def _scored(self, values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple((np.array(values) / self._unit).tolist())


ALGORITHMS.register("nsga3")(Nsga3)
