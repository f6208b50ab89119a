"""Networks in the layout of DDSM's code (Yang et al., ICLR 2024; EnVision-Research/DDSM).

After a skip concatenation that code reads the first columns of a layer at every width, whichever
part of the concatenation they belong to: `concat: leading`. Its table of sinusoids is kept as it
is, since it may have been rounded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from stepsearch.core.errors import ConfigError
from stepsearch.nets.pretrained_tensors import Pretrained, renamed, shape_of
from stepsearch.nets.unet import TIMES
from stepsearch.nets.unet_arch import UNetArch

GROUPS = 16  # of slimmable_model_g16.py
SIDE = 32  # of the images of the only data set that DDSM's networks were released for
ENDS = {
    "head": "head",
    "norm": "tail.0",
    "tail": "tail.2",
    "table": "time_embedding.timembedding.0",
    "time1": "time_embedding.timembedding.1",
    "time2": "time_embedding.timembedding.3",
}
PARTS = {
    "norm1": "block1.0",
    "conv1": "block1.2",
    "time": "temb_proj.1",
    "norm2": "block2.0",
    "conv2": "block2.3",
    "shortcut": "shortcut",
    "attention.norm": "attn.group_norm",
    "attention.query": "attn.proj_q",
    "attention.key": "attn.proj_k",
    "attention.value": "attn.proj_v",
    "attention.out": "attn.proj",
}


def read_ddsm(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    groups: int | None = None,
    sides: tuple[int, ...] | None = None,
    weights: str = "ema",
) -> Pretrained:
    """A network from the tensors of a checkpoint; shapes say all but groups and sides.

    Args:
        weights: `ema` or `model`, for a checkpoint that holds both.
    """
    own = _under(_prefix(tensors, weights), tensors)
    config, assumed = _config(metadata), []
    if groups is None:
        groups = config.get("groups")
    if groups is None:
        groups = GROUPS
        assumed.append(f"{groups} groups in every norm (--groups; DDSM also has networks with 32)")
    if sides is None:  # a checkpoint holds noise to draw samples from
        inputs = [tensors[k] for k in ("x", "x_T") if k in tensors]
        sides = next((tuple(t.shape[2:]) for t in inputs if t.ndim == 4), None)
    if sides is None:
        sides = (SIDE, SIDE)
        assumed.append(f"images of {SIDE}x{SIDE} (--size)")
    arch = _arch(own, groups)
    return Pretrained(
        layout="ddsm",
        arch=arch,
        weights=renamed(arch, own, source_name),
        image_shape=(arch.image_channels, *sides),
        widths=tuple(config.get("widths", ())),
        assumed=tuple(assumed),
    )


def source_name(ours: str) -> str:
    """DDSM's name of a tensor of ours."""
    layer, leaf = ours.rsplit(".", 1)
    if layer in ENDS:
        return f"{ENDS[layer]}.{leaf}"
    blocks, index, *part = layer.split(".", 2)
    return f"{blocks}blocks.{index}.{PARTS[part[0]] if part else 'main'}.{leaf}"


def _prefix(tensors: Mapping[str, Tensor], weights: str) -> str:
    """What stands before the names of the network that is meant."""
    ends = "head.weight"
    found = sorted(k[: -len(ends)] for k in tensors if k == ends or k.endswith(f".{ends}"))
    if not found:
        raise ConfigError(
            f"not in the layout of DDSM (no tensor '{ends}'); a network of diffusers is read from "
            f"its folder, with its config.json"
        )
    if len(found) > 1:
        found = [prefix for prefix in found if ("ema" in prefix) == (weights == "ema")]
    if len(found) != 1:
        raise ConfigError(f"several networks, none of which is '{weights}' alone; keep one of them")
    return found[0]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own tensors."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def _config(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Groups and widths of a file that says them; shapes say the rest."""
    try:
        config = json.loads(metadata.get("config", "{}"))
    except ValueError:
        raise ConfigError("its metadata 'config' is no JSON; write the file again") from None
    if not isinstance(config, dict):
        return {}
    known = {}
    if type(config.get("groups")) is int:
        known["groups"] = config["groups"]
    widths = config.get("widths")
    if isinstance(widths, list) and widths and all(type(w) in (int, float) for w in widths):
        known["widths"] = [float(w) for w in widths]
    return known


def _arch(tensors: Mapping[str, Tensor], groups: int) -> UNetArch:
    base, channels, *_ = shape_of(tensors, "head.weight", 4)
    rows, sinusoid = shape_of(tensors, f"{ENDS['table']}.weight", 2)
    if rows != TIMES:
        raise ConfigError(f"{ENDS['table']}.weight: {rows} times; only {TIMES} can be carried")
    levels: list[list[tuple[int, bool]]] = [[]]  # channels, and whether there is attention
    index = 0
    while any(k.startswith(f"downblocks.{index}.") for k in tensors):
        block = f"downblocks.{index}"
        if f"{block}.main.weight" in tensors:
            levels.append([])
        else:
            out = shape_of(tensors, f"{block}.block1.2.weight", 4)[0]
            levels[-1].append((out, f"{block}.attn.proj.weight" in tensors))
        index += 1
    for level, blocks in enumerate(levels):
        if len(set(blocks)) != 1 or len(blocks) != len(levels[0]) or blocks[0][0] % base:
            raise ConfigError(
                f"downblocks: level {level} has blocks {blocks}; alike ones, of a multiple of "
                f"{base} channels, can be carried"
            )
    return UNetArch(
        image_channels=channels,
        base=base,
        mult=tuple(blocks[0][0] // base for blocks in levels),
        blocks=len(levels[0]),
        attention=tuple(i for i, blocks in enumerate(levels) if blocks[0][1]),
        groups=groups,
        sinusoid=0 if sinusoid == base else sinusoid,
        time="table",
        concat="leading",
    )
