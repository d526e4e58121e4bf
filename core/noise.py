"""Noise: put on clean pictures, and measured in noisy ones. Knows nothing of networks. `sigma` is in [0, 1] image units throughout."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def add_gaussian(clean: Tensor, sigma: Tensor | float, generator: torch.Generator) -> Tensor:
    """White Gaussian noise of standard deviation `sigma` on every channel, not clipped. `sigma` may broadcast to the picture."""
    return clean + sigma * torch.randn(clean.shape, generator=generator)


def estimate_gaussian(pixels: Tensor, patch: int = 8, most: int = 40_000) -> float:
    """The standard deviation of white Gaussian noise in a picture (H, W, C), from the picture alone.

    Chen, Zhu, Heng, "An Efficient Statistical Method for Image Noise Level Estimation", ICCV 2015. Patches of a clean picture lie near a
    plane of few dimensions, so most eigenvalues of the patches' covariance are the noise's variance alone. The largest are taken away
    until those that remain are spread evenly, their mean equal to their median; that mean is the variance.
    Patches are `patch` by `patch` in all channels together, at most `most` of them, spread over the picture. Equal channels count as one.
    A short side shortens the patch, and a picture of a single row or column gives 0.
    """
    H, W, C = pixels.shape
    patch = min(patch, H // 2 + 1, W // 2 + 1)
    if patch < 2 or min(H, W) < 2:
        return 0.0
    if (pixels == pixels[..., :1]).all():
        pixels, C = pixels[..., :1], 1
    windows = pixels.unfold(0, patch, 1).unfold(1, patch, 1)  # (h, w, C, patch, patch)
    stride = max(1, math.ceil(math.sqrt(windows.shape[0] * windows.shape[1] / most)))
    rows = windows[::stride, ::stride].reshape(-1, C * patch * patch)
    rows = rows - rows.mean(0)
    spread = torch.linalg.eigvalsh((rows.T @ rows).double() / len(rows)).clamp_min(0)
    return math.sqrt(_flat_level(spread.tolist()))


def _flat_level(ascending: list[float]) -> float:
    """The mean of the smallest values, as many of them as have their mean no greater than their median."""
    for count in range(len(ascending), 0, -1):
        mean, middle = sum(ascending[:count]) / count, ascending[:count][count // 2]
        if mean <= middle:
            return mean
    return ascending[0]
