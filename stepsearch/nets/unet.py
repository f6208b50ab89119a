"""Slimmable U-Net in the DDPM/ADM family (Ho et al. 2020, app. B; Dhariwal & Nichol 2021).

Structure: an input convolution; per level `blocks` residual blocks, with self-attention at the
listed levels, then a strided convolution; two middle blocks around attention; per level going up
`blocks + 1` residual blocks over skip concatenations. Input, output and the sinusoid of the time
stay full at every width; everything between is slim. A label adds a vector to the embedding of the
time (Dhariwal & Nichol 2021, sec. 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepsearch.core.errors import ConfigError
from stepsearch.core.protocols import NoisyBatch
from stepsearch.core.registry import did_you_mean
from stepsearch.nets.families import FAMILIES, Family, noise_error
from stepsearch.nets.slim import (
    SlimConv2d,
    SlimEmbedding,
    SlimGroupNorm,
    SlimLinear,
    copy_slices,
    slim_channels,
)


@dataclass(frozen=True, slots=True)
class Arch:
    """What a U-Net and its encoder half share; `base` channels times `mult` per level."""

    family: ClassVar[str] = "unet"

    image_channels: int
    base: int
    mult: tuple[int, ...] = (1, 2)
    blocks: int = 1
    attention: tuple[int, ...] = ()  # levels, 0 = full resolution
    groups: int = 8
    dropout: float = 0.0
    sinusoid: int = 0  # channels of the time sinusoid; 0 = base
    classes: int = 0  # labels 0 .. classes - 1; 0 = none

    def __post_init__(self) -> None:
        if self.base < 1:
            raise self.error(f"base: must be at least 1, got {self.base}")
        if self.sinusoid < 0 or (self.sinusoid or self.base) % 2:
            raise self.error(
                f"sinusoid (by default base): an even number is needed, got "
                f"{self.sinusoid or self.base}"
            )
        if not self.mult or min(self.mult) < 1 or self.blocks < 1:
            raise self.error(
                f"mult and blocks start at 1, got mult={list(self.mult)}, blocks={self.blocks}"
            )
        if self.groups < 1 or not 0 <= self.dropout < 1:
            raise self.error(
                f"groups start at 1 and dropout lies in [0, 1), got groups={self.groups}, "
                f"dropout={self.dropout}"
            )
        if any(not 0 <= level < len(self.mult) for level in self.attention):
            raise self.error(
                f"attention: {list(self.attention)} names a level outside 0..{len(self.mult) - 1}"
            )
        if self.classes < 0:
            raise self.error(f"classes: must be at least 0, got {self.classes}")

    @classmethod
    def error(cls, message: str) -> ConfigError:
        """An error that names the family."""
        return ConfigError(f"{cls.family}: {message}")

    @classmethod
    def from_config(cls, data: Mapping[str, Any], image_channels: int) -> Self:
        """Read the `net` section of a recipe; ConfigError names an unknown key."""
        known = [f.name for f in fields(cls) if f.name != "image_channels"]
        for key in data:
            if key not in known:
                raise cls.error(
                    f"unknown key '{key}'{did_you_mean(key, known)}; known: {', '.join(known)}"
                )
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        for key, value in values.items():
            numbers = value if key in ("mult", "attention") else (value,)
            kind = (int, float) if key.endswith("dropout") else (int,)
            if not isinstance(numbers, tuple) or any(type(n) not in kind for n in numbers):
                expected = "a list of whole numbers" if numbers is value else "a number"
                raise cls.error(f"{key}: expected {expected}, got {data[key]!r}")
        if "base" not in values:
            raise cls.error("base: the number of channels at width 1 is missing")
        return cls(image_channels=image_channels, **values)

    def check_image(self, shape: tuple[int, ...]) -> None:
        """ConfigError where images (C, H, W) cannot be halved between all levels."""
        step = 2 ** (len(self.mult) - 1)
        if any(side % step for side in shape[1:]):
            raise self.error(
                f"mult: {len(self.mult)} levels need images whose sides divide by {step}, "
                f"got {shape[1]}x{shape[2]}"
            )

    def check_widths(self, widths: Sequence[float]) -> None:
        """ConfigError where a width leaves no whole channel or a group norm no whole group."""
        for width in widths:
            slim = self.base * width
            if not 0 < width <= 1:
                raise self.error(f"widths lie in (0, 1], got {width}")
            if round(slim) < 1 or abs(slim - round(slim)) > 1e-6 or round(slim) % self.groups:
                raise self.error(
                    f"base {self.base} at width {width} is {slim:g} channels, which do not "
                    f"fall into {self.groups} groups; choose base and groups to fit all widths"
                )


@dataclass(frozen=True, slots=True)
class UNetArch(Arch):
    """Everything that fixes the layout of a U-Net, and how its labels are trained."""

    label_dropout: float = 0.1  # part of the labels that training hides, so that none is learnt

    def __post_init__(self) -> None:
        super(UNetArch, self).__post_init__()  # slots make a new class, which super() misses
        if not 0 < self.label_dropout < 1:
            raise self.error(
                f"label_dropout: must lie in (0, 1), so that the network learns to answer with "
                f"and without a label, got {self.label_dropout}"
            )

    @classmethod
    def from_config(cls, data: Mapping[str, Any], image_channels: int) -> Self:
        """Read the `net` section of a recipe; `label_dropout` means nothing without classes."""
        if "label_dropout" in data and not data.get("classes"):
            raise cls.error(
                "label_dropout: there are no labels to hide; give classes, or remove it"
            )
        return super(UNetArch, cls).from_config(data, image_channels)


class ResBlock(nn.Module):
    """GN-SiLU-conv, time added, GN-SiLU-dropout-conv, and a 1x1 shortcut where channels change."""

    def __init__(
        self, sources: tuple[int, ...], out: int, time: int, attention: bool, arch: Arch
    ) -> None:
        super().__init__()
        self.norm1 = SlimGroupNorm(sources, arch.groups)
        self.conv1 = SlimConv2d(sources, out, 3)
        self.time = SlimLinear(time, out)
        self.norm2 = SlimGroupNorm((out,), arch.groups)
        self.dropout = nn.Dropout(arch.dropout)
        self.conv2 = SlimConv2d((out,), out, 3)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)
        self.shortcut = SlimConv2d(sources, out, 1) if sources != (out,) else None
        self.attention = SelfAttention(out, arch.groups) if attention else None

    def forward(self, x: Tensor, embedding: Tensor, *, width: float) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x, width=width)), width=width)
        h = h + self.time(embedding, width=width)[:, :, None, None]
        h = F.silu(self.norm2(h, width=width))
        h = self.conv2(self.dropout(h), width=width)
        h = h + (x if self.shortcut is None else self.shortcut(x, width=width))
        return h if self.attention is None else self.attention(h, width=width)


class SelfAttention(nn.Module):
    """Single-head self-attention over positions, scaled by the channels in use."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = SlimGroupNorm((channels,), groups)
        self.query, self.key, self.value, self.out = (
            SlimConv2d((channels,), channels, 1) for _ in range(4)
        )
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, *, width: float) -> Tensor:
        h = self.norm(x, width=width)
        q, k, v = (f(h, width=width).flatten(2).mT for f in (self.query, self.key, self.value))
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.out(h.mT.reshape(x.shape), width=width)


