"""A convolution as matrix products on shifted views, on any device and in any float dtype. Knows nothing of layers, tapes or losses.

Moving a window over a zero-bordered grid only moves the address it is read from: all windows of a picture are one strided *view* of it,
`(N, Ho, Wo, K, K*C)`, in which nothing is copied. A strip of them small enough for the cache is laid out as a matrix, one row a window,
and one product with the kernel as `(K*K*C, F)` gives the strip's output, each sum accumulated inside the product and rounded once.

This is the reference; the way of training on an accelerator, or a processor for which no kernel was built; and there of all inference
but that of 3x3 kernels, which is `winograd`'s (see `convolution`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

Pair = tuple[int, int]
Border = tuple[int, int, int, int]  # top, bottom, left, right; a negative one crops
NO_BORDER: Border = (0, 0, 0, 0)

STRIP_BYTES = {"cpu": 4 << 20}
"""Size of one strip's matrix by kind of device: on a processor, what stays in its last cache."""
STRIP_BYTES_ELSEWHERE = 256 << 20
"""Enough to fill an accelerator."""
INNER = 4096
"""Pixels, at least, that one of its products sums over."""


def pad(x: Tensor, border: Border) -> Tensor:  # (N, H, W, C) -> (N, H + top + bottom, W + left + right, C), contiguous
    """Zeros around the picture, or a crop where the border is negative."""
    if not any(border):
        return x.contiguous()
    top, bottom, left, right = border
    return torch.constant_pad_nd(x, (0, 0, left, right, top, bottom))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, border: Border) -> Tensor:
    """`y[n, i, j, f] = bias[f] + sum over a, b, c of xp[n, i*S + a, j*S + b, c] * weight[a, b, c, f]`, `xp` being `x` in its border.

    x: (N, H, W, C), weight: (K, K, C, F), bias: (F,) or None. They are multiplied in the dtype of `weight`, the result has that of `x`:
    (N, Ho, Wo, F), where `Ho = (H + top + bottom - K) // S + 1`.
    """
    windows = _windows(pad(x, border), weight.shape[:2], stride)
    N, H, W = windows.shape[:3]
    F = weight.shape[3]
    kernel = weight.reshape(-1, F)
    y = x.new_empty(N, H, W, F)
    for n, h in _strips(windows):
        strip, out = _laid_out(windows[n, h], kernel.dtype), y[n, h].view(-1, F)
        if kernel.dtype != y.dtype:
            out.copy_(strip @ kernel if bias is None else torch.addmm(bias, strip, kernel))
        elif bias is None:
            torch.mm(strip, kernel, out=out)
        else:
            torch.addmm(bias, strip, kernel, out=out)
    return y


def rows(weight: Tensor, size: Pair) -> int:
    """How many rows of an output of `size` are worth computing at once."""
    most = STRIP_BYTES.get(weight.device.type, STRIP_BYTES_ELSEWHERE) // (size[1] * weight[..., 0].numel() * weight.element_size())
    return shared(size[0], most)


