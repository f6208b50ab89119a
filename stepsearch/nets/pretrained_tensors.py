"""Tensors of a foreign file, by name, and as weights of our U-Net."""

from __future__ import annotations

import pickle
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.torch_version import TorchVersion

from stepsearch.core.errors import ConfigError
from stepsearch.nets.unet import UNet
from stepsearch.nets.unet_arch import UNetArch

PICKLED = (".pt", ".pth", ".ckpt", ".bin")
# what torch raises for a file cut short, or of another kind, depends on where it broke
BROKEN = (EOFError, OSError, RuntimeError, ValueError, LookupError, ArithmeticError)
BROKEN += (AttributeError, TypeError, AssertionError, struct.error)
SAFE_TORCH = (2, 10)  # the first whose weights_only=True we trust with a stranger's file


@dataclass(frozen=True)
class Pretrained:
    """A network of another program in our terms."""

    layout: str
    arch: UNetArch
    weights: Mapping[str, Tensor]  # of UNet(arch), float32
    image_shape: tuple[int, ...]
    widths: tuple[float, ...] = ()  # trained ones, where the file says so
    prediction: str = "eps"  # of a NetCard
    assumed: tuple[str, ...] = ()  # what the source does not say


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and text of a file; nested dicts become dotted names, what is no tensor is left out.

    A pickle is read by torch's loader of plain weights alone, which runs no code of the file.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return tensors, file.metadata() or {}
        except SafetensorError as error:
            raise ConfigError(f"no safetensors file ({error}); fetch it again") from None
    if path.suffix not in PICKLED:
        known = ", ".join((".safetensors", *PICKLED))
        raise ConfigError(f"a file ending in '{path.suffix}' is not known; known: {known}")
    if TorchVersion(torch.__version__) < SAFE_TORCH:
        raise ConfigError(
            f"a {path.suffix} file is a pickle, which torch {torch.__version__} may run code of; "
            f"install torch 2.10 or later, or give safetensors"
        )
    try:
        with path.open("rb") as file:
            content = _plain_weights(file)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0].removesuffix(".")
        raise ConfigError(
            f"holds more than plain weights, or is broken, and was not read ({reason[:120]}); "
            f"save its state_dict alone"
        ) from None
    return dict(_tensors(content, "")), {}


def _plain_weights(file: BinaryIO) -> Any:
    try:
        with warnings.catch_warnings():  # of an old protocol, before an error of ours
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except BROKEN as error:
        raise ConfigError(f"broken ({type(error).__name__}); fetch it again") from None


def _tensors(content: Any, name: str) -> list[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        return [(name, content)]
    if not isinstance(content, Mapping):
        return []
    inner = ((f"{name}.{k}" if name else str(k), v) for k, v in content.items())
    return [pair for key, value in inner for pair in _tensors(value, key)]


def shape_of(tensors: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    """Shape of a tensor that must be there and have so many axes."""
    if name not in tensors:
        raise ConfigError(f"no tensor '{name}', so that the layout cannot be read")
    shape = tuple(tensors[name].shape)
    if len(shape) != axes or 0 in shape:
        raise ConfigError(f"{name}: expected {axes} axes, got shape {shape}")
    return shape


def renamed(
    arch: UNetArch, tensors: Mapping[str, Tensor], name_of: Callable[[str], str]
) -> dict[str, Tensor]:
    """Weights of UNet(arch) in float32, every tensor used once.

    Args:
        name_of: our name of a tensor -> its name in `tensors`.

    Raises:
        ConfigError: a tensor that is missing, left over, not finite or of another shape.
    """
    with torch.device("meta"):
        wanted = UNet(arch).state_dict()
    left, weights = dict(tensors), {}
    for ours, like in wanted.items():
        name = name_of(ours)
        if name not in left:
            raise ConfigError(f"no tensor '{name}', which a network of this layout has")
        tensor = left.pop(name).detach().to("cpu", torch.float32)
        if like.ndim == 4 and tensor.ndim == 2:  # a linear layer is a convolution of one pixel
            tensor = tensor[:, :, None, None]
        if tensor.shape != like.shape:
            raise ConfigError(
                f"{name}: shape {tuple(tensor.shape)} where {tuple(like.shape)} is needed"
            )
        if not tensor.isfinite().all():
            raise ConfigError(f"{name}: holds values that are not finite; fetch the file again")
        weights[ours] = tensor
    if left:
        raise ConfigError(f"{min(left)}: a tensor that no network of this layout has")
    return weights
