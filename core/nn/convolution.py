"""One convolution, by the fastest way there is: the kernels in C on a processor that runs them, matrix products everywhere else.

The seam between the layers and the hardware. Knows nothing of layers or tapes, and computes nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core import kernels
from core.kernels import Ring
from core.nn import products
from core.nn.activation import masked
from core.nn.module import finished
from core.nn.products import NO_BORDER, Border, Pair


class Packs:
    """A layer's weights as the kernels read them, made anew when the weights have changed."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[tuple[int, int], Tensor]] = {}

    def get(self, kernel: kernels.Kernels, weight: Tensor, winograd: bool) -> Tensor:
        state = weight.data_ptr(), weight._version
        kept = self.kept.get(kernel.name)
        if kept is None or kept[0] != state:
            kept = self.kept[kernel.name] = state, kernel.pack(weight, winograd)  # two threads at once would make the same
        return kept[1]


def convolve(
    x: Tensor | Ring,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    border: Border,
    *,
    factors: torch.dtype | None = None,
    yields: torch.dtype | None = None,
    scale: Pair = (1, 1),
    crop: Border = NO_BORDER,
    addends: Sequence[Tensor | Ring] = (),
    relu: bool = False,
    mask: Tensor | None = None,
    packs: Packs | None = None,
    out: Ring | None = None,
) -> Tensor:
    """`products.convolve`, then depth-to-space by `scale` and a crop, `+` up to two addends, ReLU, and 0 where `mask` is not above 0.

    factors, yields: the dtype in which numbers are multiplied, and that of the result, each None for that of `x`. packs: where the layer
    keeps its weights prepared, or None to prepare them for this call alone. out: where the result is written, else it is returned.
    """
    factors = factors or x.dtype
    kernel = _kernel(x, factors) if scale[0] == scale[1] else None
    if kernel is not None:
        winograd = _winograd(weight, stride)
        packed = (packs or Packs()).get(kernel, weight, winograd)
        return kernel.convolve(
            x,
            packed,
            _shape(weight),
            stride,
            border,
            winograd=winograd,
            bias=bias,
            scale=scale[0],
            crop=crop,
            addends=addends,
            relu=relu,
            mask=mask,
            yields=yields,
            out=out,
        )
    x = x.rows() if isinstance(x, Ring) else x
    y = products.convolve(x, weight.to(factors), None if bias is None else bias.to(factors), stride, border)
    if scale != (1, 1):
        y = products.depth_to_space(y, scale)
    if any(crop):
        y = products.pad(y, _negative(crop))
    for addend in addends:
        y = finished(y, addend.rows() if isinstance(addend, Ring) else addend)
    y = finished(y, None, relu)
    if mask is not None:
        y = masked(y, mask)
    y = y.to(yields or x.dtype)
    if out is not None:
        out.put(y)
    return y


def weight_gradient(x: Tensor, dy: Tensor, kernel: Pair, stride: Pair, border: Border, *, factors: torch.dtype | None = None) -> Tensor:
    """`products.weight_gradient`, multiplied in `factors` (None: in the dtype of `x`)."""
    factors = factors or x.dtype
    own = _kernel(x, factors)
    if own is not None and kernel == (3, 3) and stride == (1, 1) and min(x.shape[3], dy.shape[3]) >= FEWEST:
        return own.weight_gradient(x, dy, border)
    # Where kernels have no fast bfloat16, its products would be slower still.
    return products.weight_gradient(x, dy, kernel, stride, border, own.factors if own else factors)


def data_gradient(
    dy: Tensor,
    weight: Tensor,
    stride: Pair,
    border: Border,
    size: Pair,
    *,
    factors: torch.dtype | None = None,
    addends: Sequence[Tensor] = (),
    mask: Tensor | None = None,
) -> Tensor:
    """The derivative of `convolve` by `x`, (N, *size, C), `+` up to two addends, and zero where `mask` is not above zero."""
    own = _kernel(dy, factors or dy.dtype)
    around, crop = products.transposed_border((weight.shape[0], weight.shape[1]), stride, border, size, (dy.shape[1], dy.shape[2]))
    if own is not None and _winograd(weight, stride):
        packed = own.pack(weight, True, turned=True)
        A, B, C, F = weight.shape
        return own.convolve(dy, packed, (A, B, F, C), stride, around, winograd=True, crop=crop, addends=addends, mask=mask)
    turned = products.transposed(weight, stride)
    return convolve(dy, turned, None, (1, 1), around, factors=factors, scale=stride, crop=crop, addends=addends, mask=mask)


FEWEST = 12
"""Channels in and out from which F(4x4, 3x3) is the faster way."""


def _kernel(x: Tensor | Ring, factors: torch.dtype) -> kernels.Kernels | None:
    return kernels.take(factors, x.data.device) if x.dtype in (torch.float32, torch.bfloat16) else None


def _winograd(weight: Tensor, stride: Pair) -> bool:
    return weight.shape[:2] == (3, 3) and stride == (1, 1) and min(weight.shape[2:]) >= FEWEST


def _shape(weight: Tensor) -> tuple[int, int, int, int]:
    A, B, C, F = weight.shape
    return A, B, C, F


def _negative(border: Border) -> Border:
    top, bottom, left, right = border
    return -top, -bottom, -left, -right
