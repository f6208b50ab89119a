"""Slimmable U-Net in the DDPM/ADM family (Ho et al. 2020, app. B; Dhariwal & Nichol 2021).

Structure: an input convolution; per level `blocks` residual blocks, with self-attention at the
listed levels, then a strided convolution; two middle blocks around attention; per level going up
`blocks + 1` residual blocks over skip concatenations. Input, output and the sinusoid of the time
stay full at every width; everything between is slim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepsearch.core.errors import ConfigError
from stepsearch.core.registry import did_you_mean
from stepsearch.nets.families import FAMILIES
from stepsearch.nets.slim import (
    SlimConv2d,
    SlimGroupNorm,
    SlimLinear,
    copy_slices,
    slim_channels,
)


@dataclass(frozen=True, slots=True)
class UNetArch:
    """Everything that fixes the layout; `base` channels times `mult` per level."""

    image_channels: int
    base: int
    mult: tuple[int, ...] = (1, 2)
    blocks: int = 1
    attention: tuple[int, ...] = ()  # levels, 0 = full resolution
    groups: int = 8
    dropout: float = 0.0
    sinusoid: int = 0  # channels of the time sinusoid; 0 = base

    def __post_init__(self) -> None:
        if self.base < 1:
            raise ConfigError(f"unet: base: must be at least 1, got {self.base}")
        if self.sinusoid < 0 or (self.sinusoid or self.base) % 2:
            raise ConfigError(
                f"unet: sinusoid (by default base): an even number is needed, got "
                f"{self.sinusoid or self.base}"
            )
        if not self.mult or min(self.mult) < 1 or self.blocks < 1:
            raise ConfigError(
                f"unet: mult and blocks start at 1, got mult={list(self.mult)}, "
                f"blocks={self.blocks}"
            )
        if self.groups < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"unet: groups start at 1 and dropout lies in [0, 1), got groups={self.groups}, "
                f"dropout={self.dropout}"
            )
        if any(not 0 <= level < len(self.mult) for level in self.attention):
            raise ConfigError(
                f"unet: attention: {list(self.attention)} names a level outside "
                f"0..{len(self.mult) - 1}"
            )

    @classmethod
    def from_config(cls, data: Mapping[str, Any], image_channels: int) -> UNetArch:
        """Read the `net` section of a recipe; ConfigError names an unknown key."""
        known = [name for name in cls.__dataclass_fields__ if name != "image_channels"]
        for key in data:
            if key not in known:
                raise ConfigError(
                    f"unet: unknown key '{key}'{did_you_mean(key, known)}; "
                    f"known: {', '.join(known)}"
                )
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        for key, value in values.items():
            numbers = value if key in ("mult", "attention") else (value,)
            kind = (int, float) if key == "dropout" else (int,)
            if not isinstance(numbers, tuple) or any(type(n) not in kind for n in numbers):
                expected = "a list of whole numbers" if numbers is value else "a number"
                raise ConfigError(f"unet: {key}: expected {expected}, got {data[key]!r}")
        if "base" not in values:
            raise ConfigError("unet: base: the number of channels at width 1 is missing")
        return cls(image_channels=image_channels, **values)

    def check_widths(self, widths: Sequence[float]) -> None:
        """ConfigError where a width leaves no whole channel or a group norm no whole group."""
        for width in widths:
            slim = self.base * width
            if not 0 < width <= 1:
                raise ConfigError(f"unet: widths lie in (0, 1], got {width}")
            if round(slim) < 1 or abs(slim - round(slim)) > 1e-6 or round(slim) % self.groups:
                raise ConfigError(
                    f"unet: base {self.base} at width {width} is {slim:g} channels, which do not "
                    f"fall into {self.groups} groups; choose base and groups to fit all widths"
                )


class ResBlock(nn.Module):
    """GN-SiLU-conv, time added, GN-SiLU-dropout-conv, and a 1x1 shortcut where channels change."""

    def __init__(
        self, sources: tuple[int, ...], out: int, time: int, attention: bool, arch: UNetArch
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


class UNet(nn.Module):
    """Predicts eps from a noisy image and its time; `width` is an argument of every call."""

    def __init__(self, arch: UNetArch) -> None:
        super().__init__()
        self.arch = arch
        base, time = arch.base, 4 * arch.base
        self.sinusoid = arch.sinusoid or base
        self.time1 = SlimLinear(self.sinusoid, time, slim_in=False)
        self.time2 = SlimLinear(time, time)
        self.head = SlimConv2d((arch.image_channels,), base, 3, slim_in=False)

        def block(sources: tuple[int, ...], out: int, attention: bool) -> ResBlock:
            return ResBlock(sources, out, time, attention, arch)

        self.down = nn.ModuleList()
        channels, skips = base, [base]
        for level, factor in enumerate(arch.mult):
            for _ in range(arch.blocks):
                self.down.append(block((channels,), base * factor, level in arch.attention))
                channels = base * factor
                skips.append(channels)
            if level + 1 < len(arch.mult):
                self.down.append(SlimConv2d((channels,), channels, 3, stride=2))
                skips.append(channels)
        self.middle = nn.ModuleList(block((channels,), channels, a) for a in (True, False))
        self.up = nn.ModuleList()
        for level, factor in reversed(list(enumerate(arch.mult))):
            for _ in range(arch.blocks + 1):
                out = base * factor
                self.up.append(block((channels, skips.pop()), out, level in arch.attention))
                channels = out
            if level:
                self.up.append(SlimConv2d((channels,), channels, 3))
        self.norm = SlimGroupNorm((channels,), arch.groups)
        self.tail = SlimConv2d((channels,), arch.image_channels, 3, slim_out=False)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)

    def forward(self, x: Tensor, time: Tensor, *, width: float = 1.0) -> Tensor:
        """(B, C, H, W), (B,) times -> eps, (B, C, H, W); H and W divide by 2 ** (levels - 1)."""
        embedding = self.time1(sinusoid(time, self.sinusoid).to(x.dtype), width=width)
        embedding = F.silu(self.time2(F.silu(embedding), width=width))
        h = self.head(x, width=width)
        skips = [h]
        for layer in self.down:
            block = isinstance(layer, ResBlock)
            h = layer(h, embedding, width=width) if block else layer(h, width=width)
            skips.append(h)
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


class UNetFamily:
    """Recipes with `net.family: unet`."""

    fitted = False

    def check(self, config: Mapping[str, Any], widths: Sequence[float]) -> None:
        """ConfigError for keys, values or widths that make no U-Net."""
        UNetArch.from_config(config, 1).check_widths(widths)

    def least_images(self, config: Mapping[str, Any]) -> int:
        """Any image will do."""
        return 1

    def build(
        self, config: Mapping[str, Any], image_shape: tuple[int, ...], widths: Sequence[float]
    ) -> UNet:
        """A U-Net with fresh weights for images (C, H, W)."""
        arch = UNetArch.from_config(config, image_shape[0])
        arch.check_widths(widths)
        step = 2 ** (len(arch.mult) - 1)
        if any(side % step for side in image_shape[1:]):
            raise ConfigError(
                f"unet: mult: {len(arch.mult)} levels need images whose sides divide by {step}, "
                f"got {image_shape[1]}x{image_shape[2]}"
            )
        return UNet(arch)

    def fit(self, module: nn.Module, images: np.ndarray, seed: int) -> None:
        """A U-Net has no closed-form fit."""
        raise TypeError("a U-Net is trained, not fitted")


FAMILIES.register("unet")(UNetFamily())
