"""Files that a factory reads, on machines that do not see the folder they were written to.

A file that is there under its own path with the right sha256 is used as it is. Any other is written
once per node, by whichever worker comes first, into a folder of the cache named by content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePath
from typing import Any

from filelock import FileLock

from stepsearch.core.errors import ConfigError
from stepsearch.core.files import cache_folder, write_atomic


@dataclass(frozen=True, slots=True)
class Shipped:
    """A file by its path on the driver; `data` is what `fetch` turns into its bytes."""

    path: str
    sha256: str
    data: Any


def read_files(
    files: Iterable[tuple[str, str]], put: Callable[[bytes], Any]
) -> tuple[Shipped, ...]:
    """Hand every (path, sha256) to `put` once; ConfigError for one that is not what it should be.

    Args:
        put: keeps the bytes where workers get at them, and returns what they ask for.
    """
    shipped = []
    for path, sha256 in dict.fromkeys(files):
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be sent to workers: {error.strerror}") from None
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise ConfigError(
                f"{path}: sha256 is {found[:12]}..., it was {sha256[:12]}... when the run began; "
                f"restore the file"
            )
        shipped.append(Shipped(path, sha256, put(data)))
    return tuple(shipped)


def place_files(files: Sequence[Shipped], fetch: Callable[[Any], bytes]) -> dict[str, str]:
    """Path on the driver -> path here, of files that are now here with the right sha256.

    Files of one folder and stem stay together: a network's weights and the card beside them.
    """
    placed = {}
    for _, group in groupby(sorted(files, key=_place), key=_place):
        members = sorted(group, key=_name)
        if all(_is(Path(file.path), file.sha256) for file in members):
            placed |= {file.path: file.path for file in members}
            continue
        name = hashlib.sha256("".join(f.sha256 + _name(f) for f in members).encode()).hexdigest()
        here = cache_folder() / "shipped" / name
        here.mkdir(parents=True, exist_ok=True)
        with FileLock(here / ".lock"):  # the others wait for the one that writes
            for file in members:
                _write(here / _name(file), file, fetch)
        placed |= {file.path: str(here / _name(file)) for file in members}
    return placed


def _write(path: Path, file: Shipped, fetch: Callable[[Any], bytes]) -> None:
    if _is(path, file.sha256):
        return
    write_atomic(path, fetch(file.data))
    if not _is(path, file.sha256):
        raise OSError(f"{path}: what was written is not what was sent; check the disk")


def _is(path: Path, sha256: str) -> bool:
    """Whether the file is there and holds that; one that cannot be read is not there."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


def _place(file: Shipped) -> tuple[str, str]:
    path = PurePath(file.path)
    return str(path.parent), path.stem


def _name(file: Shipped) -> str:
    return PurePath(file.path).name
