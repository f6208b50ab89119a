"""FLOPs as the DDSM paper counts them, to set results beside its tables.

The paper (Yang et al., ICLR 2024) prints twice what ptflops 0.6.9 prints in MACs: convolutions and
linear layers with their biases, and two a normalised element; products of attention, activations
and resizing cost nothing. Its network of 128 channels has 6,065,456,000 such MACs; printed as
6.07 GMac, they are its 12.14 GFLOPs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stepsearch.core.counting import FULL_COUNT
from stepsearch.core.errors import ConfigError
from stepsearch.core.protocols import NetCard
from stepsearch.nets.families import FAMILIES, Family


def counted(card: NetCard, counting: str) -> NetCard:
    """The card with its FLOPs counted as asked; ConfigError where that says nothing of them."""
    if counting == FULL_COUNT:
        return card
    family = FAMILIES[card.family]
    if not countable(family):
        raise ConfigError(uncountable(card.name, card.family, counting))
    with torch.device("meta"):
        module = family.build(card.arch, card.image_shape, card.widths)
    return replace(
        card, flops=tuple(ddsm_flops(module, card.image_shape, width) for width in card.widths)
    )


def countable(family: Family) -> bool:
    """Whether the paper's way of counting says something of a family: networks that denoise."""
    return not (family.fitted or family.classifies)


def uncountable(name: str, family: str, counting: str) -> str:
    """What to say of a network that is not `countable`."""
    return (
        f"counting: {counting} says nothing of network '{name}' of family '{family}'; use "
        f"{FULL_COUNT}"
    )


def ddsm_flops(module: nn.Module, image_shape: Sequence[int], width: float) -> float:
    """FLOPs of one image and one call as the paper prints them: twice rounded MACs."""
    macs = ddsm_macs(module, image_shape, width)
    unit = next((unit for unit in (10**9, 10**6, 10**3) if macs >= unit), 1)
    return 2.0 * unit * round(macs / unit, 2)


def ddsm_macs(module: nn.Module, image_shape: Sequence[int], width: float) -> int:
    """What ptflops 0.6.9 counts, in MACs as it calls them; on the meta device."""
    plain = module.subnet(width).to("meta")
    x, time = torch.empty(1, *image_shape, device="meta"), torch.zeros(1, device="meta")
    with torch.no_grad(), _Counter() as counter:
        plain(x, time)
    return counter.macs


class _Counter(TorchFunctionMode):
    """Sums the cost of every function of `COSTS` that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        out = func(*args, **given)
        if func in COSTS:
            self.macs += COSTS[func](out, *args, **given)
        return out


def _conv(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any) -> int:
    positions = out.numel() // len(weight)
    return positions * weight.numel() + (0 if bias is None else out.numel())


def _linear(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> int:
    return x.numel() * len(weight) + (0 if bias is None else len(weight))  # one bias for all rows


def _norm(
    out: Tensor,
    x: Tensor,
    shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 0,
) -> int:
    return out.numel() * (1 if weight is None else 2)


COSTS: dict[Callable[..., Any], Callable[..., int]] = {
    F.conv2d: _conv,
    F.linear: _linear,
    F.group_norm: _norm,
    F.layer_norm: _norm,
}
