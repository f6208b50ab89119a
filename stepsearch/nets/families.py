"""The registry of network families; a family is one file that registers itself here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import nn

from stepsearch.core.registry import Registry


class Family(Protocol):
    """How a recipe's `net` section becomes a module with `forward(x, time, *, width)`.

    The module also offers `subnet(width)`, a plain network of that width with equal outputs.
    """

    fitted: bool  # True: closed-form `fit` to the images; False: trained by gradient descent

    def check(self, config: Mapping[str, Any], widths: Sequence[float]) -> None:
        """ConfigError names a key of a recipe's `net` section or a width that cannot be built."""

    def least_images(self, config: Mapping[str, Any]) -> int:
        """How many images a checked `net` section needs at least."""

    def build(
        self, config: Mapping[str, Any], image_shape: tuple[int, ...], widths: Sequence[float]
    ) -> nn.Module:
        """A fresh network for such images; ConfigError where they do not fit it."""

    def fit(self, module: nn.Module, images: np.ndarray, seed: int) -> None:
        """Set the weights of a `fitted` family from float images (N, C, H, W) in [-1, 1]."""


FAMILIES: Registry[Family] = Registry("network family")
