"""A denoiser's figures on a folder of clean pictures, under the protocol of the published tables. Trains and prints nothing.

The noise is white, Gaussian and unclipped, added to the 8-bit picture in float; the result is rounded to 8 bits; PSNR is over the whole
picture and all channels; a figure is the mean over pictures. Every picture's noise has its own fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from core import data, metrics, noise
from core.denoiser import Denoiser


@dataclass(frozen=True)
class Row:
    """One noise level's figures: `sigma` in 8-bit steps, PSNR in dB, each the mean over `pictures`."""

    sigma: float
    pictures: int
    noisy_psnr: float
    psnr: float
    ssim: float


def evaluate(
    denoiser: Denoiser,
    folder: Path,
    sigmas: Sequence[float] = (15, 25, 50),
    blind: bool = False,
    after_picture: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """A row for each sigma, in 8-bit steps. `blind` lets the denoiser estimate the level. Raises DataError."""
    paths = data.find([folder])
    if not paths:
        raise data.DataError(f"{folder} holds no picture: name a folder of clean pictures")
    rows = []
    for n, sigma in enumerate(sigmas):
        scores = []
        for i, path in enumerate(paths):
            clean = data.pixels(path)
            if min(clean.shape[:2]) < metrics.WINDOW:
                raise data.DataError(f"{path} is {clean.shape[1]}x{clean.shape[0]}: measure on pictures of 11x11 pixels and more")
            noisy = noise.add_gaussian(clean, sigma / 255, data.generator_of(0, i))
            denoised = denoiser(noisy, None if blind else sigma / 255)
            scores.append(_scores(clean, noisy, denoised))
            after_picture(n * len(paths) + i + 1, len(sigmas) * len(paths))
        means = [sum(column) / len(paths) for column in zip(*scores, strict=True)]
        rows.append(Row(float(sigma), len(paths), *(round(mean, 4) for mean in means)))
    return rows


def as_json(denoiser: Denoiser, folder: Path, rows: Sequence[Row], blind: bool) -> dict[str, Any]:
    """What was measured and with what, in plain values; JSON knows no infinity, so the PSNR of equal pictures is None."""
    return {
        "model": denoiser.name,
        "device": str(denoiser.device),
        "dtype": str(denoiser.dtype).removeprefix("torch."),
        "set": folder.resolve().name,
        "sigma_known": not blind,
        "rows": [{name: None if value == math.inf else value for name, value in asdict(row).items()} for row in rows],
    }


def _scores(clean: Tensor, noisy: Tensor, denoised: Tensor) -> tuple[float, float, float]:
    rounded = metrics.to_8bit(denoised)
    return metrics.psnr(noisy, clean), metrics.psnr(rounded, clean), metrics.ssim(rounded, clean)
