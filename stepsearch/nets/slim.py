"""Layers that take a width: one set of weights, of which a width uses the leading channels.

Slimmable networks: Yu et al. 2019 (arXiv:1812.08928); for diffusion, DDSM (Yang et al., ICLR 2024).
A layer whose input is a concatenation names its *sources*; each source is sliced on its own, so a
skip channel meets the same weight column at every width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def slim_channels(channels: int, width: float) -> int:
    """Channels in use at `width`; exact, so ValueError where the fraction is not whole."""
    slim = round(channels * width)
    if slim < 1 or abs(slim - channels * width) > 1e-6:
        raise ValueError(f"{channels} channels have no whole fraction {width}")
    return slim


def take_sources(weight: Tensor, sources: tuple[int, ...], width: float, dim: int) -> Tensor:
    """The leading `width` of every source along `dim`, concatenated; a view for one source."""
    if width == 1:
        return weight
    parts, start = [], 0
    for channels in sources:
        parts.append(weight.narrow(dim, start, slim_channels(channels, width)))
        start += channels
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class SlimLayer(nn.Module, ABC):
    """A layer whose parameters, sliced to a width, are what `weights` returns."""

    @abstractmethod
    def weights(self, width: float) -> tuple[Tensor, ...]:
        """What is in use at `width` of every parameter, in the order of `parameters`.

        Copied into a plain layer they give equal outputs.
        """


class SlimConv2d(SlimLayer):
    """Convolution over slim sources; `slim_in` or `slim_out` False keeps that side full.

    Padding is half a kernel on every side, or right and below alone with `pad_after`.
    """

    def __init__(
        self,
        sources: tuple[int, ...],
        out: int,
        kernel: int,
        *,
        stride: int = 1,
        slim_in: bool = True,
        slim_out: bool = True,
        pad_after: bool = False,
    ) -> None:
        super().__init__()
        self.sources, self.out, self.stride, self.padding = sources, out, stride, kernel // 2
        self.slim_in, self.slim_out, self.pad_after = slim_in, slim_out, pad_after
        plain = nn.Conv2d(sum(sources), out, kernel)
        self.weight, self.bias = plain.weight, plain.bias

    def weights(self, width: float) -> tuple[Tensor, Tensor]:
        weight, bias = self.weight, self.bias
        if self.slim_out:
            out = slim_channels(self.out, width)
            weight, bias = weight[:out], bias[:out]
        if self.slim_in:
            weight = take_sources(weight, self.sources, width, 1)
        return weight, bias

    def forward(self, x: Tensor, *, width: float) -> Tensor:
        """(B, slim in, H, W) -> (B, slim out, H', W')."""
        weight, bias = self.weights(width)
        if self.pad_after:
            after = self.padding
            return F.conv2d(F.pad(x, (0, after, 0, after)), weight, bias, self.stride)
        return F.conv2d(x, weight, bias, self.stride, self.padding)


class SlimLinear(SlimLayer):
    """Linear layer; `slim_in` or `slim_out` False keeps that side full."""

    def __init__(
        self, inputs: int, out: int, *, slim_in: bool = True, slim_out: bool = True
    ) -> None:
        super().__init__()
        self.inputs, self.out, self.slim_in, self.slim_out = inputs, out, slim_in, slim_out
        plain = nn.Linear(inputs, out)
        self.weight, self.bias = plain.weight, plain.bias

    def weights(self, width: float) -> tuple[Tensor, Tensor]:
        out = slim_channels(self.out, width) if self.slim_out else self.out
        inputs = slim_channels(self.inputs, width) if self.slim_in else self.inputs
        return self.weight[:out, :inputs], self.bias[:out]

    def forward(self, x: Tensor, *, width: float) -> Tensor:
        """(..., slim in) -> (..., slim out)."""
        return F.linear(x, *self.weights(width))


class SlimGroupNorm(SlimLayer):
    """Group normalisation with the same number of groups at every width; groups shrink instead."""

    def __init__(self, sources: tuple[int, ...], groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.sources, self.groups, self.eps = sources, groups, eps
        self.weight = nn.Parameter(torch.ones(sum(sources)))
        self.bias = nn.Parameter(torch.zeros(sum(sources)))

    def weights(self, width: float) -> tuple[Tensor, Tensor]:
        return (
            take_sources(self.weight, self.sources, width, 0),
            take_sources(self.bias, self.sources, width, 0),
        )

    def forward(self, x: Tensor, *, width: float) -> Tensor:
        """(B, slim, H, W) -> same shape."""
        return F.group_norm(x, self.groups, *self.weights(width), self.eps)


class SlimEmbedding(SlimLayer):
    """A vector for each of `rows` numbers, as wide as the channels in use."""

    def __init__(self, rows: int, out: int) -> None:
        super().__init__()
        self.rows, self.out = rows, out
        self.weight = nn.Embedding(rows, out).weight

    def weights(self, width: float) -> tuple[Tensor]:
        return (self.weight[:, : slim_channels(self.out, width)],)

    def forward(self, rows: Tensor, *, width: float) -> Tensor:
        """(B,) whole numbers -> (B, slim out)."""
        return F.embedding(rows, *self.weights(width))


class SlimTable(SlimLayer):
    """A vector for each whole number, full at every width and never trained."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(rows, requires_grad=False)

    def weights(self, width: float) -> tuple[Tensor]:
        return (self.weight,)

    def forward(self, rows: Tensor) -> Tensor:
        """(B,) numbers, of which the nearest row counts -> (B, channels)."""
        return F.embedding(rows.round().long(), self.weight)


def copy_slices(source: nn.Module, target: nn.Module, width: float) -> None:
    """Fill `target`, the same architecture built with slim channels, from `source` at `width`."""
    targets = dict(target.named_modules())
    with torch.no_grad():
        for name, layer in source.named_modules():
            if isinstance(layer, SlimLayer):
                own = targets[name].parameters()
                for parameter, part in zip(own, layer.weights(width), strict=True):
                    parameter.copy_(part)
