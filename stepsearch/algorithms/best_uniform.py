"""The best of one width throughout: what a step-aware search must beat to be worth its trouble."""

from __future__ import annotations

from dataclasses import replace

from stepsearch.algorithms.decks import Decks, is_even
from stepsearch.algorithms.random_search import RandomSearch
from stepsearch.algorithms.registry import ALGORITHMS, Problem
from stepsearch.core.protocols import Genome
from stepsearch.core.settings import SearchSettings


class BestUniform(RandomSearch):
    """Strategies that run each network at one width, with all settings; nothing is learnt.

    Those of the given genomes that are such come first, then `Decks` are dealt.
    """

    def __init__(self, problem: Problem, settings: SearchSettings) -> None:
        even = tuple(genome for genome in problem.first if is_even(genome, problem))
        super().__init__(replace(problem, first=even), settings)
        self._decks = Decks(problem)

    def _draw(self) -> Genome:
        return self._decks.deal(self._rng)


ALGORITHMS.register("best-uniform")(BestUniform)
