"""Images of any map-style data set in Python code, of torch or not: the only loader that runs code
of the user's, and only where --allow-code allows it."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from stepsearch.core.errors import ConfigError
from stepsearch.core.registry import did_you_mean
from stepsearch.core.settings import DataSettings
from stepsearch.training.pixels import UNREADABLE, fit, reason
from stepsearch.training.sources import LOADERS, Item, Source

PROBES = 16  # items, evenly spaced, that tell whether a data set has changed


@LOADERS.register("dataset")
def dataset(settings: DataSettings) -> Source:
    """What `package.module:name` makes of the arguments: anything with a length and items.

    An item is (image, label), an image, or a mapping with `image` or `img` and perhaps `label`; an
    image is Pillow's, or uint8 in an array or tensor (H, W), (H, W, C) or (C, H, W).
    """
    target = settings.path or ""
    place = f"data: dataset: '{target}'"
    with _current_folder():
        made = _call(place, _find(place, target), settings.args)
        if not hasattr(made, "__len__") or not hasattr(made, "__getitem__"):
            raise ConfigError(
                f"{place}: {type(made).__name__} has no length or no items; make it a map-style "
                f"data set with __len__ and __getitem__"
            )
        count = len(made)
        identity = _identity(place, made, count)

    def items() -> Iterator[Item]:
        first = None
        with _current_folder():
            for i in range(count):
                item, read = _item(place, made, i)
                if read:
                    first = item if first is None else first
                    if (item.label is None) != (first.label is None):
                        raise ConfigError(
                            f"{place}: {first.name} and {item.name}: one has a label and one has "
                            f"none; label all or none"
                        )
                yield item

    return Source(target.rpartition(":")[2], target, count, identity, items)


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules of the current folder can be imported, as by `python -m`."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


@contextmanager
def _running(place: str) -> Iterator[None]:
    """Whatever the user's code raises, as one line that names the code."""
    try:
        yield
    except Exception as error:
        raise ConfigError(f"{place}: {type(error).__name__}: {error}") from error


def _find(place: str, target: str) -> Any:
    """The class or function of that name."""
    name, _, attribute = target.partition(":")
    if not name or not attribute:
        raise ConfigError(f"{place}: expected package.module:name")
    try:
        with _running(place):
            found: Any = importlib.import_module(name)
    except ConfigError as error:
        missing = error.__cause__
        if not isinstance(missing, ModuleNotFoundError) or missing.name not in name:
            raise
        raise ConfigError(
            f"{place}: no module '{missing.name}'; install it, or go to the folder that holds it"
        ) from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n in dir(found) if not n.startswith("_")]
            raise ConfigError(f"{place}: no name '{part}' there{did_you_mean(part, names)}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{place}: is no class or function but a {type(found).__name__}")
    return found


def _call(place: str, make: Callable[..., Any], args: Mapping[str, Any]) -> Any:
    try:
        inspect.signature(make).bind(**args)
    except TypeError as error:
        raise ConfigError(f"{place}: args: {error}; correct data.args") from None
    except ValueError:  # compiled code does not tell its signature
        pass
    with _running(place):
        return make(**args)


def _identity(place: str, made: Any, count: int) -> str:
    """Hash of length and some items; ConfigError where an item is another one each time."""
    digest = hashlib.sha256(str(count).encode())
    for i in sorted({round(i) for i in np.linspace(0, count - 1, PROBES)} if count else ()):
        seen = [_seen(_item(place, made, i)[0]) for _ in range(2)]
        if seen[0] != seen[1]:
            raise ConfigError(
                f"{place}: item {i} differs each time it is read; leave random transforms out, "
                f"flips are an option of training"
            )
        digest.update(seen[0])
    return digest.hexdigest()


def _seen(item: Item) -> bytes:
    """Pixels and label of an item, or why it cannot be read."""
    try:
        pixels = fit(item.open(), None, None)
    except UNREADABLE as error:
        return reason(error).encode()
    return repr((pixels.shape, item.label)).encode() + pixels.tobytes()


def _item(place: str, made: Any, i: int) -> tuple[Item, bool]:
    """Item `i`, and whether the code gave one; what it could not read is told when it is opened."""
    name = f"item {i}"
    try:
        got = made[i]
    except UNREADABLE as error:
        return Item(name, functools.partial(_fail, error)), False
    if isinstance(got, Mapping):
        picture = next((got[k] for k in ("image", "img") if k in got), None)
        label = got.get("label")
    elif isinstance(got, (tuple, list)) and len(got) == 2:
        picture, label = got
    else:
        picture, label = got, None
    image = _image(f"{place}: {name}", picture)
    return Item(name, lambda: image, _label(f"{place}: {name}", label)), True


def _fail(error: Exception) -> Image.Image:
    raise error


def _image(place: str, picture: Any) -> Image.Image:
    """Pillow's image of uint8 pixels; of a tensor, channels are looked for first, else last."""
    if isinstance(picture, Image.Image):
        return picture
    if not isinstance(picture, (np.ndarray, Tensor)):
        raise ConfigError(
            f"{place}: a {type(picture).__name__} is no image; give (image, label), an image, or "
            f"a mapping with 'image' and 'label'"
        )
    axes = (0, 2) if isinstance(picture, Tensor) else (2, 0)
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8:
        raise ConfigError(
            f"{place}: {pixels.dtype} pixels; return uint8 in 0..255: leave ToTensor and Normalize "
            f"out, or use PILToTensor"
        )
    if pixels.ndim == 3:
        axis = next((a for a in axes if pixels.shape[a] in (1, 3)), None)
        if axis is not None:
            pixels = np.moveaxis(pixels, axis, 2)
            pixels = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[2] != 3):
        raise ConfigError(f"{place}: shape {picture.shape}; needs 1 or 3 channels, first or last")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _label(place: str, label: Any) -> int | None:
    if isinstance(label, (np.ndarray, Tensor)) and label.ndim == 0:
        label = label.item()
    if label is None or (isinstance(label, (int, np.integer)) and not isinstance(label, bool)):
        return None if label is None else int(label)
    raise ConfigError(f"{place}: label {label!r} is no whole number; give the number of its class")
