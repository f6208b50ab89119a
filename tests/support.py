"""Helpers of the tests of a search: a network card, spaces, and scores that need no network."""

from __future__ import annotations

import csv
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepsearch.build import build_schedule
from stepsearch.core.protocols import NetCard
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.settings import RunSettings, SearchSettings
from stepsearch.core.space import SearchSpace
from stepsearch.core.trial import TIME_COLUMNS, Failure, Measurement, Trial

ROOT = Path(__file__).parents[1]
OBJECTIVES = ("fid", "gflops_per_image")

CARD = NetCard(
    name="net",
    sha256="0123456789abcdef" * 4,
    family="gaussian",
    process="vp-linear-1000",
    image_shape=(1, 8, 8),
    widths=(0.25, 0.5, 0.75, 1.0),
    flops=(1.0e9, 3.5e9, 8.0e9, 14.5e9),
)
CARDS = {"net": CARD}
SPACE = SearchSpace(
    supernets=("net",),
    calls=(3, 4, 6),
    grids=("uniform", "quad"),
    solvers=(("ddim", {}), ("pfdiff", {"k": 1, "l": 1}), ("pfdiff", {"k": 2, "l": 1})),
    width_choices=CARD.widths,
    width_genes=3,
)
SETTINGS = RunSettings(
    name="toy",
    space=SPACE,
    recipes=(),
    objectives=OBJECTIVES,
    constraints={},
    search=SearchSettings(population=6, generations=4),
)


def settings_with(**search: Any) -> RunSettings:
    """SETTINGS with other search settings."""
    return replace(SETTINGS, search=replace(SETTINGS.search, **search))


def score(schedule: StepSchedule) -> Measurement:
    """Better with wider calls, never equal, and a function of the schedule alone."""
    noise = int(schedule.key()[1:5], 16) / 0x10000
    fid = round(100 / sum(schedule.widths) + 5 * noise, 6)
    cost = sum(CARD.gflops(width) for width in schedule.widths)
    return Measurement(
        values={"fid": fid, "fid_se": 0.25, "gflops_per_image": cost},
        n_samples=200,
        seed=0,
        metric_id="stub-0",
        seconds=0.125,
        started_at="2026-01-02T03:04:05+00:00",
    )


class StubExecutor:
    """Scores in this process, counts what it is asked, and yields in an order of its own.

    Args:
        fails: schedules that end in a Failure.
        shuffle: seed of the order in which the results of one call are yielded.
    """

    def __init__(
        self,
        fails: Callable[[StepSchedule], bool] = lambda schedule: False,
        shuffle: int | None = None,
    ) -> None:
        self.fails, self.shuffle = fails, shuffle
        self.seen: Counter[str] = Counter()
        self.schedules: list[StepSchedule] = []

    def map(
        self, schedules: Iterable[StepSchedule], rung: int | None = None
    ) -> Iterator[tuple[str, Measurement | Failure]]:
        waiting: Iterable[StepSchedule] = schedules
        if self.shuffle is not None:
            waiting = list(schedules)
            random.Random(self.shuffle).shuffle(waiting)
        for schedule in waiting:
            self.seen[schedule.key()] += 1
            self.schedules.append(schedule)
            yield schedule.key(), Failure("E: no", 3) if self.fails(schedule) else score(schedule)

    def close(self) -> None:
        pass


def make_trials(count: int, generation: int = 4, failed: Iterable[int] = ()) -> list[Trial]:
    """`count` different trials of SPACE, `generation` of them in each generation."""
    sizes = [n for _, n in SPACE.genes]
    rng, found, trials, failed = random.Random(0), set(), [], set(failed)
    while len(trials) < count:
        candidate = SPACE.decode(tuple(rng.randrange(n) for n in sizes))
        schedule = build_schedule(candidate, CARDS)
        if schedule.key() in found:
            continue
        found.add(schedule.key())
        number = len(trials)
        result = Failure('E: "bad", quoted', 3) if number in failed else score(schedule)
        trials.append(
            Trial(
                trial_id=number,
                generation=number // generation,
                key=schedule.key(),
                schedule=schedule.to_json(),
                candidate=candidate,
                call_widths=schedule.widths,
                result=result,
            )
        )
    return trials


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows as text: nothing is parsed, so equal rows were equal bytes."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def timeless(path: Path) -> list[dict[str, str]]:
    """Rows without the columns that two equal runs may differ in."""
    return [{k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in read_csv(path)]


def copy_toy(folder: Path) -> Path:
    """The shipped toy space and its recipe, copied; weights are written beside the recipe."""
    for name in ("search_spaces", "supernets"):
        (folder / name).mkdir(parents=True)
        shutil.copy(ROOT / name / "toy.yaml", folder / name)
    return folder / "search_spaces" / "toy.yaml"


def quiet_environment(cache: Path) -> Mapping[str, str]:
    """Of a child process that uses one thread and leaves the user's cache alone."""
    return os.environ | {
        "STEPSEARCH_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
    }


def run_python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """`code` in a process of its own, with `args` in sys.argv[1:]."""
    command = [sys.executable, "-c", code, *map(str, args)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
