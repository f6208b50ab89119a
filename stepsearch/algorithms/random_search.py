"""Uniformly random search: the baseline that any other algorithm has to beat."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence

from stepsearch.algorithms.registry import ALGORITHMS, Problem
from stepsearch.core.noise import generator
from stepsearch.core.protocols import Genome
from stepsearch.core.settings import SearchSettings

TRIES = 200  # draws per genome of a generation before less than what was wanted is asked


class RandomSearch:
    """The given genomes first, then independent uniform draws that mean something new."""

    adaptive = False
    steady = True

    def __init__(self, problem: Problem, settings: SearchSettings) -> None:
        self._problem, self._settings = problem, settings
        self._rng = generator(settings.seed)
        self._waiting = deque(problem.first)
        self._asked: set[Hashable] = set()

    def ask(self, count: int | None = None) -> list[Genome]:
        """The next new genomes, `population` of them unless told; fewer where few are left."""
        wanted = self._settings.population if count is None else count
        genomes: list[Genome] = []
        for _ in range(TRIES * max(wanted, self._settings.population)):
            if len(genomes) == wanted:
                break
            genome = self._waiting.popleft() if self._waiting else self._draw()
            identity = self._problem.identity(genome)
            if identity is not None and identity not in self._asked:
                self._asked.add(identity)
                genomes.append(genome)
        return genomes

    def tell(
        self,
        values: Sequence[tuple[float, ...] | None],
        genomes: Sequence[Genome] | None = None,
    ) -> None:
        """Nothing is learnt; what another process has asked is not asked again."""
        new = {self._problem.identity(genome) for genome in genomes or ()} - self._asked
        if new:
            self._asked |= new
            # the draws that made them would only be refused one by one
            self._rng = generator(self._settings.seed, len(self._asked))

    def _draw(self) -> Genome:
        return tuple(int(self._rng.integers(n)) for n in self._problem.sizes)


ALGORITHMS.register("random")(RandomSearch)
