"""Search algorithms on the digits at equal numbers of evaluations: five seeds, 120 of 2,000 images.

    python results/reference/search_algorithms.py [--part I/N] [--seeds S] [--work DIR] [key=value]

Every search is a run of its own under results/search_algorithms, by the loop that `stepsearch run`
has, on one thread. A measurement depends on the schedule alone, so all runs share a folder of them:
each counts its own evaluations, and none is sampled twice. What is there is kept, so that a stopped
one continues; `--part 1/2` does every second search. Without it all are done, and search_algorithms
.csv (curves), search_algorithms_final.csv (what was reached) and search_algorithms.png are written.

Settings that are not the algorithms' own:
- The steady ones and `optuna-tpe` run in steady mode with eight workers, whose hours are played
  from the seconds that each measurement took; all others ask a generation of 24 at once.
- DDSM adds 0.5 FID points per GFLOP of a step; its network has 12.14 at full width, so full width
  costs 6.07 points. Here a GFLOP costs so much that full width at 15 calls costs the same.
- The hypervolume is bounded by FID 100 and by the GFLOPs of full width at 15 calls, the dearest
  schedule of the space.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from stepsearch.comparing import Search, curves_of, results_of
from stepsearch.config import dump_space, read_space
from stepsearch.core.files import write_atomic
from stepsearch.core.protocols import NetCard
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.settings import RunSettings
from stepsearch.core.trial import Failure, Measurement
from stepsearch.environment import environment
from stepsearch.evaluate import Evaluator, EvaluatorSpec, prepare_evaluation
from stepsearch.executors.local import LocalExecutor, Score
from stepsearch.loading import scored_recipe, space_images
from stepsearch.network_training import train
from stepsearch.progress import Display
from stepsearch.report_compare import plot_curves
from stepsearch.search import run_search
from stepsearch.signals import Signals
from stepsearch.store import RunStore, is_run, load_run

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SPACE = ROOT / "search_spaces" / "digits.yaml"
BUDGET = ("evaluation.images=2000", "search.population=24", "search.generations=5")
SEARCHES: dict[str, tuple[str, str]] = {  # algorithm and mode
    "nsga2-parts": ("nsga2-parts", "generational"),
    "nsga2-parts-steady": ("nsga2-parts", "steady"),
    "nsga2": ("nsga2", "generational"),
    "nsga2-steady": ("nsga2", "steady"),
    "random": ("random", "generational"),
    "best-uniform": ("best-uniform", "generational"),
    "ddsm-ga": ("ddsm-ga", "generational"),
    "optuna-tpe": ("optuna-tpe", "steady"),
    "optuna-nsga2": ("optuna-nsga2", "generational"),
}
WORKERS = 8  # of a steady search
FULL_WIDTH = 0.5 * 12.14  # FID points that full width costs in DDSM
FID = 100.0  # bound of the hypervolume


@dataclass(frozen=True)
class Bench:
    """What all searches have in common."""

    settings: RunSettings
    cards: Mapping[str, NetCard]
    spec: EvaluatorSpec
    facts: Mapping[str, float]
    work: Path

    @property
    def dearest(self) -> float:
        """GFLOPs of full width at most calls."""
        (card,) = self.cards.values()
        return max(self.settings.space.calls) * card.gflops(max(card.widths))

    def settings_of(self, name: str, seed: int) -> RunSettings:
        """Of one search."""
        algorithm, mode = SEARCHES[name]
        weights = (1.0, FULL_WIDTH / self.dearest) if algorithm == "ddsm-ga" else ()
        search = replace(self.settings.search, algorithm=algorithm, mode=mode, seed=seed)
        return replace(self.settings, name=name, search=replace(search, weights=weights))

    def score(self) -> Score:
        """Measures what no search has measured yet."""
        measure, folder = Evaluator(self.spec), self.work / "measurements"
        folder.mkdir(parents=True, exist_ok=True)

        def remembered(schedule: StepSchedule) -> Measurement:
            path = folder / f"{schedule.key()}.json"
            if not path.is_file():
                found = json.dumps(asdict(measure(schedule)))
                write_atomic(path, found.encode())
            return Measurement(**json.loads(path.read_text(encoding="utf-8")))

        return remembered


class Played:
    """Workers side by side in a time of their own, which the seconds of measurements make pass."""

    def __init__(self, factory: Callable[[], Score], workers: int, signals: Signals) -> None:
        self._one, self._workers = LocalExecutor(factory, stopping=signals.stopping), workers

    def map(
        self, schedules: Iterable[StepSchedule], rung: int | None = None
    ) -> Iterator[tuple[str, Measurement | Failure]]:
        """Results in the order in which they would be finished."""
        source, clock, number = iter(schedules), 0.0, itertools.count()
        flying: list[tuple[float, int, str, Measurement | Failure]] = []
        while True:
            for schedule in itertools.islice(source, self._workers - len(flying)):
                for key, result in self._one.map([schedule], rung):
                    heapq.heappush(flying, (clock + result.seconds, next(number), key, result))
            if not flying:
                return
            clock, _, key, result = heapq.heappop(flying)
            yield key, result

    def close(self) -> None:
        """Nothing to release."""


def prepare(work: Path, overrides: list[str], display: Display, signals: Signals) -> Bench:
    """The digits, their network and the statistics that all are scored against."""
    settings = read_space(SPACE, [*BUDGET, *overrides])
    images = space_images(settings, display, signals)
    data = images[scored_recipe(settings).name]
    spec, facts = prepare_evaluation(settings.evaluation, settings.objectives, data)
    (recipe,) = settings.networks
    path, card = train(recipe, data, display, signals, settings.evaluation.device)
    return Bench(settings, {recipe.name: card}, replace(spec, nets=(str(path),)), facts, work)


def search(bench: Bench, name: str, seed: int, signals: Signals) -> None:
    """One run, begun or continued."""
    out, settings = bench.work / f"{name}-{seed}", bench.settings_of(name, seed)
    if is_run(out):
        store = RunStore(out, settings.objectives)
    else:
        env = environment(settings, bench.cards, bench.spec, bench.facts)
        files = {"resolved.yaml": dump_space(settings), "env.json": env}
        store = RunStore.create(out, settings.objectives, files)
    steady = settings.search.mode == "steady"
    local = LocalExecutor(bench.score, stopping=signals.stopping)
    try:
        run_search(
            settings, bench.cards, store, Played(bench.score, WORKERS, signals) if steady else local
        )
        store.write_tables()
    finally:
        store.close()


def tables(bench: Bench, seeds: int, stem: Path) -> pd.DataFrame:
    """Curves, what was reached, and the picture."""
    searches = []
    for name, seed in itertools.product(SEARCHES, range(seeds)):
        run = load_run(bench.work / f"{name}-{seed}")
        searches.append(Search(name, str(seed), bench.settings.objectives, run.trials))
    curves = curves_of(searches, (FID, bench.dearest))
    final = results_of(curves)
    named = {"label": "algorithm", "run": "seed"}
    curves.rename(columns=named).round(6).to_csv(stem.with_suffix(".csv"), index=False)
    final.rename(columns=named).round(4).to_csv(f"{stem}_final.csv", index=False)
    plot_curves(curves, stem)
    stem.with_suffix(".pdf").unlink()
    return final


def main(words: list[str]) -> None:
    """Read the arguments, and do what they say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--part", default="", metavar="I/N", help="every N-th search, from I")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=ROOT / "results" / "search_algorithms")
    parser.add_argument("--stem", type=Path, default=HERE / "search_algorithms")
    args: Any = parser.parse_args(words)
    part, parts = map(int, args.part.split("/")) if args.part else (1, 1)
    with Display() as display, Signals("the same command") as signals:
        bench = prepare(args.work, args.overrides, display, signals)
        for seed, name in list(itertools.product(range(args.seeds), SEARCHES))[part - 1 :: parts]:
            display.say(f"{name}, seed {seed}")
            search(bench, name, seed, signals)
    if not args.part:
        print(tables(bench, args.seeds, args.stem).round(3).to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1:])
