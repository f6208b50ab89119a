"""Networks of diffusers' UNet2DModel, by its config and tensors; diffusers itself is not needed.

A config that our U-Net cannot reproduce to the last digit of float32 is refused by key.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepsearch.core.errors import ConfigError
from stepsearch.nets.pretrained_tensors import Pretrained, read_tensors, renamed
from stepsearch.nets.unet import TIMES
from stepsearch.nets.unet_arch import UNetArch

REMEDY = "adapt it at one width with stepsearch.adapt"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
DOWN = {"DownBlock2D": False, "AttnDownBlock2D": True}  # block type: whether there is attention
UP = {"UpBlock2D": False, "AttnUpBlock2D": True}
DEFAULTS = {  # of UNet2DModel, for a config that was written before a key was known
    "_class_name": "UNet2DModel",
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,  # of a learned embedding of the time alone
}
ENDS = {
    "head": "conv_in",
    "norm": "conv_norm_out",
    "tail": "conv_out",
    "table": "time_proj",
    "time1": "time_embedding.linear_1",
    "time2": "time_embedding.linear_2",
    "label": "class_embedding",
}
PARTS = {
    "norm1": "resnets.{}.norm1",
    "conv1": "resnets.{}.conv1",
    "time": "resnets.{}.time_emb_proj",
    "norm2": "resnets.{}.norm2",
    "conv2": "resnets.{}.conv2",
    "shortcut": "resnets.{}.conv_shortcut",
    "attention.norm": "attentions.{}.group_norm",
    "attention.query": "attentions.{}.to_q",
    "attention.key": "attentions.{}.to_k",
    "attention.value": "attentions.{}.to_v",
    "attention.out": "attentions.{}.to_out.0",
}
OLD_ATTENTION = re.compile(r"(\battentions\.\d+)\.(query|key|value|proj_attn)\.")
NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any] | None]:
    """Config and tensors of a model's folder, or of a pipeline's, and its scheduler's config."""
    model = folder / "unet" if (folder / "unet").is_dir() else folder
    scheduler = folder / "scheduler" / "scheduler_config.json"
    path = next((model / name for name in WEIGHTS if (model / name).is_file()), None)
    if not (model / "config.json").is_file() or path is None:
        raise ConfigError(f"no network of diffusers; it holds config.json and {WEIGHTS[0]}")
    config = _json(model / "config.json")
    try:
        tensors, _ = read_tensors(path)
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from None
    return config, tensors, _json(scheduler) if scheduler.is_file() else None


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ConfigError(f"{path.name}: no JSON; fetch it again") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name}: holds no keys; fetch it again")
    return data


def read_diffusers(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    scheduler: Mapping[str, Any] | None,
    *,
    sides: tuple[int, ...] | None = None,
    null_label: bool = False,
) -> Pretrained:
    """A network from the config and the tensors of a UNet2DModel.

    Args:
        scheduler: config of the scheduler that it was trained with, None where nothing says.
        null_label: whether the last class embedding stands for no label.
    """
    assumed = []
    config = _known(config)
    prediction = "eps" if scheduler is None else _prediction(scheduler)
    if scheduler is None:
        assumed.append("noise prediction, betas linear from 1e-4 to 0.02 in 1000 steps")
    arch = _arch(config, null_label)
    own = {OLD_ATTENTION.sub(_new_attention, k): v for k, v in tensors.items()}
    shift, flipped = _real(config, "freq_shift"), config["flip_sin_to_cos"]
    own["time_proj.weight"] = sinusoids(arch.base, shift, flipped)
    if arch.classes and not null_label and "class_embedding.weight" in own:
        rows = own["class_embedding.weight"]
        own["class_embedding.weight"] = torch.cat([rows, rows.mean(0, keepdim=True)])
        assumed.append(
            f"{arch.classes} classes, and for no label the mean of their embeddings, which is "
            f"untrained: fine-tune before guidance (or --null-label if the last stands for none)"
        )
    return Pretrained(
        layout="diffusers",
        arch=arch,
        weights=renamed(arch, own, lambda ours: source_name(ours, arch)),
        image_shape=(arch.image_channels, *(sides or _sides(config["sample_size"]))),
        prediction=prediction,
        assumed=tuple(assumed),
    )


def sinusoids(channels: int, freq_shift: float, cosine_first: bool) -> Tensor:
    """Rows of the whole times as diffusers' get_timestep_embedding has them, to the bit."""
    half = channels // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32) / (half - freq_shift)
    angle = torch.arange(TIMES)[:, None].float() * exponent.exp()[None]
    waves = [angle.cos(), angle.sin()] if cosine_first else [angle.sin(), angle.cos()]
    return torch.cat(waves, 1)


def source_name(ours: str, arch: UNetArch) -> str:
    """diffusers' name of a tensor of ours."""
    layer, leaf = ours.rsplit(".", 1)
    if layer in ENDS:
        return f"{ENDS[layer]}.{leaf}"
    blocks, index, *part = layer.split(".", 2)
    if blocks == "middle":
        return f"mid_block.{PARTS[part[0]].format(index)}.{leaf}"
    # a level's blocks, then the layer that changes the resolution
    level, place = divmod(int(index), arch.blocks + (1 if blocks == "down" else 2))
    kind = PARTS[part[0]].format(place) if part else f"{blocks}samplers.0.conv"
    return f"{blocks}_blocks.{level}.{kind}.{leaf}"


