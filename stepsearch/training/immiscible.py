"""Immiscible Diffusion (Li et al. 2024, arXiv:2406.12303): noise goes to images it lies near.

Only the pairing changes: every noise of a pool is used once, so the set of noises stays Gaussian.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def assign_noise(images: Tensor, noise: Tensor, *, labels: Tensor | None = None) -> Tensor:
    """The permutation that pairs a pool of images and noises at the least squared distance.

    The squares of |x - n|^2 = |x|^2 + |n|^2 - 2 <x, n> are the same for every pairing, so
    -<x, n> has the same optimum and needs one matrix product.

    Args:
        images, noise: (N, ...), of equal shape.
        labels: (N,); noise stays within the label of the image it was drawn for, so that it says
            nothing about labels.

    Returns:
        (N,) whole numbers on the CPU; noise[perm[i]] goes to image i.

    Raises:
        ValueError: shapes that do not fit, or numbers that are not finite.
    """
    images, noise = torch.as_tensor(images), torch.as_tensor(noise)  # arrays are welcome too
    if images.shape != noise.shape or images.ndim < 2:
        raise ValueError(
            f"images and noise need one shape (N, ...), got {tuple(images.shape)} and "
            f"{tuple(noise.shape)}"
        )
    x, n = images.float().flatten(1), noise.float().flatten(1)
    if labels is None:
        return _assign(x, n)
    labels = torch.as_tensor(labels, device=x.device)
    if labels.shape != (len(x),):
        raise ValueError(f"labels need shape ({len(x)},), got {tuple(labels.shape)}")
    perm = torch.empty(len(x), dtype=torch.long)
    for label in labels.unique():
        own = (labels == label).nonzero()[:, 0]
        perm[own.cpu()] = own.cpu()[_assign(x[own], n[own])]
    return perm


def _assign(x: Tensor, n: Tensor) -> Tensor:
    cost = -(x @ n.T)
    if not cost.isfinite().all():
        raise ValueError("images or noise are not finite")
    return torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1])


def nearest_noise(images: Tensor, noise: Tensor) -> Tensor:
    """Which of its own candidates lies nearest to each image (Li et al. 2025, arXiv:2505.18521).

    No noise is shared, so it works for one image, but what is chosen is no longer Gaussian: it is
    shorter and leans towards the mean image.

    Args:
        images: (N, ...).
        noise: (N, k, ...), k candidates an image.

    Returns:
        (N,) whole numbers below k.
    """
    if noise.ndim != images.ndim + 1 or noise.shape[::2][:1] != images.shape[:1]:
        raise ValueError(
            f"noise needs shape (N, k, ...) for images {tuple(images.shape)}, got "
            f"{tuple(noise.shape)}"
        )
    return (images.float()[:, None] - noise.float()).flatten(2).square().sum(2).argmin(1)
