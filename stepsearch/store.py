"""The run directory: a journal that is the truth, and files derived from it. The only writer."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from stepsearch.core.errors import ConfigError, RunError
from stepsearch.core.files import sync_folder, write_atomic
from stepsearch.core.pareto import hypervolume, pareto_front, pareto_rank
from stepsearch.core.schedule import StepSchedule
from stepsearch.core.trial import COLUMNS, Measurement, Trial

if TYPE_CHECKING:
    import pandas as pd

JOURNAL = "journal.jsonl"
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
        "seed",
    ),
    "Float64": (
        "fid",
        "fid_se",
        "gflops_per_image",
        "latency_ms",
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


class RunStore:
    """One run directory, held by one driver.

    Raises:
        RunError: held by another driver, or a journal with a damaged line before its end.
    """

    def __init__(self, path: Path, objectives: Sequence[str]) -> None:
        self.path, self.objectives = path, tuple(objectives)
        self._lock = FileLock(path / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"{path}: another stepsearch is writing here; wait for it or stop it"
            ) from None
        try:
            self.trials, self.torn = recover_journal(path / JOURNAL)
            self._journal: IO[bytes] = (path / JOURNAL).open("ab")
            sync_folder(path)
        except BaseException:
            self._lock.release()
            raise

    @classmethod
    def create(cls, path: Path, objectives: Sequence[str], files: Mapping[str, str]) -> RunStore:
        """A new run directory holding `files`, there whole or not at all.

        Raises:
            ConfigError: something is there already, or the place cannot be written to.
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
            raise ConfigError(f"{path}: cannot be created: {error.strerror}") from None
        return cls(path, objectives)

    def append(self, trial: Trial) -> None:
        """Make a finished trial durable; it counts from here on."""
        self._journal.write(journal_line(trial))
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self.trials.append(trial)

    def write_tables(self) -> None:
        """Rewrite trials, pareto and generations from the trials so far."""
        trials = trial_frame(self.trials, self.objectives)
        pareto = trials[trials["is_pareto"]].sort_values(
            ["gflops_per_image", "trial_id"], kind="stable"
        )
        tables = {"trials": trials, "pareto": pareto}
        tables["generations"] = generation_frame(self.trials, self.objectives)
        for name, frame in tables.items():
            write_atomic(self.path / f"{name}.csv", frame.to_csv(index=False).encode())
        buffer = io.BytesIO()
        trials.to_parquet(buffer, index=False)
        write_atomic(self.path / "trials.parquet", buffer.getvalue())

    def write_text(self, name: str, text: str) -> None:
        """Write a small file of the run directory, atomically."""
        write_atomic(self.path / name, text.encode())

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


def journal_line(trial: Trial) -> bytes:
    """One line: a checksum and the trial, both JSON."""
    text = json.dumps(trial.to_dict(), sort_keys=True)
    return f'{{"crc": {zlib.crc32(text.encode())}, "trial": {text}}}\n'.encode()


def _read_line(line: bytes) -> Trial | None:
    """The trial of a complete and undamaged line, else None."""
    try:
        entry = json.loads(line)
        text = json.dumps(entry["trial"], sort_keys=True)
        if entry["crc"] != zlib.crc32(text.encode()):
            return None
        return Trial.from_dict(entry["trial"])
    except (ValueError, KeyError, TypeError):
        return None


def read_journal(path: Path) -> tuple[list[Trial], int]:
    """Trials of a journal, and the length of its good part; RunError for damage before the end."""
    data = path.read_bytes() if path.exists() else b""
    trials: list[Trial] = []
    good = 0
    while good < len(data):
        end = data.find(b"\n", good) + 1
        trial = _read_line(data[good:end]) if end else None
        if trial is None:
            if end and end < len(data):
                line = data.count(b"\n", 0, good) + 1
                raise RunError(
                    f"{path}:{line}: damaged line before the end; restore the file, or cut it off "
                    f"before this line to lose only what follows"
                )
            break
        trials.append(trial)
        good = end
    return trials, good


def recover_journal(path: Path) -> tuple[list[Trial], Path | None]:
    """Trials of a journal; a torn last line is moved to a file of its own, which is returned."""
    trials, good = read_journal(path)
    data = path.read_bytes() if path.exists() else b""
    if good == len(data):
        return trials, None
    n = 1
    while (torn := path.with_name(f"journal.torn-{n}")).exists():
        n += 1
    write_atomic(torn, data[good:])
    with path.open("r+b") as file:
        file.truncate(good)
        file.flush()
        os.fsync(file.fileno())
    return trials, torn


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
    frame = pd.DataFrame([t.row(rank.get(t.trial_id)) for t in ordered], columns=list(COLUMNS))
    return frame.astype(COLUMN_TYPES)


def generation_frame(trials: Sequence[Trial], objectives: Sequence[str]) -> pd.DataFrame:
    """generations.csv: counts, and the front of all trials up to each generation.

    The hypervolume is bounded by 1.1 times the worst value of each objective in generation 0.
    """
    import pandas as pd

    rows, points, reference = [], [], None
    for generation in sorted({t.generation for t in trials}):
        born = [t for t in trials if t.generation == generation]
        points += [_values(t, objectives) for t in born if t.complete]
        if reference is None and points:
            reference = [1.1 * max(column) for column in zip(*points, strict=True)]
        row: dict[str, Any] = {
            "generation": generation,
            "trials": len(born),
            "failed": sum(not t.complete for t in born),
            "front_size": int(pareto_front(points).sum()) if points else 0,
            "hypervolume": hypervolume(points, reference) if reference else 0.0,
        }
        columns = list(zip(*points, strict=True)) or [[None]] * len(objectives)
        row |= {f"best_{n}": min(c) for n, c in zip(objectives, columns, strict=True)}
        rows.append(row)
    names = ["generation", "trials", "failed", "front_size", "hypervolume"]
    return pd.DataFrame(rows, columns=[*names, *(f"best_{n}" for n in objectives)])


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
