"""Images of digits, of npz files and of parquet files."""

from __future__ import annotations

import functools
import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stepsearch.core.errors import ConfigError
from stepsearch.core.settings import DataSettings
from stepsearch.training.pixels import fit
from stepsearch.training.sources import (
    LOADERS,
    Dataset,
    Item,
    Source,
    files_identity,
    needed,
)

BATCH = 256  # rows of a parquet file in memory at a time
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})")  # the hub's names


@LOADERS.register("digits")
def digits(settings: DataSettings) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 1x8x8 (Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits

    if settings.path is not None or settings.channels == 3 or (settings.size or 8) > 8:
        raise ConfigError(
            "data: digits are grey, at most 8x8 and come with scikit-learn; leave path and "
            "channels out"
        )
    data = load_digits()
    images = (data.images[:, None] * (255 / 16)).round().astype(np.uint8)
    if settings.size not in (None, 8):
        made = (settings.size, 1, settings.resample)
        images = np.stack([fit(Image.fromarray(image[0]), *made) for image in images])
    return Dataset("digits", images, data.target.astype(np.int64))


@LOADERS.register("npz")
def npz(settings: DataSettings) -> Dataset | Source:
    """`images` or `arr_0`, uint8 (N, H, W, C); `labels` or `arr_1`, as guided-diffusion writes."""
    file = needed(settings)
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
    check_labels(str(file), labels, len(images))
    if settings.size is None and settings.channels in (None, shape[3]):
        return Dataset(file.stem, np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels)
    pictures, given = images, [None] * len(images) if labels is None else labels.tolist()

    def items() -> Iterator[Item]:
        for i, (pixels, label) in enumerate(zip(pictures, given, strict=True)):
            picture = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
            yield Item(f"image {i}", functools.partial(Image.fromarray, picture), label)

    return Source(file.stem, str(file), len(images), files_identity([_stamp(file)]), items)


def check_labels(where: str, labels: np.ndarray | None, count: int) -> None:
    """ConfigError unless there is one whole number an image, or no label at all."""
    if labels is None:
        return
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(
            f"data: {where}: labels must be one whole number an image, got {labels.dtype} of shape "
            f"{labels.shape}; save class numbers, e.g. labels.argmax(1)"
        )
    if len(labels) != count:
        raise ConfigError(f"data: {where}: {len(labels)} labels for {count} images; give one each")


@LOADERS.register("parquet")
def parquet(settings: DataSettings) -> Source:
    """The Hugging Face layout, a file or a folder of shards in sorted order.

    `img` or `image` holds encoded images, as a struct with `bytes` or by themselves; `label` whole
    numbers.
    """
    import pyarrow.parquet as pq

    path = needed(settings)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"data: {path}: no *.parquet in this folder")
    if path.is_dir():
        _check_shards(path, [f.stem for f in files])
    columns, count = set(), 0
    for file in files:
        with _arrow(file):
            schema, rows = pq.read_schema(file), pq.read_metadata(file).num_rows
        columns.add(_columns(file, schema, rows))
        count += rows
    if len(columns) > 1:
        raise ConfigError(f"data: {path}: shards with different columns; use one set of shards")
    (names,) = columns

    def items() -> Iterator[Item]:
        for file in files:
            where = f"{file.name}: " if len(files) > 1 else ""
            with _arrow(file), pq.ParquetFile(file) as reader:
                number = 0
                for batch in reader.iter_batches(BATCH, columns=list(names)):
                    for data, label in _cells(file, batch, names):
                        opened = functools.partial(_open_bytes, data)
                        yield Item(f"{where}row {number}", opened, label)
                        number += 1

    return Source(path.stem, str(path), count, files_identity(map(_stamp, files)), items)


def _check_shards(folder: Path, stems: list[str]) -> None:
    """ConfigError where shards are of several splits, or some are missing."""
    found = [m.groups() for m in map(SHARD.fullmatch, stems) if m is not None]
    splits = {split: list(shards) for split, shards in groupby(found, key=lambda g: g[0])}
    if len(splits) > 1:
        raise ConfigError(
            f"data: {folder}: shards of several splits ({', '.join(splits)}); name a file, or a "
            f"folder that holds one split"
        )
    for split, shards in splits.items():
        total = int(shards[0][2])
        if len(shards) != total:
            raise ConfigError(
                f"data: {folder}: {len(shards)} of {total} shards of '{split}'; fetch the others"
            )


@contextmanager
def _arrow(file: Path) -> Iterator[None]:
    """ConfigError for whatever a damaged parquet file makes pyarrow raise."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        first = str(error).partition("\n")[0]
        raise ConfigError(
            f"data: {file}: not a readable parquet file ({first}); fetch it again"
        ) from None


def _columns(file: Path, schema: Any, rows: int) -> tuple[str, ...]:
    """Names of the columns of images and of labels; ConfigError where a type does not fit."""
    import pyarrow as pa

    name = next((c for c in ("img", "image") if c in schema.names), None)
    if name is None:
        raise ConfigError(f"data: {file}: no column 'img' or 'image', only {schema.names}")
    kind = schema.field(name).type
    plain = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not (plain or struct) or not rows:
        raise ConfigError(
            f"data: {file}: {name}: needs rows of encoded images or of a struct with 'bytes', got "
            f"{rows} of {kind}"
        )
    if "label" not in schema.names:
        return (name,)
    if not pa.types.is_integer(schema.field("label").type):
        raise ConfigError(
            f"data: {file}: label: needs a whole number in every row, got "
            f"{schema.field('label').type}"
        )
    return name, "label"


def _cells(file: Path, batch: Any, names: tuple[str, ...]) -> Iterator[tuple[bytes, int | None]]:
    """Encoded image and label of every row."""
    pictures = batch.column(names[0]).to_pylist()
    labels = [None] * len(pictures)
    if len(names) > 1:
        labels = batch.column(names[1]).to_pylist()
        if None in labels:
            raise ConfigError(
                f"data: {file}: label: needs a whole number in every row, some are missing"
            )
    for picture, label in zip(pictures, labels, strict=True):
        yield (picture.get("bytes") if isinstance(picture, dict) else picture) or b"", label


def _open_bytes(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def _stamp(file: Path) -> tuple[str, int, int]:
    found = file.stat()
    return str(file), found.st_size, found.st_mtime_ns
