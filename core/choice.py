"""Which of several models suits a picture, by the noise that is seen in it, and why. Loads none and reads no file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from core import noise
from core.denoiser import Denoiser

AUTO = "auto"
"""Stands for this choice where a model's name does; no model's name."""
WHITE, CAMERA = ("gaussian-fine", "gaussian"), ("photo-fine", "photo")
"""What there is to choose between: the one that knows white noise best, of a level that is estimated, or, where that is missing, one that
knows it nearly as well; and likewise the blind ones for all else."""


class Choice(NamedTuple):
    """A model's name, and in a few ASCII words why it was taken."""

    model: str
    reason: str


def choose(pixels: Tensor, models: Collection[str], default: str) -> Choice:
    """The model of `models` for a picture (H, W, C); `default`, unless there is one of either kind to choose between.

    White noise has one level at whatever size it is looked at. A camera's has been smoothed, sharpened and compressed, and a picture
    without noise has none: both have next to nothing at full size. See `core.noise.measure`.
    """
    white, camera = best(WHITE, models), best(CAMERA, models)
    if white is None or camera is None:
        missing = " and ".join([WHITE[-1]] * (white is None) + [CAMERA[-1]] * (camera is None))
        return Choice(default, f"no {missing} to choose from")
    seen = noise.measure(pixels)
    level, further = (f"{255 * sigma:.1f}" for sigma in (seen.sigma, 2 * seen.at_half_size))
    if seen.white:
        return Choice(white, f"white noise: {level} of 255 at full size, {further} by half size")
    if seen.sigma < noise.NEXT_TO_NOTHING:
        return Choice(camera, f"no white noise: {level} of 255")
    return Choice(camera, f"noise is not white: {level} of 255 at full size, {further} by half size")


def best(kind: Sequence[str], models: Collection[str]) -> str | None:
    """The first of a kind that is there."""
    return next((name for name in kind if name in models), None)


class Auto:
    """Several denoisers as one: each picture goes to the one that suits it."""

    name = AUTO

    def __init__(self, denoisers: Mapping[str, Denoiser], default: str) -> None:
        self._denoisers, self._default = denoisers, denoisers[default]

    @property
    def device(self) -> torch.device:
        return self._default.device

    @property
    def dtype(self) -> torch.dtype:
        return self._default.dtype

    def take(self, pixels: Tensor) -> tuple[Denoiser, str]:
        """The denoiser for a picture, and why."""
        model, reason = choose(pixels, self._denoisers, self._default.name)
        return self._denoisers[model], reason

    def __call__(
        self, pixels: Tensor, sigma: float | None = None, strength: float = 1.0, keep_going: Callable[[], bool] = lambda: True
    ) -> Tensor:
        return self.take(pixels)[0](pixels, sigma, strength, keep_going)
