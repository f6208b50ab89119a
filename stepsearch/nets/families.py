"""The registry of network families; a family is one file that registers itself here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stepsearch.core.errors import ConfigError
from stepsearch.core.protocols import Classifier, Net, NetCard, NoisyBatch
from stepsearch.core.registry import Registry, did_you_mean
from stepsearch.nets.adapters import slim_net

LABEL_DROPOUT = 0.1  # part of the labels that training hides, so that none is learnt


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

    def answer(self, module: nn.Module, batch: NoisyBatch, width: float) -> Tensor:
        """The noise that a module in training predicts, some labels hidden."""
        return predicted_noise(module, batch, width)

    def flops(self, module: nn.Module, image_shape: tuple[int, ...], width: float) -> float:
        """FLOPs of one image and one call at `width`; one multiply-add is 2 FLOPs."""
        return count_flops(module, image_shape, width)

    def adapt(self, card: NetCard, module: nn.Module, device: str) -> Net | Classifier:
        """The module as a solver sees it."""
        return slim_net(card, module, device)


def check_numbers(family: str, data: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    """ConfigError for a key of a `net` section that is not in `kinds`, or a value of another kind.

    Args:
        kinds: int for a whole number, float for any.
    """
    for key, value in data.items():
        if key not in kinds:
            hint, known = did_you_mean(key, list(kinds)), ", ".join(kinds)
            raise ConfigError(f"{family}: unknown key '{key}'{hint}; known: {known}")
        if type(value) not in (int, kinds[key]):
            expected = "a whole number" if kinds[key] is int else "a number"
            raise ConfigError(f"{family}: {key}: expected {expected}, got {value!r}")


def check_label_keys(family: str, data: Mapping[str, Any]) -> None:
    """ConfigError for `classes` below 0, or a `label_dropout` that trains nothing."""
    classes, dropout = data.get("classes", 0), data.get("label_dropout", LABEL_DROPOUT)
    if classes < 0:
        raise ConfigError(f"{family}: classes: must be at least 0, got {classes}")
    if "label_dropout" in data and not classes:
        raise ConfigError(
            f"{family}: label_dropout: there are no labels to hide; give classes, or remove it"
        )
    if not 0 < dropout < 1:
        raise ConfigError(
            f"{family}: label_dropout: must lie in (0, 1), so that the network learns to answer "
            f"with and without a label, got {dropout}"
        )


def noise_error(module: nn.Module, batch: NoisyBatch, width: float) -> Tensor:
    """Mean squared error of the answer, the noise in Ho et al. 2020, eq. 14; some labels hidden."""
    return (predicted_noise(module, batch, width) - batch.target).square().mean()


def predicted_noise(module: nn.Module, batch: NoisyBatch, width: float) -> Tensor:
    """The answer to a noisy batch, some labels hidden.

    Label dropout, of the part `module.arch.label_dropout`, is that of Ho & Salimans 2022
    (arXiv:2207.12598, alg. 1); `module.arch.classes` stands for a hidden label.
    """
    given = ()
    if module.arch.classes:
        assert batch.labels is not None
        hidden = batch.chance < module.arch.label_dropout
        given = (batch.labels.masked_fill(hidden, module.arch.classes),)
    return module(batch.noisy, batch.time, *given, width=width)


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
