"""One picture as pixels: upright, cropped to the centre, resized, grey or colour."""

from __future__ import annotations

import struct
import textwrap
import zipfile
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# what Pillow and zipfile raise for damaged bytes; a password is a RuntimeError
UNREADABLE = (
    *(OSError, ValueError, SyntaxError, EOFError, RuntimeError, OverflowError, struct.error),
    *(Image.DecompressionBombError, zipfile.BadZipFile, zlib.error),
)


def fit(
    image: Image.Image, size: int | None, channels: int | None, resample: str = "lanczos"
) -> np.ndarray:
    """(C, H, W) uint8: C as told, else 1 for grey images and 3 for all others.

    What EXIF says of the orientation is done first, 16 bits become 8, palettes and CMYK become
    RGB. Alpha is dropped, not composited: a transparent pixel shows the colour stored under it.

    Args:
        size: side of the square that the centre is resized to; None keeps all pixels.
        resample: lanczos, or box for means of tiles.

    Raises:
        One of UNREADABLE: the image is damaged, animated, or not of whole numbers.
    """
    if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a photo and previews
        raise ValueError("animated; save one frame")
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which `convert` would clip
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    if channels is not None:
        image = image.convert("L" if channels == 1 else "RGB")
    if size is not None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        image = square.resize((size, size), Image.Resampling[resample.upper()])
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def reason(error: Exception) -> str:
    """Why an image cannot be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):  # its text is an address in memory
        return "no known image format"
    return textwrap.shorten(str(error), 80) or type(error).__name__
