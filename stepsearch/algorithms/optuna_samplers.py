"""Optuna's samplers behind our ask and tell: TPE, NSGA-II, NSGA-III and Gaussian processes.

Each as Optuna 5 sets it up by itself; population, crossover and mutation of the genetic ones are
the search's. Optuna is imported when the first of them is made.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stepsearch.algorithms.registry import ALGORITHMS, Problem
from stepsearch.core.errors import ConfigError
from stepsearch.core.noise import generator
from stepsearch.core.protocols import Genome
from stepsearch.core.settings import SearchSettings

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

AGAIN = 5  # times that a sampler is asked again where its answer is known or not allowed
TRIES = 200  # random draws per genome of a generation before less than what was wanted is asked
SEEDS = 2**32  # of numpy's RandomState, which Optuna uses


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the line that greets a new study, and notes that a sampler is experimental."""
    from optuna import logging
    from optuna.exceptions import ExperimentalWarning

    before = logging.get_verbosity()
    logging.set_verbosity(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        logging.set_verbosity(before)


class OptunaSearch:
    """A study in memory; genomes that mean nothing new are failed trials of it, and never asked.

    A gene is a number where the problem calls it ordered, else a category. Where a sampler proposes
    nothing new, as in a small space, random genomes fill up.
    """

    adaptive = True
    steady = True

    def __init__(self, problem: Problem, settings: SearchSettings) -> None:
        from optuna import create_study

        self._problem, self._population = problem, settings.population
        self._space = distributions(problem)
        with quiet():
            self._study = create_study(
                study_name="search",
                sampler=self.sampler(settings),
                directions=["minimize"] * problem.objectives,
            )
        self._rng = generator(settings.seed)
        self._waiting = deque(problem.first)
        self._asked: set[Hashable] = set()
        self._running: dict[Genome, Trial] = {}
        self._last: list[Genome] = []

    def sampler(self, settings: SearchSettings) -> BaseSampler:
        """Optuna's part of it."""
        raise NotImplementedError

    def ask(self, count: int | None = None) -> list[Genome]:
        """The next new genomes, `population` of them unless told; fewer where few are left."""
        genomes: list[Genome] = []
        while len(genomes) < (self._population if count is None else count):
            trial = self._first() or self._proposed() or self._drawn()
            if trial is None:
                break
            genome = self._genome(trial)
            self._asked.add(self._problem.identity(genome))
            self._running[genome] = trial
            genomes.append(genome)
        self._last = genomes
        return list(genomes)

    def tell(
        self,
        values: Sequence[tuple[float, ...] | None],
        genomes: Sequence[Genome] | None = None,
    ) -> None:
        """Values of `genomes`, else of the last ask; None for a failed trial."""
        from optuna.trial import TrialState

        for genome, told in zip(self._last if genomes is None else genomes, values, strict=True):
            trial = self._running.pop(genome, None) or self._begin(genome)
            self._asked.add(self._problem.identity(genome))
            if told is None:
                self._study.tell(trial, state=TrialState.FAIL)
            else:
                self._study.tell(trial, list(told))

    def _first(self) -> Trial | None:
        """The next of the given genomes."""
        while self._waiting:
            genome = self._waiting.popleft()
            if self._is_new(genome):
                return self._begin(genome)
        return None

    def _proposed(self) -> Trial | None:
        """What the sampler wants to know."""
        from optuna.trial import TrialState

        for _ in range(1 + AGAIN):
            trial = self._study.ask(self._space)
            if self._is_new(self._genome(trial)):
                return trial
            self._study.tell(trial, state=TrialState.FAIL)
        return None

    def _drawn(self) -> Trial | None:
        """A random genome."""
        for _ in range(TRIES * self._population):
            genome = tuple(int(self._rng.integers(n)) for n in self._problem.sizes)
            if self._is_new(genome):
                return self._begin(genome)
        return None

    def _begin(self, genome: Genome) -> Trial:
        """The study's trial of a genome that it did not propose."""
        self._study.enqueue_trial(dict(zip(self._space, genome, strict=True)))
        return self._study.ask(self._space)

    def _genome(self, trial: Trial) -> Genome:
        return tuple(trial.params[name] for name in self._space)

    def _is_new(self, genome: Genome) -> bool:
        identity = self._problem.identity(genome)
        return identity is not None and identity not in self._asked


def distributions(problem: Problem) -> dict[str, BaseDistribution]:
    """One per gene, in the order of the genes."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    ordered = problem.ordered or (False,) * len(problem.sizes)
    return {
        f"gene_{i:04}": IntDistribution(0, n - 1) if ranks else CategoricalDistribution(range(n))
        for i, (n, ranks) in enumerate(zip(problem.sizes, ordered, strict=True))
    }


@ALGORITHMS.register("optuna-tpe")
class OptunaTpe(OptunaSearch):
    """Tree-structured Parzen estimators, one per gene (Bergstra et al. 2011; Ozaki et al. 2022)."""

    def sampler(self, settings: SearchSettings) -> BaseSampler:
        from optuna.samplers import TPESampler

        return TPESampler(seed=settings.seed % SEEDS)


@ALGORITHMS.register("optuna-gp")
class OptunaGp(OptunaSearch):
    """Gaussian processes and the expected improvement of the hypervolume; about a second an ask."""

    def sampler(self, settings: SearchSettings) -> BaseSampler:
        from optuna.samplers import GPSampler

        return GPSampler(seed=settings.seed % SEEDS)


class OptunaGenetic(OptunaSearch):
    """What the genetic samplers share: generations, and what the settings say of mating."""

    def _begin(self, genome: Genome) -> Trial:
        """As of the others; a genome that was not proposed belongs to the generation of its time.

        Optuna 5 gives a trial its generation when `relative_params` is first read, which it does
        not do by itself where all of them are fixed: such a trial would never be a parent.
        """
        trial = super()._begin(genome)
        _ = trial.relative_params
        return trial

    @staticmethod
    def mating(settings: SearchSettings) -> dict[str, Any]:
        """Options of the samplers; ConfigError where there is no pair to mate."""
        if settings.population < 2:
            raise ConfigError(
                f"search.population: {settings.algorithm} mates pairs and needs at least 2, got "
                f"{settings.population}"
            )
        return {
            "population_size": settings.population,
            "crossover_prob": settings.crossover,
            "mutation_prob": settings.mutation,
            "seed": settings.seed % SEEDS,
        }


@ALGORITHMS.register("optuna-nsga2")
class OptunaNsga2(OptunaGenetic):
    """NSGA-II with uniform crossover."""

    def sampler(self, settings: SearchSettings) -> BaseSampler:
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(**self.mating(settings))


@ALGORITHMS.register("optuna-nsga3")
class OptunaNsga3(OptunaGenetic):
    """NSGA-III with uniform crossover."""

    def sampler(self, settings: SearchSettings) -> BaseSampler:
        from optuna.samplers import NSGAIIISampler

        return NSGAIIISampler(**self.mating(settings))
