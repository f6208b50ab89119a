"""Pictures to load, and what a load that fails has to say."""

import io

import numpy as np
import pytest
from PIL import Image

from stepsearch.core.errors import ConfigError
from stepsearch.training.data import load_dataset


def encode(pixels, kind="PNG", **options):
    """An image file's bytes."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def save_all(folder, pixels):
    """00.png, 01.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pixels):
        (folder / f"{i:02}.png").write_bytes(encode(image))
    return folder


def stacked(pixels):
    """(N, H, W, C) as a data set holds it."""
    return np.asarray(pixels).transpose(0, 3, 1, 2)


def fails(kind, path, *named, **options):
    """Loading ends in one line that says all of `named`."""
    with pytest.raises(ConfigError) as caught:
        load_dataset(kind, path, **options)
    message = str(caught.value)
    assert all(str(part) in message for part in named), message
    assert message.isprintable()
