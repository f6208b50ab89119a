"""What has to hold after any fault, by the letters of the issue: A no trial that counted is lost,
B one result a trial, C the tables of an undisturbed run, D a front of finite values that is right,
E a finished run is left alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support import OBJECTIVES, dominates, read_csv, settings_with
from zygote import Zygote

from stepsearch.journal import read_journal
from stepsearch.store import JOURNAL, TABLES

ROWS = TABLES[:2]  # trials.csv, pareto.csv
KNOWN = {"space.yaml", "resolved.yaml", "env.json", ".lock", JOURNAL, *TABLES}


def journal_of(run: Path) -> bytes:
    """The journal up to its last whole line; nothing where there is no run."""
    path = run / JOURNAL
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1]


def point(row: Mapping[str, str]) -> tuple[float, ...]:
    return tuple(float(row[name]) for name in OBJECTIVES)


def assert_front(run: Path) -> None:
    """D: brute force over trials.csv gives pareto.csv, the cheapest first."""
    rows = [row for row in read_csv(run / "trials.csv") if row["state"] == "COMPLETE"]
    assert all(math.isfinite(value) for row in rows for value in point(row))
    front = [r for r in rows if not any(dominates(point(o), point(r)) for o in rows)]
    front.sort(key=lambda r: (float(r["gflops_per_image"]), int(r["trial_id"])))
    assert read_csv(run / "pareto.csv") == front


def assert_tables_whole(run: Path) -> None:
    """Tables that are there were written in one piece, from trials of the journal."""
    keys = {trial.key for trial in read_journal(run / JOURNAL)[0]}
    for name in ROWS:
        if (run / name).exists():
            assert {row["key"] for row in read_csv(run / name)} <= keys
            assert (run / name).read_bytes().endswith(b"\n")


class Runs:
    """Runs of a module, below its folder, and what they would have been undisturbed."""

    def __init__(self, zygote: Zygote, folder: Path) -> None:
        self.zygote, self.folder = zygote, folder
        self._whole: dict[str, Path] = {}
        self._made = 0

    def new(self) -> Path:
        """Where a run may be made, in a folder of its own."""
        self._made += 1
        (self.folder / str(self._made)).mkdir()
        return self.folder / str(self._made) / "run"

    def whole(self, settings: Mapping[str, Any]) -> Path:
        """An undisturbed run."""
        name = json.dumps(settings, sort_keys=True)
        if name not in self._whole:
            run = self._whole[name] = self.new()
            ended = self.zygote.run("search", folder=str(run), settings=settings)
            assert ended.code == 0, ended
            self.assert_finished(run, settings)
        return self._whole[name]

    def finish(self, run: Path, settings: Mapping[str, Any], before: bytes) -> None:
        """Resume a run whose journal held `before`; A to E hold."""
        ended = self.zygote.run("search", folder=str(run), settings=settings)
        assert ended.code == 0, ended
        assert journal_of(run).startswith(before), "a finished trial was lost"
        self.assert_finished(run, settings)

    def assert_finished(self, run: Path, settings: Mapping[str, Any]) -> None:
        """A to D; equal tables where the mode promises them."""
        trials, good = read_journal(run / JOURNAL)
        assert good == (run / JOURNAL).stat().st_size
        search = settings_with(**settings).search
        budget = search.population * search.generations
        assert sorted(t.trial_id for t in trials) == list(range(budget))
        assert len({t.key for t in trials}) == budget
        told = Path(f"{run}.told").read_text().split()
        assert set(told) <= {t.key for t in trials}
        assert len(set(told)) == len(told), "a trial was evaluated twice after it counted"
        assert [int(row["trial_id"]) for row in read_csv(run / "trials.csv")] == list(range(budget))
        assert_front(run)
        left = {path.name for path in run.iterdir() if not path.match("journal.torn-*")} - KNOWN
        assert not left, "temporary files are left"
        if search.mode == "generational":
            for name in TABLES:
                assert (run / name).read_bytes() == (self.whole(settings) / name).read_bytes()

    def assert_left_alone(self, run: Path, settings: Mapping[str, Any]) -> None:
        """E."""
        before = {path.name: path.read_bytes() for path in run.iterdir()}
        ended = self.zygote.run("search", folder=str(run), settings=settings)
        assert ended.code == 0, ended
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before
