"""A 3x3 convolution of stride 1 as F(4x4, 3x3) in matrix products of torch: a quarter of the multiplications (Winograd 1980).

    y = At [ (G w Gt) . (Bt d B) ] A         d: 6x6 inputs, w: 3x3 weights, y: 4x4 outputs, "." point by point

is polynomial multiplication by values at the points 0, P, -P, Q, -Q and infinity (Toom 1963; Lavin & Gray 2016). A transform of the rows
and one of the columns are one matrix, their Kronecker product. So with the T windows of a strip side by side, a row for each of their 36
pixels, everything is a product: (36 x 36) by (36 x T*C) takes windows to points; at each point (T x C) by (C x F) sums over the channels;
(16 x 36) by (36 x T*F) takes points to outputs. Copies move windows and outputs alone, 36 and 16 numbers for every 16 outputs.

For inference, on any device, where no kernel in C does the same (`core/kernels/winograd.h`); `products.convolve` is the plain way, and the
exact one. Knows nothing of layers or tapes.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from core.nn.products import Border, Pair, Scratch, shared

P, Q = 0.75, 1.5
"""With these the least is lost where *all* is bfloat16, the matrices and what lies between products too: a tenth less than with the
kernels' 5/8 and 3/2, whose sums are float32, and half of what the customary 1 and 2 lose."""

Matrix = list[list[float]]

FEWEST = 16
"""Channels in and out from which this is the faster way."""
MANY = 128
"""Channels from which bfloat16 takes tiles of 4x4. With fewer, next to the picture itself, the error is seen in the result: tiles of
2x4 make a third less of it, for 24 products in place of 48 and not of 96."""

STRIP = {"cpu": 3 << 19}
"""Numbers that the windows of a strip have, by kind of device: on a processor, what its caches hold and is still worth a call."""
STRIP_ELSEWHERE = 1 << 27
"""Enough to fill an accelerator."""


class Weights(NamedTuple):
    """A 3x3 kernel at the points, and the matrices that go with it."""

    tile: Pair
    inputs: Tensor  # (points, points), `Bt` in both directions
    values: Tensor  # (points, C, F)
    outputs: Tensor  # (tile's pixels, points), `At` in both directions


def prepare(weight: Tensor, factors: torch.dtype) -> Weights:
    """(3, 3, C, F), as `convolve` takes it, to be multiplied in `factors`."""
    _, _, C, F = weight.shape
    tile = (2, 4) if factors == torch.bfloat16 and min(C, F) < MANY else (4, 4)
    Bt, G, At = (torch.kron(*pair).to(weight.device) for pair in zip(*map(_transforms, tile), strict=True))
    values = (G @ weight.double().reshape(9, C * F)).view(-1, C, F)
    return Weights(tile, Bt.to(factors), values.to(factors), At.to(factors))


def rows(weights: Weights, size: Pair) -> int:
    """How many rows of an output of `size` are worth computing at once."""
    points, C, F = weights.values.shape
    down, across = (-(-side // tile) for side, tile in zip(size, weights.tile, strict=True))
    most = STRIP.get(weights.values.device.type, STRIP_ELSEWHERE) // (points * max(C, F) * across)
    return shared(down, most) * weights.tile[0]


def convolve(x: Tensor, weights: Weights, border: Border) -> Tensor:
    """The convolution of `x` (N, H, W, C) in its `border`, in tiles: (N, I, 4, J, 4, F), valid until this thread's next call.

    Where the output's rows or columns are no multiple of the tile's, the last tiles end beyond them.
    """
    windows = _windows(x, weights.tile, border, weights.values.dtype)
    N, down, across, C = windows.shape[2:]
    T, (points, _, F) = N * down * across, weights.values.shape
    v = _scratch.get("v", windows.device, windows.dtype, points * T * C)
    m = _scratch.get("m", windows.device, windows.dtype, points * T * F)
    torch.mm(weights.inputs, windows.view(points, T * C), out=v.view(points, T * C))
    torch.bmm(v.view(points, T, C), weights.values, out=m.view(points, T, F))
    y = _scratch.get("windows", windows.device, windows.dtype, len(weights.outputs) * T * F)  # they are done with
    torch.mm(weights.outputs, m.view(points, T * F), out=y.view(-1, T * F))
    return y.view(*weights.tile, N, down, across, F).permute(2, 3, 0, 4, 1, 5)


def _windows(x: Tensor, tile: Pair, border: Border, dtype: torch.dtype) -> Tensor:
    """The windows of all tiles, zeros outside of the picture: (6, 6, N, I, J, C), contiguous."""
    (N, H, W, C), (S, T), (top, bottom, left, right) = x.shape, tile, border
    A, B, down, across = S + 2, T + 2, -(-(H + top + bottom - 2) // S), -(-(W + left + right - 2) // T)
    windows = _scratch.get("windows", x.device, dtype, A * B * N * down * across * C).view(A, B, N, down, across, C)
    bottom = down * S + 2 - H - top
    # Those that lie inside are read where they are, those over the left and right edge from a border.
    first, last = min(across, -(-left // T)), max(0, (W + left - B) // T + 1)
    for start, stop in ((0, first), (first, max(first, last)), (max(first, last), across)):
        if start < stop:
            begin, end = start * T - left, stop * T - left + 2
            part = x[:, :, max(0, begin) : max(0, end)]
            around = max(0, -begin), max(0, end - W), top, bottom
            if any(around):
                part = torch.constant_pad_nd(part, (0, 0, *around))
            n, h, w, _ = part.stride()
            views = part.as_strided((A, B, N, down, stop - start, C), (h, w, n, S * h, T * w, 1), part.storage_offset())
            windows[:, :, :, :, start:stop].copy_(views)
    return windows


@functools.cache
def _transforms(tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """`Bt`, `G` and `At` of F(tile, 3) in one direction; tiles of two have the points 0, 1, -1 and infinity."""
    if tile == 2:
        Bt: Matrix = [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]]
        G: Matrix = [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]
        At: Matrix = [[1, 1, 1, 0], [0, 1, -1, 1]]
    else:
        PP, QQ = P * P, Q * Q
        p, q = 1 / (2 * PP * (PP - QQ)), 1 / (2 * QQ * (QQ - PP))
        Bt = [
            [PP * QQ, 0, -PP - QQ, 0, 1, 0],
            [0, -P * QQ, -QQ, P, 1, 0],
            [0, P * QQ, -QQ, -P, 1, 0],
            [0, -Q * PP, -PP, Q, 1, 0],
            [0, Q * PP, -PP, -Q, 1, 0],
            [0, PP * QQ, 0, -PP - QQ, 0, 1],
        ]
        G = [[1 / (PP * QQ), 0, 0], [p, p * P, p * PP], [p, -p * P, p * PP], [q, q * Q, q * QQ], [q, -q * Q, q * QQ], [0, 0, 1]]
        At = [[1, 1, 1, 1, 1, 0], [0, P, -P, Q, -Q, 0], [0, PP, PP, QQ, QQ, 0], [0, PP * P, -PP * P, QQ * Q, -QQ * Q, 1]]
    exact = [torch.tensor(matrix, dtype=torch.float64) for matrix in (Bt, G, At)]
    return exact[0], exact[1], exact[2]


_scratch = Scratch()