def shared(rows: int, most: int) -> int:
    """The height, `most` or less, of strips that are all alike, and as many for each thread (see `team`), if there are enough rows."""
    strips, threads = -(-rows // max(1, most)), torch.get_num_threads()
    for_each = -(-strips // threads) * threads
    return -(-rows // (for_each if for_each <= rows else strips))


def weight_gradient(x: Tensor, dy: Tensor, kernel: Pair, stride: Pair, border: Border, factors: torch.dtype | None = None) -> Tensor:
    """`dweight[a, b, c, f] = sum over n, i, j of xp[n, i*S + a, j*S + b, c] * dy[n, i, j, f]`: (K, K, C, F), at least in float32.

    factors: the dtype in which they are multiplied, or None for that of `x`.
    """
    factors = factors or x.dtype
    windows = _windows(pad(x, border), kernel, stride)
    dy = dy.to(factors).contiguous()
    C, F = x.shape[3], dy.shape[3]
    dweight = x.new_zeros(kernel[0] * kernel[1] * C, F, dtype=torch.promote_types(x.dtype, torch.float32))
    for n, h in _strips(windows):
        dweight += _inner(_laid_out(windows[n, h], factors), dy[n, h].view(-1, F))
    return dweight.view(*kernel, C, F)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """(P, M), (P, F) -> aT b, (M, F): on an accelerator as many products at once as keep it busy, whose sums are float32."""
    if a.device.type == "cpu":
        return a.T @ b
    P = len(a)
    parts = max(1, min(P & -P, 1 << (max(1, P // INNER).bit_length() - 1)))  # powers of 2
    left, right = a.view(parts, P // parts, -1).transpose(1, 2), b.view(parts, P // parts, -1)
    wide = a.dtype in (torch.float32, torch.float64)
    return (torch.bmm(left, right) if wide else torch.bmm(left, right, out_dtype=torch.float32)).sum(0)


def transposed(weight: Tensor, stride: Pair) -> Tensor:
    """The kernel (J, L, F, S*T*C) by which the derivative of `convolve` by `x` is a convolution of `dy`, then depth-to-space by the stride.

    Row `u` of the bordered input met output row `i` through tap `a = u - i*S`. With `u = q*S + r` that is `a = r + S*j` for `i = q - j`:
    each of the S phases `r` is a plain convolution of `dy`, its kernel every S-th tap turned around. All phases are computed at once as
    S*S*C channels, and `depth_to_space` puts them in their places. With stride 1 it is the same kernel turned by 180 degrees.
    """
    (S, T), (A, B, C, F) = stride, weight.shape
    J, L = -(-A // S), -(-B // T)  # taps of one phase
    if stride == (A, B):
        return weight.permute(3, 0, 1, 2).reshape(1, 1, F, S * T * C)
    phases = pad(weight.reshape(1, A, B, C * F), (0, J * S - A, 0, L * T - B)).view(J, S, L, T, C, F)
    return phases.flip(0, 2).permute(0, 2, 5, 1, 3, 4).reshape(J, L, F, S * T * C)


def transposed_border(kernel: Pair, stride: Pair, border: Border, size: Pair, rows: Pair) -> tuple[Border, Border]:
    """The border around `dy`, of `rows` rows and columns, for `transposed`, and what to crop from its phases to get an `x` of `size`."""
    (S, T), (A, B) = stride, kernel
    above, below, top, bottom = _phase_rows(border[0], size[0], S, -(-A // S), rows[0])
    before, beside, left, right = _phase_rows(border[2], size[1], T, -(-B // T), rows[1])
    return (above, below, before, beside), (top, bottom, left, right)


def _phase_rows(border: int, size: int, S: int, J: int, rows: int) -> tuple[int, int, int, int]:
    """One direction of `transposed_border`: the border around `dy`, and what to crop from the phases to get rows border..border + size."""
    first, last = border // S, -(-(border + size) // S)  # of the phases' rows q
    above = J - 1 - first
    return above, last - 1 - (rows - 1), border - first * S, last * S - border - size


def space_to_depth(x: Tensor, scale: Pair) -> Tensor:
    """(N, H*S, W*S, C) -> (N, H, W, S*S*C), a block's pixels in reading order."""
    N, H, W, C = x.shape
    S, T = scale
    rows = x.reshape(N, H // S, S, W // T, T * C).unbind(2)  # T pixels of one row lie side by side before and after
    return torch.cat(rows, 3)


def depth_to_space(x: Tensor, scale: Pair) -> Tensor:
    """(N, H, W, S*S*C) -> (N, H*S, W*S, C), the inverse of `space_to_depth`."""
    N, H, W, C = x.shape
    S, T = scale
    return x.view(N, H, W, S, T, C // (S * T)).transpose(2, 3).reshape(N, H * S, W * T, C // (S * T))


def _windows(x: Tensor, kernel: torch.Size | Pair, stride: Pair) -> Tensor:
    """Every window of a bordered, contiguous grid, as a view: (N, Ho, Wo, K, K*C), the last axis one run of memory."""
    N, H, W, C = x.shape
    (A, B), (S, T) = kernel, stride
    size = (N, (H - A) // S + 1, (W - B) // T + 1, A, B * C)
    return x.as_strided(size, (H * W * C, S * W * C, T * C, W * C, 1))


class Scratch(threading.local):
    """One strip's matrices for every thread, by name: memory that is touched once and stays in the cache."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def get(self, name: str, device: torch.device, dtype: torch.dtype, size: int) -> Tensor:
        kind = name, device, dtype
        if kind not in self.kept or self.kept[kind].numel() < size:
            self.kept[kind] = torch.empty(size, dtype=dtype, device=device)
        return self.kept[kind][:size]


_scratch = Scratch()


def _laid_out(windows: Tensor, dtype: torch.dtype) -> Tensor:  # (N, H, W, K, K*C) -> (N*H*W, K*K*C), valid until this thread's next call
    if windows.is_contiguous() and windows.dtype == dtype:
        return windows.view(-1, windows.shape[3] * windows.shape[4])
    strip = _scratch.get("strip", windows.device, dtype, windows.numel()).view(windows.shape)
    strip.copy_(windows)
    return strip.view(-1, windows.shape[3] * windows.shape[4])


def _strips(windows: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cuts (N, Ho, ...) into whole pictures, or rows of one picture, of at most STRIP_BYTES laid out."""
    N, H, W, A, B = windows.shape
    rows = max(1, STRIP_BYTES.get(windows.device.type, STRIP_BYTES_ELSEWHERE) // (W * A * B * windows.element_size()))
    if rows < H:
        for n in range(N):
            for h in range(0, H, rows):
                yield slice(n, n + 1), slice(h, h + rows)
    else:
        for n in range(0, N, rows // H):
            yield slice(n, n + rows // H), slice(0, H)
