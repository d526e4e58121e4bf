"""The parts of a gated block: normalised pixels, a depthwise convolution, and channels that open and shut each other.

Chen et al. 2022, "Simple Baselines for Image Restoration" (NAFNet): no ReLU, but products of two halves of the channels; no wide kernel
but one a channel. Nearly all of such a block's multiply-adds are 1x1 convolutions. Here are the formulas in plain tensor operations; on a
GPU the kernels of `core.kernels.gpu` compute the same, on a processor those in C.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from core import kernels
from core.kernels import Ring
from core.nn.convolution import ByRows
from core.nn.module import Module, Tape, finished, uniform
from core.nn.products import Pair, pad
from core.nn.sums import by_halves, leaf

EPSILON = 1e-6
"""Added to the mean square of a pixel's channels."""
PIECE = 1 << 21
"""Bytes of float32 to compute with at a time, where torch's operators do, each of which goes over all of them."""
EDGE = 1
"""Pixels that a depthwise kernel, 3x3, looks past its own in each direction."""


class RMSNorm(Module):
    """`y = x / sqrt(mean over channels of x**2 + EPSILON)`, each pixel by itself (Zhang & Sennrich 2019, without a gain: the convolution
    behind it has one).
    """

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:  # (N, H, W, C) -> (N, H, W, C)
        y, scale = normalised(x.contiguous(), tape is not None)
        if tape is not None:
            tape.append((y, scale))
        return y

    def backward(self, dy: Tensor, tape: Tape) -> Tensor:
        return self.backward_then(dy, tape)

    def backward_then(self, dy: Tensor, tape: Tape, addends: Sequence[Tensor] = ()) -> Tensor:
        # with s = 1 / sqrt(mean(x**2) + EPSILON) and y = s x: dx = s (dy - y mean(dy y))
        y, scale = tape.pop()
        if own := _on_gpu(y) or _kernels(y):
            addend, *others = addends or (None,)
            return finished(own.normalised_backward(dy, y, scale, addend), others)
        wide, dwide = _wide(y), _wide(dy)
        dx = (dwide - wide * (dwide * wide).mean(3, keepdim=True)) * scale
        return finished(dx.to(y.dtype), addends)

    def by_rows(self, x: Ring, out: Ring) -> None:
        """`forward` of rows of a picture, where no kernel normalises."""
        given = x.rows()
        if _on_gpu(given) or _kernels(given):
            out.put(self.forward(given))
        else:
            _in_pieces(lambda x, to: _normalised(_wide(x), to)[0], given, out)