class Encoder(nn.Module):
    """The embedding of the time, and the half of a U-Net that goes down."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        base, time = arch.base, 4 * arch.base
        self.sinusoid = arch.sinusoid or base
        self.time1 = SlimLinear(self.sinusoid, time, slim_in=False)
        self.time2 = SlimLinear(time, time)
        self.head = SlimConv2d((arch.image_channels,), base, 3, slim_in=False)
        self.down = nn.ModuleList()
        self.channels = [base]  # of the head and of every layer of `down`
        for level, factor in enumerate(arch.mult):
            for _ in range(arch.blocks):
                source, out = self.channels[-1], base * factor
                self.down.append(self.block((source,), out, level in arch.attention))
                self.channels.append(out)
            if level + 1 < len(arch.mult):
                self.down.append(SlimConv2d((base * factor,), base * factor, 3, stride=2))
                self.channels.append(base * factor)

    def block(self, sources: tuple[int, ...], out: int, attention: bool) -> ResBlock:
        """A residual block that knows the time."""
        return ResBlock(sources, out, 4 * self.arch.base, attention, self.arch)

    def embed(self, time: Tensor, dtype: torch.dtype, *, width: float) -> Tensor:
        """Embedding of the time before its last SiLU, (B,) -> (B, 4 base width)."""
        embedding = self.time1(sinusoid(time, self.sinusoid).to(dtype), width=width)
        return self.time2(F.silu(embedding), width=width)

    def encode(self, x: Tensor, embedding: Tensor, *, width: float) -> list[Tensor]:
        """Features after the head and after every layer of `down`."""
        features = [self.head(x, width=width)]
        for layer in self.down:
            given = (embedding,) if isinstance(layer, ResBlock) else ()
            features.append(layer(features[-1], *given, width=width))
        return features


class UNet(Encoder):
    """Predicts eps from a noisy image and its time; `width` is an argument of every call."""

    arch: UNetArch

    def __init__(self, arch: UNetArch) -> None:
        super().__init__(arch)
        base, skips = arch.base, list(self.channels)
        channels = skips[-1]
        self.middle = nn.ModuleList(self.block((channels,), channels, a) for a in (True, False))
        self.up = nn.ModuleList()
        for level, factor in reversed(list(enumerate(arch.mult))):
            for _ in range(arch.blocks + 1):
                out = base * factor
                self.up.append(self.block((channels, skips.pop()), out, level in arch.attention))
                channels = out
            if level:
                self.up.append(SlimConv2d((channels,), channels, 3))
        self.norm = SlimGroupNorm((channels,), arch.groups)
        self.tail = SlimConv2d((channels,), arch.image_channels, 3, slim_out=False)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)
        # one row more than there are classes, for no label
        self.label = SlimEmbedding(arch.classes + 1, 4 * base) if arch.classes else None

    def forward(
        self, x: Tensor, time: Tensor, labels: Tensor | None = None, *, width: float = 1.0
    ) -> Tensor:
        """(B, C, H, W), (B,) times -> eps, (B, C, H, W); H and W divide by 2 ** (levels - 1).

        `labels` (B,) are whole numbers, where `classes` stands for none, as None does for all.
        """
        embedding = self.embed(time, x.dtype, width=width)
        if self.label is not None:
            if labels is None:
                labels = torch.full_like(time, self.arch.classes, dtype=torch.long)
            embedding = embedding + self.label(labels, width=width)
        elif labels is not None:
            raise ConfigError("unet: this network has no classes; leave labels out")
        embedding = F.silu(embedding)
        skips = self.encode(x, embedding, width=width)
        h = skips[-1]
        for layer in self.middle:
            h = layer(h, embedding, width=width)
        for layer in self.up:
            if isinstance(layer, ResBlock):
                h = layer(torch.cat([h, skips.pop()], 1), embedding, width=width)
            else:
                h = layer(F.interpolate(h, scale_factor=2.0, mode="nearest"), width=width)
        return self.tail(F.silu(self.norm(h, width=width)), width=width)

    def subnet(self, width: float) -> UNet:
        """A plain network of this width with contiguous weights of its own and the same outputs."""
        base = slim_channels(self.arch.base, width)
        device, dtype = self.head.weight.device, self.head.weight.dtype
        with torch.device("meta"):  # draws no random numbers for weights that are overwritten
            net = UNet(replace(self.arch, base=base, sinusoid=self.sinusoid)).to(dtype)
        net = net.to_empty(device=device)
        copy_slices(self, net, width)
        return net.train(self.training)


def sinusoid(time: Tensor, channels: int) -> Tensor:
    """Sines and cosines of the time, (B,) -> (B, channels) (Vaswani et al. 2017, sec. 3.5)."""
    half = channels // 2
    rate = torch.exp(-math.log(10000.0) / half * torch.arange(half, device=time.device))
    angle = time.to(torch.float64)[:, None] * rate.to(torch.float64)
    return torch.cat([angle.sin(), angle.cos()], 1)


class UNetFamily(Family):
    """Recipes with `net.family: unet`."""

    def check(self, config: Mapping[str, Any], widths: Sequence[float]) -> None:
        """ConfigError for keys, values or widths that make no U-Net."""
        UNetArch.from_config(config, 1).check_widths(widths)

    def build(
        self, config: Mapping[str, Any], image_shape: tuple[int, ...], widths: Sequence[float]
    ) -> UNet:
        """A U-Net with fresh weights for images (C, H, W)."""
        arch = UNetArch.from_config(config, image_shape[0])
        arch.check_widths(widths)
        arch.check_image(image_shape)
        return UNet(arch)

    def loss(self, module: nn.Module, batch: NoisyBatch, width: float) -> Tensor:
        """Mean squared error of the noise (Ho et al. 2020, eq. 14), some labels hidden."""
        return noise_error(module, batch, width)


FAMILIES.register("unet")(UNetFamily())
