"""Slimmable diffusion transformer (DiT, Peebles & Xie 2023, arXiv:2212.09748, sec. 3.2).

Patches become tokens with sinusoidal positions; `depth` blocks of attention and MLP follow, each
modulated by time and label (adaLN-Zero); a linear layer turns tokens into patches. The stream of
the tokens and all that modulates it stay full at every width; a block uses the leading heads of its
attention and the leading hidden units of its MLP. Unlike the paper, the network predicts no
variance, and query, key and value are layers of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepsearch.core.errors import ConfigError
from stepsearch.core.protocols import NoisyBatch
from stepsearch.nets.families import (
    FAMILIES,
    LABEL_DROPOUT,
    Family,
    check_label_keys,
    check_numbers,
    noise_error,
)
from stepsearch.nets.slim import SlimLinear, copy_slices, slim_channels
from stepsearch.nets.unet import sinusoid

NAME = "dit"
SINUSOID = 256  # channels of the time sinusoid, as in the paper's code
KEYS = {"dim": int, "depth": int, "heads": int, "mlp": float, "patch": int}
KEYS |= {"classes": int, "label_dropout": float}


@dataclass(frozen=True, slots=True)
class DiTArch:
    """Everything that fixes the layout, and how labels are trained; a narrow one has less heads."""

    image_channels: int
    dim: int  # channels of the stream
    depth: int
    heads: int
    head_dim: int  # the same at every width
    hidden: int  # units of each MLP
    patch: int  # pixels of a side
    classes: int = 0  # labels 0 .. classes - 1; 0 = none
    label_dropout: float = LABEL_DROPOUT

    @classmethod
    def from_config(cls, data: Mapping[str, Any], image_channels: int) -> DiTArch:
        """Read the `net` section of a recipe; ConfigError names key, value and remedy."""
        check_numbers(NAME, data, KEYS)
        check_label_keys(NAME, data)
        for key in ("dim", "depth", "heads"):
            if key not in data:
                raise _error(f"{key}: missing; give dim, depth and heads")
        sizes = {"mlp": 4, "patch": 2, **data}
        for key in ("dim", "depth", "heads", "patch"):
            if sizes[key] < 1:
                raise _error(f"{key}: must be at least 1, got {sizes[key]}")
        dim, heads, mlp = sizes["dim"], sizes["heads"], sizes["mlp"]
        if dim % 4 or dim % heads:  # sine and cosine of row and column; equal heads
            raise _error(
                f"dim: {dim} does not divide by 4 and by heads {heads}; take a multiple of "
                f"{math.lcm(4, heads)}"
            )
        if not (0 < mlp < math.inf and dim * mlp == round(dim * mlp)):
            raise _error(f"mlp: {mlp} times dim {dim} must be a whole number of hidden units")
        return cls(
            image_channels=image_channels,
            dim=dim,
            depth=sizes["depth"],
            heads=heads,
            head_dim=dim // heads,
            hidden=round(dim * mlp),
            patch=sizes["patch"],
            classes=sizes.get("classes", 0),
            label_dropout=sizes.get("label_dropout", LABEL_DROPOUT),
        )

    def check_image(self, shape: tuple[int, ...]) -> None:
        """ConfigError where images (C, H, W) do not fall into patches."""
        if any(side % self.patch for side in shape[1:]):
            raise _error(
                f"patch: images of {shape[1]}x{shape[2]} do not fall into patches of "
                f"{self.patch}x{self.patch}; choose a patch that divides both sides"
            )

    def check_widths(self, widths: Sequence[float]) -> None:
        """ConfigError where a width leaves no whole head or no whole hidden unit."""
        for width in widths:
            if not 0 < width <= 1:
                raise _error(f"widths lie in (0, 1], got {width}")
        parts = math.lcm(*(Fraction(w).limit_denominator(1000).denominator for w in widths))
        for width in widths:
            for name, whole in (("heads", self.heads), ("hidden units (dim x mlp)", self.hidden)):
                slim = whole * width
                if round(slim) < 1 or abs(slim - round(slim)) > 1e-6:
                    raise _error(
                        f"{whole} {name} at width {width} are {slim:g}; take a multiple of "
                        f"{parts}, or leave the width out"
                    )


def _error(message: str) -> ConfigError:
    return ConfigError(f"{NAME}: {message}")


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition; the identity at first."""

    def __init__(self, arch: DiTArch) -> None:
        super().__init__()
        dim, inner = arch.dim, arch.heads * arch.head_dim
        self.head_dim = arch.head_dim
        self.modulation = nn.Linear(dim, 6 * dim)
        self.query, self.key, self.value = (SlimLinear(dim, inner, slim_in=False) for _ in range(3))
        self.out = SlimLinear(inner, dim, slim_out=False)
        self.expand = SlimLinear(dim, arch.hidden, slim_in=False)
        self.contract = SlimLinear(arch.hidden, dim, slim_out=False)

    def forward(self, tokens: Tensor, condition: Tensor, *, width: float) -> Tensor:
        """(B, N, dim), (B, dim) -> (B, N, dim)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = _modulation(self.modulation, condition, 6)
        tokens = tokens + gate1 * self.attend(_normal(tokens, shift1, scale1), width=width)
        h = self.expand(_normal(tokens, shift2, scale2), width=width)
        return tokens + gate2 * self.contract(F.gelu(h, approximate="tanh"), width=width)

    def attend(self, h: Tensor, *, width: float) -> Tensor:
        """Self-attention of the heads in use over tokens."""
        q, k, v = (
            layer(h, width=width).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        h = F.scaled_dot_product_attention(q, k, v)
        return self.out(h.transpose(1, 2).flatten(2), width=width)


class DiT(nn.Module):
    """Predicts eps from a noisy image and its time; `width` is an argument of every call."""

    def __init__(self, arch: DiTArch) -> None:
        super().__init__()
        self.arch = arch
        dim, pixels = arch.dim, arch.image_channels * arch.patch**2
        self.patch = nn.Linear(pixels, dim)
        self.time1 = nn.Linear(SINUSOID, dim)
        self.time2 = nn.Linear(dim, dim)
        # one row more than there are classes, for no label
        self.label = nn.Embedding(arch.classes + 1, dim) if arch.classes else None
        self.blocks = nn.ModuleList(Block(arch) for _ in range(arch.depth))
        self.modulation = nn.Linear(dim, 2 * dim)
        self.tail = nn.Linear(dim, pixels)
        self._initialise()

    def _initialise(self) -> None:
        """Every block the identity, and the answer zero, as in the paper.

        Its code draws the embeddings of time and label small, which a short training has to undo.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Linear | SlimLinear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in (self.tail, self.modulation, *(block.modulation for block in self.blocks)):
            nn.init.zeros_(layer.weight)

    def forward(
        self, x: Tensor, time: Tensor, labels: Tensor | None = None, *, width: float = 1.0
    ) -> Tensor:
        """(B, C, H, W), (B,) times -> eps, (B, C, H, W); H and W divide by `patch`.

        `labels` (B,) are whole numbers, where `classes` stands for none, as None does for all.
        """
        rows, columns = (side // self.arch.patch for side in x.shape[2:])
        place = positions(rows, columns, self.arch.dim, x.device).to(x.dtype)
        tokens = self.patch(patchify(x, self.arch.patch)) + place
        condition = F.silu(self.condition(time, labels, x.dtype))
        for block in self.blocks:
            tokens = block(tokens, condition, width=width)
        tokens = self.tail(_normal(tokens, *_modulation(self.modulation, condition, 2)))
        return unpatchify(tokens, rows, columns, self.arch.patch)

    def condition(self, time: Tensor, labels: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Embedding of time and label, (B,), (B,) -> (B, dim)."""
        embedding = self.time2(F.silu(self.time1(sinusoid(time, SINUSOID).to(dtype))))
        if self.label is None:
            if labels is not None:
                raise _error("this network has no classes; leave labels out")
            return embedding
        if labels is None:
            labels = torch.full_like(time, self.arch.classes, dtype=torch.long)
        return embedding + self.label(labels)

    def subnet(self, width: float) -> DiT:
        """A plain network of this width with contiguous weights of its own and the same outputs."""
        heads, hidden = (slim_channels(n, width) for n in (self.arch.heads, self.arch.hidden))
        with torch.device("meta"):  # draws no random numbers for weights that are overwritten
            net = DiT(replace(self.arch, heads=heads, hidden=hidden)).to(self.patch.weight.dtype)
        net = net.to_empty(device=self.patch.weight.device)
        own = net.state_dict()
        for name, value in self.state_dict().items():
            if own[name].shape == value.shape:  # what is full at every width
                own[name].copy_(value)
        copy_slices(self, net, width)
        return net.train(self.training)


def patchify(x: Tensor, patch: int) -> Tensor:
    """Images (B, C, H, W) -> tokens (B, N, C patch patch), row by row."""
    return F.pixel_unshuffle(x, patch).flatten(2).mT


def unpatchify(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """Inverse of `patchify` for a grid of rows x columns patches."""
    return F.pixel_shuffle(tokens.mT.unflatten(2, (rows, columns)), patch)


def positions(rows: int, columns: int, channels: int, device: torch.device) -> Tensor:
    """Sinusoids of row and of column, half of the channels each: (rows columns, channels)."""
    y, x = torch.meshgrid(
        torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
    )
    return torch.cat([sinusoid(at.flatten(), channels // 2) for at in (y, x)], 1)


def _modulation(layer: nn.Module, condition: Tensor, parts: int) -> tuple[Tensor, ...]:
    """(B, dim) -> `parts` times (B, 1, dim)."""
    return layer(condition)[:, None].chunk(parts, -1)


def _normal(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm whose shift and scale come from the condition."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift


class DiTFamily(Family):
    """Recipes with `net.family: dit`."""

    def check(self, config: Mapping[str, Any], widths: Sequence[float]) -> None:
        """ConfigError for keys, values or widths that make no transformer."""
        DiTArch.from_config(config, 1).check_widths(widths)

    def build(
        self, config: Mapping[str, Any], image_shape: tuple[int, ...], widths: Sequence[float]
    ) -> DiT:
        """A transformer with fresh weights for images (C, H, W)."""
        arch = DiTArch.from_config(config, image_shape[0])
        arch.check_widths(widths)
        arch.check_image(image_shape)
        return DiT(arch)

    def loss(self, module: nn.Module, batch: NoisyBatch, width: float) -> Tensor:
        """Mean squared error of the noise (Ho et al. 2020, eq. 14), some labels hidden."""
        return noise_error(module, batch, width)


FAMILIES.register(NAME)(DiTFamily())
