"""A classifier of noisy images that knows their time, to guide networks trained without labels.

The encoder half of the U-Net at width 1, average pooling and a linear layer (Dhariwal & Nichol
2021, arXiv:2105.05233, sec. 4.1, with average instead of attention pooling).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stepsearch.core.protocols import NetCard, NoisyBatch
from stepsearch.nets.adapters import check_labels
from stepsearch.nets.families import FAMILIES, Family
from stepsearch.nets.slim import SlimGroupNorm
from stepsearch.nets.unet import Arch, Encoder

NAME = "noisy-classifier"


@dataclass(frozen=True, slots=True)
class ClassifierArch(Arch):
    """Everything that fixes the layout; `classes` has no default."""

    family: ClassVar[str] = NAME

    def __post_init__(self) -> None:
        super(ClassifierArch, self).__post_init__()
        if not self.classes:
            raise self.error("classes: the number of labels to tell apart is missing")

    def check_widths(self, widths: Sequence[float]) -> None:
        """ConfigError for any width but 1."""
        if list(widths) != [1.0]:
            raise self.error(f"widths: a classifier has one width, [1.0], got {list(widths)}")
        super(ClassifierArch, self).check_widths(widths)


class NoisyClassifier(Encoder):
    """Logits of the labels of noisy images; blocks are those of the U-Net, all at width 1."""

    def __init__(self, arch: ClassifierArch) -> None:
        super().__init__(arch)
        self.norm = SlimGroupNorm((self.channels[-1],), arch.groups)
        self.tail = nn.Linear(self.channels[-1], arch.classes)

    def forward(self, x: Tensor, time: Tensor, *, width: float = 1.0) -> Tensor:
        """(B, C, H, W), (B,) times -> (B, classes)."""
        embedding = F.silu(self.embed(time, x.dtype, width=width))
        h = self.encode(x, embedding, width=width)[-1]
        return self.tail(F.silu(self.norm(h, width=width)).mean((2, 3)))


def label_gradient(module: nn.Module, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
    """Gradient in `x` (B, ...) of log p(labels | x), by a module that needs no gradients itself."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        chosen = module(leaf, time).log_softmax(1).gather(1, labels[:, None])
        chosen.sum().backward()  # FlopCounterMode cannot follow torch.autograd.grad
    return leaf.grad


class ModuleClassifier:
    """A module `forward(x, time)` -> logits as what guides a network."""

    def __init__(self, card: NetCard, module: nn.Module) -> None:
        self.card = card
        self._module = module.eval().requires_grad_(False)

    def gradient(self, x: Tensor, level: float, labels: Tensor) -> Tensor:
        """Gradient of log p(labels | x), asked at the nearest trained time.

        The classifier computes in the type of its weights; the answer has the type of `x`.
        """
        labels = check_labels(labels, len(x), self.card.classes).to(x.device)
        dtype = next(self._module.parameters()).dtype
        time = torch.full((len(x),), self.card.diffusion.time_at(level), device=x.device)
        return label_gradient(self._module, x.to(dtype), time, labels).to(x.dtype)


class NoisyClassifierFamily(Family):
    """Recipes with `net.family: noisy-classifier`."""

    classifies = True

    def check(self, config: Mapping[str, Any], widths: Sequence[float]) -> None:
        """ConfigError for keys, values or widths that make no classifier."""
        ClassifierArch.from_config(config, 1).check_widths(widths)

    def build(
        self, config: Mapping[str, Any], image_shape: tuple[int, ...], widths: Sequence[float]
    ) -> NoisyClassifier:
        """A classifier with fresh weights of images (C, H, W)."""
        arch = ClassifierArch.from_config(config, image_shape[0])
        arch.check_widths(widths)
        arch.check_image(image_shape)
        return NoisyClassifier(arch)

    def loss(self, module: nn.Module, batch: NoisyBatch, width: float) -> Tensor:
        """Cross entropy."""
        assert batch.labels is not None
        return F.cross_entropy(module(batch.noisy, batch.time, width=width), batch.labels)

    def flops(self, module: nn.Module, image_shape: tuple[int, ...], width: float) -> float:
        """FLOPs of the gradient of one image: forward, and backward to the image alone."""
        x, time = torch.empty(1, *image_shape, device="meta"), torch.zeros(1, device="meta")
        frozen = copy.deepcopy(module).to("meta").requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            label_gradient(frozen, x, time, torch.zeros(1, dtype=torch.long, device="meta"))
        return float(counter.get_total_flops())

    def adapt(self, card: NetCard, module: nn.Module, device: str) -> ModuleClassifier:
        """The classifier that guides."""
        module = module.to(device, memory_format=torch.channels_last)
        return ModuleClassifier(card, module)


FAMILIES.register(NAME)(NoisyClassifierFamily())
