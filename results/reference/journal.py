"""What 50,000 trials in one journal cost: a search with a stub score, and every way to read it.

    python results/reference/journal.py [FOLDER]

writes journal.csv beside this file. `seconds` are what a user waits, the least of three where it is
a command; `cpu_seconds` are what of it is computing, in all processes, and tell more where others
use the machine too.
"""

from __future__ import annotations

import csv
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # the stub score of the tests, and its network card

from support import CARDS, OBJECTIVES, SETTINGS, SPACE, StubExecutor  # noqa: E402

from stepsearch.journal import read_journal  # noqa: E402
from stepsearch.search import run_search  # noqa: E402
from stepsearch.store import JOURNAL, RunStore, load_run  # noqa: E402

POPULATION, GENERATIONS = 100, 500
BUDGET = f"search: {{population: {POPULATION}, generations: {GENERATIONS}}}\n"
FILES = {"space.yaml": BUDGET, "resolved.yaml": BUDGET, "env.json": "{}\n"}


def settings() -> Any:
    """Twelve width genes: room for many more schedules than are asked."""
    space = replace(SPACE, calls=(5, 8, 10, 15, 20), width_genes=12)
    search = replace(SETTINGS.search, population=POPULATION, generations=GENERATIONS)
    return replace(SETTINGS, space=space, search=search)


def measured(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds and CPU seconds of a call."""
    times, begun = os.times(), time.perf_counter()
    call()
    took, now = time.perf_counter() - begun, os.times()
    return took, sum(now[:4]) - sum(times[:4])


def command(*words: str) -> Callable[[], Any]:
    """A whole process, with its imports."""
    program = Path(sys.executable).with_name("stepsearch")
    return lambda: subprocess.run([program, *words], check=True, stdout=subprocess.DEVNULL)


def search(run: Path) -> None:
    """Begin, or resume."""
    store = RunStore(run, OBJECTIVES) if run.exists() else RunStore.create(run, OBJECTIVES, FILES)
    run_search(settings(), CARDS, store, StubExecutor())
    store.write_tables()
    store.close()


def main() -> None:
    """Measure, write the table, and remove the run."""
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    run = place / "run"
    rows = [
        ("the whole search, its scores a stub", measured(lambda: search(run))),
        ("resume of the finished search", measured(lambda: search(run))),
        ("read_journal", measured(lambda: read_journal(run / JOURNAL))),
        ("load_run", measured(lambda: load_run(run))),
    ]
    store = RunStore(run, OBJECTIVES)
    rows.append(("write_tables", measured(store.write_tables)))
    store.close()
    for name in ("front", "status"):
        rows.append(
            (f"stepsearch {name}", min(measured(command(name, str(run))) for _ in range(3)))
        )
    trials = POPULATION * GENERATIONS
    size = (run / JOURNAL).stat().st_size
    machine = f"{os.cpu_count()} cores {platform.machine()}"
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["what", "seconds", "cpu_seconds", "trials", "journal_mb", "machine"])
        for what, (took, cpu) in rows:
            table.writerow(
                [what, f"{took:.2f}", f"{cpu:.2f}", trials, f"{size / 1e6:.0f}", machine]
            )
    shutil.rmtree(run)


if __name__ == "__main__":
    main()
