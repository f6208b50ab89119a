"""Gaussian mixtures whose noise prediction is exact: a network with nothing to train.

For data sum_k w_k N(m_k, v_k I), the marginal at level r (x = alpha (x0 + r eps)) is, in units of
x / alpha, sum_k w_k N(m_k, (v_k + r^2) I), and E[eps | x] = r sum_k r_k(x) (x / alpha - m_k) /
(v_k + r^2) with posterior weights r_k. A narrower width keeps only the heaviest components, so
cost and quality fall with it as they do in a supernet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stepsearch.core.errors import ConfigError
from stepsearch.core.process import get_process
from stepsearch.core.protocols import NetCard
from stepsearch.nets.families import FAMILIES, Family


def mixture_eps(
    x: Tensor, level: Tensor, weights: Tensor, means: Tensor, variances: Tensor
) -> Tensor:
    """Exact noise prediction at x / alpha: (B, D), (B,), (K,), (K, D), (K,) -> (B, D)."""
    total = variances + level[:, None] ** 2
    square = (x**2).sum(1, keepdim=True) - 2 * x @ means.T + (means**2).sum(1)
    log = weights.log() - 0.5 * means.shape[1] * total.log() - 0.5 * square / total
    posterior = log.softmax(1) / total
    return level[:, None] * (posterior.sum(1, keepdim=True) * x - posterior @ means)


class GaussianMixture:
    """A Net with the exact noise prediction of a Gaussian mixture, in the dtype of its input.

    Args:
        weights: (K,), positive; normalised here.
        means: (K, ...), one image or vector per component.
        variances: (K,), isotropic, positive.
        process: name of a process, e.g. "vp-linear-1000" or "edm".
    """

    def __init__(self, weights: Any, means: Any, variances: Any, process: str = "vp-linear-1000"):
        get_process(process)
        self._weights, self._means, self._variances = (
            torch.tensor(np.array(a, dtype=np.float64, order="C"))
            for a in (weights, means, variances)
        )
        k = len(self._means)
        if self._weights.shape != (k,) or self._variances.shape != (k,):
            raise ConfigError(
                f"GaussianMixture: {k} means need as many weights and variances, got shapes "
                f"{tuple(self._weights.shape)} and {tuple(self._variances.shape)}"
            )
        if not (self._weights > 0).all() or not (self._variances > 0).all():
            raise ConfigError("GaussianMixture: weights and variances must be positive")
        if not all(t.isfinite().all() for t in (self._weights, self._means, self._variances)):
            raise ConfigError("GaussianMixture: weights, means and variances must be finite")
        self._weights = self._weights / self._weights.sum()
        parts = (t.numpy().tobytes() for t in (self._weights, self._means, self._variances))
        shape = tuple(self._means.shape[1:])
        self.card = NetCard(
            name="gaussian",
            sha256=hashlib.sha256(process.encode() + b"".join(parts)).hexdigest(),
            family="gaussian",
            process=process,
            image_shape=shape,
            widths=(1.0,),
            flops=(4.0 * k * int(np.prod(shape)),),  # the two matrix products of mixture_eps
        )

    def eps(
        self, x: Tensor, level: float, *, width: float = 1.0, cond: Tensor | None = None
    ) -> Tensor:
        """E[eps | x], same shape as `x` (B, ...); `width` must be 1 and `cond` None."""
        self.card.check_width(width)
        if cond is not None:
            raise ConfigError("GaussianMixture is unconditional; leave cond out")
        alpha = self.card.diffusion.alpha(level)
        weights, variances = self._weights.to(x), self._variances.to(x)
        flat = (x / alpha).flatten(1)
        levels = torch.full((len(x),), level, dtype=x.dtype, device=x.device)
        return mixture_eps(flat, levels, weights, self._means.to(x).flatten(1), variances).reshape(
            x.shape
        )


class SlimMixture(nn.Module):
    """The same formula with the protocol of a supernet; width w keeps ceil(w K) components."""

    def __init__(self, components: int, image_shape: Sequence[int]) -> None:
        super().__init__()
        process = get_process("vp-linear-1000")
        levels = torch.tensor([process.level_at(t) for t in range(1000)], dtype=torch.float32)
        self.register_buffer("weights", torch.full((components,), 1.0 / components))
        self.register_buffer("means", torch.zeros(components, *image_shape))
        self.register_buffer("variances", torch.ones(components))
        self.register_buffer("levels", levels, persistent=False)

    def forward(self, x: Tensor, time: Tensor, *, width: float = 1.0) -> Tensor:
        """(B, C, H, W), (B,) whole times 0..999 -> eps, (B, C, H, W)."""
        level = self.levels[time.long()]
        flat = x.flatten(1) * (1 + level[:, None] ** 2).sqrt()
        means = self.means[: self._kept(width)].flatten(1)
        keep = len(means)
        weights, variances = self.weights[:keep], self.variances[:keep]
        return mixture_eps(flat, level, weights, means, variances).reshape(x.shape)

    def _kept(self, width: float) -> int:
        return max(1, int(np.ceil(width * len(self.means) - 1e-9)))

    def subnet(self, width: float) -> SlimMixture:
        """A mixture of the kept components alone."""
        keep = self._kept(width)
        net = SlimMixture(keep, self.means.shape[1:]).to(self.means)
        net.load_state_dict({k: v[:keep].clone() for k, v in self.state_dict().items()})
        return net


class GaussianFamily(Family):
    """Recipes with `net.family: gaussian`: expectation maximisation instead of training."""

    fitted = True

    def check(self, config: Mapping[str, Any], widths: Sequence[float]) -> None:
        """ConfigError unless `components` is the one key and a number of at least 1."""
        components = config.get("components")
        if set(config) != {"components"} or type(components) is not int or components < 1:
            raise ConfigError(
                f"gaussian: the one key is 'components', a whole number of at least 1, "
                f"got {dict(config)}"
            )

    def least_images(self, config: Mapping[str, Any]) -> int:
        """One per component."""
        return int(config["components"])

    def build(
        self, config: Mapping[str, Any], image_shape: tuple[int, ...], widths: Sequence[float]
    ) -> SlimMixture:
        """A mixture of `components` for images (C, H, W)."""
        return SlimMixture(config["components"], image_shape)

    def fit(self, module: nn.Module, images: np.ndarray, seed: int) -> None:
        """Spherical mixture by expectation maximisation, heaviest components first."""
        from sklearn.mixture import GaussianMixture as Fit

        flat = images.reshape(len(images), -1).astype(np.float64)
        count = len(module.weights)
        fit = Fit(count, covariance_type="spherical", reg_covar=1e-3, random_state=seed).fit(flat)
        order = np.argsort(-fit.weights_, kind="stable")
        module.weights.copy_(torch.from_numpy(fit.weights_[order]))
        means = fit.means_[order].reshape(count, *images.shape[1:])
        module.means.copy_(torch.from_numpy(means))
        module.variances.copy_(torch.from_numpy(fit.covariances_[order]))


FAMILIES.register("gaussian")(GaussianFamily())
