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
    Each channel is measured by itself, `patch` by `patch`, from at most `most` patches spread over the picture; the result is their mean.
    A side shorter than `patch` shortens the patch, and a picture of fewer than 2x2 pixels gives 0.
    """
    H, W, C = pixels.shape
    patch = min(patch, H // 2 + 1, W // 2 + 1)
    if patch < 2:
        return 0.0
    windows = pixels.unfold(0, patch, 1).unfold(1, patch, 1)  # (h, w, C, patch, patch)
    stride = max(1, int((windows.shape[0] * windows.shape[1] / most) ** 0.5))
    rows = windows[::stride, ::stride].permute(2, 0, 1, 3, 4).reshape(C, -1, patch * patch).double()
    rows = rows - rows.mean(1, keepdim=True)
    spread = torch.linalg.eigvalsh(rows.mT @ rows / rows.shape[1]).clamp_min(0)  # (C, patch*patch), ascending
    return sum(math.sqrt(_flat_level(values)) for values in spread.tolist()) / C


def _flat_level(ascending: list[float]) -> float:
    """The mean of the smallest values, as many of them as have their mean no greater than their median."""
    for count in range(len(ascending), 0, -1):
        mean, middle = sum(ascending[:count]) / count, ascending[:count][count // 2]
        if mean <= middle:
            return mean
    return ascending[0]
