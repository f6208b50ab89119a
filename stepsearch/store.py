"""The run directory: a journal that is the truth, and files derived from it. The only writer."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout

from stepsearch.core.errors import FULL, ConfigError, NoSpace, RunError
from stepsearch.core.files import disk_errors, sync_folder, write_atomic
from stepsearch.core.pareto import hypervolume, pareto_front, pareto_rank
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.trial import COLUMNS, Measurement, Trial
from stepsearch.journal import Journal, journal_line, read_journal, recover_journal

if TYPE_CHECKING:
    import pandas as pd

JOURNAL = "journal.jsonl"
TABLES = ("trials.csv", "pareto.csv", "generations.csv", "trials.parquet")
WRITING = 0.05  # part of a search's time at most that goes into tables nobody has asked for yet
DTYPES = {
    "Int64": (
        "trial_id",
        "generation",
        "rank",
        "nfe",
        "immiscible_batch",
        "pfdiff_k",
        "pfdiff_l",
        "relay_calls",
        "n_samples",
        "n_sampled",
        "seed",
    ),
    "Float64": (
        "fid",
        "fid_se",
        "gflops_per_image",
        "kid",
        "latency_ms",
        "peak_memory_mb",
        "pfdiff_c",
        "relay_start",
        "guidance",
        "guidance_low",
        "guidance_high",
        "mean_width",
        "seconds",
    ),
    "boolean": ("is_pareto",),
}
COLUMN_TYPES = dict.fromkeys(COLUMNS, "string") | {c: t for t, cs in DTYPES.items() for c in cs}


class Copy(Protocol):
    """Where a run directory is mirrored to; raises where that fails."""

    def create(self, paths: Iterable[Path]) -> None:
        """Put the first files of a new run."""

    def append(self, line: bytes) -> None:
        """Make a line of the journal durable there, before it is here."""

    def push(self, paths: Iterable[Path]) -> None:
        """Put files over what is there."""


class RunStore:
    """One run directory, held by one driver.

    What its disk refuses is NoSpace or RunError, see `disk_errors`: the search ends, every trial
    that counts is in the journal, and no table is torn.

    Raises:
        RunError: held by another driver, or a journal with a damaged line before its end.
    """

    def __init__(self, path: Path, objectives: Sequence[str], copy: Copy | None = None) -> None:
        self.path, self.objectives, self._copy = path, tuple(objectives), copy
        self._lock = FileLock(path / ".lock")
        self._written, self._took = -float("inf"), 0.0  # seconds: when tables were, and how long
        with disk_errors(path):
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise RunError(
                    f"{path}: another stepsearch is writing here; wait for it or stop it"
                ) from None
            try:
                self._sweep()
                self.trials, self.torn = recover_journal(path / JOURNAL)
                self._journal = Journal(path / JOURNAL)
                sync_folder(path)
            except BaseException:
                self._lock.release()
                raise

    def _sweep(self) -> None:
        """Remove what a killed driver had begun; the holder of the lock alone writes these."""
        for name in (*TABLES, "journal.torn-*"):
            for path in self.path.glob(f".{name}.*.tmp"):
                path.unlink()

    @classmethod
    def create(
        cls,
        path: Path,
        objectives: Sequence[str],
        files: Mapping[str, str],
        copy: Copy | None = None,
    ) -> RunStore:
        """A new run directory holding `files`, there whole or not at all.

        Raises:
            ConfigError: something is there already, or the place cannot be written to.
            NoSpace: the disk is full.
        """
        check_absent(path)
        draft = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            draft.mkdir(parents=True)
            for name, text in files.items():
                write_atomic(draft / name, text.encode())
            (draft / JOURNAL).touch()
            draft.rename(path)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            check_absent(path)  # another driver may have been quicker
            if error.errno in FULL:
                raise NoSpace(f"{path}: {error.strerror}; free some and try again") from None
            raise ConfigError(f"{path}: cannot be created: {error.strerror}") from None
        with disk_errors(path):
            sync_folder(path.parent)
        store = cls(path, objectives, copy)
        if copy is not None:
            try:
                copy.create(path / name for name in files)
            except BaseException:
                store.close()
                raise
        return store

    def append(self, trial: Trial) -> None:
        """Make a finished trial durable; it counts from here on."""
        if self._copy is not None:
            self._copy.append(journal_line(trial))
        with disk_errors(self.path):
            self._journal.append(trial)
        self.trials.append(trial)

    def write_tables(self, *, final: bool = True) -> None:
        """Rewrite trials, pareto and generations from the trials so far.

        Unless `final`, only where that takes at most the part WRITING of the time since the last.
        """
        begun = time.monotonic()
        if not final and self._took > WRITING * (begun - self._written):
            return
        trials = trial_frame(self.trials, self.objectives)
        pareto = trials[trials["is_pareto"]].sort_values(
            ["gflops_per_image", "trial_id"], kind="stable"
        )
        frames = (trials, pareto, generation_frame(self.trials, self.objectives))
        buffer = io.BytesIO()
        trials.to_parquet(buffer, index=False)
        data = [frame.to_csv(index=False).encode() for frame in frames]
        with disk_errors(self.path):
            for name, table in zip(TABLES, [*data, buffer.getvalue()], strict=True):
                write_atomic(self.path / name, table)
        if self._copy is not None:
            self._copy.push(self.path / name for name in TABLES)
        self._written = time.monotonic()
        self._took = self._written - begun

    def write_text(self, name: str, text: str) -> None:
        """Write a small file of the run directory, atomically."""
        with disk_errors(self.path):
            write_atomic(self.path / name, text.encode())
        if self._copy is not None:
            self._copy.push([self.path / name])

    def close(self) -> None:
        """Release the lock; safe to call twice."""
        self._journal.close()
        self._lock.release()


def is_run(path: Path) -> bool:
    """Whether a folder is a run directory."""
    return (path / JOURNAL).is_file()


def check_absent(path: Path) -> None:
    """ConfigError where there is something at the place of a new run directory."""
    if is_run(path):
        raise ConfigError(
            f"{path}: exists already and nothing is overwritten; continue it with "
            f"`stepsearch resume {path}` or choose another folder with -o"
        )
    if path.exists():
        raise ConfigError(f"{path}: exists and is no run directory; choose another with -o")


def _values(trial: Trial, objectives: Sequence[str]) -> tuple[float, ...]:
    assert isinstance(trial.result, Measurement)
    return tuple(trial.result.values[name] for name in objectives)


def trial_frame(trials: Sequence[Trial], objectives: Sequence[str]) -> pd.DataFrame:
    """trials.csv as a frame, one row a trial in the order of asking."""
    import pandas as pd

    ordered = sorted(trials, key=lambda t: t.trial_id)
    complete = [t for t in ordered if t.complete]
    points = [_values(t, objectives) for t in complete]
    ranks = pareto_rank(points) if points else []
    rank = {t.trial_id: int(r) for t, r in zip(complete, ranks, strict=True)}
    rows = [t.row(rank.get(t.trial_id)) for t in ordered]
    columns = {c: pd.array([row[c] for row in rows], dtype=COLUMN_TYPES[c]) for c in COLUMNS}
    return pd.DataFrame(columns)


def generation_frame(trials: Sequence[Trial], objectives: Sequence[str]) -> pd.DataFrame:
    """generations.csv: counts, and the front of all trials up to each generation.

    The hypervolume is bounded by 1.1 times the worst value of each objective in generation 0.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    front: list[tuple[float, ...]] = []  # of all so far; the rest adds nothing later on
    bound: list[float] | None = None
    for generation, group in groupby(sorted(trials, key=_place), key=lambda t: t.generation):
        born = list(group)
        front += [_values(t, objectives) for t in born if t.complete]
        if bound is None and front:
            bound = [_beyond(max(column)) for column in zip(*front, strict=True)]
        kept = pareto_front(front) if front else []
        front = [point for point, keep in zip(front, kept, strict=True) if keep]
        volume = hypervolume(front, bound) if bound else 0.0
        row = {
            "generation": generation,
            "trials": len(born),
            "failed": sum(t.failed for t in born),
            "front_size": len(front),
            "hypervolume": volume if math.isfinite(volume) else None,
        }
        columns = list(zip(*front, strict=True)) or [[None]] * len(objectives)
        row |= {f"best_{n}": min(c) for n, c in zip(objectives, columns, strict=True)}
        rows.append(row)
    names = ["generation", "trials", "failed", "front_size", "hypervolume"]
    return pd.DataFrame(rows, columns=[*names, *(f"best_{n}" for n in objectives)])


