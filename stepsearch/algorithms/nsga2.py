"""NSGA-II over integer genomes (Deb et al. 2002), by generations or asynchronously."""

from __future__ import annotations

from pymoo.algorithms.moo.nsga2 import NSGA2, RankAndCrowdingSurvival, binary_tournament
from pymoo.operators.selection.tournament import TournamentSelection

from stepsearch.algorithms.genetic import Genetic, resets, splices
from stepsearch.algorithms.registry import ALGORITHMS, Problem
from stepsearch.core.settings import SearchSettings


class Nsga2(Genetic):
    """Survival by rank and crowding; two cuts, so that a child has a segment of one parent."""

    def __init__(self, problem: Problem, settings: SearchSettings) -> None:
        super().__init__(
            problem,
            settings,
            NSGA2,
            crossover=splices(2, settings),
            mutation=resets(problem, settings),
            selection=TournamentSelection(func_comp=binary_tournament),
            survival=RankAndCrowdingSurvival(),
        )


ALGORITHMS.register("nsga2")(Nsga2)
