"""Networks on disk: weights as safetensors, beside them a JSON card; and as a solver sees them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stepsearch.core.errors import ConfigError
from stepsearch.core.files import write_atomic
from stepsearch.core.protocols import Net, NetCard
from stepsearch.nets.families import FAMILIES


class EpsNet:
    """A noise-predicting module trained on whole times, seen as a Net."""

    def __init__(self, card: NetCard, module: nn.Module) -> None:
        self.card = card
        self._module = module.eval().requires_grad_(False)
        self._plain: dict[float, nn.Module] = {}

    def eps(
        self, x: Tensor, level: float, *, width: float = 1.0, cond: Tensor | None = None
    ) -> Tensor:
        """Predicted noise (B, C, H, W) at the trained time nearest to `level`.

        The network computes in the type of its weights; the answer has the type of `x`.
        """
        if cond is not None:
            raise ConfigError(f"network '{self.card.name}' is unconditional; leave cond out")
        width = self.card.check_width(width)
        if width not in self._plain:
            plain = self._module.subnet(width).eval().requires_grad_(False)
            self._plain[width] = plain.to(memory_format=torch.channels_last)
        time = self.card.diffusion.time_at(level)
        weights = next(self._module.parameters(), next(self._module.buffers(), x))
        with torch.no_grad():
            times = torch.full((len(x),), time, device=x.device)
            return self._plain[width](x.to(weights.dtype), times).to(x.dtype)


def count_flops(module: nn.Module, image_shape: tuple[int, ...], width: float) -> float:
    """FLOPs of one image and one call at `width`; one multiply-add is 2 FLOPs.

    Counted on the meta device, since torch counts fused attention on a CPU as zero.
    """
    plain = module.subnet(width).to("meta")
    x, time = torch.empty(1, *image_shape, device="meta"), torch.zeros(1, device="meta")
    with FlopCounterMode(display=False) as counter:
        plain(x, time)
    return float(counter.get_total_flops())


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_net(path: Path, card: NetCard, weights: Mapping[str, Tensor]) -> NetCard:
    """Write weights to `path` and the card beside it, both atomically; returns the hashed card."""
    data = save({k: v.detach().cpu().contiguous() for k, v in weights.items()})
    fields = json.loads(card.to_json()) | {"sha256": hashlib.sha256(data).hexdigest()}
    hashed = NetCard.from_json(json.dumps(fields))
    write_atomic(path.with_suffix(".json"), hashed.to_json().encode())
    write_atomic(path, data)  # last: where there are weights, there is a card
    return hashed


def load_card(path: str | os.PathLike[str]) -> NetCard:
    """The card beside a weights file (or named itself), its hash checked against the weights."""
    card_path, weights = Path(path).with_suffix(".json"), Path(path).with_suffix(".safetensors")
    for file in (card_path, weights):
        if not file.is_file():
            raise ConfigError(f"{file}: no such file; train the network again")
    try:
        card = NetCard.from_json(card_path.read_text(encoding="utf-8"))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{card_path}: not a network card ({type(error).__name__}: {error}); train again"
        ) from None
    found = file_sha256(weights)
    if found != card.sha256:
        raise ConfigError(
            f"{weights}: sha256 is {found[:12]}..., its card says {card.sha256[:12]}...; "
            f"restore the file or delete both and train again"
        )
    return card


def load_net(path: str | os.PathLike[str], *, device: str = "cpu") -> Net:
    """The network at `path` (weights or card); ConfigError where hash or weights do not fit."""
    card = load_card(path)
    weights = Path(path).with_suffix(".safetensors")
    try:
        FAMILIES[card.family].check(card.arch, card.widths)
        module = FAMILIES[card.family].build(card.arch, card.image_shape, card.widths)
    except ConfigError as error:
        raise ConfigError(f"{weights.with_suffix('.json')}: {error}; train again") from None
    try:
        module.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(f"{weights}: does not fit its card ({first}); train again") from None
    return EpsNet(card, module.to(device))
