"""Uniformly random search: the baseline that any other algorithm has to beat."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from stepsearch.algorithms.registry import ALGORITHMS, Problem
from stepsearch.core.noise import generator
from stepsearch.core.protocols import Genome
from stepsearch.core.settings import SearchSettings

TRIES = 200  # draws per missing genome before a generation is left smaller


class RandomSearch:
    """The given genomes first, then independent uniform draws that mean something new."""

    def __init__(self, problem: Problem, settings: SearchSettings) -> None:
        self._problem, self._population = problem, settings.population
        self._rng = generator(settings.seed)
        self._waiting = list(problem.first)
        self._asked: set[Hashable] = set()

    def ask(self) -> list[Genome]:
        """The next `population` new genomes; fewer where few are left."""
        genomes: list[Genome] = []
        for _ in range(TRIES * self._population):
            if len(genomes) == self._population:
                break
            genome = self._waiting.pop(0) if self._waiting else self._draw()
            identity = self._problem.identity(genome)
            if identity is not None and identity not in self._asked:
                self._asked.add(identity)
                genomes.append(genome)
        return genomes

    def tell(self, values: Sequence[tuple[float, ...] | None]) -> None:
        """Random search learns nothing."""

    def _draw(self) -> Genome:
        return tuple(int(self._rng.integers(n)) for n in self._problem.sizes)


ALGORITHMS.register("random")(RandomSearch)
