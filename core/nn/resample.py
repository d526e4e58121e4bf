"""Layers that move pixels between resolutions and learn nothing. Knows nothing of how activations are computed."""

from __future__ import annotations

from torch import Tensor

from core.nn import products
from core.nn.module import Module, Tape


class _Resample(Module):
    def __init__(self, scale: int) -> None:
        if scale < 1:
            raise ValueError(f"scale (={scale}) must be at least 1")
        self.scale = scale


class NearestUpsampling(_Resample):
    """Every pixel becomes a block of `scale` by `scale` equal ones."""

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:  # (N, H, W, C) -> (N, H*S, W*S, C)
        return x.repeat_interleave(self.scale, 1).repeat_interleave(self.scale, 2)

    def backward(self, dy: Tensor, tape: Tape) -> Tensor:
        # y[n, i*S + r, j*S + s, c] = x[n, i, j, c]: a pixel's derivative is the sum over its block
        N, H, W, C = dy.shape
        S = self.scale
        return dy.reshape(N, H // S, S, W // S, S, C).sum((2, 4))

    def reach(self, step: int = 1) -> tuple[int, int]:
        return step - step // self.scale, -(-step // self.scale)


class SpaceToDepth(_Resample):
    """Every block of `scale` by `scale` pixels becomes one pixel of S*S times the channels (the inverse of `DepthToSpace`)."""

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:  # (N, H*S, W*S, C) -> (N, H, W, S*S*C)
        H, W = x.shape[1:3]
        if H % self.scale or W % self.scale:
            raise ValueError(f"x has {H} rows and {W} columns: both must be divisible by scale (={self.scale})")
        return products.space_to_depth(x, (self.scale, self.scale))

    def backward(self, dy: Tensor, tape: Tape) -> Tensor:
        # y is x in another order
        return products.depth_to_space(dy, (self.scale, self.scale))

    def reach(self, step: int = 1) -> tuple[int, int]:
        return (self.scale - 1) * step, self.scale * step


class DepthToSpace(_Resample):
    """Every pixel's channels become a block of `scale` by `scale` pixels of 1/(S*S) the channels (Shi et al. 2016, pixel shuffle).

    Channels are in the order (row, column, C); torch's PixelShuffle has them in the order (C, row, column).
    """

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:  # (N, H, W, S*S*C) -> (N, H*S, W*S, C)
        if x.shape[3] % self.scale**2:
            raise ValueError(f"x has {x.shape[3]} channels: they must be divisible by scale * scale (={self.scale**2})")
        return products.depth_to_space(x, (self.scale, self.scale))

    def backward(self, dy: Tensor, tape: Tape) -> Tensor:
        # y is x in another order
        return products.space_to_depth(dy, (self.scale, self.scale))

    def reach(self, step: int = 1) -> tuple[int, int]:
        return step - step // self.scale, -(-step // self.scale)
