"""Losses: a number to make small, and its derivative by the prediction.

Means are over every element, in float64, where the order of sums can't be seen in the six digits that are read.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class MSE:
    """`mean((p - t)**2)`."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return _difference(prediction, target).square().mean(dtype=torch.float64)

    def backward(self, prediction: Tensor, target: Tensor) -> Tensor:
        # d/dp mean((p - t)**2) = 2 * (p - t) / number of elements
        return _difference(prediction, target).mul(2 / prediction.numel()).to(prediction.dtype)


class L1:
    """`mean(|p - t|)`; the derivative at 0 is 0."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        each = _difference(prediction, target).abs_()
        return each.reshape(len(each), -1).mean(1).mean(dtype=torch.float64)  # twice as fast as all in float64

    def backward(self, prediction: Tensor, target: Tensor) -> Tensor:
        # d/dp mean(|p - t|) = sign(p - t) / number of elements
        return _difference(prediction, target).sign_().div_(prediction.numel()).to(prediction.dtype)


class Charbonnier:
    """`mean(sqrt((p - t)**2 + epsilon**2))`, an L1 that is smooth at 0 (Charbonnier et al. 1994). `epsilon` is in the pictures' units."""

    def __init__(self, epsilon: float = 1e-3) -> None:
        if not epsilon > 0:
            raise ValueError(f"epsilon (={epsilon}) must be above 0: use L1 for the loss without it")
        self.epsilon = epsilon

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (_difference(prediction, target).square() + self.epsilon**2).sqrt().mean(dtype=torch.float64)

    def backward(self, prediction: Tensor, target: Tensor) -> Tensor:
        # d/dp mean(sqrt(e**2 + (p - t)**2)) = (p - t) / sqrt(e**2 + (p - t)**2) / number of elements
        e = _difference(prediction, target)
        return (e / (e.square() + self.epsilon**2).sqrt()).div(prediction.numel()).to(prediction.dtype)


class LogMSE:
    """`0.01 * mean(ln(1 + m / floor**2))`, m being each picture's own `mean((p - t)**2)`: the mean PSNR in dB, times -0.0023, but for a
    constant.

    To halve the error counts as much in a picture of little noise as in one of much; other losses heed the noisiest most (Chen et al. 2021,
    "HINet", trained so). `floor` is in the pictures' units, half an 8-bit step: what is below it is rounded away. The factor makes the
    derivatives about as long as L1's.
    """

    FACTOR = 0.01

    def __init__(self, floor: float = 0.5 / 255) -> None:
        if not floor > 0:
            raise ValueError(f"floor (={floor}) must be above 0: try 0.002, half an 8-bit step")
        self.floor = floor

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self._each(_difference(prediction, target)).log1p().mean(dtype=torch.float64) * self.FACTOR

    def backward(self, prediction: Tensor, target: Tensor) -> Tensor:
        # d/dp mean(ln(1 + m / floor**2)) = 2 * (p - t) / (floor**2 + m) / number of elements
        e = _difference(prediction, target)
        return (e / (1 + self._each(e))).mul(2 * self.FACTOR / self.floor**2 / prediction.numel()).to(prediction.dtype)

    def _each(self, e: Tensor) -> Tensor:
        """m / floor**2 of each picture, (N, 1, ...)."""
        return e.square().flatten(1).mean(1).div(self.floor**2).view(-1, *[1] * (e.dim() - 1))


class Censored:
    """MSE to targets whose noise was clipped to [0, 1]: of one that is 0 or 1, only that it would not lie within is known (Tobin 1958).

    Where a target is inside, `(p - t)**2`; where it is 0, `-2 s**2 ln P(p + noise <= 0)`, Gaussian noise's, and likewise where it is 1: the
    likelihood's logarithm, times -2 s**2. The mean of clipped targets lies above the truth in the dark, and MSE would learn that.
    dark, light: the noise's deviation s at 0 and at 1, in the pictures' units. Near 0 makes this MSE.
    """

    LEAST = 0.5 / 255

    def __init__(self, dark: float, light: float) -> None:
        for name, value in (("dark", dark), ("light", light)):
            if not value >= 0:
                raise ValueError(f"{name} (={value}) must be 0 or above: it is a deviation")
        self.dark, self.light = max(dark, self.LEAST), max(light, self.LEAST)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        e = _difference(prediction, target)
        below, above = self._ends(e, target)
        cost = torch.where(target <= 0, -2 * self.dark**2 * torch.special.log_ndtr(-below), e.square())
        return torch.where(target >= 1, -2 * self.light**2 * torch.special.log_ndtr(-above), cost).mean(dtype=torch.float64)

    def backward(self, prediction: Tensor, target: Tensor) -> Tensor:
        # d/dz -ln(Phi(-z)) = phi(z) / Phi(-z), which is sqrt(2 / pi) / erfcx(z / sqrt(2)) without either of them going to 0
        e = _difference(prediction, target)
        below, above = (math.sqrt(2 / math.pi) / torch.special.erfcx(z / math.sqrt(2)) for z in self._ends(e, target))
        e = torch.where(target >= 1, -self.light * above, torch.where(target <= 0, self.dark * below, e))
        return e.mul(2 / prediction.numel()).to(prediction.dtype)

    def _ends(self, e: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """How far the prediction is from 0 and from 1, in deviations of the noise there, positive inside."""
        prediction = e + target.to(e.dtype)
        return prediction / self.dark, (1 - prediction) / self.light


def _difference(prediction: Tensor, target: Tensor) -> Tensor:
    if prediction.shape != target.shape:
        raise ValueError(f"prediction has shape {tuple(prediction.shape)} and target {tuple(target.shape)}: they must be equal")
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return prediction.to(dtype) - target.to(dtype)
