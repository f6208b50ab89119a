"""`stepsearch reeval`: the front of a run and its neighbours, measured again with many images.

The noise is new to all of them: a search prefers schedules that were lucky with its own. Every seed
has a journal of its own in the run directory, so that a stopped call continues, and a call with
more seeds measures what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stepsearch.config import read_space
from stepsearch.core.errors import (
    ConfigError,
    FailureBudgetExceeded,
    Interrupted,
    NoFeasibleCandidate,
)
from stepsearch.core.files import disk_errors
from stepsearch.core.protocols import NetCard
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.settings import RunSettings
from stepsearch.core.trial import Failure, Measurement, Trial
from stepsearch.environment import environment
from stepsearch.evaluate import EvaluatorSpec, prepare_evaluation, replicate_name
from stepsearch.journal import Journal, recover_journal
from stepsearch.loading import scored_recipe, space_images
from stepsearch.nets.counting import counted
from stepsearch.nets.load import load_card
from stepsearch.objectives.bootstrap import REPLICATES
from stepsearch.objectives.registry import OBJECTIVES
from stepsearch.progress import Display
from stepsearch.remeasured import (
    SUMMARY,
    TABLE,
    Full,
    Remeasured,
    choose,
    load_remeasured,
    remeasured_table,
    summarise,
)
from stepsearch.report import plot_all
from stepsearch.resources import Resources
from stepsearch.run import RESOLVED, _check_env, _executor, _logging_to
from stepsearch.sample import recipe_weights
from stepsearch.search import FAILURES_FRACTION, FAILURES_LEAST
from stepsearch.signals import Signals
from stepsearch.store import RunStore, is_run, load_run, trial_frame

if TYPE_CHECKING:
    import pandas as pd

FRESH = 1000  # added to the evaluation's seed; a search uses that and, for its canary, the next


@dataclass(frozen=True, slots=True)
class Again:
    """What is measured again, and how."""

    samples: int  # images of one evaluation
    seeds: int
    neighbours: int | None = None  # trials beside the front; None is as many, and 20 or more in all


def reevaluate(
    out: Path, again: Again, resources: Resources, *, allow_code: bool = False
) -> Remeasured:
    """Measure the front of the run in `out` again and write reeval.csv, reeval.json and plots.

    Raises:
        ConfigError: no finished run, or nothing that could be measured again.
        RunError: another driver at work, or networks and data that are not those of the run.
        FailureBudgetExceeded, NoFeasibleCandidate: evaluations that fail.
        Interrupted: a signal came; what is finished is kept.
    """
    if not is_run(out) or not (out / RESOLVED).is_file():
        raise ConfigError(f"{out}: no run directory (no journal or no {RESOLVED})")
    settings = read_space(out / RESOLVED)
    _check(settings, again, out)
    command = f"`stepsearch reeval {out} --samples {again.samples} --seeds {again.seeds}`"
    with Display() as display, Signals(command) as signals, ExitStack() as stack:
        store = RunStore(out, settings.objectives)
        stack.callback(store.close)
        stack.enter_context(_logging_to(out / "log.txt"))
        if store.torn is not None:
            display.say(f"{out}: the journal's last line was torn; set aside as {store.torn}")
        done = [t for t in store.trials if t.complete]
        if not done:
            raise NoFeasibleCandidate(f"{out}: no trial was completed; see log.txt")
        spec, cards = _spec(settings, again.samples, out, display, signals, allow_code=allow_code)
        trials = _rows(done, settings, cards)
        chosen, by_id = choose(trials, again.neighbours), {t.trial_id: t for t in done}
        first = settings.evaluation.seed + FRESH
        session = _Session(out, spec, resources, display, signals, command)
        seeds = range(first, first + again.seeds)
        found = [session.measure([by_id[i] for i in chosen], seed) for seed in seeds]
        full = {i: _full([one[i] for one in found]) for i in chosen if all(i in o for o in found)}
        return _write(store, trials, full, again, seeds)


def _check(settings: RunSettings, again: Again, out: Path) -> None:
    """ConfigError where measuring again says nothing of what was searched."""
    images = settings.evaluation.images
    if "fid" not in settings.objectives:
        raise ConfigError(f"{out}: fid is none of its objectives, and nothing else is re-measured")
    if again.samples < images:
        raise ConfigError(
            f"--samples: {again.samples} images are fewer than the {images} of the search; give "
            f"more, e.g. 50000"
        )
    if again.seeds < 1:
        raise ConfigError(f"--seeds: must be at least 1, got {again.seeds}")
    if again.neighbours is not None and again.neighbours < 0:
        raise ConfigError(f"--neighbours: must not be negative, got {again.neighbours}")


def _spec(
    settings: RunSettings,
    samples: int,
    out: Path,
    display: Display,
    signals: Signals,
    *,
    allow_code: bool,
) -> tuple[EvaluatorSpec, dict[str, NetCard]]:
    """What a worker needs, and cards by key; RunError unless networks, data and statistics are
    those of the run."""
    images = space_images(settings, display, signals, allow_code=allow_code)
    display.stage("features and reference statistics", 1)
    plain = replace(settings.evaluation, ladder=())
    data = images[scored_recipe(settings).name]
    spec, facts = prepare_evaluation(plain, ("fid",), data)
    paths = {r.name: recipe_weights(r, allow_code=allow_code) for r in settings.networks}
    cards = {n: counted(load_card(p), settings.evaluation.counting) for n, p in paths.items()}
    _check_env(out, environment(settings, cards, spec, facts))
    nets, many = tuple(map(str, paths.values())), replace(plain, images=samples)
    by_key = {card.key: card for card in cards.values()}
    return replace(spec, nets=nets, settings=many, replicates=REPLICATES), by_key


def _rows(
    done: Sequence[Trial], settings: RunSettings, cards: Mapping[str, NetCard]
) -> pd.DataFrame:
    """Rows of completed trials with compute, and objectives that trials.csv has no column of."""
    rows = trial_frame(done, settings.objectives)
    ordered = sorted(done, key=lambda t: t.trial_id)
    schedules = [StepSchedule.from_json(t.schedule) for t in ordered]
    cost = OBJECTIVES["gflops_per_image"]
    known: dict[str, list[float]] = {"gflops_per_image": [cost(s, cards, None) for s in schedules]}
    for name in settings.objectives:
        known[name] = [t.result.values[name] for t in ordered if isinstance(t.result, Measurement)]
    return rows.assign(**known)


@dataclass(frozen=True, slots=True)
class _Session:
    """One call of `reevaluate`."""

    out: Path
    spec: EvaluatorSpec
    resources: Resources
    display: Display
    signals: Signals
    command: str  # that continues it

    def measure(self, trials: Sequence[Trial], seed: int) -> dict[int, Measurement]:
        """Measurements with the noise of `seed` by trial_id; what failed is left out."""
        samples = self.spec.settings.images
        path = self.out / f"reeval-{samples}-seed{seed}.jsonl"
        with disk_errors(self.out):
            known, torn = recover_journal(path)
        if torn is not None:
            self.display.say(f"{path}: its last line was torn; set aside as {torn}")
        done = {t.key: t.result for t in known if isinstance(t.result, Measurement)}
        todo = [t for t in trials if t.key not in done]
        if todo:
            self._measure(todo, seed, path, done)
        return {t.trial_id: done[t.key] for t in trials if t.key in done}

    def _measure(
        self, todo: Sequence[Trial], seed: int, path: Path, done: dict[str, Measurement]
    ) -> None:
        waiting = {t.key: t for t in todo}
        name, failed = f"FID of {self.spec.settings.images:,} images, seed {seed}", 0
        spec = replace(self.spec, settings=replace(self.spec.settings, seed=seed))
        with ExitStack() as stack:
            executor = _executor(spec, self.resources, self.signals)
            stack.callback(executor.close)
            self.signals.install(self.command)  # again: Ray has put in its own
            with disk_errors(self.out):
                journal = Journal(path)
            stack.callback(journal.close)
            self.display.stage(name, len(todo))
            results = executor.map(StepSchedule.from_json(t.schedule) for t in todo)
            for count, (key, result) in enumerate(results, 1):
                trial = waiting.pop(key)
                if isinstance(result, Failure):
                    failed += 1
                    self.display.say(f"trial {trial.trial_id} failed: {result.error}")
                    self._check_failures(failed, len(todo), result)
                    continue
                with disk_errors(self.out):
                    journal.append(replace(trial, result=result))
                done[key] = result
                self.display.advance(name, count, len(todo))
        if waiting:
            raise Interrupted(
                f"{self.out}: stopped, nothing finished is lost; continue with {self.command}"
            )

    def _check_failures(self, failed: int, planned: int, last: Failure) -> None:
        allowed = max(FAILURES_LEAST, int(FAILURES_FRACTION * planned))
        if failed > allowed:
            raise FailureBudgetExceeded(
                f"{self.out}: {failed} evaluations failed, more than the {allowed} allowed; the "
                f"last: {last.error}"
            )


def _full(measured: Sequence[Measurement]) -> Full:
    """The measurements of one trial, a seed each."""
    names = [replicate_name(b) for b in range(REPLICATES)]
    deviations = np.array([[m.values[name] for name in names] for m in measured])
    return Full(tuple(m.values["fid"] for m in measured), deviations)


def _write(
    store: RunStore,
    trials: pd.DataFrame,
    full: dict[int, Full],
    again: Again,
    seeds: Sequence[int],
) -> Remeasured:
    """Tables, summary and plots."""
    if len(full) < 3:
        raise NoFeasibleCandidate(
            f"{store.path}: {len(full)} schedules were measured again, a rank correlation needs 3; "
            f"search more trials, or see log.txt for those that failed"
        )
    table = remeasured_table(trials, full, again.samples, store.objectives)
    summary = summarise(trials, table, again.samples, seeds, store.objectives)
    store.write_text(TABLE, table.to_csv(index=False))
    store.write_text(SUMMARY, json.dumps(summary, indent=2) + "\n")
    run = load_run(store.path)
    found = load_remeasured(store.path, run.pareto)
    folder = store.path / "plots"
    plot_all(run.trials, run.pareto, run.generations, run.schedules, folder, found)
    return Remeasured(table, summary)
