"""The search loop. Resume is replay: the same seed asks the same genomes, and what the journal
holds is told instead of measured."""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from stepsearch.algorithms.registry import ALGORITHMS, Problem
from stepsearch.build import build_schedule
from stepsearch.core.errors import (
    FailureBudgetExceeded,
    Interrupted,
    NoFeasibleCandidate,
    RunError,
    SpaceError,
)
from stepsearch.core.genes import ordered_genes, width_groups
from stepsearch.core.pareto import best_first
from stepsearch.core.protocols import Algorithm, Executor, Genome, NetCard
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.settings import MODES, Rung, RunSettings
from stepsearch.core.trial import Failure, Measurement, Screened, Trial
from stepsearch.objectives.registry import OBJECTIVES
from stepsearch.store import RunStore

FAILURES_FRACTION, FAILURES_LEAST = 0.1, 5  # failed trials that a search puts up with
UNIFORM_FRACTION = 0.75  # of the first generation at most; the rest is random
WARM_FRACTION = 0.5  # of the first generation at most, where a search begins from others

COST = "gflops_per_image"  # by which schedules are ordered before they run
OTHER_SEARCH = "the journal is of another search; start a new run"

log = logging.getLogger(__name__)
Result = Measurement | Failure | Screened


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a search stands, after every trial."""

    generation: int
    generations: int
    done: int  # trials finished, those of the journal included
    planned: int  # trials if no generation falls short
    replayed: int  # of `done`, found in the journal
    failed: int
    latest: Trial


def run_search(
    settings: RunSettings,
    cards: Mapping[str, NetCard],
    store: RunStore,
    executor: Executor,
    on_trial: Callable[[Progress], None] = lambda progress: None,
    *,
    warm: Sequence[Genome] = (),
    known: Mapping[str, Measurement] = MappingProxyType({}),
) -> None:
    """Search until the budget is spent or the space is exhausted; every trial goes to `store`.

    Args:
        cards: supernets, and the classifiers that guide them, by name.
        on_trial: told of every trial that is measured.
        warm: genomes to begin from, the best first.
        known: measurements by schedule key that are taken as they are.

    Raises:
        RunError: a journal of another search.
        FailureBudgetExceeded, NoFeasibleCandidate: nothing to trust or to show.
        Interrupted: the executor was told to stop.
    """
    compiler = Compiler(settings, cards)
    problem = search_problem(settings, compiler, warm)
    algorithm = ALGORITHMS[settings.search.algorithm](problem, settings.search)
    run = _Run(settings, compiler, store, executor, algorithm, on_trial, known)
    (run.steady if settings.search.mode == MODES[1] else run.generations)()
    if not store.trials:
        raise NoFeasibleCandidate("constraints: no schedule of the space meets them; widen them")
    store.write_tables()
    if not any(t.complete for t in store.trials):
        raise NoFeasibleCandidate(f"{store.path}: no trial was completed; see log.txt")


class Compiler:
    """genome -> schedule, each compiled once, with what is known of it before it runs."""

    def __init__(self, settings: RunSettings, cards: Mapping[str, NetCard]) -> None:
        self._space, self._cards = settings.space, cards
        self._by_key = {card.key: card for card in cards.values()}
        self._limits = settings.constraints
        self.schedule = functools.cache(self._schedule)
        self.identity = functools.cache(self._identity)

    def _schedule(self, genome: Genome) -> StepSchedule:
        return build_schedule(self._space.decode(genome), self._cards)

    def value(self, name: str, schedule: StepSchedule) -> float:
        """An objective that needs no images."""
        return OBJECTIVES[name](schedule, self._by_key, None)

    def _identity(self, genome: Genome) -> str | None:
        """The schedule's key, None where it breaks a constraint."""
        schedule = self.schedule(genome)
        for name, (low, high) in self._limits.items():
            if not low <= self.value(name, schedule) <= high:
                return None
        return schedule.key()


