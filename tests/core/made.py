"""What core's tests are made of: pictures made on the spot, a small network, and how an error's exact words are read."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from core.nn import Conv2d, DepthToSpace, DepthwiseGate, Gate, ReLU, Residual, RMSNorm, Sequential, SpaceToDepth


def photo(H: int, W: int, seed: int = 0) -> Tensor:
    """(H, W, 3) float32 in [0.1, 0.9]: eight waves a channel, so that it is smooth here and textured there."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.arange(H)[:, None, None], torch.arange(W)[:, None]
    waves = torch.zeros(H, W, 3)
    for _ in range(8):
        fy, fx, phase = torch.rand(3, 1, 1, 3, generator=g)
        waves += torch.sin(0.4 * fy * y + 0.4 * fx * x + 6.28 * phase)
    return 0.5 + 0.05 * waves


def save(path: Path, pixels: Tensor) -> Path:
    """Written by Pillow, not by the project, in the format of the name's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    H, W, _ = pixels.shape
    Image.frombytes("RGB", (W, H), pixels.clamp(0, 1).mul(255).round().to(torch.uint8).numpy().tobytes()).save(path)
    return path


def flat(level: int, side: int = 24) -> Tensor:
    """A picture of one grey level, in 8-bit steps, by which it is known again."""
    return torch.full((side, side, 3), level / 255)


def small(generator: torch.Generator | None = None) -> Sequential:
    """As the denoiser, in small: (N, H, W, 4) -> (N, H, W, 3), starting at half resolution, with a level and a skip."""
    g = generator
    return Sequential(
        SpaceToDepth(2),
        Conv2d(16, 8, 3, padding=1, generator=g),
        ReLU(),
        Residual(
            Conv2d(8, 16, 2, stride=2, generator=g),
            Residual(Conv2d(16, 16, 3, padding=1, generator=g), ReLU(), Conv2d(16, 16, 3, padding=1, generator=g)),
            Conv2d(16, 32, 1, generator=g),
            DepthToSpace(2),
        ),
        Conv2d(8, 12, 3, padding=1, generator=g),
        DepthToSpace(2),
    )


def small_gated(generator: torch.Generator | None = None) -> Sequential:
    """As the gated denoiser, in small: a block at half resolution, each layer of it once."""
    g = generator
    return Sequential(
        SpaceToDepth(2),
        Conv2d(16, 8, 3, padding=1, generator=g),
        Residual(RMSNorm(), Conv2d(8, 16, 1, bias=False, generator=g), DepthwiseGate(8, g), Conv2d(8, 8, 1, bias=False, generator=g)),
        Residual(RMSNorm(), Conv2d(8, 16, 1, bias=False, generator=g), Gate(8), Conv2d(8, 8, 1, bias=False, generator=g)),
        Conv2d(8, 12, 3, padding=1, generator=g),
        DepthToSpace(2),
    )


def refused(error: type[Exception], message: str) -> "pytest.RaisesExc[Exception]":
    """An error that says `message`, the whole of it and nothing else."""
    return pytest.raises(error, match=rf"^{re.escape(message)}\Z")
