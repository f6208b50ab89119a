"""Images to train on and to compare with, decoded once to uint8 (N, C, H, W)."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stepsearch.core.errors import ConfigError
from stepsearch.core.registry import Registry

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # of Pillow
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
    if size is not None and size < 1:
        raise ConfigError(f"data: size: {size}: must be at least 1 pixel")
    data = LOADERS[kind](path, size)
    if not len(data.images):
        raise ConfigError(f"data: {path}: holds no images")
    if data.labels is not None and len(data.labels) != len(data.images):
        raise ConfigError(
            f"data: {path}: {len(data.labels)} labels for {len(data.images)} images; give one each"
        )
    return data


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
    files = sorted(f for f in root.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
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
        with file.open("rb") as handle, zipfile.ZipFile(handle) as archive:
            held = {Path(name).stem for name in archive.namelist()}
        with np.load(file, allow_pickle=False) as data:
            images = next((data[k] for k in ("images", "arr_0") if k in held), None)
            labels = next((data[k] for k in ("labels", "arr_1") if k in held), None)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"data: {file}: not a readable npz file ({error})") from None
    shape = None if images is None else images.shape
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or shape[3] not in (1, 3):
        raise ConfigError(
            f"data: {file}: needs 'images' or 'arr_0', uint8 (N, H, W, C) with C 1 or 3, "
            f"got {shape}"
        )
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
    name = next((c for c in ("img", "image") if c in table.column_names), None)
    if name is None:
        raise ConfigError(f"data: {file}: no column 'img' or 'image', only {table.column_names}")
    kind = table.schema.field(name).type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0 or not len(table):
        raise ConfigError(
            f"data: {file}: {name}: needs rows of a struct with 'bytes', got {len(table)} of {kind}"
        )
    cells = table.column(name).combine_chunks().field("bytes").to_pylist()
    images = _decode(((f"{file}: row {i}", data or b"") for i, data in enumerate(cells)), size)
    if "label" not in table.column_names:
        return Dataset(file.stem, images, None)
    labels = table.column("label")
    if not pa.types.is_integer(labels.type) or labels.null_count:
        raise ConfigError(
            f"data: {file}: label: needs a whole number in every row, got {labels.type} with "
            f"{labels.null_count} missing"
        )
    return Dataset(file.stem, images, labels.to_numpy())


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
        except UNREADABLE as error:
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
    if image.mode.startswith("I"):  # 16 bits, which `convert` would clip
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    if size is not None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        image = square.resize((size, size), Image.Resampling.LANCZOS)
    return np.atleast_3d(np.asarray(image))
