"""Relay Diffusion's forward process: tiles are blurred while noise is added (Teng et al. 2024).

Relay Diffusion, arXiv:2309.03350, sec. 3. A second, high-resolution network is trained on
x = blur(x0) + sigma (e + alpha Block(e')); at its most noise only the means of the tiles are left,
and so it takes over from a low-resolution sample, upsampled. Nothing here imports torch.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stepsearch.core.errors import SpaceError

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = NormalDist(-1.2, 1.2)  # of the log noise level in training (Karras et al. 2022, table 1)
LEAST, MOST = 7.5e-3, 80.0  # noise levels; less, or more, is never trained
MIN_SCALE = 0.001  # what is left of a coefficient that is blurred away


@dataclass(frozen=True, slots=True)
class Relay:
    """How noise and blur grow together; the numbers published for ImageNet are the defaults.

    A place u in (0, 1] has log noise level LEVELS.inv_cdf(prob_length u) and the blur
    `blur` sin^2(pi u / 2), in pixels of the low resolution.
    """

    scale: int = 2  # pixels of a tile's side, which is one pixel of the first stage
    blur: float = 3.0  # at u = 1
    prob_length: float = 0.93
    block: float = 0.15  # alpha, the part of block noise
    normalize: bool = False  # True divides noise by sqrt(1 + block^2), as the paper; its code does
    # not, so that a pixel's deviation is `level` sqrt(1 + block^2)

    def __post_init__(self) -> None:
        fine = {
            "scale": type(self.scale) is int and self.scale >= 2,
            "blur": _is_number(self.blur) and 0 <= self.blur <= 1e3,
            "prob_length": _is_number(self.prob_length) and 0 < self.prob_length <= 2,
            "block": _is_number(self.block) and 0 <= self.block <= 1e3,
            "normalize": isinstance(self.normalize, bool),
        }
        for name, ok in fine.items():
            if not ok:
                raise SpaceError(f"relay: {name}: {getattr(self, name)!r} makes no sense")
        if self.most <= LEAST:
            raise SpaceError(
                f"relay: prob_length {self.prob_length:g} leaves no noise above {LEAST:g}; raise it"
            )

    @property
    def most(self) -> float:
        """The noise level at u = 1, the largest that a second stage may start from."""
        return self.level_at(1.0) if self.prob_length < 1 else MOST

    def level_at(self, u: float) -> float:
        """Noise level of a place in (0, 1]."""
        return math.exp(LEVELS.inv_cdf(self.prob_length * u))

    def place_of(self, level: float) -> float:
        """Inverse of `level_at`; 0 at no noise."""
        return LEVELS.cdf(math.log(level)) / self.prob_length if level > 0 else 0.0

    def blur_at(self, level: float) -> float:
        """Blur that belongs to a noise level, in pixels of the low resolution."""
        return self.blur * math.sin(math.pi * self.place_of(level) / 2) ** 2

    def noise(self, white: Tensor, blocks: Tensor) -> Tensor:
        """The mixture of white and block noise of two independent normal draws (..., H, W)."""
        if not self.block:
            return white
        mixed = white + self.block * block_noise(blocks, self.scale)
        return mixed / math.sqrt(1 + self.block**2) if self.normalize else mixed


RELAY_KEYS = tuple(f.name for f in fields(Relay))


def block_noise(gaussian: Tensor, size: int) -> Tensor:
    """Noise that is correlated within `size` pixels, circular and of unit variance.

    Sec. 3.2: the mean of size x size neighbours, times size; size 1 is the noise itself.

    Args:
        gaussian: independent standard normal, (..., H, W).

    Raises:
        ValueError: a size that is no whole number from 1 to H and W.
    """
    height, width = gaussian.shape[-2:]
    if not _is_whole(size) or not 1 <= size <= min(height, width):
        raise ValueError(f"size must be a whole number in 1..{min(height, width)}, got {size!r}")
    shifted = (gaussian.roll((i, j), (-2, -1)) for i in range(size) for j in range(size))
    return sum(shifted) / size


def patch_blur(images: Tensor, patch: int, blur: float | Tensor) -> Tensor:
    """Blur within tiles: every DCT coefficient but the mean is scaled towards MIN_SCALE.

    Sec. 3.1: coefficient (k, l) of a tile is multiplied by
    (1 - m) exp(-pi^2 (k^2 + l^2) / patch^2 blur^2 / 2) + m, m = MIN_SCALE.

    Args:
        images: (..., H, W); H and W divide by `patch`.
        blur: from 0, one for all images or one for each, (B,) for images (B, ...).

    Raises:
        ValueError: sides that do not divide into tiles.
    """
    return filter_tiles(images, blur_scales(patch, blur, images))


def blur_scales(patch: int, blur: float | Tensor, like: Tensor) -> Tensor:
    """The multipliers of a tile's coefficients, (patch, patch), or (B, 1, ..., patch, patch) with
    as many axes as the tiles of `like` where there is one blur for each of its images."""
    if not _is_whole(patch) or patch < 1:
        raise ValueError(f"patch must be a whole number of at least 1, got {patch!r}")
    squares = (np.arange(patch) * math.pi / patch) ** 2
    rates = like.new_tensor(squares[:, None] + squares) / 2
    if not isinstance(blur, (int, float)) and blur.ndim:
        blur = blur.to(like).reshape(-1, *(1,) * (like.ndim + 1))
    return (1 - MIN_SCALE) * (-rates * blur**2).exp() + MIN_SCALE


def filter_tiles(images: Tensor, scales: Tensor) -> Tensor:
    """Images with the DCT coefficients of every tile multiplied by `scales` (..., patch, patch)."""
    patch, (height, width) = scales.shape[-1], images.shape[-2:]
    if height % patch or width % patch:
        raise ValueError(f"images of {height} x {width} pixels do not divide into tiles of {patch}")
    dct = images.new_tensor(_dct(patch))
    tiles = images.reshape(*images.shape[:-2], height // patch, patch, width // patch, patch)
    tiles = dct.T @ (dct @ tiles.transpose(-3, -2) @ dct.T * scales) @ dct
    return tiles.transpose(-3, -2).reshape(images.shape)


@functools.cache
def _dct(size: int) -> NDArray[np.float64]:
    """The orthonormal DCT-II as a matrix; row k is the k-th cosine."""
    rows, columns = np.arange(size)[:, None], np.arange(size)
    matrix = np.cos(np.pi * (2 * columns + 1) * rows / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