def _place(trial: Trial) -> tuple[int, int]:
    return trial.generation, trial.trial_id


def _beyond(worst: float) -> float:
    """A tenth beyond the worst value, on the far side of it also below zero."""
    return min((1.1 if worst > 0 else 0.9) * worst, sys.float_info.max)


@dataclass(frozen=True)
class Run:
    """A run directory as pandas frames."""

    path: Path
    trials: pd.DataFrame
    pareto: pd.DataFrame
    generations: pd.DataFrame
    env: Mapping[str, Any]

    @property
    def schedules(self) -> dict[str, StepSchedule]:
        """Schedule of every trial by its `key`."""
        trials, _ = read_journal(self.path / JOURNAL)
        return {t.key: StepSchedule.from_json(t.schedule) for t in trials}


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read a run directory; never writes, so it may be called while a search is running.

    Raises:
        ConfigError: no run directory, or none with a finished generation.
        RunError: files that are missing or damaged.
    """
    import pandas as pd

    folder = Path(path)
    if not is_run(folder):
        raise ConfigError(f"{folder}: no run directory (no {JOURNAL}); see `stepsearch run --help`")
    if not (folder / "trials.csv").is_file():
        raise ConfigError(f"{folder}: no generation is finished yet; try again later")

    def read(name: str, parse: Callable[[Path], Any]) -> Any:
        try:
            return parse(folder / name)
        except (OSError, ValueError) as error:
            raise RunError(
                f"{folder / name}: missing or damaged ({error}); restore it, or write tables "
                f"again with `stepsearch resume {folder}`"
            ) from None

    table = functools.partial(pd.read_csv, dtype=COLUMN_TYPES)
    return Run(
        path=folder,
        trials=read("trials.csv", table),
        pareto=read("pareto.csv", table),
        generations=read("generations.csv", pd.read_csv),
        env=read("env.json", lambda path: json.loads(path.read_text(encoding="utf-8"))),
    )
