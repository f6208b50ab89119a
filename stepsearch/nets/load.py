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
from torch import Tensor

from stepsearch.core.errors import ConfigError, SpaceError
from stepsearch.core.files import write_atomic
from stepsearch.core.protocols import Classifier, Net, NetCard
from stepsearch.nets.families import FAMILIES


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
    except (SpaceError, KeyError, TypeError, ValueError, RecursionError) as error:
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


def load_net(
    path: str | os.PathLike[str], *, device: str = "cpu", dtype: torch.dtype | None = None
) -> Net | Classifier:
    """The network at `path` (weights or card); ConfigError where hash or weights do not fit.

    A network has `eps`; a classifier, which guides one, has `gradient`. It computes in `dtype`, by
    default float32, and answers in the type of what it is given.
    """
    card = load_card(path)
    weights = Path(path).with_suffix(".safetensors")
    try:
        FAMILIES[card.family].check(card.arch, card.widths)
        module = FAMILIES[card.family].build(card.arch, card.image_shape, card.widths)
    except ConfigError as error:
        raise ConfigError(f"{weights.with_suffix('.json')}: {error}; train again") from None
    if FAMILIES[card.family].classes(card.arch) != card.classes:
        raise ConfigError(
            f"{weights.with_suffix('.json')}: classes: {card.classes} is not what the arch says; "
            f"train again"
        )
    try:
        module.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(f"{weights}: does not fit its card ({first}); train again") from None
    return FAMILIES[card.family].adapt(card, module.to(dtype), device)
