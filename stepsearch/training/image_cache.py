"""Images decoded once: uint8 in a file of the cache, which is mapped instead of read.

A folder of the cache is there whole or not at all, and one whose files have lost bytes is made
again. Nothing is left behind by images that cannot be used.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock

from stepsearch.core.errors import ConfigError
from stepsearch.core.files import cache_folder, sync_folder
from stepsearch.core.settings import DataSettings, content_hash
from stepsearch.core.text import some
from stepsearch.training.pixels import UNREADABLE, fit, reason
from stepsearch.training.sources import Dataset, Item, Source, images_sha256

OnProgress = Callable[[int, int], None]  # images decoded, images in all

FORMAT = 1  # of the pixels: raise it when `fit` makes other ones
CHUNK, TASK = 128, 8  # images in memory at a time; given to a thread at once
THREADS = min(16, os.cpu_count() or 1)  # Pillow decodes without holding the interpreter
IMAGES, LABELS, FACTS = "images.npy", "labels.npy", "facts.json"


def decoded(source: Source, settings: DataSettings, on_progress: OnProgress) -> Dataset:
    """The images of a source, from the cache where they have been decoded before.

    Raises:
        ConfigError: corrupt images, unless the settings skip them; sizes, or grey and colour, that
            do not fit together.
    """
    identity = [FORMAT, settings.kind, settings.path, dict(settings.args)]
    made = [settings.size, settings.channels]
    made += [] if settings.resample == "lanczos" else [settings.resample]
    key = content_hash({"of": [*identity, *made], "read from": source.identity})
    folder = cache_folder() / "images" / key[:32]
    with _locked(folder):
        found = _read(folder)
        if found is None:
            _build(folder, source, settings, on_progress)
            found = _read(folder)
    assert found is not None
    data, corrupt = found
    _check_corrupt(source, settings, corrupt, len(data.images))
    return data


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; where the first one fails, the cache is as it was before."""
    new = [p for p in (folder.parents[1], folder.parent) if not p.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_suffix(".lock")
    with FileLock(lock):
        try:
            yield
        except BaseException:
            if not folder.exists():
                lock.unlink(missing_ok=True)
                for created in reversed(new):
                    with contextlib.suppress(OSError):  # others keep something there by now
                        created.rmdir()
            raise


def _read(folder: Path) -> tuple[Dataset, dict[str, str]] | None:
    """What is cached, and why images are left out of it; None where it is not there whole."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in facts["bytes"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if sizes != facts["bytes"]:
        return None
    # private pages: torch asks for memory that it may write to, and the file stays as it is
    images = np.load(folder / IMAGES, mmap_mode="c", allow_pickle=False)
    labels = np.load(folder / LABELS, allow_pickle=False) if LABELS in sizes else None
    corrupt = dict(facts["corrupt"])
    return Dataset(facts["name"], images, labels, tuple(corrupt), facts["sha256"]), corrupt


def _build(folder: Path, source: Source, settings: DataSettings, on_progress: OnProgress) -> None:
    """Decode into a folder beside, then rename it; the lock is held."""
    for left in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed
        shutil.rmtree(left)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    draft.mkdir()
    try:
        with (draft / IMAGES).open("w+b") as file:
            found = _decode(source, settings, file, on_progress)
            file.flush()
            os.fsync(file.fileno())
        images = np.load(draft / IMAGES, mmap_mode="r", allow_pickle=False)
        labels = None
        if None not in found.labels:
            labels = np.array(found.labels, np.int64)
            _write(draft / LABELS, lambda file: np.save(file, labels))
        facts = {
            "name": source.name,
            "where": source.where,
            "sha256": images_sha256(images, labels),
            "corrupt": list(found.corrupt.items()),
            "bytes": {path.name: path.stat().st_size for path in draft.iterdir()},
        }
        _write(draft / FACTS, lambda file: file.write(json.dumps(facts, indent=1).encode()))
        shutil.rmtree(folder, ignore_errors=True)  # one that has lost bytes
        draft.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


@dataclass
class _Decoded:
    """What is known of the images so far."""

    file: IO[bytes]
    count: int  # images to come in all
    shape: tuple[int, ...] | None = None  # of the first image that could be read
    labels: list[int | None] = field(default_factory=list)
    corrupt: dict[str, str] = field(default_factory=dict)  # name -> why
    sizes: dict[str, str] = field(default_factory=dict)  # "32x32" -> first such image
    grey: list[str] = field(default_factory=list)  # names

    def add(self, item: Item, pixels: np.ndarray | str) -> None:
        """An image, or why it could not be read."""
        if isinstance(pixels, str):
            self.corrupt[item.name] = pixels
            return
        if self.shape is None:
            self.shape = pixels.shape
            self.header(self.count)
        self.sizes.setdefault("x".join(map(str, pixels.shape[:0:-1])), item.name)
        if pixels.shape[0] == 1:
            self.grey.append(item.name)
        self.labels.append(item.label)
        if pixels.shape == self.shape:  # an error is certain where it is not
            self.file.write(np.ascontiguousarray(pixels))

    def header(self, count: int) -> None:
        """Write that there are `count` images; numpy leaves room for any number of them."""
        assert self.shape is not None
        about = {"descr": "|u1", "fortran_order": False, "shape": (count, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, about)


def _decode(
    source: Source, settings: DataSettings, file: IO[bytes], on_progress: OnProgress
) -> _Decoded:
    """Write the images in npy format; ConfigError where they cannot all be used."""

    def work(item: Item) -> np.ndarray | str:
        try:
            with item.open() as image:
                return fit(image, settings.size, settings.channels, settings.resample)
        except UNREADABLE as error:
            return reason(error)

    def task(items: list[Item]) -> list[np.ndarray | str]:
        return [work(item) for item in items]

    found, done, items = _Decoded(file, source.count), 0, source.items()
    with ThreadPoolExecutor(THREADS) as pool, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # of what it repairs or reports as error
        while chunk := list(islice(items, CHUNK)):
            tasks = [chunk[first : first + TASK] for first in range(0, CHUNK, TASK)]
            for item, pixels in zip(chunk, chain.from_iterable(pool.map(task, tasks)), strict=True):
                found.add(item, pixels)
            done += len(chunk)
            _check_sizes(source, found, done)
            on_progress(done, source.count)
    _check_corrupt(source, settings, found.corrupt, len(found.labels))
    _check_grey(source, found)
    start = file.tell()
    file.seek(0)
    found.header(len(found.labels))
    assert start - file.tell() == len(found.labels) * np.prod(found.shape or ())
    return found


def _check_sizes(source: Source, found: _Decoded, done: int) -> None:
    if len(found.sizes) > 1:
        named = some(f"{name} is {size}" for size, name in found.sizes.items())
        raise ConfigError(
            f"data: {source.where}: images of {len(found.sizes)} different sizes among the first "
            f"{done}: {named}; set size, e.g. size: 32"
        )


def _check_corrupt(
    source: Source, settings: DataSettings, corrupt: dict[str, str], good: int
) -> None:
    if not corrupt or (settings.corrupt == "skip" and good):
        return
    named = some(f"{name} ({why})" for name, why in corrupt.items())
    raise ConfigError(
        f"data: {source.where}: {len(corrupt)} unreadable image{'s' * (len(corrupt) > 1)} of "
        f"{len(corrupt) + good}: {named}; repair or remove them, or leave them out with "
        f"corrupt: skip"
    )


def _check_grey(source: Source, found: _Decoded) -> None:
    grey, count = len(found.grey), len(found.labels)
    if 0 < grey < count:
        raise ConfigError(
            f"data: {source.where}: {grey} of {count} images {'are' if grey > 1 else 'is'} grey "
            f"(first: {found.grey[0]}) among colour; set channels: 3 or 1, or remove them"
        )
