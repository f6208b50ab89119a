"""Training that starts from the weights of a network file: the `init` of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from stepsearch.core.errors import ConfigError
from stepsearch.core.process import TRAINED
from stepsearch.core.protocols import NetCard
from stepsearch.nets.families import FAMILIES
from stepsearch.nets.load import file_sha256


def check_start(card: NetCard, family: str, config: Mapping[str, Any] | None = None) -> None:
    """ConfigError where training cannot start from the weights of `card`.

    Args:
        family: of the recipe.
        config: its `net` section, None where it takes that of the card. Dropout may differ.
    """
    if family != card.family or FAMILIES[family].fitted:
        raise ConfigError(f"weights of family '{card.family}' cannot start a '{family}'")
    if (card.process, card.prediction) != (TRAINED, "eps"):
        raise ConfigError(
            f"the network predicts {card.prediction} in process {card.process}; training goes on "
            f"from one that predicts eps in {TRAINED}"
        )
    if config is None:
        return
    with torch.device("meta"):
        theirs, ours = (
            FAMILIES[family].build(c, card.image_shape, (1.0,)).arch for c in (card.arch, config)
        )
    for key in (f.name for f in fields(ours) if not f.name.endswith("dropout")):
        found, wanted = getattr(ours, key), getattr(theirs, key)
        if found != wanted:
            raise ConfigError(
                f"net: {key} is {_shown(found)}, but {_shown(wanted)} in the weights; write that, "
                f"or leave net out"
            )


def start_from(path: Path, sha256: str, module: nn.Module) -> None:
    """Put the weights of a network file into `module`; one on the meta device is only compared.

    Raises:
        ConfigError: weights of other shapes, or not those of that hash.
    """
    with safe_open(path, "pt") as file:
        found = {k: file.get_slice(k).get_shape() for k in file.keys()}  # noqa: SIM118
    wanted = {k: list(v.shape) for k, v in module.state_dict().items()}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise ConfigError(
                f"{path}: {name} has shape {found.get(name)}, but the recipe's network needs "
                f"{wanted.get(name)}; use images with as many channels as the weights are for"
            )
    if next(module.parameters()).is_meta:
        return
    if file_sha256(path) != sha256:
        raise ConfigError(f"{path}: changed since the recipe was read; start again")
    module.load_state_dict(load_file(path))


def _shown(value: Any) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)
