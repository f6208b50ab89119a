"""Images to train on and to compare with, decoded once to uint8 (N, C, H, W)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepsearch.core.errors import ConfigError
from stepsearch.core.settings import DataSettings
from stepsearch.training import coded, folders, readers  # noqa: F401 - they register loaders
from stepsearch.training.image_cache import OnProgress, decoded
from stepsearch.training.sources import LOADERS, Dataset, Source


def load_dataset(
    kind: str,
    path: Path | str | None = None,
    size: int | None = None,
    *,
    channels: int | None = None,
    corrupt: str = "error",
    resample: str = "lanczos",
    args: Mapping[str, Any] | None = None,
    allow_code: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> Dataset:
    """Load images; those of files are decoded once and mapped from the cache ever after.

    Args:
        kind: one of LOADERS.
        path: where the images are, or `package.module:name` of a data set in code; none for digits.
        size: resizes to squares of that side, antialiased, after a centre crop.
        resample: lanczos, or box for means of tiles.
        channels: 1 or 3 makes all images grey or colour; None takes them as they are.
        corrupt: `error`, or `skip` to leave out what cannot be decoded.
        args: of the data set in code.
        allow_code: import that code; without it nothing is imported.
        on_progress: told how many of how many images are decoded, where that has to be done.

    Raises:
        ConfigError: a path that is missing, or images that cannot be used.
    """
    settings = DataSettings(kind, None if path is None else str(path), size)
    settings = replace(
        settings, channels=channels, corrupt=corrupt, resample=resample, args=args or {}
    )
    if size is not None and size < 1:
        raise ConfigError(f"data: size: {size}: must be at least 1 pixel")
    if kind == "dataset" and not allow_code:
        raise ConfigError(
            f"data: dataset: '{path}' is code, which is run only where you say so: add --allow-code"
        )
    data = LOADERS[kind](settings)
    if isinstance(data, Source) and data.count:
        data = decoded(data, settings, on_progress)
    if isinstance(data, Source) or not len(data.images):
        raise ConfigError(f"data: {path}: holds no images")
    return data
