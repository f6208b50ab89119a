"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from stepsearch.core.errors import FULL, NoSpace, RunError


def cache_folder() -> Path:
    """Where images, extractors and reference statistics are kept, named by content."""
    set_by_user = os.environ.get("STEPSEARCH_CACHE")
    return Path(set_by_user) if set_by_user else Path(platformdirs.user_cache_dir("stepsearch"))


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside, fsync, rename, fsync the folder: a kill leaves the old or the new file.

    Raises:
        OSError: names `path`; the old file is left, and nothing beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte; a disk that is nearly full takes a part and refuses the rest."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def sync_folder(folder: Path) -> None:
    """Make renames and new files in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(run: Path) -> Iterator[None]:
    """What the disk of a run directory refuses, said with what to do.

    Raises:
        NoSpace: the disk is full or a quota spent.
        RunError: anything else, such as a folder that is read-only or a disk that fails.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in FULL
        remedy = "free some" if full else f"see that {run} can be written to"
        text = f"{error.filename or run}: {error.strerror or error}; nothing finished is lost: "
        text += f"{remedy}, then continue with `stepsearch resume {run}`"
        raise (NoSpace if full else RunError)(text) from None