class Gate(Module):
    """`y = (x[:C] + bias[:C]) * (x[C:] + bias[C:])` of 2C channels. The first half's biases start at 0, the other's at 1: y as x[:C]."""

    weights = ("bias",)

    def __init__(self, out_channels: int) -> None:
        self.out_channels = out_channels
        self.bias = _open(out_channels)
        self.dbias: Tensor | None = None

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:  # (N, H, W, 2C) -> (N, H, W, C)
        x = _checked(x, 2 * self.out_channels)
        if tape is not None:
            tape.append(x)
            self.dbias = None
        if gpu := _on_gpu(x):
            y: Tensor = gpu.gate(x, self.bias)
            return y
        if own := _kernels(x):
            return own.gate(x, None, self.bias)[0]
        return self._gated(x).to(x.dtype)

    def _gated(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return _product(_wide(x) + self.bias, out)

    def by_rows(self, width: int, dtype: torch.dtype, device: torch.device) -> ByRows:
        """`forward` for pictures of that width that come by rows."""
        own = _kernels(torch.empty(0, dtype=dtype, device=device))
        return own.gate_plan(None, self.bias, width) if own else lambda x, ends, out, addends: _in_pieces(self._gated, x.rows(), out)

    def backward(self, dy: Tensor, tape: Tape) -> Tensor:
        # y = a b: da = dy b, db = dy a; a bias adds to every pixel
        x: Tensor = tape.pop()
        dx: Tensor
        if gpu := _on_gpu(x):
            dx, dbias = gpu.gate_backward(x, dy, self.bias)
        else:
            dx, (dbias,) = _derived(x, lambda n: self._derived(x[n], dy[n]))
        self.dbias = dbias.div_(self.loss_scale)
        self.announce()
        return dx

    def _derived(self, x: Tensor, dy: Tensor) -> tuple[Tensor, list[Tensor]]:
        if own := _kernels(x):
            dx, _, dbias = own.gate_backward(dy, x, self.bias)
            return dx, [dbias]
        wide = _swapped(_wide(x) + self.bias) * torch.cat((_wide(dy),) * 2, 3)
        return wide.to(x.dtype), [wide.sum((0, 1, 2))]


class DepthwiseGate(Module):
    """A 3x3 convolution of each of 2C channels by itself, zero outside the picture, then a gate of its two halves:

        d[i, j, c] = bias[c] + sum over a, b of x[i + a - 1, j + b - 1, c] * weight[a, b, c];    y = d[:C] * d[C:]

    Weights start uniform in ±1/3, biases as a gate's.
    """

    weights = ("weight", "bias")

    def __init__(self, out_channels: int, generator: torch.Generator | None = None) -> None:
        self.out_channels = out_channels
        self.weight = uniform(3, 3, 2 * out_channels, bound=1 / 3, generator=generator)
        self.bias = _open(out_channels)
        self.dweight: Tensor | None = None
        self.dbias: Tensor | None = None

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:  # (N, H, W, 2C) -> (N, H, W, C)
        x = _checked(x, 2 * self.out_channels)
        if tape is not None:
            self.dweight = self.dbias = None
        y: Tensor
        if gpu := _on_gpu(x):
            y, filtered = gpu.depthwise_gate(x, self.weight, self.bias, tape is not None)
        elif own := _kernels(x):
            y, filtered = own.gate(x, self.weight, self.bias, tape is not None)
        else:
            wide = self._filtered(pad(x, (EDGE,) * 4))
            y, filtered = _product(wide).to(x.dtype), wide.to(x.dtype)
        if tape is not None:
            tape.append((x, filtered))
        return y

    def by_rows(self, width: int, dtype: torch.dtype, device: torch.device) -> ByRows:
        """`forward` for pictures of that width that come by rows, in a border of EDGE."""
        own = _kernels(torch.empty(0, dtype=dtype, device=device))
        if own is not None:
            return own.gate_plan(self.weight, self.bias, width)

        def rows(x: Ring, ends: Pair, out: Ring, addends: Sequence[Ring]) -> None:
            given = x.rows()
            if _on_gpu(given):  # whose kernels know no border but the picture's
                out.put(self.forward(pad(given, (*ends, 0, 0)))[:, EDGE:-EDGE])
            else:
                _in_pieces(lambda x, to: _product(self._filtered(pad(x, (0, 0, EDGE, EDGE))), to), given, out, ends, EDGE)

        return rows

    def backward(self, dy: Tensor, tape: Tape) -> Tensor:
        # with dd = [dy d[C:], dy d[:C]]: dx is dd filtered by the kernels turned around, dweight[a, b] = sum of x shifted times dd
        x, filtered = tape.pop()
        dx: Tensor
        if gpu := _on_gpu(x):
            dx, self.dweight, self.dbias = gpu.depthwise_gate_backward(x, filtered, dy, self.weight)
        else:
            dx, (self.dweight, self.dbias) = _derived(x, lambda n: self._derived(x[n], filtered[n], dy[n]))
        self.dweight.div_(self.loss_scale)
        self.dbias.div_(self.loss_scale)
        self.announce()
        return dx

    def _derived(self, x: Tensor, filtered: Tensor, dy: Tensor) -> tuple[Tensor, list[Tensor]]:
        if own := _kernels(x):
            dx, dweight, dbias = own.gate_backward(dy, filtered, None, x, self.weight)
            return dx, [dweight, dbias]
        dd = _swapped(_wide(filtered)) * torch.cat((_wide(dy),) * 2, 3)
        H, W = dd.shape[1:3]
        shifted, around = pad(_wide(x), (EDGE,) * 4), pad(dd, (EDGE,) * 4)
        at = [(a, b) for a in range(3) for b in range(3)]
        dx = torch.zeros_like(dd)
        for a, b in at:
            dx.addcmul_(around[:, 2 - a : 2 - a + H, 2 - b : 2 - b + W], self.weight[a, b])
        taps = [(shifted[:, a : a + H, b : b + W] * dd).sum((0, 1, 2)) for a, b in at]
        return dx.to(x.dtype), [torch.stack(taps).view_as(self.weight), dd.sum((0, 1, 2))]

    def reach(self, step: int = 1) -> tuple[int, int]:
        return EDGE * step, step

    def _filtered(self, x: Tensor) -> Tensor:
        """The depthwise convolution of bordered rows, at least in float32."""
        x = _wide(x)
        H, W = x.shape[1] - 2 * EDGE, x.shape[2] - 2 * EDGE
        y = self.bias + x[:, :H, :W] * self.weight[0, 0]
        for a, b in [(a, b) for a in range(3) for b in range(3)][1:]:
            y.addcmul_(x[:, a : a + H, b : b + W], self.weight[a, b])
        return y


def _on_gpu(x: Tensor) -> Any:
    """`core.kernels.gpu`, if it computes with such a tensor. Fetched only when it may: Triton takes a tenth of a second."""
    if not x.is_cuda and "TRITON_INTERPRET" not in os.environ:
        return None
    from core.kernels import gpu

    return gpu if gpu.takes(x) else None


def normalised(x: Tensor, keep: bool = True) -> tuple[Tensor, Tensor]:
    """`RMSNorm`'s output, and, if to `keep`, by how much each pixel was multiplied, (N, H, W, 1) at least in float32."""
    if gpu := _on_gpu(x):
        pair: tuple[Tensor, Tensor] = gpu.normalised(x, EPSILON)
        return pair
    if own := _kernels(x):
        return own.normalised(x, EPSILON, keep)
    y, scale = _normalised(_wide(x))
    return y.to(x.dtype), scale


def _normalised(x: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    squares = torch.linalg.vector_norm(x, dim=3, keepdim=True).square_()
    scale = squares.div_(x.shape[3]).add_(EPSILON).rsqrt_()
    return torch.mul(x, scale, out=out), scale


def _in_pieces(compute: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, out: Ring, ends: Pair = (0, 0), edge: int = 0) -> None:
    """`compute` of (1, H, W, C) into `out`, by rows of which the last cache holds all that is made of them on the way.

    compute: of some rows, into the place that it is given, if it is. edge: so many rows it sees above and below those that come out; of
    them, `ends` are missing in `x`, and zero.
    """
    rows = max(1, PIECE // (x[:, 0].numel() * 4)) if x.device.type == "cpu" else out.height
    for start in range(0, out.height, rows):
        place = out.cut(start, min(out.height, start + rows))
        first, stop = start - ends[0], start + place.height + 2 * edge - ends[0]
        seen = pad(x[:, max(0, first) : stop], (max(0, -first), max(0, stop - x.shape[1]), 0, 0)) if edge else x[:, first:stop]
        room = place.whole()
        if room is not None and room.dtype == torch.promote_types(x.dtype, torch.float32):
            compute(seen, room)
        else:
            place.put(compute(seen, None))


def _derived(x: Tensor, compute: Callable[[slice], tuple[Tensor, list[Tensor]]]) -> tuple[Tensor, list[Tensor]]:
    """`dx`, and what is summed over a batch's pictures: in float32 as two halves', whoever computes which (see `sums`)."""
    if x.dtype != torch.float32:
        return compute(slice(None))
    dxs, shapes = list[Tensor](), list[torch.Size]()

    def part(n: slice) -> Tensor:
        dx, sums = compute(n)
        dxs.append(dx)
        shapes[:] = [each.shape for each in sums]
        return torch.cat([each.flatten() for each in sums])

    sums = torch.split(by_halves(part, 0, len(x), leaf()), [shape.numel() for shape in shapes])
    return dxs[0] if len(dxs) == 1 else torch.cat(dxs), [each.view(shape) for each, shape in zip(sums, shapes, strict=True)]


def _kernels(x: Tensor) -> kernels.Kernels | None:
    own = kernels.take(x.dtype, x.device)
    return own if own is not None and x.dtype in (torch.float32, own.narrow) else None


def _open(channels: int) -> Tensor:
    return torch.cat((torch.zeros(channels), torch.ones(channels)))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _product(x: Tensor, out: Tensor | None = None) -> Tensor:
    first, second = x.chunk(2, 3)
    return torch.mul(first, second, out=out)


def _swapped(x: Tensor) -> Tensor:
    first, second = x.chunk(2, 3)
    return torch.cat((second, first), 3)


def _checked(x: Tensor, channels: int) -> Tensor:
    if x.dim() != 4 or x.shape[3] != channels:
        raise ValueError(f"x has shape {tuple(x.shape)}: this layer takes (N, H, W, {channels}), channels last")
    return x.contiguous()
