"""Images of a folder or a zip file, labelled by sub-folders or by EDM's dataset.json."""

from __future__ import annotations

import functools
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from stepsearch.core.errors import ConfigError
from stepsearch.core.settings import DataSettings
from stepsearch.core.text import some
from stepsearch.training.sources import LOADERS, Item, Source, files_identity, needed

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
OTHERS = (".gif", ".tif", ".tiff", ".heic", ".avif", ".jxl")  # images, but told instead of read
LABELS = "dataset.json"


@dataclass(frozen=True)
class _Tree:
    """Files below a folder or in a zip: what they are called, and how one is read."""

    root: Path
    stamps: dict[str, tuple[int, int]]  # name with slashes -> bytes, time of change in ns
    image: Callable[[str], Image.Image]
    text: Callable[[str], str]


@LOADERS.register("folder")
def folder(settings: DataSettings) -> Source:
    """Image files below a folder, or in a zip, in sorted order.

    Labels are those of `dataset.json` in EDM's layout, {"labels": [[file, label], ...]}; without
    such a file the numbers of the sub-folders, in sorted order, where there are several.
    """
    root = needed(settings)
    tree = _folder(root) if root.is_dir() else _zip(root)
    names = [n for n in tree.stamps if n.lower().endswith(SUFFIXES + OTHERS)]
    if not names:
        raise ConfigError(f"data: {root}: no images ({', '.join(sorted(SUFFIXES))})")
    names.sort(key=lambda name: name.split("/"))
    labels = _listed_labels(tree, names) if LABELS in tree.stamps else _folder_labels(names)
    used = [*names, LABELS] if LABELS in tree.stamps else names

    def items() -> Iterator[Item]:
        for name, label in zip(names, labels, strict=True):
            yield Item(name, functools.partial(_open, tree, name), label)

    return Source(
        name=root.stem if root.is_file() else root.name,
        where=str(root),
        count=len(names),
        identity=files_identity((name, *tree.stamps[name]) for name in used),
        items=items,
    )


def _open(tree: _Tree, name: str) -> Image.Image:
    if name.lower().endswith(OTHERS):
        raise ValueError(f"{Path(name).suffix} is not read; save it as PNG")
    return tree.image(name)


def _folder(root: Path) -> _Tree:
    def text(name: str) -> str:
        return (root / name).read_text(encoding="utf-8")

    return _Tree(root, dict(_walk(root, "", ())), lambda name: Image.open(root / name), text)


def _walk(
    folder: Path, prefix: str, above: tuple[str, ...]
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Files below a folder, links followed unless they lead back up."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*above, real))
            elif entry.is_file():
                found = entry.stat()
                yield prefix + entry.name, (found.st_size, found.st_mtime_ns)


def _zip(file: Path) -> _Tree:
    try:
        archive = zipfile.ZipFile(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"data: {file}: neither a folder nor a readable zip ({error})") from None
    changed = file.stat().st_mtime_ns
    stamps = {i.filename: (i.file_size, changed) for i in archive.infolist() if not i.is_dir()}

    def image(name: str) -> Image.Image:
        return Image.open(io.BytesIO(archive.read(name)))

    return _Tree(file, stamps, image, lambda name: archive.read(name).decode("utf-8"))


def _folder_labels(names: list[str]) -> list[int] | list[None]:
    """Number of the first folder of every name, among all of them."""
    folders = [name.split("/")[0] if "/" in name else "" for name in names]
    numbers = {folder: i for i, folder in enumerate(sorted(set(folders)))}
    return [numbers[f] for f in folders] if len(numbers) > 1 else [None] * len(names)


def _listed_labels(tree: _Tree, names: list[str]) -> list[int] | list[None]:
    """Labels of `dataset.json`; ConfigError unless it lists every image, and images alone."""
    place = f"data: {tree.root}: {LABELS}"
    try:
        rows = json.loads(tree.text(LABELS))["labels"]
        if rows is None:
            return [None] * len(names)
        labels: dict[str, Any] = {name.replace("\\", "/"): label for name, label in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            f'{place}: needs {{"labels": [[file, label], ...]}} ({type(error).__name__}: {error})'
        ) from None
    for what, found in {
        "images without a label": [n for n in names if n not in labels],
        "labels of images that are not there": sorted(labels.keys() - set(names)),
        "labels that are no whole number": [n for n, v in labels.items() if type(v) is not int],
    }.items():
        if found:
            raise ConfigError(f"{place}: {len(found)} {what}: {some(found)}; correct the file")
    return [labels[name] for name in names]
