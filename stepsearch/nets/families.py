"""The registry of network families; a family is one file that registers itself here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stepsearch.core.protocols import Classifier, Net, NetCard, NoisyBatch
from stepsearch.core.registry import Registry
from stepsearch.nets.adapters import slim_net


class Family(ABC):
    """How a recipe's `net` section becomes a module with `forward(x, time, *, width)`.

    A module with classes also takes `labels`, None or `classes` for no label. The module offers
    `subnet(width)`, a plain network of that width with equal outputs.
    """

    fitted = False  # True: closed-form `fit` to the images; False: trained by gradients of `loss`
    classifies = False  # True: guides networks by p(label | x); False: predicts noise

    @abstractmethod
    def check(self, config: Mapping[str, Any], widths: Sequence[float]) -> None:
        """ConfigError names a key of a recipe's `net` section or a width that cannot be built."""

    @abstractmethod
    def build(
        self, config: Mapping[str, Any], image_shape: tuple[int, ...], widths: Sequence[float]
    ) -> nn.Module:
        """A fresh network for such images; ConfigError where they do not fit it."""

    def classes(self, config: Mapping[str, Any]) -> int:
        """How many labels a checked `net` section knows; 0 for an unconditional network."""
        return int(config.get("classes", 0))

    def least_images(self, config: Mapping[str, Any]) -> int:
        """How many images a checked `net` section needs at least."""
        return 1

    def fit(self, module: nn.Module, images: np.ndarray, seed: int) -> None:
        """Set the weights of a `fitted` family from float images (N, C, H, W) in [-1, 1]."""
        raise TypeError(f"{type(self).__name__}: trained, not fitted")

    def loss(self, module: nn.Module, batch: NoisyBatch, width: float) -> Tensor:
        """What training lowers, a scalar: the mean over the images of the batch."""
        raise TypeError(f"{type(self).__name__}: fitted, not trained")

    def flops(self, module: nn.Module, image_shape: tuple[int, ...], width: float) -> float:
        """FLOPs of one image and one call at `width`; one multiply-add is 2 FLOPs."""
        return count_flops(module, image_shape, width)

    def adapt(self, card: NetCard, module: nn.Module, device: str) -> Net | Classifier:
        """The module as a solver sees it."""
        return slim_net(card, module, device)


def noise_error(module: nn.Module, batch: NoisyBatch, width: float) -> Tensor:
    """Mean squared error of the noise (Ho et al. 2020, eq. 14), some labels hidden.

    Label dropout, of the part `module.arch.label_dropout`, is that of Ho & Salimans 2022
    (arXiv:2207.12598, alg. 1); `module.arch.classes` stands for a hidden label.
    """
    given = ()
    if module.arch.classes:
        assert batch.labels is not None
        hidden = batch.chance < module.arch.label_dropout
        given = (batch.labels.masked_fill(hidden, module.arch.classes),)
    answer = module(batch.noisy, batch.time, *given, width=width)
    return (answer - batch.noise).square().mean()


def count_flops(module: nn.Module, image_shape: tuple[int, ...], width: float) -> float:
    """FLOPs of one image and one call at `width`; one multiply-add is 2 FLOPs.

    Counted on the meta device, since torch counts fused attention on a CPU as zero.
    """
    plain = module.subnet(width).to("meta")
    x, time = torch.empty(1, *image_shape, device="meta"), torch.zeros(1, device="meta")
    with FlopCounterMode(display=False) as counter:
        plain(x, time)
    return float(counter.get_total_flops())


FAMILIES: Registry[Family] = Registry("network family")
