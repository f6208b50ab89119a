"""How training images become noisy, and what a network is to answer about them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from stepsearch.core.errors import ConfigError
from stepsearch.core.process import Process
from stepsearch.core.relay import LEAST, LEVELS, Relay, patch_blur


class Noising(Protocol):
    """What a step draws of noise, and what it makes of images with it."""

    def draw(self, shape: tuple[int, ...], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Places on the noise scale (B,), and noise of `shape` (B, C, H, W)."""

    def __call__(self, x0: Tensor, place: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What a network is given, the time it is told, and what it is to answer."""


@dataclass(frozen=True)
class AddNoise:
    """Whole times drawn evenly; x = alpha x0 + sigma eps, and eps is to be answered (Ho et al.
    2020, alg. 1)."""

    process: Process

    def __post_init__(self) -> None:
        if not self.process.discrete:
            raise ConfigError(
                f"training draws whole times, which process '{self.process.name}' has not"
            )

    @cached_property
    def _alpha_bar(self) -> Tensor:
        process = self.process
        times = range(int(process.last_time) + 1)
        signal = [process.alpha(process.level_at(t)) ** 2 for t in times]
        return torch.tensor(signal, dtype=torch.float32)

    def draw(self, shape: tuple[int, ...], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times (B,), then standard normal noise."""
        time = torch.randint(len(self._alpha_bar), shape[:1], generator=rng)
        return time, torch.randn(shape, generator=rng)

    def __call__(self, x0: Tensor, place: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy images, the times as they are, and the noise."""
        signal = self._alpha_bar[place][:, None, None, None]
        return signal.sqrt() * x0 + (1 - signal).sqrt() * noise, place, noise


@dataclass(frozen=True)
class BlurAndNoise:
    """Places of a relay's second stage drawn evenly; the sharp image is to be found.

    Teng et al. 2024 (arXiv:2309.03350), sec. 3.2, with the preconditioning and the weight of
    Karras et al. 2022 (table 1), c_in, ln(sigma) / 4, c_skip and c_out of sigma alone. The error
    of F is the weighted error of the image: (sigma^2 + sd^2) / (sigma sd)^2 c_out^2 = 1; the
    official code's cap of the weight, 1e5, lies above all weights at the levels that are trained.
    """

    relay: Relay
    sigma_data: float = 0.5

    def draw(self, shape: tuple[int, ...], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Places u (B,) of at least LEAST, then the mixture of white and block noise."""
        place = torch.rand(shape[:1], generator=rng, dtype=torch.float64)
        white, blocks = (torch.randn(shape, generator=rng) for _ in range(2))
        return place.clamp(min=self.relay.place_of(LEAST)), self.relay.noise(white, blocks)

    def __call__(self, x0: Tensor, place: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_in x, ln(sigma) / 4, and F of the sharp image."""
        level, x = self.blurred(x0, place, noise)
        sigma, sd = level.to(x0)[:, None, None, None], self.sigma_data
        total = sigma**2 + sd**2
        raw = (x0 - x * (sd**2 / total)) * total.sqrt() / (sigma * sd)
        return x / total.sqrt(), (level.log() / 4).to(x0), raw

    def blurred(self, x0: Tensor, place: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Noise levels (B,) of places u, and blur(x0) + sigma noise; `Relay`'s for many at once."""
        relay = self.relay
        normal = torch.special.ndtri(relay.prob_length * place)
        level = (LEVELS.mean + LEVELS.stdev * normal).exp()
        blur = relay.blur * (math.pi / 2 * place).sin() ** 2
        return level, patch_blur(x0, relay.scale, blur) + level.to(x0)[:, None, None, None] * noise
