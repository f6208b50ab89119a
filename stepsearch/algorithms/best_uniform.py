"""The best of one width throughout: what a step-aware search must beat to be worth its trouble."""

from __future__ import annotations

from dataclasses import replace

from stepsearch.algorithms.random_search import RandomSearch
from stepsearch.algorithms.registry import ALGORITHMS, Problem
from stepsearch.core.protocols import Genome
from stepsearch.core.settings import SearchSettings


class BestUniform(RandomSearch):
    """Strategies that run each network at one width, with all settings; nothing is learnt.

    First those of the given genomes that are such. Then every choice, the width of a network or
    any other gene, is dealt from a shuffled deck of its values: all of them come equally often
    within any few trials, and what comes together is random.
    """

    def __init__(self, problem: Problem, settings: SearchSettings) -> None:
        self._groups = problem.width_genes
        grouped = {gene for group in self._groups for gene in group}
        self._groups += tuple((g,) for g in range(len(problem.sizes)) if g not in grouped)
        self._decks: list[list[int]] = [[] for _ in self._groups]
        uniform = tuple(g for g in problem.first if self._is_uniform(g))
        super().__init__(replace(problem, first=uniform), settings)

    def _is_uniform(self, genome: Genome) -> bool:
        return all(len({genome[gene] for gene in group}) == 1 for group in self._groups)

    def _draw(self) -> Genome:
        genome = [0] * len(self._problem.sizes)
        for group, deck in zip(self._groups, self._decks, strict=True):
            if not deck:
                deck.extend(self._rng.permutation(self._problem.sizes[group[0]]).tolist())
            value = deck.pop()
            for gene in group:
                genome[gene] = value
        return tuple(genome)


ALGORITHMS.register("best-uniform")(BestUniform)