def _new_attention(match: re.Match[str]) -> str:
    return f"{match[1]}.{NEW_ATTENTION[match[2]]}."


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with its defaults; ConfigError for a key that is not known."""
    given = {k: v for k, v in config.items() if k == "_class_name" or not k.startswith("_")}
    for key, value in given.items():
        if key not in DEFAULTS and value is not None:
            raise ConfigError(f"config: {key}: {value!r} is a key we do not know; {REMEDY}")
    return {**DEFAULTS, **given}


def _refuse(key: str, value: Any, known: Sequence[Any]) -> ConfigError:
    listed = ", ".join(json.dumps(v) for v in known)
    return ConfigError(f"config: {key}: {value!r} cannot be reproduced (known: {listed}); {REMEDY}")


def _whole(config: Mapping[str, Any], key: str) -> int:
    value = config[key]
    if type(value) is not int or value < 1:
        raise ConfigError(f"config: {key}: expected a whole number from 1, got {value!r}")
    return value


def _real(config: Mapping[str, Any], key: str) -> float:
    value = config[key]
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ConfigError(f"config: {key}: expected a number, got {value!r}")
    return value


def _arch(config: Mapping[str, Any], null_label: bool) -> UNetArch:
    channels, groups = _channels(config["block_out_channels"]), _whole(config, "norm_num_groups")
    _check_fixed(config, channels[0], groups)
    rows = 0 if config["num_class_embeds"] is None else _whole(config, "num_class_embeds")
    if null_label and rows < 2:
        raise ConfigError(
            f"config: num_class_embeds: {config['num_class_embeds']!r} leaves no class beside the "
            f"one that --null-label takes; leave it out"
        )
    head_dim = config["attention_head_dim"]
    return UNetArch(
        image_channels=_whole(config, "in_channels"),
        base=channels[0],
        mult=tuple(c // channels[0] for c in channels),
        blocks=_whole(config, "layers_per_block"),
        attention=_attention(config, len(channels)),
        groups=groups,
        dropout=_real(config, "dropout"),
        classes=rows - 1 if null_label else rows,
        eps=_real(config, "norm_eps"),
        head_dim=0 if head_dim is None else _whole(config, "attention_head_dim"),
        time="table",
        downsample="symmetric" if config["downsample_padding"] else "asymmetric",
    )


def _channels(channels: Any) -> Sequence[int]:
    if not isinstance(channels, (list, tuple)) or not channels:
        raise ConfigError(f"config: block_out_channels: expected a list, got {channels!r}")
    if any(type(c) is not int or c < 1 for c in channels):
        raise ConfigError(f"config: block_out_channels: expected whole numbers, got {channels!r}")
    if any(c % channels[0] for c in channels):
        raise ConfigError(
            f"config: block_out_channels: {list(channels)} are not whole multiples of the first, "
            f"so that no width would slice them evenly; {REMEDY}"
        )
    return channels


def _check_fixed(config: Mapping[str, Any], base: int, groups: int) -> None:
    """ConfigError for the first value that our U-Net has no counterpart of."""
    fixed = {
        "_class_name": ("UNet2DModel",),
        "out_channels": (config["in_channels"],),
        "center_input_sample": (False,),
        "time_embedding_type": ("positional",),
        "time_embedding_dim": (None, 4 * base),
        "flip_sin_to_cos": (False, True),
        "mid_block_type": ("UNetMidBlock2D",),
        "mid_block_scale_factor": (1,),
        "downsample_padding": (0, 1),
        "downsample_type": ("conv",),
        "upsample_type": ("conv",),
        "act_fn": ("silu", "swish"),
        "attn_norm_num_groups": (None, groups),
        "resnet_time_scale_shift": ("default",),
        "add_attention": (True,),
        "class_embed_type": (None,),
    }
    for key, known in fixed.items():
        if config[key] not in known:
            raise _refuse(key, config[key], known)


def _attention(config: Mapping[str, Any], levels: int) -> tuple[int, ...]:
    """Levels with attention, the same ones going down and up."""
    found = {}
    for key, known in (("down_block_types", DOWN), ("up_block_types", UP)):
        types = config[key]
        if not isinstance(types, (list, tuple)) or len(types) != levels:
            raise ConfigError(f"config: {key}: expected {levels} block types, got {types!r}")
        for name in types:
            if name not in known:
                raise _refuse(key, name, list(known))
        found[key] = [known[name] for name in types]
    down, up = found["down_block_types"], found["up_block_types"][::-1]
    if down != up:
        raise ConfigError(
            f"config: up_block_types: {list(config['up_block_types'])} has attention at other "
            f"levels than down_block_types; {REMEDY}"
        )
    return tuple(level for level, attends in enumerate(down) if attends)


def _sides(size: Any) -> tuple[int, ...]:
    sides = [size, size] if type(size) is int else size
    if not isinstance(sides, (list, tuple)) or len(sides) != 2:
        raise ConfigError(f"config: sample_size: {size!r} is no size of images; give --size")
    return tuple(sides)


def _prediction(scheduler: Mapping[str, Any]) -> str:
    """What the network predicts; ConfigError for a noise process that is not vp-linear-1000."""
    fixed = {
        "num_train_timesteps": TIMES,
        "beta_schedule": "linear",
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
    }
    given = {"trained_betas": None, "rescale_betas_zero_snr": False, **scheduler}
    for key, wanted in fixed.items():
        if given.get(key) != wanted:
            raise ConfigError(
                f"scheduler_config.json: {key}: {given.get(key)!r} is another noise process than "
                f"vp-linear-1000, where it is {json.dumps(wanted)}; {REMEDY}"
            )
    prediction = given.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ConfigError(
            f"scheduler_config.json: prediction_type: {prediction!r} is unknown; known: "
            f"{', '.join(PREDICTIONS)}"
        )
    return PREDICTIONS[prediction]
