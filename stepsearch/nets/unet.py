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
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepsearch.core.errors import ConfigError
from stepsearch.core.protocols import NoisyBatch
from stepsearch.nets.families import FAMILIES, Family, noise_error
from stepsearch.nets.slim import (
    SlimConv2d,
    SlimEmbedding,
    SlimGroupNorm,
    SlimLinear,
    SlimTable,
    copy_slices,
    slim_channels,
)
from stepsearch.nets.unet_arch import Arch, UNetArch

TIMES = 1000  # rows of a table of times: whole times 0 .. 999


class ResBlock(nn.Module):
    """GN-SiLU-conv, time added, GN-SiLU-dropout-conv, and a 1x1 shortcut where channels change."""

    def __init__(
        self, sources: tuple[int, ...], out: int, time: int, attention: bool, arch: Arch
    ) -> None:
        super().__init__()
        self.norm1 = SlimGroupNorm(sources, arch.groups, arch.eps)
        self.conv1 = SlimConv2d(sources, out, 3)
        self.time = SlimLinear(time, out)
        self.norm2 = SlimGroupNorm((out,), arch.groups, arch.eps)
        self.dropout = nn.Dropout(arch.dropout)
        self.conv2 = SlimConv2d((out,), out, 3)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)
        self.shortcut = SlimConv2d(sources, out, 1) if sources != (out,) else None
        self.attention = SelfAttention(out, arch) if attention else None

    def forward(self, x: Tensor, embedding: Tensor, *, width: float) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x, width=width)), width=width)
        h = h + self.time(embedding, width=width)[:, :, None, None]
        h = F.silu(self.norm2(h, width=width))
        h = self.conv2(self.dropout(h), width=width)
        h = h + (x if self.shortcut is None else self.shortcut(x, width=width))
        return h if self.attention is None else self.attention(h, width=width)


class SelfAttention(nn.Module):
    """Self-attention over positions; one head over the channels in use, or heads of `head_dim`."""

    def __init__(self, channels: int, arch: Arch) -> None:
        super().__init__()
        self.head_dim = arch.head_dim
        self.norm = SlimGroupNorm((channels,), arch.groups, arch.eps)
        self.query, self.key, self.value, self.out = (
            SlimConv2d((channels,), channels, 1) for _ in range(4)
        )
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, *, width: float) -> Tensor:
        h = self.norm(x, width=width)
        heads = (-1, self.head_dim or x.shape[1])
        q, k, v = (
            layer(h, width=width).flatten(2).unflatten(1, heads).mT  # (B, heads, positions, dim)
            for layer in (self.query, self.key, self.value)
        )
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.mT.reshape(x.shape), width=width)


class Encoder(nn.Module):
    """The embedding of the time, and the half of a U-Net that goes down."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        base, time = arch.base, 4 * arch.base
        self.sinusoid = arch.sinusoid or base
        rows = sinusoid(torch.arange(TIMES), self.sinusoid) if arch.time == "table" else None
        self.table = None if rows is None else SlimTable(rows.to(torch.get_default_dtype()))
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
                out, after = base * factor, arch.downsample == "asymmetric"
                self.down.append(SlimConv2d((out,), out, 3, stride=2, pad_after=after))
                self.channels.append(out)

    def block(self, sources: tuple[int, ...], out: int, attention: bool) -> ResBlock:
        """A residual block that knows the time."""
        return ResBlock(sources, out, 4 * self.arch.base, attention, self.arch)

    def embed(self, time: Tensor, dtype: torch.dtype, *, width: float) -> Tensor:
        """Embedding of the time before its last SiLU, (B,) -> (B, 4 base width)."""
        waves = sinusoid(time, self.sinusoid) if self.table is None else self.table(time)
        embedding = self.time1(waves.to(dtype), width=width)
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
                out, sources = base * factor, (channels, skips.pop())
                if arch.concat == "leading":  # as in DDSM's code: a width takes the first columns
                    sources = (sum(sources),)
                self.up.append(self.block(sources, out, level in arch.attention))
                channels = out
            if level:
                self.up.append(SlimConv2d((channels,), channels, 3))
        self.norm = SlimGroupNorm((channels,), arch.groups, arch.eps)
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