def search_problem(
    settings: RunSettings, compiler: Compiler, warm: Sequence[Genome] = ()
) -> Problem:
    """The search as an algorithm sees it."""
    population, space = settings.search.population, settings.space
    begun = tuple(warm[: max(1, int(WARM_FRACTION * population))])
    uniform = max(1, int(UNIFORM_FRACTION * (population - len(begun))))
    others = space.setting_genomes(uniform // 2)
    genes = [name for name, _ in space.genes]
    return Problem(
        sizes=tuple(n for _, n in space.genes),
        first=(*begun, *space.uniform_genomes(uniform - len(others)), *others),
        objectives=len(settings.objectives),
        identity=compiler.identity,
        names=settings.objectives,
        width_genes=width_groups(genes),
        ordered=ordered_genes(genes),
    )


@dataclass(frozen=True, slots=True)
class _Born:
    """A genome that was asked, with its place in the order of asking."""

    trial_id: int
    generation: int
    genome: Genome
    schedule: StepSchedule

    def trial(self, settings: RunSettings, result: Result) -> Trial:
        candidate = settings.space.decode(self.genome)
        return Trial(
            trial_id=self.trial_id,
            generation=self.generation,
            key=self.schedule.key(),
            schedule=self.schedule.to_json(),
            candidate=candidate,
            call_widths=self.schedule.widths,
            result=result,
            trained=settings.trained(candidate.supernet),
            genome=self.genome,
        )


class _Run:
    """One search over one journal."""

    def __init__(
        self,
        settings: RunSettings,
        compiler: Compiler,
        store: RunStore,
        executor: Executor,
        algorithm: Algorithm,
        on_trial: Callable[[Progress], None],
        known: Mapping[str, Measurement],
    ) -> None:
        self.settings, self.compiler, self.store = settings, compiler, store
        self.known = known
        self.executor, self.algorithm, self.on_trial = executor, algorithm, on_trial
        self.budget = settings.search.population * settings.search.generations
        self.replayed = len(store.trials)
        self.failed = sum(t.failed for t in store.trials)

    def generations(self) -> None:
        """Ask a generation, measure what the journal does not hold, tell it.

        Where asks do not depend on what was told, all are made at once, and no worker waits for
        the slowest of a generation.
        """
        born = self._born_generations()
        journal = {t.trial_id: t for t in self.store.trials}
        places = {t.key: (t.trial_id, t.generation) for t in self.store.trials}
        taken = set(journal)
        batches = born if self.algorithm.adaptive else iter([list(itertools.chain(*born))])
        for batch in batches:
            _check_journal(places, taken, batch, self.store)
            waiting = [b for b in batch if b.trial_id not in journal]
            journal |= {t.trial_id: t for t in self._measured(waiting, batch, journal)}
            if any(b.trial_id not in journal for b in batch):
                raise self._interrupted()
            if self.algorithm.adaptive:
                told = [_told(journal[b.trial_id], self.settings.objectives) for b in batch]
                self.algorithm.tell(told)
            self.store.write_tables(final=False)

    def _born_generations(self) -> Iterator[list[_Born]]:
        asked = 0
        for generation in range(self.settings.search.generations):
            genomes = self.algorithm.ask()
            if not genomes:
                log.info("generation %d: every schedule of the space has been tried", generation)
                return
            yield [
                _Born(asked + i, generation, g, self.compiler.schedule(g))
                for i, g in enumerate(genomes)
            ]
            asked += len(genomes)

    def _measured(
        self, waiting: Sequence[_Born], batch: Sequence[_Born], journal: Mapping[int, Trial]
    ) -> Iterator[Trial]:
        """Trials as they are finished, those that no rung of the ladder screens out at the end."""
        there = {b.trial_id: journal.get(b.trial_id) for b in batch}
        values = {i: {} if t is None else dict(t.result.values) for i, t in there.items()}
        for n, rung in enumerate(self.settings.evaluation.ladder):
            found: dict[int, Measurement] = {}
            for born, result in self._results(waiting, n):
                if isinstance(result, Measurement):
                    found[born.trial_id] = result
                    values[born.trial_id] |= result.values
                else:
                    yield self._accept(born, result, values[born.trial_id])
                    waiting = [b for b in waiting if b is not born]
            if len(found) < len(waiting):
                return  # stopped: who goes on depends on all
            kept = self._kept(rung, batch, values)
            for born in waiting:
                if born.trial_id not in kept:
                    few = found[born.trial_id]
                    known = {COST: self.compiler.value(COST, born.schedule)}
                    result = Screened(known, few.n_samples, few.seconds, few.started_at)
                    yield self._accept(born, result, values[born.trial_id])
            waiting = [b for b in waiting if b.trial_id in kept]
        for born, result in self._results(waiting):
            yield self._accept(born, result, values[born.trial_id])

    def _results(
        self, waiting: Sequence[_Born], rung: int | None = None
    ) -> Iterator[tuple[_Born, Measurement | Failure]]:
        """Results as they are finished; within a generation the longest is begun first."""
        by_key = {b.schedule.key(): b for b in waiting}
        for key in [key for key in by_key if rung is None and key in self.known]:
            yield by_key.pop(key), self.known[key]
        cost = functools.partial(self.compiler.value, COST)
        ordered = sorted(by_key.values(), key=lambda b: (b.generation, -cost(b.schedule)))
        for key, result in self.executor.map([b.schedule for b in ordered], rung):
            yield by_key[key], result

    def _kept(
        self, rung: Rung, batch: Sequence[_Born], values: Mapping[int, Mapping[str, float]]
    ) -> set[int]:
        """Trials of a generation that go on, by the rung's value and the cheap objectives."""
        measured = [b for b in batch if rung.name in values[b.trial_id]]
        if not measured:
            return set()
        cheap = [n for n in self.settings.objectives if not OBJECTIVES[n].needs_images]
        points = [
            (values[b.trial_id][rung.name], *(self.compiler.value(n, b.schedule) for n in cheap))
            for b in measured
        ]
        order = best_first(points)[: math.ceil(rung.keep * len(points))]
        return {measured[i].trial_id for i in order}

    def steady(self) -> None:
        """Tell one, ask one: whoever is free gets a schedule that all results so far went into."""
        self._replay()
        taken = {t.trial_id for t in self.store.trials}
        flying: dict[str, _Born] = {}
        exhausted = False

        def births() -> Iterator[StepSchedule]:
            nonlocal exhausted
            for trial_id in (i for i in range(self.budget) if i not in taken):
                genomes = self.algorithm.ask(1)
                if not genomes:
                    exhausted = True
                    return
                generation = trial_id // self.settings.search.population
                schedule = self.compiler.schedule(genomes[0])
                born = _Born(trial_id, generation, genomes[0], schedule)
                if (result := self.known.get(schedule.key())) is not None:
                    self._tell_one(born, result)
                    continue
                flying[schedule.key()] = born
                yield schedule

        for key, result in self.executor.map(births()):
            self._tell_one(flying.pop(key), result)
        if flying or not (exhausted or len(self.store.trials) >= self.budget):
            raise self._interrupted()

    def _tell_one(self, born: _Born, result: Result) -> None:
        trial = self._accept(born, result)
        self.algorithm.tell([_told(trial, self.settings.objectives)], [trial.genome])
        self.store.write_tables(final=False)

    def _replay(self) -> None:
        """Tell what the journal holds, in its order; RunError where it is of another search."""
        for trial in self.store.trials:
            try:
                fits = self.compiler.schedule(trial.genome).key() == trial.key
            except SpaceError:
                fits = False
            if not fits:
                raise RunError(f"{self.store.path}: {OTHER_SEARCH}")
        told = [_told(t, self.settings.objectives) for t in self.store.trials]
        self.algorithm.tell(told, [t.genome for t in self.store.trials])

    def _accept(
        self, born: _Born, result: Result, rungs: Mapping[str, float] = MappingProxyType({})
    ) -> Trial:
        """File a result with what the rungs of the ladder said of it."""
        result = replace(result, values={**rungs, **result.values})
        trial = born.trial(self.settings, result)
        self.store.append(trial)
        self.failed += trial.failed
        self.on_trial(self._progress(trial))
        allowed = max(FAILURES_LEAST, int(FAILURES_FRACTION * self.budget))
        if isinstance(result, Failure) and self.failed > allowed:
            self.store.write_tables()
            raise FailureBudgetExceeded(
                f"{self.store.path}: {self.failed} trials failed, more than the {allowed} allowed; "
                f"the last: {result.error}"
            )
        return trial

    def _progress(self, latest: Trial) -> Progress:
        return Progress(
            generation=latest.generation,
            generations=self.settings.search.generations,
            done=len(self.store.trials),
            planned=self.budget,
            replayed=self.replayed,
            failed=self.failed,
            latest=latest,
        )

    def _interrupted(self) -> Interrupted:
        path = self.store.path
        return Interrupted(
            f"{path}: stopped, nothing finished is lost; continue with `stepsearch resume {path}`"
        )


def _check_journal(
    places: Mapping[str, tuple[int, int]], taken: Container[int], born: list[_Born], store: RunStore
) -> None:
    """RunError where the journal holds one of these at another place, or another at its place.

    Args:
        places: trial_id and generation of every key that the run began with.
        taken: those trial_ids.
    """
    for b in born:
        place, there = places.get(b.schedule.key()), b.trial_id in taken
        if (place is not None or there) and place != (b.trial_id, b.generation):
            raise RunError(f"{store.path}: {OTHER_SEARCH}")


def _told(trial: Trial, objectives: tuple[str, ...]) -> tuple[float, ...] | None:
    if not isinstance(trial.result, Measurement):
        return None
    return tuple(trial.result.values[name] for name in objectives)
