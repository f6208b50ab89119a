"""What a loader of images returns, and the registry that loaders are filed in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stepsearch.core.errors import ConfigError
from stepsearch.core.registry import Registry
from stepsearch.core.settings import DataSettings

ROWS = 1024  # images hashed at a time


@dataclass(frozen=True)
class Dataset:
    """uint8 images (N, C, H, W) with whole-number labels (N,) where there are any."""

    name: str
    images: np.ndarray  # of a cached set, mapped from its file
    labels: np.ndarray | None
    corrupt: tuple[str, ...] = ()  # names of images that could not be read and are left out
    known_sha256: str | None = None  # taken when the images were decoded

    @property
    def sha256(self) -> str:
        """Hash of shape, pixels and labels."""
        return self.known_sha256 or images_sha256(self.images, self.labels)


@dataclass(frozen=True, slots=True)
class Item:
    """A picture that waits to be decoded; `open` raises one of UNREADABLE where that fails."""

    name: str
    open: Callable[[], Image.Image]  # called in a thread of its own
    label: int | None = None  # all items of a source have one, or none has


@dataclass(frozen=True)
class Source:
    """Pictures that wait to be decoded, read one after the other."""

    name: str
    where: str  # the place that messages name
    count: int
    identity: str  # equal while nothing that the pictures are read from has changed
    items: Callable[[], Iterator[Item]]


Loader = Callable[[DataSettings], Dataset | Source]  # a Source is decoded once and cached

LOADERS: Registry[Loader] = Registry("data set")


def needed(settings: DataSettings) -> Path:
    """The path of the settings; ConfigError where they have none or nothing is there."""
    if settings.path is None:
        raise ConfigError(
            f"data: {settings.kind} needs a path, e.g. data: {{{settings.kind}: path/to/images}}"
        )
    path = Path(settings.path)
    if not path.exists():
        raise ConfigError(f"data: {path}: no such file or folder")
    return path


def files_identity(files: Iterable[tuple[str, int, int]]) -> str:
    """Hash of names, sizes in bytes and times of change in ns."""
    digest = hashlib.sha256()
    for name, size, changed in files:
        digest.update(f"{name}\0{size}\0{changed}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def images_sha256(images: np.ndarray, labels: np.ndarray | None) -> str:
    """Hash of shape, pixels and labels; reads a few images at a time."""
    digest = hashlib.sha256(repr(images.shape).encode())
    for first in range(0, len(images), ROWS):
        digest.update(np.ascontiguousarray(images[first : first + ROWS]))
    if labels is not None:
        digest.update(labels.astype(np.int64).tobytes())
    return digest.hexdigest()
