"""The journal of a run: one checksummed line a finished trial, and the only truth about it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from pathlib import Path

from stepsearch.core.errors import RunError
from stepsearch.core.files import write_all, write_atomic
from stepsearch.core.trial import Trial

START = b'{"crc": '  # of every line, and in no other place: JSON escapes quotes within text
LINE = re.compile(rb'\{"crc": (\d{1,10}), "trial": (\{.*\})\}\n')


class Journal:
    """The journal, open at its end; a line counts once it is on the disk.

    Raises:
        OSError: names `path`; nothing can be appended after a line that failed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file: int | None = os.open(path, flags, 0o666)
        self._good = os.fstat(self._file).st_size
        self._refused: BaseException | None = None
        try:
            os.fsync(self._file)  # what an earlier driver could not be sure of
        except OSError as error:
            self.close()
            error.filename = str(path)
            raise

    def append(self, trial: Trial) -> None:
        """Write a line and wait until the disk has it.

        Where that fails the journal is cut back to its last good line. A failed fsync is not tried
        again: the kernel may have dropped what it could not write, and say that all is well.
        """
        assert self._file is not None
        if self._refused is not None:
            raise self._refused
        line = journal_line(trial)
        try:
            write_all(self._file, line)
            os.fsync(self._file)
        except BaseException as error:
            self._refused = error
            if isinstance(error, OSError):
                error.filename = str(self.path)
            with contextlib.suppress(OSError):  # else the next driver sets the torn line aside
                os.ftruncate(self._file, self._good)
            raise
        self._good += len(line)

    def close(self) -> None:
        """Safe to call twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def journal_line(trial: Trial) -> bytes:
    """One line: a checksum and the trial, both JSON."""
    text = json.dumps(trial.to_dict(), sort_keys=True).encode()
    return b'%b%d, "trial": %b}\n' % (START, zlib.crc32(text), text)


def checked_lines(path: Path, data: bytes) -> tuple[list[bytes], int]:
    """JSON of every trial of a journal that holds `data`, and the length of its good part.

    What a killed driver leaves is a last line without its end: it is no part of the result. A line
    that is damaged in another way, or has others behind it, is a RunError.
    """
    texts: list[bytes] = []
    good = 0
    while good < len(data):
        end = data.find(b"\n", good) + 1
        match = LINE.fullmatch(data, good, end) if end else None
        if match is None or int(match[1]) != zlib.crc32(match[2]):
            if 0 < end < len(data) or data.find(START, good + 1) > 0:
                raise RunError(
                    f"{path}:{len(texts) + 1}: damaged line before the end; restore the file, or "
                    f"cut it off before this line to lose only what follows"
                )
            break
        texts.append(match[2])
        good = end
    return texts, good


def parse_journal(path: Path, data: bytes) -> tuple[list[Trial], int]:
    """Trials of a journal that holds `data`, in the order in which they ended, and the length of
    its good part; RunError names a line that is damaged, of another version or there twice."""
    texts, good = checked_lines(path, data)
    trials: list[Trial] = []
    lines: dict[int | str, int] = {}
    for line, text in enumerate(texts, 1):
        try:
            trial = Trial.from_dict(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{path}:{line}: no trial of this version of stepsearch "
                f"({type(error).__name__}: {error}); read the run with the version that wrote it"
            ) from None
        for name in (trial.trial_id, trial.key):
            if (first := lines.setdefault(name, line)) != line:
                raise RunError(
                    f"{path}:{line}: trial {trial.trial_id} ({trial.key}) is in line {first} "
                    f"already; restore the file"
                )
        trials.append(trial)
    return trials, good


def read_journal(path: Path) -> tuple[list[Trial], int]:
    """Trials of a journal and the length of its good part, see `parse_journal`; no file is none."""
    return parse_journal(path, path.read_bytes() if path.exists() else b"")


def recover_journal(path: Path) -> tuple[list[Trial], Path | None]:
    """Trials of a journal; a torn last line is moved to a file of its own, which is returned."""
    data = path.read_bytes() if path.exists() else b""
    trials, good = parse_journal(path, data)
    if good == len(data):
        return trials, None
    n = 1
    while (torn := path.with_name(f"journal.torn-{n}")).exists():
        n += 1
    write_atomic(torn, data[good:])
    os.truncate(path, good)  # made durable where the journal is opened to be written
    return trials, torn
