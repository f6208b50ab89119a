"""Images to train on and to compare with, decoded once to uint8 (N, C, H, W)."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from stepsearch.core.errors import ConfigError
from stepsearch.core.registry import Registry

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Dataset:
    """uint8 images (N, C, H, W) with whole-number labels (N,) where there are any."""

    name: str
    images: np.ndarray
    labels: np.ndarray | None

    @property
    def sha256(self) -> str:
        """Hash of shape, pixels and labels."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).tobytes())
        if self.labels is not None:
            digest.update(self.labels.astype(np.int64).tobytes())
        return digest.hexdigest()


Loader = Callable[[Path | None, int | None], Dataset]  # (path, size) -> images

LOADERS: Registry[Loader] = Registry("data set")


def load_dataset(kind: str, path: Path | None = None, size: int | None = None) -> Dataset:
    """Load images; `size` resizes to squares of that side, antialiased, after a centre crop.

    Args:
        kind: digits, folder, npz or parquet.
        path: where the images are; none for digits.

    Raises:
        ConfigError: a path that is missing, or images that cannot be read.
    """
    if path is not None and not path.exists():
        raise ConfigError(f"data: {path}: no such file or folder")
    return LOADERS[kind](path, size)


@LOADERS.register("digits")
def digits(path: Path | None, size: int | None) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 1x8x8 (Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits

    if path is not None or size not in (None, 8):
        raise ConfigError(
            "data: digits are 8x8 and come with scikit-learn; leave path and size out"
        )
    data = load_digits()
    images = (data.images[:, None] * (255 / 16)).round().astype(np.uint8)
    return Dataset("digits", images, data.target.astype(np.int64))


@LOADERS.register("folder")
def folder(path: Path | None, size: int | None) -> Dataset:
    """Image files below a folder; sub-folder names in sorted order are the labels."""
    root = _needed(path, "folder")
    files = sorted(f for f in root.rglob("*") if f.suffix.lower() in SUFFIXES)
    if not files:
        raise ConfigError(f"data: {root}: no images ({', '.join(sorted(SUFFIXES))})")
    images = _decode(((str(f), f.read_bytes()) for f in files), size)
    names = [f.relative_to(root).parts[0] if f.parent != root else "" for f in files]
    classes = sorted(set(names))
    labels = np.array([classes.index(n) for n in names]) if len(classes) > 1 else None
    return Dataset(root.name, images, labels)


@LOADERS.register("npz")
def npz(path: Path | None, size: int | None) -> Dataset:
    """`images` or `arr_0`, uint8 (N, H, W, C); `labels` or `arr_1`, as guided-diffusion writes."""
    file = _needed(path, "npz")
    try:
        with np.load(file, allow_pickle=False) as data:
            images = next((data[k] for k in ("images", "arr_0") if k in data), None)
            labels = next((data[k] for k in ("labels", "arr_1") if k in data), None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"data: {file}: not a readable npz file ({error})") from None
    if images is None or images.dtype != np.uint8 or images.ndim != 4:
        raise ConfigError(f"data: {file}: needs 'images' or 'arr_0', uint8 (N, H, W, C)")
    if size is not None:
        images = np.stack([_fit(Image.fromarray(i.squeeze()), size) for i in images])
    return Dataset(file.stem, np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels)


@LOADERS.register("parquet")
def parquet(path: Path | None, size: int | None) -> Dataset:
    """The Hugging Face layout: `img` or `image`, a struct with encoded `bytes`, and `label`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = _needed(path, "parquet")
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"data: {file}: not a readable parquet file ({error})") from None
    column = next((c for c in ("img", "image") if c in table.column_names), None)
    if column is None:
        raise ConfigError(f"data: {file}: no column 'img' or 'image', only {table.column_names}")
    cells = table.column(column).to_pylist()
    images = _decode(((f"{file}: row {i}", c["bytes"]) for i, c in enumerate(cells)), size)
    labels = table.column("label").to_numpy() if "label" in table.column_names else None
    return Dataset(file.stem, images, labels)


def _needed(path: Path | None, kind: str) -> Path:
    if path is None:
        raise ConfigError(f"data: {kind} needs a path, e.g. data: {{{kind}: path/to/images}}")
    return path


def _decode(encoded: Iterable[tuple[str, bytes]], size: int | None) -> np.ndarray:
    """Decode named images to (N, C, H, W); ConfigError counts and names what cannot be used."""
    images, bad = [], []
    for name, data in encoded:
        try:
            with Image.open(io.BytesIO(data)) as image:
                images.append(_fit(image, size))
        except (UnidentifiedImageError, OSError, ValueError) as error:
            bad.append(f"{name} ({error})")
    if bad:
        raise ConfigError(f"data: {len(bad)} unreadable images, remove or repair them: {bad[0]}")
    channels = max(i.shape[2] for i in images)
    shapes = {i.shape[:2] for i in images}
    if len(shapes) > 1:
        raise ConfigError(f"data: images of {len(shapes)} different sizes; set size, e.g. size: 32")
    return (
        np.stack([np.broadcast_to(i, (*i.shape[:2], channels)) for i in images])
        .transpose(0, 3, 1, 2)
        .copy()
    )


def _fit(image: Image.Image, size: int | None) -> np.ndarray:
    """(H, W, C) with C = 1 for grey images and 3 for all others."""
    image = image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB")
    if size is not None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return np.atleast_3d(np.asarray(image))


def dataset_of(data: Mapping[str, Any]) -> Dataset:
    """Load what a recipe's `data` section names: kind, path and size."""
    path = data.get("path")
    return load_dataset(data["kind"], None if path is None else Path(path), data.get("size"))
