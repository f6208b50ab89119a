"""Runs that live at a URI: written in a local folder, and mirrored to an object store by fsspec.

An object store cannot append, so every journal line is an object of its own, which only one driver
can create. The remote journal is the truth, and the local one a beginning of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from stepsearch.core.errors import ConfigError, Interrupted, RunError, StepsearchError
from stepsearch.core.files import cache_folder, sync_folder, write_atomic
from stepsearch.store import JOURNAL

MARK = ".mirror.json"  # in the local folder: where it is mirrored to
CLAIM = "env.json"  # pushed first; who creates it has the place
SEGMENTS = "journal"
LOCK = ".lock"  # of RunStore
DIGITS = 6


def is_uri(place: str) -> bool:
    """Whether a place is a URI, s3://bucket/run, and no path."""
    return "://" in place


def open_place(place: str) -> tuple[Path, Mirror | None]:
    """The local folder of a run to write, and what mirrors it where the place is a URI.

    A local folder that belongs to a URI is mirrored as well. A remote run is fetched first.

    Raises:
        ConfigError: a URI that no installed backend knows.
        RunError: another driver on this machine, or a local copy that says something else.
    """
    uri = place
    if not is_uri(place):
        mark = Path(place) / MARK
        if not mark.is_file():
            return Path(place), None
        uri = json.loads(mark.read_text(encoding="utf-8"))["uri"]
    mirror = Mirror(uri)
    mirror.fetch(writing=True)
    return mirror.folder, mirror


def run_folder(place: str) -> Path:
    """The local folder of a run to read; what is at a URI is fetched first.

    Raises:
        ConfigError: a URI that no installed backend knows, or with no run at it.
    """
    if not is_uri(place):
        return Path(place)
    mirror = Mirror(place)
    if not mirror.fetch():
        raise ConfigError(f"{place}: no run there; see `stepsearch run --help`")
    return mirror.folder


