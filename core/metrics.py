"""How close two pictures are. Knows nothing of how either was made. Pictures are (..., H, W, C) floats in [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WINDOW = 11
"""Side in pixels of the window that SSIM looks through."""


def to_8bit(pixels: Tensor) -> Tensor:
    """The nearest picture of 256 levels, still as floats in [0, 1]: what a reader of the file will see."""
    return pixels.clamp(0, 1).mul(255).round().div(255)


def psnr(picture: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB: `-10 log10(mean squared error)` over all pixels and channels, infinite for equal pictures."""
    error = (picture.double() - truth.double()).square().mean().item()
    return -10 * math.log10(error) if error != 0 else math.inf


def ssim(picture: Tensor, truth: Tensor) -> float:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11x11 with deviation 1.5, mean over channels and whole windows."""
    x, y = picture.double(), truth.double()
    if min(x.shape[-3:-1]) < WINDOW:
        raise ValueError(f"the picture is {x.shape[-2]}x{x.shape[-3]}: SSIM needs 11x11 pixels and more")
    window = torch.exp(-((torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(z: Tensor) -> Tensor:
        z = torch.einsum("...hwck,k->...hwc", z.unfold(-3, WINDOW, 1), window)
        return torch.einsum("...hwck,k->...hwc", z.unfold(-2, WINDOW, 1), window)

    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return value.mean().item()
