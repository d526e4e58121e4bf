"""Kernels in Triton for what a GPU would otherwise do in many passes over memory: normalising, gating and depthwise convolution.

Everything else there is matrix products, which torch has. Knows tensors; nothing of layers, tapes or losses. Triton comes with torch's
CUDA builds; its interpreter runs the same kernels on a processor, which is how they are tested without a GPU (`TRITON_INTERPRET=1`).
Sums are float32 and in a fixed order, so the same bits come out each time.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch's builds for a processor alone
    triton = None

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TILE = 2048
"""Numbers that a program of the pointwise kernels has at a time."""
ACROSS = 8
"""Pixels of a row, and `CHANNELS` of each, that a program of the depthwise kernels has at a time."""
CHANNELS = 64
PROGRAMS = 1024
"""So many, at most, share out the pixels whose derivatives are summed; or as many pieces of a picture as give every processor a few."""


def takes(x: Tensor) -> bool:
    """Whether the kernels compute with such a tensor."""
    return triton is not None and (x.is_cuda or INTERPRETED) and x.dtype in (torch.float32, torch.float16, torch.bfloat16)


def normalised(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(N, H, W, C) -> `x / sqrt(mean over C of x**2 + epsilon)` and the factors, (N, H, W, 1) in float32."""
    x = x.contiguous()
    y, scale = torch.empty_like(x), torch.empty(*x.shape[:3], 1, dtype=torch.float32, device=x.device)
    C, count, rows, block = _tiling(x)
    _normalise[(-(-count // rows),)](x, y, scale, count, epsilon, C, rows, block)
    return y, scale


def normalised_backward(dy: Tensor, y: Tensor, scale: Tensor, addend: Tensor | None) -> Tensor:
    """The derivative by `x` of what `normalised` gave, `+ addend`."""
    dy, dx = dy.contiguous(), torch.empty_like(y)
    C, count, rows, block = _tiling(y)
    added = dx if addend is None else addend.contiguous()
    _normalise_backward[(-(-count // rows),)](dy, y, scale, added, dx, count, C, rows, block, addend is not None)
    return dx


def gate(x: Tensor, bias: Tensor) -> Tensor:
    """(N, H, W, 2C) -> the product of its halves, each with its bias added."""
    x, C = x.contiguous(), x.shape[3] // 2
    y = torch.empty(*x.shape[:3], C, dtype=x.dtype, device=x.device)
    _, count, rows, block = _tiling(y)
    _gate[(-(-count // rows),)](x, bias, y, count, C, rows, block)
    return y


def gate_backward(x: Tensor, dy: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The derivatives of `gate` by `x` and by the biases, the latter in float32."""
    x, dy, dx = x.contiguous(), dy.contiguous(), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    C, count, rows, block = _tiling(dy)
    programs = min(PROGRAMS, -(-count // rows))
    sums = torch.empty(programs, 2 * C, dtype=torch.float32, device=x.device)
    tiles = -(-count // (rows * programs))
    _gate_backward[(programs,)](x, dy, bias, dx, sums, count, tiles, C, rows, block)
    return dx, sums.sum(0)


def depthwise_gate(x: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """(N, H, W, 2C) filtered by (3, 3, 2C), the product of the halves (N, H, W, C) and, if to `keep`, what was filtered (else nothing)."""
    x, C = x.contiguous(), x.shape[3] // 2
    N, H, W, _ = x.shape
    y = torch.empty(N, H, W, C, dtype=x.dtype, device=x.device)
    filtered = torch.empty(x.shape if keep else (0,), dtype=x.dtype, device=x.device)
    high, pieces, across, channels = _pieces(N, H, W, C)
    _depthwise_gate[(N * pieces * across, channels)](x, weight, bias, y, filtered, H, W, high, pieces, across, C, ACROSS, CHANNELS, keep)
    return y, filtered


def depthwise_gate_backward(x: Tensor, filtered: Tensor, dy: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The derivatives of `depthwise_gate` by `x`, by the weights and by the biases, the latter two in float32."""
    x = x.contiguous()
    N, H, W, F = x.shape
    dfiltered, dbias = gate_backward(filtered, dy, torch.zeros(F, device=x.device))
    dx = torch.empty_like(x)
    high, pieces, across, channels = _pieces(N, H, W, F)
    sums = torch.empty(N * pieces * across, 9, F, dtype=torch.float32, device=x.device)
    grid = N * pieces * across, channels
    _depthwise_backward[grid](x, dfiltered, weight, dx, sums, H, W, high, pieces, across, F, ACROSS, CHANNELS)
    return dx, sums.sum(0).view(3, 3, F), dbias


def _tiling(x: Tensor) -> tuple[int, int, int, int]:
    """Channels, pixels, and of each what a program has at a time: powers of 2."""
    C = x.shape[3]
    block = triton.next_power_of_2(C)
    return C, x.numel() // C, max(1, TILE // block), block


def _pieces(N: int, H: int, W: int, C: int) -> tuple[int, int, int, int]:
    """How high a program's piece is, into how many a picture is cut so, and into how many across and along its channels."""
    across, channels = -(-W // ACROSS), -(-C // CHANNELS)
    pieces = max(1, min(-(-H // 16), PROGRAMS // (N * across * channels)))
    return -(-H // pieces), pieces, across, channels


if triton is not None:

    @triton.jit
    def _normalise(x, y, scale, count, epsilon, C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
        first = tl.program_id(0).to(tl.int64) * ROWS
        row, channel = tl.arange(0, ROWS), tl.arange(0, BLOCK)
        at, inside = row[:, None] * C + channel[None, :], (row < count - first)[:, None] & (channel < C)[None, :]
        value = tl.load(x + first * C + at, inside, 0).to(tl.float32)
        factor = 1 / tl.sqrt(tl.sum(value * value, 1) / C + epsilon)
        tl.store(y + first * C + at, (value * factor[:, None]).to(y.dtype.element_ty), inside)
        tl.store(scale + first + row, factor, row < count - first)

    @triton.jit
    def _normalise_backward(dy, y, scale, addend, dx, count, C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr):
        first = tl.program_id(0).to(tl.int64) * ROWS
        row, channel = tl.arange(0, ROWS), tl.arange(0, BLOCK)
        at, inside = row[:, None] * C + channel[None, :], (row < count - first)[:, None] & (channel < C)[None, :]
        by_y = tl.load(dy + first * C + at, inside, 0).to(tl.float32)
        value = tl.load(y + first * C + at, inside, 0).to(tl.float32)
        factor = tl.load(scale + first + row, row < count - first, 0)
        by_x = (by_y - value * (tl.sum(by_y * value, 1) / C)[:, None]) * factor[:, None]
        if ADD:
            by_x += tl.load(addend + first * C + at, inside, 0).to(tl.float32)
        tl.store(dx + first * C + at, by_x.to(dx.dtype.element_ty), inside)

    @triton.jit
    def _gate(x, bias, y, count, C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
        first = tl.program_id(0).to(tl.int64) * ROWS
        row, channel = tl.arange(0, ROWS), tl.arange(0, BLOCK)
        at, inside = row[:, None] * (2 * C) + channel[None, :], (row < count - first)[:, None] & (channel < C)[None, :]
        x += first * 2 * C
        one = tl.load(x + at, inside, 0).to(tl.float32) + tl.load(bias + channel, channel < C, 0).to(tl.float32)[None, :]
        other = tl.load(x + at + C, inside, 0).to(tl.float32) + tl.load(bias + C + channel, channel < C, 0).to(tl.float32)[None, :]
        to = row[:, None] * C + channel[None, :]
        tl.store(y + first * C + to, (one * other).to(y.dtype.element_ty), inside)

    @triton.jit
    def _gate_backward(x, dy, bias, dx, sums, count, tiles, C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
        channel = tl.arange(0, BLOCK)
        known = channel < C
        first_bias = tl.load(bias + channel, known, 0).to(tl.float32)[None, :]
        other_bias = tl.load(bias + C + channel, known, 0).to(tl.float32)[None, :]
        first_sum, other_sum = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
        for tile in range(tiles):
            first = (tl.program_id(0).to(tl.int64) * tiles + tile) * ROWS
            row = tl.arange(0, ROWS)
            at, inside = row[:, None] * (2 * C) + channel[None, :], (row < count - first)[:, None] & known[None, :]
            one = tl.load(x + first * 2 * C + at, inside, 0).to(tl.float32) + first_bias
            other = tl.load(x + first * 2 * C + at + C, inside, 0).to(tl.float32) + other_bias
            by_y = tl.load(dy + first * C + row[:, None] * C + channel[None, :], inside, 0).to(tl.float32)
            one, other = by_y * other, by_y * one
            tl.store(dx + first * 2 * C + at, one.to(dx.dtype.element_ty), inside)
            tl.store(dx + first * 2 * C + at + C, other.to(dx.dtype.element_ty), inside)
            first_sum += one
            other_sum += other
        to = tl.program_id(0) * (2 * C) + channel
        tl.store(sums + to, tl.sum(first_sum, 0), known)
        tl.store(sums + C + to, tl.sum(other_sum, 0), known)

    @triton.jit
    def _row(x, i, column, channel, H, W, F, C):
        """Pixels of row `i` of a picture with F channels; zero outside of it, and of channels from C on."""
        row = i + column * 0
        inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
        first = x + tl.cast(i, tl.int64) * W * F
        return tl.load(first + (column * F)[:, None] + channel[None, :], inside[:, None] & (channel < C)[None, :], 0)

    @triton.jit
    def _tap(weight, tap, channel, F, C):
        return tl.load(weight + tap * F + channel, channel < C, 0).to(tl.float32)[None, :]

    @triton.jit
    def _depthwise_gate(
        x,
        weight,
        bias,
        y,
        filtered,
        H,
        W,
        high,
        pieces,
        across,
        C: tl.constexpr,
        ACROSS: tl.constexpr,
        BLOCK: tl.constexpr,
        KEEP: tl.constexpr,
    ):
        """Row by row: each row of `x`, read once, adds to the outputs above, beside and below it, of which the one above is then done.

        The row behind it is on its way meanwhile.
        """
        F: tl.constexpr = 2 * C
        column = tl.program_id(0) % across * ACROSS + tl.arange(0, ACROSS)
        piece = tl.program_id(0) // across % pieces
        n = (tl.program_id(0) // (across * pieces)).to(tl.int64)
        channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        known = channel < C
        x += n * H * W * F
        y += n * H * W * C
        if KEEP:
            filtered += n * H * W * F
        p00, p01, p02 = _tap(weight, 0, channel, F, C), _tap(weight, 1, channel, F, C), _tap(weight, 2, channel, F, C)
        p10, p11, p12 = _tap(weight, 3, channel, F, C), _tap(weight, 4, channel, F, C), _tap(weight, 5, channel, F, C)
        p20, p21, p22 = _tap(weight, 6, channel, F, C), _tap(weight, 7, channel, F, C), _tap(weight, 8, channel, F, C)
        w = weight + C
        q00, q01, q02 = _tap(w, 0, channel, F, C), _tap(w, 1, channel, F, C), _tap(w, 2, channel, F, C)
        q10, q11, q12 = _tap(w, 3, channel, F, C), _tap(w, 4, channel, F, C), _tap(w, 5, channel, F, C)
        q20, q21, q22 = _tap(w, 6, channel, F, C), _tap(w, 7, channel, F, C), _tap(w, 8, channel, F, C)
        first_bias, other_bias = _tap(bias, 0, channel, F, C), _tap(bias + C, 0, channel, F, C)
        empty = tl.zeros((ACROSS, BLOCK), tl.float32)
        one, one_below = empty + first_bias, empty + first_bias
        other, other_below = empty + other_bias, empty + other_bias
        first = piece * high
        stop = tl.minimum(first + high, H)
        x0 = _row(x, first - 1, column - 1, channel, H, W, F, C)
        x1 = _row(x, first - 1, column, channel, H, W, F, C)
        x2 = _row(x, first - 1, column + 1, channel, H, W, F, C)
        z0 = _row(x + C, first - 1, column - 1, channel, H, W, F, C)
        z1 = _row(x + C, first - 1, column, channel, H, W, F, C)
        z2 = _row(x + C, first - 1, column + 1, channel, H, W, F, C)
        for i in range(first - 1, stop + 1):
            left, middle, right = x0.to(tl.float32), x1.to(tl.float32), x2.to(tl.float32)
            x0 = _row(x, i + 1, column - 1, channel, H, W, F, C)
            x1 = _row(x, i + 1, column, channel, H, W, F, C)
            x2 = _row(x, i + 1, column + 1, channel, H, W, F, C)
            one_done = one + left * p20 + middle * p21 + right * p22
            one = one_below + left * p10 + middle * p11 + right * p12
            one_below = first_bias + left * p00 + middle * p01 + right * p02
            left, middle, right = z0.to(tl.float32), z1.to(tl.float32), z2.to(tl.float32)
            z0 = _row(x + C, i + 1, column - 1, channel, H, W, F, C)
            z1 = _row(x + C, i + 1, column, channel, H, W, F, C)
            z2 = _row(x + C, i + 1, column + 1, channel, H, W, F, C)
            other_done = other + left * q20 + middle * q21 + right * q22
            other = other_below + left * q10 + middle * q11 + right * q12
            other_below = other_bias + left * q00 + middle * q01 + right * q02
            inside = ((column < W) & (i + column * 0 > first))[:, None] & known[None, :]
            above = tl.cast(i - 1, tl.int64) * W
            to = y + above * C + column[:, None] * C + channel[None, :]
            tl.store(to, (one_done * other_done).to(y.dtype.element_ty), inside)
            if KEEP:
                to = filtered + above * F + column[:, None] * F + channel[None, :]
                tl.store(to, one_done.to(filtered.dtype.element_ty), inside)
                tl.store(to + C, other_done.to(filtered.dtype.element_ty), inside)

    @triton.jit
    def _depthwise_backward(
        x,
        dy,
        weight,
        dx,
        sums,
        H,
        W,
        high,
        pieces,
        across,
        F: tl.constexpr,
        ACROSS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """Row by row: each row of `dy`, read once, belongs to the rows of `x` above, beside and below it, as far as a kernel reaches: there
        it adds to `dx`, of which the one above is then done, and with what `x` is there, to the derivatives of nine weights.
        """
        column = tl.program_id(0) % across * ACROSS + tl.arange(0, ACROSS)
        piece = tl.program_id(0) // across % pieces
        n = (tl.program_id(0) // (across * pieces)).to(tl.int64)
        channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        known = channel < F
        x += n * H * W * F
        dx += n * H * W * F
        dy += n * H * W * F
        w00, w01, w02 = _tap(weight, 0, channel, F, F), _tap(weight, 1, channel, F, F), _tap(weight, 2, channel, F, F)
        w10, w11, w12 = _tap(weight, 3, channel, F, F), _tap(weight, 4, channel, F, F), _tap(weight, 5, channel, F, F)
        w20, w21, w22 = _tap(weight, 6, channel, F, F), _tap(weight, 7, channel, F, F), _tap(weight, 8, channel, F, F)
        empty = tl.zeros((ACROSS, BLOCK), tl.float32)
        s00, s01, s02, s10, s11, s12, s20, s21, s22 = empty, empty, empty, empty, empty, empty, empty, empty, empty
        above, beside, x_above, x_beside = empty, empty, empty, empty
        first = piece * high
        stop = tl.minimum(first + high, H)
        d0 = _row(dy, first - 1, column + 1, channel, H, W, F, F)
        d1 = _row(dy, first - 1, column, channel, H, W, F, F)
        d2 = _row(dy, first - 1, column - 1, channel, H, W, F, F)
        below = _row(x, first, column, channel, stop, W, F, F)
        for i in range(first - 1, stop + 1):
            t0, t1, t2, x_below = d0.to(tl.float32), d1.to(tl.float32), d2.to(tl.float32), below.to(tl.float32)
            d0 = _row(dy, i + 1, column + 1, channel, H, W, F, F)
            d1 = _row(dy, i + 1, column, channel, H, W, F, F)
            d2 = _row(dy, i + 1, column - 1, channel, H, W, F, F)
            below = _row(x, i + 2, column, channel, stop, W, F, F)
            s00 += x_above * t0
            s01 += x_above * t1
            s02 += x_above * t2
            s10 += x_beside * t0
            s11 += x_beside * t1
            s12 += x_beside * t2
            s20 += x_below * t0
            s21 += x_below * t1
            s22 += x_below * t2
            done = above + t0 * w00 + t1 * w01 + t2 * w02
            above = beside + t0 * w10 + t1 * w11 + t2 * w12
            beside = t0 * w20 + t1 * w21 + t2 * w22
            x_above = x_beside
            x_beside = x_below
            inside = ((column < W) & (i + column * 0 > first))[:, None] & known[None, :]
            to = dx + tl.cast(i - 1, tl.int64) * W * F + column[:, None] * F + channel[None, :]
            tl.store(to, done.to(dx.dtype.element_ty), inside)
        to = sums + tl.program_id(0).to(tl.int64) * 9 * F + channel
        tl.store(to, tl.sum(s00, 0), known)
        tl.store(to + F, tl.sum(s01, 0), known)
        tl.store(to + 2 * F, tl.sum(s02, 0), known)
        tl.store(to + 3 * F, tl.sum(s10, 0), known)
        tl.store(to + 4 * F, tl.sum(s11, 0), known)
        tl.store(to + 5 * F, tl.sum(s12, 0), known)
        tl.store(to + 6 * F, tl.sum(s20, 0), known)
        tl.store(to + 7 * F, tl.sum(s21, 0), known)
        tl.store(to + 8 * F, tl.sum(s22, 0), known)
