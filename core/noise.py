"""Noise: put on clean pictures, and measured in noisy ones. Knows nothing of networks. `sigma` is in [0, 1] image units throughout."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SHOT = (1e-4, 1.2e-2)
"""Variance of photon noise in raw values, per unit of signal. Range and the next two: Brooks et al., "Unprocessing Images", CVPR 2019."""
READ = (2.18, 1.20, 0.26)
"""ln(variance of read noise) = READ[0] ln(shot) + READ[1], and a normal deviation of READ[2]: measured on the Darmstadt set's cameras."""
WHITE_BALANCE = ((1.9, 2.4), (1.0, 1.0), (1.5, 1.9))
"""How much a camera raises red, green and blue, and their noise with them."""
COLOUR_MATRIX = (0.0, 0.3)
"""What each channel takes from the two others on the way from a camera's colours to sRGB; rows sum to 1."""
GAMMA = 2.2
SMOOTHING = (0.3, 1.2)
"""Deviation in pixels of the blur that noise reduction in a camera, or a resize, leaves in the noise; in half of the pictures."""
JPEG_QUALITY = (60, 98)
"""In three pictures of four, with colours at half resolution in every second, as phones write them."""


def add_gaussian(clean: Tensor, sigma: Tensor | float, generator: torch.Generator) -> Tensor:
    """White Gaussian noise of standard deviation `sigma` on every channel, not clipped. `sigma` may broadcast to the picture."""
    return clean + sigma * torch.randn(clean.shape, generator=generator)


def add_photographic(clean: Tensor, generator: torch.Generator) -> Tensor:
    """What a camera might have made of a scene (H, W, 3): the noise of a raw sensor, developed and compressed. In 8-bit steps, in [0, 1].

    In the order in which light takes it: linear light; the sensor's photon and read noise on a Bayer mosaic (Foi et al. 2008); white
    balance; demosaicing; colour matrix; smoothing; gamma; 8 bits; JPEG. Every step up to gamma is linear, so the noise alone passes through
    them and is added to the picture: no detail is lost to the mosaic that a denoiser would then have to invent.
    """
    H, W, _ = clean.shape

    def between(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    light = clean**GAMMA
    gains = torch.tensor([between(*channel) for channel in WHITE_BALANCE])
    shot = math.exp(between(*map(math.log, SHOT)))
    read = math.exp(READ[0] * math.log(shot) + READ[1] + READ[2] * torch.randn((), generator=generator).item())
    added = torch.randn(H, W, 3, generator=generator) * (shot * light / gains + read).sqrt_() * gains
    added = _demosaic(added * _bayer(H, W, turn=int(between(0, 4))))
    mixed = between(*COLOUR_MATRIX)
    added = (1 + 3 * mixed) * added - mixed * added.sum(2, keepdim=True)
    if between(0, 1) < 0.5:
        added = _blur(added, between(*SMOOTHING))
    developed = (light + added).clamp_(0, 1) ** (1 / GAMMA)
    steps = developed.mul_(255).round_().to(torch.uint8)
    if between(0, 1) < 0.75:
        steps = _through_jpeg(steps, round(between(*JPEG_QUALITY)), subsampling=2 * int(between(0, 2)))
    return steps.float().div_(255)


def add_either(clean: Tensor, sigma: Tensor, photographic: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy pictures (N, H, W, 3) to learn from and their noise levels (N, 1, 1, 1), the deviation of what was added, over the picture.

    A share of `photographic` gets a camera's noise, the others Gaussian noise of deviation `sigma`. A grey picture stays grey.
    """
    grey = (clean == clean[..., :1]).flatten(1).all(1).view(-1, 1, 1, 1)
    added = torch.randn(clean.shape, generator=generator)
    noisy = clean + sigma * torch.where(grey, added[..., :1], added)
    for i in (torch.rand(len(clean), generator=generator) < photographic).nonzero().flatten().tolist():
        noisy[i] = add_photographic(clean[i], generator)
        if grey[i]:
            noisy[i] = noisy[i].mean(2, keepdim=True)
        sigma = sigma.index_fill(0, torch.tensor(i), (noisy[i] - clean[i]).square().mean().sqrt().item())
    return noisy, sigma


def _bayer(H: int, W: int, turn: int) -> Tensor:
    """(H, W, 3), 1 where a sensor's colour filter lets a channel through: red on one diagonal with blue, green on the other."""
    tile = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[0, 1, 0], [0, 0, 1]]]).rot90(turn)
    return tile.repeat(-(-H // 2), -(-W // 2), 1)[:H, :W]


def _demosaic(mosaic: Tensor) -> Tensor:
    """The mean of the nearest values that a mosaic (H, W, 3) holds of each channel; over the edge it goes on at the opposite one."""
    cross = (mosaic.roll(1, 0) + mosaic.roll(-1, 0) + mosaic.roll(1, 1) + mosaic.roll(-1, 1)) / 4
    rows = mosaic.roll(1, 0) + mosaic.roll(-1, 0)
    corners = (rows.roll(1, 1) + rows.roll(-1, 1)) / 4
    sides = torch.tensor([2.0, 1.0, 2.0])  # of the four neighbours beside it a red or blue value has two, a green one four
    return mosaic + cross * sides + corners * torch.tensor([1.0, 0.0, 1.0])


def _blur(x: Tensor, deviation: float) -> Tensor:
    """A Gaussian blur of 7x7 along the first two axes; over the edge it goes on at the opposite one."""
    weights = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * deviation**2))
    for axis in (0, 1):
        x = sum((w * x.roll(i - 3, axis) for i, w in enumerate((weights / weights.sum()).tolist())), torch.zeros(()))
    return x


def _through_jpeg(steps: Tensor, quality: int, subsampling: int) -> Tensor:
    """(H, W, 3) uint8 -> the same, as JPEG leaves it."""
    file = io.BytesIO()
    Image.fromarray(steps.numpy()).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return torch.from_numpy(np.array(Image.open(file)))


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