class Mirror:
    """One run at one URI.

    Two drivers may both start on a run: both work, until the first writes the next journal line;
    the other cannot create that object, and stops. So no line is ever written over, and what is
    lost is the work of one trial a worker. This is as good as the backend's exclusive creation,
    which is atomic on S3, GCS and local files.

    Raises:
        ConfigError: a URI that no installed backend knows.
    """

    def __init__(self, uri: str) -> None:
        import fsspec

        self.uri = uri.rstrip("/")
        if urlsplit(uri).password is not None:
            raise ConfigError(
                "-o: the URI holds a password, which would end up in logs; give it to the backend "
                "by its own configuration or environment"
            )
        try:
            self._fs, root = fsspec.core.url_to_fs(self.uri)
        except (ImportError, ValueError) as error:
            scheme = uri.partition("://")[0]
            first = str(error).strip().splitlines()[0]
            raise ConfigError(f"{scheme}://: {first}; install the fsspec backend") from None
        self._root = root.rstrip("/")
        name = PurePosixPath(self._root).name or "run"
        self.folder = cache_folder() / "runs" / _digest(self.uri) / name
        self._lines, self._made = 0, set[str]()

    def fetch(self, *, writing: bool = False) -> bool:
        """Bring the local folder up to what is remote; False where nothing is there.

        Args:
            writing: a driver will write; else a driver at work on this machine is left alone.

        Raises:
            RunError: another driver on this machine, or a local copy that says something else.
            StepsearchError: the store cannot be reached.
        """
        names = self._names()
        journal = self.folder / JOURNAL
        if CLAIM not in names and not (journal.is_file() and journal.stat().st_size):
            if writing and self.folder.exists():  # of a driver that ended before `create`
                with self._held(writing):
                    shutil.rmtree(self.folder)
            return False
        segments = sorted(n for n in names if n.startswith(f"{SEGMENTS}/"))
        for i, name in enumerate(segments):
            if name != _segment(i):
                raise RunError(
                    f"{self.uri}: {_segment(i)} is missing, and later lines are there; restore it"
                )
        with self._held(writing) as held:
            if held:
                self._update(segments, sorted(names - set(segments)))
        return True

    def create(self, paths: Iterable[Path]) -> None:
        """Put the first files of a new run; RunError where another driver was quicker."""
        rest = [path for path in paths if path.name != CLAIM]
        self.push(rest)
        self._create(CLAIM, (self.folder / CLAIM).read_bytes())
        self.push(rest)  # again: a driver that came second may have put its own over them
        self._mark()

    def append(self, line: bytes) -> None:
        """Make a journal line durable; it may be written to the local journal after this.

        Raises:
            RunError: another driver has written this line.
            Interrupted: the store cannot be reached.
        """
        self._create(_segment(self._lines), line)
        self._lines += 1

    def push(self, paths: Iterable[Path]) -> None:
        """Put files of the local folder, over what is there; Interrupted where that fails."""
        for path in paths:
            name = path.relative_to(self.folder).as_posix()
            with self._writing():
                self._fs.pipe_file(self._place(name), path.read_bytes())

    def _create(self, name: str, data: bytes) -> None:
        """Put an object that must be new."""
        with self._writing():
            place = self._place(name)
            try:
                _put_new(self._fs, place, data)
                return
            except Exception:
                # backends disagree on what refusal looks like, and an answer may have been lost
                self._fs.invalidate_cache()
                if not self._fs.exists(place):
                    raise
                if self._fs.cat_file(place) == data:
                    return
        raise RunError(
            f"{self.uri}: {name} is there already, so another stepsearch is writing there; wait "
            f"for it or stop it"
        )

    def _place(self, name: str) -> str:
        """The object of a file, in a folder that is there."""
        place = f"{self._root}/{name}"
        parent = place.rpartition("/")[0]
        if parent not in self._made:
            self._fs.makedirs(parent, exist_ok=True)
            self._made.add(parent)
        return place

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every backend has errors of its own
            raise Interrupted(
                f"{self.uri}: cannot be written ({_first_line(error)}); nothing finished is lost, "
                f"continue with `stepsearch resume {self.uri}`"
            ) from None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every backend has errors of its own
            raise StepsearchError(
                f"{self.uri}: cannot be read ({_first_line(error)}); correct the URI or try again"
            ) from None

    def _read(self, names: Iterable[str]) -> list[bytes]:
        places = [f"{self._root}/{name}" for name in names]
        with self._reading():  # many at a time where the backend can
            return list(self._fs.cat_ranges(places, None, None, on_error="raise"))

    def _names(self) -> set[str]:
        """Every remote file, relative to the root; RunError for one that would leave the folder."""
        with self._reading():
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._root)
            except FileNotFoundError:
                return set()
        names = {name[len(self._root) + 1 :] for name in found}
        for name in names:
            if not name or name.startswith("/") or ".." in PurePosixPath(name).parts:
                raise RunError(f"{self.uri}: object '{name}' is no file of a run; remove it")
        return {n for n in names if not PurePosixPath(n).name.startswith(".") and n != JOURNAL}

    @contextlib.contextmanager
    def _held(self, writing: bool) -> Iterator[bool]:
        """The lock of the local folder's driver; for a reader False where one is at work."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if writing:
                raise RunError(
                    f"{self.uri}: another stepsearch is writing here; wait for it or stop it"
                ) from None
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _update(self, segments: list[str], files: list[str]) -> None:
        """Write what is remote, and not here, to the local folder."""
        journal = self.folder / JOURNAL
        data = journal.read_bytes() if journal.is_file() else b""
        here = [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
        same = len(here) <= len(segments) and CLAIM in files
        if same and here:  # one line tells: trials know when they began
            (last,) = self._read(segments[len(here) - 1 : len(here)])
            same = last == here[-1]
        if not same:
            raise RunError(
                f"{self.uri}: the local copy {self.folder} holds trials that are not there; delete "
                f"the copy to go by what is there, or move it to keep it as a run of its own"
            )
        new, contents = (
            self._read(segments[len(here) :]),
            zip(files, self._read(files), strict=True),
        )
        for name, content in contents:
            write_atomic(self.folder / name, content)
        self._mark()
        if new or not journal.is_file():
            write_atomic(journal, b"".join(here + new))
        self._lines = len(segments)

    def _mark(self) -> None:
        write_atomic(self.folder / MARK, (json.dumps({"uri": self.uri}) + "\n").encode())


def _put_new(fs: Any, place: str, data: bytes) -> None:
    """Create an object that is there whole or not at all; an exception where one is there."""
    if not getattr(fs, "local_file", False):
        fs.pipe_file(place, data, mode="create")
        return
    path = Path(place)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        write_atomic(temporary, data)
        os.link(temporary, path)  # fsspec itself would look first and write afterwards
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _segment(number: int) -> str:
    return f"{SEGMENTS}/{number:0{DIGITS}}.jsonl"


def _first_line(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
