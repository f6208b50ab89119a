"""What drivers do that are forked by `zygote`: a real search with a stub score, on a disk that may
fail. As `stepsearch run --resume`, without networks."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from disk import Disk
from support import CARDS, OBJECTIVES, score, settings_with

from stepsearch import store as store_module
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.trial import Failure, Measurement
from stepsearch.executors.local import LocalExecutor
from stepsearch.search import run_search
from stepsearch.signals import Signals
from stepsearch.store import RunStore, is_run

FILES = {"space.yaml": "a: 1\n", "resolved.yaml": "a: 1\n", "env.json": "{}\n"}


class Shuffled(LocalExecutor):
    """Ends a generation in an order of its own, as workers do."""

    def map(
        self, schedules: Iterable[StepSchedule], rung: int | None = None
    ) -> Iterator[tuple[str, Measurement | Failure]]:
        if isinstance(schedules, Sequence):
            schedules = random.sample(schedules, len(schedules))
        return super().map(schedules, rung)


def search(
    folder: str,
    settings: Mapping[str, Any] = {},
    *,
    delay: float = 0.0,
    stuck: bool = False,
    disk: Mapping[str, Any] | None = None,
) -> int:
    """Begin or continue a search; writes what its disk did to `folder`.disk.

    Every trial that counts is told to `folder`.told, past the disk that fails.

    Args:
        delay: seconds that a score takes at most.
        stuck: whether the last score of the budget hangs.
        disk: the fault of `Disk`; how often tables are written is then no matter of time.
    """
    path, faults = Path(folder), None
    if disk is not None:
        store_module.WRITING = 0.0  # once, and at the end
        faults = Disk(str(path.parent) + "/", **disk)
        faults.install()
    random.seed(os.getpid())
    wanted = settings_with(**settings)
    budget = wanted.search.population * wanted.search.generations
    try:
        with Signals(f"`stepsearch resume {path}`") as signals:
            run = RunStore(path, OBJECTIVES) if is_run(path) else create(path)

            def slow_score(schedule: StepSchedule) -> Measurement:
                time.sleep(random.uniform(0, delay))
                if stuck and len(run.trials) == budget - 1:
                    time.sleep(60)
                return score(schedule)

            executor = Shuffled(lambda: slow_score, stopping=signals.stopping)
            try:
                try:
                    with open(f"{folder}.told", "a", buffering=1) as told:
                        run_search(
                            wanted, CARDS, run, executor, lambda p: print(p.latest.key, file=told)
                        )
                finally:
                    if run.trials:
                        run.write_tables()
            finally:
                run.close()
    finally:
        if faults is not None:
            done = {"points": faults.points, "calls": faults.calls}
            Path(f"{folder}.disk").write_text(json.dumps(done))
    return 0


def create(path: Path) -> RunStore:
    return RunStore.create(path, OBJECTIVES, FILES)


def shell(command: Sequence[str]) -> int:
    return subprocess.run(command, check=False).returncode


def limited(folder: str, size: int) -> int:
    """A search whose files may not grow beyond `size` bytes, by the kernel's own limit."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return search(folder)


def warm_up() -> None:
    """Load what a search loads when it first needs it."""
    with tempfile.TemporaryDirectory() as folder:
        search(f"{folder}/run", {"population": 2, "generations": 1})
    assert not [name for name in sys.modules if name.partition(".")[0] == "ray"]
