"""Networks at the boundary: whatever a module predicts and however it counts time, eps comes out.

One adapter per parameterisation, so that no solver branches on it. Formulas are in
x = alpha (x0 + r eps), and a = 1 / sqrt(1 + r^2), s = r a, the variance-preserving scales of r.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stepsearch.core.errors import ConfigError
from stepsearch.core.process import get_process
from stepsearch.core.protocols import PREDICTIONS, TIMES, NetCard

Ask = Callable[[Tensor, Tensor], Tensor]  # a module bound to its labels: (input, time) -> output


def eps_from_eps(ask: Ask, x: Tensor, level: float, card: NetCard) -> Tensor:
    """The module predicts the noise (Ho et al. 2020)."""
    return ask(x, _times(x, level, card))


def eps_from_x0(ask: Ask, x: Tensor, level: float, card: NetCard) -> Tensor:
    """The module predicts the image: eps = (x / alpha - x0) / r."""
    return (x / card.diffusion.alpha(level) - ask(x, _times(x, level, card))) / level


def eps_from_v(ask: Ask, x: Tensor, level: float, card: NetCard) -> Tensor:
    """The module predicts v = a eps - s x0: eps = s x_vp + a v (Salimans & Ho 2022, app. D)."""
    a = 1 / math.sqrt(1 + level * level)
    scaled = x * (a / card.diffusion.alpha(level))
    return level * a * scaled + a * ask(x, _times(x, level, card))


def eps_from_F(ask: Ask, x: Tensor, level: float, card: NetCard) -> Tensor:  # noqa: N802 (the paper's letter)
    """The module is EDM's raw F(c_in x, ln(r) / 4) (Karras et al. 2022, eq. 7 and table 1)."""
    xb, total = x / card.diffusion.alpha(level), level**2 + card.sigma_data**2
    raw = ask(xb / math.sqrt(total), _filled(x, math.log(level) / 4))
    # (xb - D) / r with D = c_skip xb + c_out F, c_skip = sd^2 / total, c_out = r sd / sqrt(total)
    return xb * (level / total) - raw * (card.sigma_data / math.sqrt(total))


ADAPTERS: dict[str, Callable[[Ask, Tensor, float, NetCard], Tensor]] = {
    "eps": eps_from_eps,
    "x0": eps_from_x0,
    "v": eps_from_v,
    "F": eps_from_F,
}


def _times(x: Tensor, level: float, card: NetCard) -> Tensor:
    return _filled(x, card.diffusion.time_at(level))


def _filled(x: Tensor, value: float) -> Tensor:
    """(B,) of one number, in float32 at least: half precision holds no time above 2048 exactly."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.full((len(x),), value, device=x.device, dtype=dtype)


class ModuleNet:
    """A module seen as a Net; `card.prediction` and `card.times` say how it is asked.

    Args:
        plain: width -> module with `forward(x, time)`, or `forward(x, time, labels)` where the
            card has classes; label `classes` then stands for none. A width is asked for once, and
            its module is put into evaluation mode.
    """

    def __init__(self, card: NetCard, plain: Callable[[float], nn.Module]) -> None:
        self.card = card
        self._plain, self._made = plain, dict[float, nn.Module]()

    def eps(
        self, x: Tensor, level: float, *, width: float = 1.0, cond: Tensor | None = None
    ) -> Tensor:
        """Predicted noise (B, C, H, W); `cond` (B,) are labels.

        The network computes in the type of its weights; the answer has the type of `x`.
        """
        width = self.card.check_width(width)
        if width not in self._made:
            self._made[width] = self._plain(width).eval()
        module = self._made[width]
        weights = itertools.chain(module.parameters(), module.buffers())
        dtype = next((w.dtype for w in weights if w.is_floating_point()), x.dtype)
        labels = self._labels(x, cond)

        def ask(given: Tensor, times: Tensor) -> Tensor:
            out = module(given.to(dtype), times, *labels)
            found = tuple(getattr(out, "shape", ())) or type(out).__name__
            if found != tuple(x.shape):  # another number of channels might pass by broadcasting
                raise ConfigError(
                    f"network '{self.card.name}' answered with {found} to an input of "
                    f"{tuple(x.shape)}; wrap it so that both shapes are equal"
                )
            return out.to(x.dtype)

        with torch.no_grad():
            return ADAPTERS[self.card.prediction](ask, x, level, self.card)

    def _labels(self, x: Tensor, cond: Tensor | None) -> tuple[Tensor, ...]:
        classes = self.card.classes
        if not classes:
            if cond is not None:
                raise ConfigError(f"network '{self.card.name}' is unconditional; leave cond out")
            return ()
        if cond is None:
            return (torch.full((len(x),), classes, device=x.device),)
        return (check_labels(cond, len(x), classes).to(x.device),)


def check_labels(labels: Tensor, count: int, classes: int) -> Tensor:
    """Labels as whole numbers; ConfigError where one is no class or their number is not `count`."""
    if labels.shape != (count,) or labels.is_floating_point():
        raise ConfigError(f"cond: expected {count} whole-number labels, got {tuple(labels.shape)}")
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        found = int(labels.min()), int(labels.max())
        raise ConfigError(f"cond: labels lie in 0..{classes - 1}, got {found[0]}..{found[1]}")
    return labels.long()


def adapt(
    module: nn.Module,
    *,
    name: str,
    image_shape: Sequence[int],
    process: str = "vp-linear-1000",
    prediction: str = "eps",
    times: str = "nearest",
    classes: int = 0,
    sigma_data: float = 0.5,
    sha256: str = "0" * 64,
    flops: float = 0.0,
) -> ModuleNet:
    """A network of your own as a Net of one width.

    Args:
        module: `forward(x, time)`, or `forward(x, time, labels)` with `classes`; x in the scale of
            the process, time as the process counts it (EDM's F: c_in x and ln(sigma) / 4).
        process: vp-linear-1000, vp-cosine-1000, vp-linear, vp-cosine, edm or ve.
        prediction: eps, x0, v or F.
        times: nearest or continuous, for the processes of 1000 whole times.
        sha256: identity of the weights, for schedules that name the network.
        flops: of one image and call; 0 where costs are not asked for.

    Raises:
        ConfigError: a process, prediction or way of time that is unknown, or numbers that make no
            sense.
    """
    get_process(process)
    named = (("prediction", prediction, PREDICTIONS), ("times", times, TIMES))
    for what, value, known in named:
        if value not in known:
            raise ConfigError(f"unknown {what} '{value}'; known: {', '.join(known)}")
    try:
        card = NetCard(
            name=name,
            sha256=sha256,
            family="module",
            process=process,
            image_shape=tuple(image_shape),
            widths=(1.0,),
            flops=(flops,),
            prediction=prediction,
            times=times,
            classes=classes,
            sigma_data=sigma_data,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return ModuleNet(card, lambda width: module)


def slim_net(card: NetCard, module: Any, device: str) -> ModuleNet:
    """A slimmable module as a Net, each width made plain when it is first asked for."""
    module = module.to(device).eval().requires_grad_(False)

    def plain(width: float) -> nn.Module:
        return module.subnet(width).to(memory_format=torch.channels_last)

    return ModuleNet(card, plain)
