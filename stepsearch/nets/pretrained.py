"""Networks that others trained, written as ours: weights, and a card beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepsearch.core.errors import ConfigError
from stepsearch.core.process import TRAINED
from stepsearch.core.protocols import NetCard
from stepsearch.core.settings import NAME
from stepsearch.nets.families import count_flops
from stepsearch.nets.load import save_net
from stepsearch.nets.pretrained_ddsm import read_ddsm
from stepsearch.nets.pretrained_diffusers import read_diffusers, read_folder
from stepsearch.nets.pretrained_tensors import Pretrained, read_tensors
from stepsearch.nets.unet import UNet
from stepsearch.nets.unet_arch import UNetArch

EIGHTHS = tuple(k / 8 for k in range(2, 9))  # the widths that DDSM trains


def convert(
    source: Any,
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    widths: Sequence[float] | None = None,
    groups: int | None = None,
    size: int | None = None,
    weights: str = "ema",
    null_label: bool = False,
) -> NetCard:
    """Write a foreign network so that `load_net`, recipes and schedules take it as ours.

    Args:
        source: a file in the layout of DDSM's code (.safetensors, .pt, .pth, .ckpt); the folder of
            a diffusers UNet2DModel or of a pipeline with one; or such a model or pipeline itself.
        out: a .safetensors file that is not there yet; the card is written beside it.
        name: of the network in schedules; by default that of the file.
        widths: to offer. By default those that the source says were trained, else the eighths from
            2/8 that fit its norms and attention heads.
        groups: of the norms in a file of DDSM, which does not say; by default 16.
        size: side of the images, where the source does not say or the card shall say another.
        weights: `ema` or `model`, for a checkpoint of DDSM that holds both.
        null_label: the last class embedding of a diffusers network stands for no label.

    Raises:
        ConfigError: anything that cannot be read, or carried without changing the outputs.
    """
    path = Path(out)
    name = _check_output(path, path.stem if name is None else name)
    where = str(source) if isinstance(source, (str, os.PathLike)) else type(source).__name__
    try:
        found = _read(source, groups, size, weights, null_label)
        found.arch.check_image(found.image_shape)
        offered = _offered(found, widths)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    with torch.device("meta"):
        module = UNet(found.arch)
    card = NetCard(
        name=name,
        sha256="",
        family=UNetArch.family,
        process=TRAINED,
        image_shape=found.image_shape,
        widths=offered,
        flops=tuple(count_flops(module, found.image_shape, width) for width in offered),
        arch=_section(found.arch),
        training={"converted": where, "layout": found.layout, "assumed": list(found.assumed)},
        prediction=found.prediction,
        classes=found.arch.classes,
    )
    return save_net(path, card, found.weights)


def _check_output(path: Path, name: str) -> str:
    """The name; ConfigError where files cannot be written there without loss."""
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: the output must end in .safetensors")
    for file in (path, path.with_suffix(".json")):
        if file.exists():
            raise ConfigError(f"{file}: exists and nothing is overwritten; choose another output")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder; make it first")
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"'{name}' cannot name a network; use letters, digits, '.', '_' and '-' (--name)"
        )
    return name


def _read(
    source: Any, groups: int | None, size: int | None, weights: str, null_label: bool
) -> Pretrained:
    if size is not None and size < 1:
        raise ConfigError(f"--size: must be at least 1, got {size}")
    if weights not in ("ema", "model"):
        raise ConfigError(f"--weights: expected ema or model, got {weights!r}")
    sides = None if size is None else (size, size)
    if isinstance(source, (str, os.PathLike)) and not Path(source).is_dir():
        if null_label:
            raise ConfigError("--null-label: networks of DDSM know no labels; leave it out")
        if not Path(source).is_file():
            raise ConfigError(
                "no such file or folder; download a network of the Hugging Face hub first, e.g. "
                "with `hf download google/ddpm-cifar10-32 --local-dir FOLDER`"
            )
        tensors, metadata = read_tensors(Path(source))
        return read_ddsm(tensors, metadata, groups=groups, sides=sides, weights=weights)
    if groups is not None:
        raise ConfigError("--groups: the config of a diffusers network says it; leave it out")
    parts = read_folder(Path(source)) if isinstance(source, (str, os.PathLike)) else _parts(source)
    return read_diffusers(*parts, sides=sides, null_label=null_label)


def _parts(source: Any) -> tuple[Mapping[str, Any], Mapping[str, Tensor], Mapping[str, Any] | None]:
    """Config, tensors and the scheduler's config of a diffusers model or pipeline."""
    model, scheduler = getattr(source, "unet", source), getattr(source, "scheduler", None)
    if not (hasattr(model, "config") and hasattr(model, "state_dict")):
        raise ConfigError("neither a path nor a diffusers model, which has config and state_dict")
    return dict(model.config), model.state_dict(), scheduler and dict(scheduler.config)


def _offered(found: Pretrained, widths: Sequence[float] | None) -> tuple[float, ...]:
    """Widths of the card; ConfigError where one does not fit, or none does."""
    asked = found.widths if widths is None else tuple(widths)
    if widths is not None and not asked:
        raise ConfigError("--widths: give one at least")
    if asked:
        found.arch.check_widths(asked)
        return tuple(sorted({float(width) for width in asked}))
    found.arch.check_widths((1.0,))
    return tuple(width for width in EIGHTHS if _fits(found.arch, width))


def _fits(arch: UNetArch, width: float) -> bool:
    try:
        arch.check_widths((width,))
    except ConfigError:
        return False
    return True


def _section(arch: UNetArch) -> dict[str, Any]:
    """The `net` section of a recipe that describes the same network, defaults left out."""
    changed = {
        f.name: getattr(arch, f.name)
        for f in fields(arch)
        if f.name != "image_channels" and getattr(arch, f.name) != f.default
    }
    return {k: list(v) if isinstance(v, tuple) else v for k, v in changed.items()}
