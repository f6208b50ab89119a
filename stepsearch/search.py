"""The search loop. Resume is replay: the same seed asks the same genomes, and what the journal
holds is told instead of measured."""

from __future__ import annotations

import functools
import json
import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from stepsearch.algorithms.registry import ALGORITHMS, Problem
from stepsearch.build import build_schedule
from stepsearch.core.errors import FailureBudgetExceeded, Interrupted, NoFeasibleCandidate, RunError
from stepsearch.core.protocols import Executor, Genome, NetCard
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.settings import Recipe, RunSettings, content_hash
from stepsearch.core.trial import Failure, Measurement, Trial
from stepsearch.evaluate import EvaluatorSpec
from stepsearch.objectives.registry import OBJECTIVES
from stepsearch.store import RunStore

FAILURES_FRACTION, FAILURES_LEAST = 0.1, 5  # failed trials that a search puts up with
UNIFORM_FRACTION = 0.75  # of the first generation at most; the rest is random

log = logging.getLogger(__name__)


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
) -> None:
    """Search until the budget is spent or the space is exhausted; every trial goes to `store`.

    Args:
        cards: supernets, and the classifiers that guide them, by name.
        on_trial: told of every trial that is measured.

    Raises:
        RunError: a journal of another search.
        FailureBudgetExceeded, NoFeasibleCandidate: nothing to trust or to show.
        Interrupted: the executor was told to stop.
    """
    compile_genome = _compiler(settings, cards)
    algorithm = ALGORITHMS[settings.search.algorithm](
        _problem(settings, cards, compile_genome), settings.search
    )
    journal = {t.trial_id: t for t in store.trials}
    replayed, asked = len(journal), 0
    for generation in range(settings.search.generations):
        genomes = algorithm.ask()
        if not genomes:
            log.info("generation %d: every schedule of the space has been tried", generation)
            break
        born = [_Born(asked + i, generation, g, compile_genome(g)) for i, g in enumerate(genomes)]
        _check_journal(journal, born, store)
        waiting = {b.schedule.key(): b for b in born if b.trial_id not in journal}
        for key, result in executor.map([b.schedule for b in waiting.values()]):
            trial = waiting[key].trial(settings, result)
            journal[trial.trial_id] = trial
            store.append(trial)
            on_trial(_progress(settings, store, replayed, trial))
            _check_failures(settings, store)
        if any(b.trial_id not in journal for b in born):
            raise Interrupted(
                f"{store.path}: stopped, nothing finished is lost; continue with "
                f"`stepsearch resume {store.path}`"
            )
        algorithm.tell([_told(journal[b.trial_id], settings.objectives) for b in born])
        store.write_tables()
        asked += len(genomes)
    if not store.trials:
        raise NoFeasibleCandidate("constraints: no schedule of the space meets them; widen them")
    if not any(t.complete for t in store.trials):
        raise NoFeasibleCandidate(f"{store.path}: no trial was completed; see log.txt")


@dataclass(frozen=True, slots=True)
class _Born:
    """A genome that was asked, with its place in the order of asking."""

    trial_id: int
    generation: int
    genome: Genome
    schedule: StepSchedule

    def trial(self, settings: RunSettings, result: Measurement | Failure) -> Trial:
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
        )


def _check_journal(journal: Mapping[int, Trial], born: list[_Born], store: RunStore) -> None:
    """RunError where the journal holds one of these at another place, or another at its place."""
    places = {t.key: (t.trial_id, t.generation) for t in journal.values()}
    for b in born:
        place, there = places.get(b.schedule.key()), b.trial_id in journal
        if (place is not None or there) and place != (b.trial_id, b.generation):
            raise RunError(f"{store.path}: the journal is of another search; start a new run")


def _progress(settings: RunSettings, store: RunStore, replayed: int, latest: Trial) -> Progress:
    return Progress(
        generation=latest.generation,
        generations=settings.search.generations,
        done=len(store.trials),
        planned=_budget(settings),
        replayed=replayed,
        failed=sum(not t.complete for t in store.trials),
        latest=latest,
    )


def _budget(settings: RunSettings) -> int:
    return settings.search.population * settings.search.generations


def _told(trial: Trial, objectives: tuple[str, ...]) -> tuple[float, ...] | None:
    if not isinstance(trial.result, Measurement):
        return None
    return tuple(trial.result.values[name] for name in objectives)


def _check_failures(settings: RunSettings, store: RunStore) -> None:
    failures = [t.result for t in store.trials if isinstance(t.result, Failure)]
    allowed = max(FAILURES_LEAST, int(FAILURES_FRACTION * _budget(settings)))
    if len(failures) > allowed:
        store.write_tables()
        raise FailureBudgetExceeded(
            f"{store.path}: {len(failures)} trials failed, more than the {allowed} allowed; the "
            f"last: {failures[-1].error}"
        )


def _compiler(
    settings: RunSettings, cards: Mapping[str, NetCard]
) -> Callable[[Genome], StepSchedule]:
    """genome -> schedule, each compiled once."""

    @functools.cache
    def compile_genome(genome: Genome) -> StepSchedule:
        return build_schedule(settings.space.decode(genome), cards)

    return compile_genome


def _problem(
    settings: RunSettings,
    cards: Mapping[str, NetCard],
    compile_genome: Callable[[Genome], StepSchedule],
) -> Problem:
    by_key = {card.key: card for card in cards.values()}

    @functools.cache
    def identity(genome: Genome) -> str | None:
        schedule = compile_genome(genome)
        for name, (low, high) in settings.constraints.items():
            if not low <= OBJECTIVES[name](schedule, by_key, None) <= high:
                return None
        return schedule.key()

    uniform = max(1, int(UNIFORM_FRACTION * settings.search.population))
    others = settings.space.setting_genomes(uniform // 2)
    return Problem(
        sizes=tuple(n for _, n in settings.space.genes),
        first=(*settings.space.uniform_genomes(uniform - len(others)), *others),
        objectives=len(settings.objectives),
        identity=identity,
    )


def environment(
    settings: RunSettings,
    cards: Mapping[str, NetCard],
    spec: EvaluatorSpec,
    facts: Mapping[str, float],
) -> str:
    """env.json: versions, seeds, hashes of networks and statistics, hardware, facts of the data."""
    packages = ("stepsearch", "torch", "numpy", "scipy", "pymoo", "ray", "pandas")
    data: dict[str, Any] = {
        "space_sha256": content_hash(settings.content()),
        "supernets": _identities(settings.recipes, cards),
        "metric_id": spec.metric_id,
        "objectives": list(settings.objectives),
        "data_sha256": spec.data_sha256,
        "features": settings.evaluation.features,
        "device": spec.device,
        "seeds": {"search": settings.search.seed, "evaluation": settings.evaluation.seed},
        "facts": dict(facts),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "hardware": _hardware(),
    }
    for kind in ("guides", "seconds"):
        if getattr(settings, kind):
            data[kind] = _identities(getattr(settings, kind), cards)
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def _identities(
    recipes: Sequence[Recipe], cards: Mapping[str, NetCard]
) -> dict[str, dict[str, str]]:
    return {r.name: {"key": cards[r.name].key, "sha256": cards[r.name].sha256} for r in recipes}


def _hardware() -> dict[str, Any]:
    """What times in the tables were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "gpus": gpus,
    }
