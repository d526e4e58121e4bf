"""The one door to inference: a picture and its noise level in, the clean picture out. Knows nothing of files' formats, training or HTTP."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from core import hardware, noise, weights
from core.networks import MULTIPLE, correct
from core.nn import Module
from core.weights import Card

TILE = 1024
"""Side of the square that one pass of the network finishes, in pixels; with what it must see around it, about 600 MB in float32."""


class Cancelled(Exception):
    """`keep_going` said no: the picture was given up between two tiles."""


class Denoiser:
    """A network with its weights on a device, ready for pictures. It keeps nothing of them, so many threads may share one."""

    def __init__(self, network: Module, card: Card, name: str, device: torch.device, dtype: torch.dtype) -> None:
        self._activations = hardware.activations(dtype, device)
        self.network = network.to(device, self._activations).multiply_in(dtype)
        self.card, self.name, self.device, self.dtype = card, name, device, dtype
        reach, _ = network.reach()
        self._halo = -(-reach // MULTIPLE) * MULTIPLE

    @classmethod
    def load(cls, path: str | Path, device: str = "auto", dtype: str = "auto") -> Denoiser:
        """Reads a weights file. `auto` takes a GPU if there is one, and bfloat16 if the device is fast at it; `.device` and `.dtype` tell.

        Raises WeightsError for a file that can't be used and DeviceError for a device that isn't there.
        """
        taken = hardware.take(device)
        network, card = weights.load(Path(path))
        return cls(network, card, Path(path).stem, taken, hardware.take_dtype(dtype, taken))

    def __call__(
        self,
        pixels: Tensor,
        sigma: float | None = None,
        strength: float = 1.0,
        keep_going: Callable[[], bool] = lambda: True,
        tile: int = TILE,
    ) -> Tensor:
        """(H, W, 3) floats in [0, 1] -> the same shape in float32 on the CPU, of any size from 1x1 up.

        sigma: the noise's standard deviation in [0, 1] image units, or None to take `estimate`'s. strength: multiplies it; 0 gives the
        input back bit for bit. keep_going: asked before each tile; Cancelled is raised when it says no. tile: see TILE; the result is
        the same whatever it is, as tiles overlap by all that the network looks at.
        """
        _check(pixels)
        level = (self.estimate(pixels) if sigma is None and strength else sigma or 0.0) * strength
        if not 0 <= level < math.inf:
            raise ValueError(f"sigma (={sigma}) times strength (={strength}) must be finite and not below 0")
        if level == 0:
            return pixels.to("cpu", torch.float32, copy=True)
        with torch.no_grad():  # not inference_mode, whose tensors a caller could not change in place
            return self._by_tiles(pixels.float(), level, keep_going, max(MULTIPLE, tile // MULTIPLE * MULTIPLE))

    def estimate(self, pixels: Tensor) -> float:
        """The noise level of a picture (H, W, 3), a standard deviation in [0, 1] image units (see `core.noise.estimate_gaussian`)."""
        _check(pixels)
        return noise.estimate_gaussian(pixels.float())

    def _by_tiles(self, pixels: Tensor, level: float, keep_going: Callable[[], bool], tile: int) -> Tensor:
        H, W, _ = pixels.shape
        whole = pixels[_mirror(H)][:, _mirror(W)]
        out = torch.empty(H, W, 3)
        for y in _spans(whole.shape[0], tile, self._halo):
            for x in _spans(whole.shape[1], tile, self._halo):
                if not keep_going():
                    raise Cancelled("the picture was given up between two tiles")
                seen = whole[y.seen, x.seen].to(self.device)
                clean = correct(self.network, seen[None], level, self._activations)[0]
                to = out[y.kept, x.kept]
                top, left = y.kept.start - y.seen.start, x.kept.start - x.seen.start
                to.copy_(clean[top : top + to.shape[0], left : left + to.shape[1]])
        return out.clamp_(0, 1)


class _Span(NamedTuple):
    """One side of a tile: what the network sees, and the part of it that is kept."""

    seen: slice
    kept: slice


def _spans(size: int, tile: int, halo: int) -> Iterator[_Span]:
    """Cuts 0..size into tiles that see `halo` more on both sides; what fits into one pass is not cut."""
    if size <= tile + 2 * halo:
        tile = size
    for start in range(0, size, tile):
        stop = min(start + tile, size)
        yield _Span(slice(max(0, start - halo), min(size, stop + halo)), slice(start, stop))


def _mirror(size: int) -> Tensor:
    """Indices of 0..size, then back from the edge as far as the next multiple the network needs."""
    index = torch.arange(-(-size // MULTIPLE) * MULTIPLE) % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


def _check(pixels: Tensor) -> None:
    if pixels.dim() != 3 or pixels.shape[2] != 3 or not pixels.is_floating_point() or 0 in pixels.shape:
        raise ValueError(f"pixels are {pixels.dtype} of shape {tuple(pixels.shape)}: a picture is floats in [0, 1] of shape (H, W, 3)")
    if not pixels.isfinite().all():
        raise ValueError("pixels hold NaN or infinity: a picture is floats in [0, 1]")
