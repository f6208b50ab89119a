"""Schedules of one width throughout, dealt so that all settings come equally often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepsearch.algorithms.registry import Problem
from stepsearch.core.protocols import Genome


def parts_of(problem: Problem) -> tuple[tuple[int, ...], ...]:
    """What a genome is made of: the width genes of each network, and every other gene alone."""
    grouped = {gene for group in problem.width_genes for gene in group}
    others = (gene for gene in range(len(problem.sizes)) if gene not in grouped)
    return (*problem.width_genes, *((gene,) for gene in others))


def is_even(genome: Genome, problem: Problem) -> bool:
    """Whether every network runs at one width throughout."""
    return all(len({genome[gene] for gene in group}) == 1 for group in problem.width_genes)


class Decks:
    """A shuffled deck of values per part, as of a Latin hypercube that never ends.

    Within any few genomes every value of a part comes equally often, and what comes together is
    random; all genes of a part have one value.
    """

    def __init__(self, problem: Problem) -> None:
        self._sizes, self._parts = problem.sizes, parts_of(problem)
        self._decks: Sequence[list[int]] = [[] for _ in self._parts]

    def deal(self, rng: np.random.Generator) -> Genome:
        """The next genome."""
        genome = [0] * len(self._sizes)
        for part, deck in zip(self._parts, self._decks, strict=True):
            if not deck:
                deck.extend(rng.permutation(self._sizes[part[0]]).tolist())
            value = deck.pop()
            for gene in part:
                genome[gene] = value
        return tuple(genome)
