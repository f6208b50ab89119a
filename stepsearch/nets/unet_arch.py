"""What fixes the layout of a U-Net: the `net` section of a recipe, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from stepsearch.core.errors import ConfigError
from stepsearch.nets.families import LABEL_DROPOUT, check_label_keys, check_numbers

LISTS = ("mult", "attention")
REALS = ("dropout", "label_dropout", "eps")
CHOICES = {
    "time": ("sinusoid", "table"),  # computed, or rows stored with the weights, one a whole time
    "downsample": ("symmetric", "asymmetric"),  # padding on all sides, or right and below alone
    "concat": ("aligned", "leading"),  # a width slices each part of a skip concatenation, or it all
}


@dataclass(frozen=True, slots=True)
class Arch:
    """What a U-Net and its encoder half share; `base` channels times `mult` per level."""

    family: ClassVar[str] = "unet"

    image_channels: int
    base: int
    mult: tuple[int, ...] = (1, 2)
    blocks: int = 1
    attention: tuple[int, ...] = ()  # levels, 0 = full resolution
    groups: int = 8
    dropout: float = 0.0
    sinusoid: int = 0  # channels of the time sinusoid; 0 = base
    classes: int = 0  # labels 0 .. classes - 1; 0 = none
    eps: float = 1e-5  # of the group norms
    head_dim: int = 0  # channels of an attention head; 0 = one head over all
    time: str = "sinusoid"  # one of CHOICES, as the next
    downsample: str = "symmetric"

    def __post_init__(self) -> None:
        if self.base < 1:
            raise self.error(f"base: must be at least 1, got {self.base}")
        if self.sinusoid < 0 or (self.sinusoid or self.base) % 2:
            raise self.error(
                f"sinusoid (by default base): an even number is needed, got "
                f"{self.sinusoid or self.base}"
            )
        if not self.mult or min(self.mult) < 1 or self.blocks < 1:
            raise self.error(
                f"mult and blocks start at 1, got mult={list(self.mult)}, blocks={self.blocks}"
            )
        if self.groups < 1 or not 0 <= self.dropout < 1:
            raise self.error(
                f"groups start at 1 and dropout lies in [0, 1), got groups={self.groups}, "
                f"dropout={self.dropout}"
            )
        if any(not 0 <= level < len(self.mult) for level in self.attention):
            raise self.error(
                f"attention: {list(self.attention)} names a level outside 0..{len(self.mult) - 1}"
            )
        if self.classes < 0:
            raise self.error(f"classes: must be at least 0, got {self.classes}")
        if not 0 < self.eps < 1 or self.head_dim < 0:
            raise self.error(
                f"eps lies in (0, 1) and head_dim starts at 0, got eps={self.eps}, "
                f"head_dim={self.head_dim}"
            )

    @classmethod
    def error(cls, message: str) -> ConfigError:
        """An error that names the family."""
        return ConfigError(f"{cls.family}: {message}")

    @classmethod
    def from_config(cls, data: Mapping[str, Any], image_channels: int) -> Self:
        """Read the `net` section of a recipe; ConfigError names key, value and remedy."""
        kinds = {f.name: float if f.name in REALS else int for f in fields(cls)}
        del kinds["image_channels"]
        others = {k: v for k, v in data.items() if k in kinds and k in (*LISTS, *CHOICES)}
        check_numbers(cls.family, {k: v for k, v in data.items() if k not in others}, kinds)
        for key, value in others.items():
            if key in CHOICES and value not in CHOICES[key]:
                raise cls.error(f"{key}: expected one of {', '.join(CHOICES[key])}, got {value!r}")
            if key in LISTS and not _whole_numbers(value):
                raise cls.error(f"{key}: expected a list of whole numbers, got {value!r}")
        if "base" not in data:
            raise cls.error("base: the number of channels at width 1 is missing")
        lists = {key: tuple(data[key]) for key in LISTS if key in data}
        return cls(image_channels=image_channels, **{**data, **lists})

    def check_image(self, shape: tuple[int, ...]) -> None:
        """ConfigError where images (C, H, W) cannot be halved between all levels."""
        step = 2 ** (len(self.mult) - 1)
        if any(side % step for side in shape[1:]):
            raise self.error(
                f"mult: {len(self.mult)} levels need images whose sides divide by {step}, "
                f"got {shape[1]}x{shape[2]}"
            )

    def check_widths(self, widths: Sequence[float]) -> None:
        """ConfigError where a width leaves no whole channel, group of a norm or attention head."""
        for width in widths:
            slim = self.base * width
            if not 0 < width <= 1:
                raise self.error(f"widths lie in (0, 1], got {width}")
            if round(slim) < 1 or abs(slim - round(slim)) > 1e-6 or round(slim) % self.groups:
                raise self.error(
                    f"base {self.base} at width {width} is {slim:g} channels, which do not "
                    f"fall into {self.groups} groups; choose base and groups to fit all widths"
                )
            for factor in self.attended() if self.head_dim else ():
                if round(slim) * factor % self.head_dim:
                    raise self.error(
                        f"attention over {self.base * factor} channels at width {width} is "
                        f"{slim * factor:g} channels, which do not fall into heads of "
                        f"{self.head_dim}; choose head_dim to fit all widths"
                    )

    def attended(self) -> tuple[int, ...]:
        """Entries of `mult` whose channels some attention reads."""
        return tuple(self.mult[level] for level in self.attention)


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(type(n) is int for n in value)


@dataclass(frozen=True, slots=True)
class UNetArch(Arch):
    """Everything that fixes the layout of a U-Net, and how its labels are trained."""

    label_dropout: float = LABEL_DROPOUT
    concat: str = "aligned"  # one of CHOICES

    @classmethod
    def from_config(cls, data: Mapping[str, Any], image_channels: int) -> Self:
        """Read the `net` section of a recipe; `label_dropout` means nothing without classes."""
        # slots make a new class, which super() without arguments misses
        arch = super(UNetArch, cls).from_config(data, image_channels)
        check_label_keys(cls.family, data)
        return arch

    def attended(self) -> tuple[int, ...]:
        """Those of the levels, and the middle."""
        return (*super(UNetArch, self).attended(), self.mult[-1])
