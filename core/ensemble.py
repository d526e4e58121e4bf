"""A better answer for eight times the time: the mean of a denoiser's answers to a picture turned and mirrored.

Knows nothing of networks, of files or of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from core.choice import Auto
from core.denoiser import STEPS, Denoiser

VIEWS = [(turns, mirrored) for mirrored in (False, True) for turns in range(4)]
"""The eight ways in which a picture can lie: quarter turns, then mirrored or not."""


class Ensemble:
    """A denoiser that asks another one eight times (self-ensemble: Timofte et al. 2016, "Seven ways to improve example-based single image
    super resolution"). What a network does otherwise to a picture that lies otherwise is its error, and differs from view to view.

    It has the name of the other one, and takes some 30 bytes a pixel more.
    """

    def __init__(self, denoiser: Denoiser | Auto) -> None:
        self._denoiser = denoiser
        self.name, self.device, self.dtype = denoiser.name, denoiser.device, denoiser.dtype

    def __call__(
        self, pixels: Tensor, sigma: float | None = None, strength: float = 1.0, keep_going: Callable[[], bool] = lambda: True
    ) -> Tensor:
        """As `Denoiser.__call__`. The noise level is estimated once, and an integer rounded once, of the mean."""
        denoiser = self._denoiser.take(pixels)[0] if isinstance(self._denoiser, Auto) else self._denoiser
        blind = denoiser.blind and sigma is None
        if sigma is None and not blind and strength:
            sigma = denoiser.estimate(pixels)
        if not strength or sigma == 0 or (blind and strength <= 1 and denoiser.is_clean(pixels, keep_going)):
            return denoiser(pixels, sigma, 0.0)  # as it is
        steps = STEPS.get(pixels.dtype, 1)
        total = torch.zeros(pixels.shape)
        for turns, mirrored in VIEWS:
            seen = torch.rot90(pixels.flip(1) if mirrored else pixels, turns).to("cpu", torch.float32) / steps
            answer = torch.rot90(denoiser(seen.contiguous(), sigma, strength, keep_going), -turns)
            total += answer.flip(1) if mirrored else answer
        mean = total.div_(len(VIEWS))
        return mean.mul_(steps).round_().to(pixels.dtype) if pixels.dtype in STEPS else mean

    def over(self, pixels: Tensor, sigma: float | None, strength: float, keep_going: Callable[[], bool] = lambda: True) -> None:
        """Puts the same answer into the place of `pixels`."""
        pixels.copy_(self(pixels, sigma, strength, keep_going))
