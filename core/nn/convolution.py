"""One convolution, by the fastest way there is: the kernels in C on a processor that runs them, matrix products everywhere else.

Of products there are two kinds: plain ones (`products`), which training takes and float64, and at inference F(4x4, 3x3) (`winograd`) for
3x3 kernels. The seam between the layers and the hardware. Knows nothing of layers or tapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from core import kernels
from core.kernels import Ring
from core.nn import products, team, winograd
from core.nn.activation import masked
from core.nn.module import finished
from core.nn.products import NO_BORDER, Border, Pair
from core.nn.sums import by_halves, leaf

Prepared = TypeVar("Prepared")


class Packs:
    """A layer's weights as one way of computing reads them, made anew when the weights have changed."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[tuple[int, int], Any]] = {}

    def get(self, way: str, weight: Tensor, prepare: Callable[[], Prepared]) -> Prepared:
        state = weight.data_ptr(), weight._version
        kept = self.kept.get(way)
        if kept is None or kept[0] != state:
            kept = self.kept[way] = state, prepare()  # two threads at once would make the same
        made: Prepared = kept[1]
        return made


def convolve(
    x: Tensor | Ring,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    border: Border,
    *,
    factors: torch.dtype | None = None,
    careful: bool = False,
    yields: torch.dtype | None = None,
    scale: Pair = (1, 1),
    crop: Border = NO_BORDER,
    addends: Sequence[Tensor | Ring] = (),
    relu: bool = False,
    mask: Tensor | None = None,
    normal: float = 0.0,
    packs: Packs | None = None,
    out: Ring | None = None,
) -> Tensor:
    """`products.convolve`, then depth-to-space by `scale` and a crop, `+` up to ADDENDS addends, ReLU, and 0 where `mask` is not above 0.

    factors, yields: the dtype in which numbers are multiplied, and that of the result, each None for that of `x`. careful: kernels multiply
    in float32 in place of bfloat16, which takes twice as long; products, which would take four times as long, as they are told.
    normal: above 0, each pixel is first divided by the root of its channels' mean square and this; a 1x1 kernel, and only `by_kernels`.
    packs: where the layer keeps its weights prepared, or None to prepare them for this call alone. out: where the result is written, else
    it is returned.
    """
    factors = factors or x.dtype
    kernel = _kernel(x.dtype, x.data.device, _finer(factors) if careful else factors) if scale[0] == scale[1] else None
    if kernel is not None:
        return kernel.convolve(
            x,
            _packed(kernel, weight, stride, packs or Packs()),
            _shape(weight),
            stride,
            border,
            winograd=_winograd(weight, stride),
            bias=bias,
            scale=scale[0],
            crop=crop,
            addends=addends,
            relu=relu,
            mask=mask,
            yields=yields,
            normal=normal,
            out=out,
        )
    if packs is not None and mask is None and not any(crop) and factors in (torch.float32, torch.bfloat16):
        return _by_strips(
            _ring(x),
            weight,
            bias,
            stride,
            border,
            factors=factors,
            yields=yields or x.dtype,
            scale=scale,
            addends=[*map(_ring, addends)],
            relu=relu,
            packs=packs,
            out=out,
        )
    x = x.rows() if isinstance(x, Ring) else x
    y = products.convolve(x, weight.to(factors), None if bias is None else bias.to(factors), stride, border)
    if scale != (1, 1):
        y = products.depth_to_space(y, scale)
    if any(crop):
        y = products.pad(y, _negative(crop))
    y = finished(y, [t.rows() if isinstance(t, Ring) else t for t in addends], relu)
    if mask is not None:
        y = masked(y, mask)
    y = y.to(yields or x.dtype)
    if out is not None:
        out.put(y)
    return y


ByRows = Callable[[Ring, Pair, Ring, Sequence[Ring]], object]
"""Rows of `x`, how many of the border are above and below them, where the result goes, and what is added to it."""


def by_rows(
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    sides: Pair,
    *,
    factors: torch.dtype | None,
    careful: bool,
    yields: torch.dtype | None,
    scale: int,
    relu: bool,
    packs: Packs,
    normal: float = 0.0,
) -> ByRows:
    """`convolve` for pictures of that width, dtype and device that come by rows, in a border of `sides`; the weights are those of now.

    normal: as of `convolve`.
    """
    factors = factors or dtype
    kernel = _kernel(dtype, device, _finer(factors) if careful else factors)
    if kernel is not None:
        packed, fast = _packed(kernel, weight, stride, packs), _winograd(weight, stride)
        return kernel.plan(packed, _shape(weight), width, stride, sides, winograd=fast, bias=bias, scale=scale, relu=relu, normal=normal)

    def rows(x: Ring, ends: Pair, out: Ring, addends: Sequence[Ring]) -> None:
        convolve(
            x,
            weight,
            bias,
            stride,
            (*ends, *sides),
            factors=factors,
            yields=yields,
            scale=(scale, scale),
            addends=addends,
            relu=relu,
            packs=packs,
            out=out,
        )

    return rows


def gated_by_rows(
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    weight: Tensor,
    gate: Tensor,
    *,
    factors: torch.dtype | None,
    packs: Packs,
    normal: float,
    then: tuple[Tensor, Packs] | None = None,
) -> ByRows | None:
    """`by_rows` of a 1x1 convolution and of the gate behind it, whose bias is `gate`, at one store, and of another 1x1 convolution behind
    that, if its weight is given; or None, where no kernel does that.
    """
    kernel, shape = _kernel(dtype, device, factors or dtype), _shape(weight)
    outputs = 0 if then is None else then[0].shape[3]
    if kernel is None or not kernel.gates(shape, width, dtype, outputs):
        return None
    packed = packs.get(f"{kernel.name} gated", weight, lambda: kernel.pack_gated(weight))
    behind = None if then is None else (_packed(kernel, then[0], (1, 1), then[1]), outputs)
    return kernel.gated_plan(packed, shape, width, gate, normal, behind)


def _by_strips(
    x: Ring,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    border: Border,
    *,
    factors: torch.dtype,
    yields: torch.dtype,
    scale: Pair,
    addends: Sequence[Ring],
    relu: bool,
    packs: Packs,
    out: Ring | None,
) -> Tensor:
    """`convolve` by products, for inference: a strip of the output is finished before the next, and while it is in the cache."""
    (N, H, W, C), (A, B, _, F), (top, bottom, left, right) = x.shape, weight.shape, border
    Ho, Wo = (H + top + bottom - A) // stride[0] + 1, (W + left + right - B) // stride[1] + 1
    size = N, Ho * scale[0], Wo * scale[1], F // (scale[0] * scale[1])
    to = out or Ring(torch.empty(size, dtype=yields, device=weight.device), 0, size[1])
    if (A, B) == stride == scale == (1, 1) and not any(border):  # a product as it is: torch divides it among threads better than strips do
        rounded = packs.get(f"rounded, {factors}", weight, lambda: weight.to(factors))
        _multiply(x.rows().reshape(-1, C).to(factors), rounded.view(C, F), bias, addends, relu, to)
        return to.data
    rows, way = _way(weight, bias, stride, (Ho, N * Wo), factors, packs)

    def strip(start: int) -> None:
        stop = min(Ho, start + rows)
        above, below = start * stride[0] - top, (stop - 1) * stride[0] - top + A  # the rows that the windows reach, past the picture's too
        seen = x.cut(max(0, above), max(0, min(H, below))).rows()
        y = way(seen, (max(0, -above), max(0, below - H), left, right))
        if scale != (1, 1):
            S, T, C = *scale, F // (scale[0] * scale[1])
            y = _cropped(y, stop - start, Wo).view(N, stop - start, Wo, S, T, C).transpose(2, 3)
        start, stop = start * scale[0], stop * scale[0]
        _finish(y, [t.cut(start, stop) for t in addends], relu, to.cut(start, stop))

    team.each(strip, range(0, Ho, rows), weight.device)
    return to.data


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, addends: Sequence[Ring], relu: bool, out: Ring) -> None:
    """`x` (N * H * W, C) times `weight` (C, F), plus all there is to add, into `out`: summed up where it lies, if it can be."""
    room = out.whole()
    in_place = room is not None and room.dtype == x.dtype and room.is_contiguous()
    y = room.view(-1, weight.shape[1]) if room is not None and in_place else x.new_empty(len(x), weight.shape[1])
    added = [t.rows().reshape(y.shape) for t in addends]
    if added and added[0].dtype == y.dtype:
        torch.addmm(added.pop(0), x, weight, out=y)
    else:
        torch.mm(x, weight, out=y)
    for addend in added if bias is None else [*added, bias]:
        y += addend
    if relu:
        y.relu_()
    if not in_place:
        out.put(y.view(out.shape).to(out.dtype))


def _way(
    weight: Tensor, bias: Tensor | None, stride: Pair, size: Pair, factors: torch.dtype, packs: Packs
) -> tuple[int, Callable[[Tensor, Border], Tensor]]:
    """How many of the output's rows to compute at once, and the way: rows of `x` and their border in, (N, I, S, J, T, F) out."""
    bias = None if bias is None else bias.to(factors)
    if weight.shape[:2] == (3, 3) and stride == (1, 1) and min(weight.shape[2:]) >= winograd.FEWEST:
        points = packs.get(f"points, {factors}", weight, lambda: winograd.prepare(weight, factors))

        def by_tiles(x: Tensor, border: Border) -> Tensor:
            y = winograd.convolve(x, points, border)
            return y if bias is None else y.add_(bias)

        return winograd.rows(points, size), by_tiles
    rounded = packs.get(f"rounded, {factors}", weight, lambda: weight.to(factors))
    return (
        products.rows(rounded, size),
        lambda x, border: products.convolve(x, rounded, bias, stride, border)[:, :, None, :, None],
    )


def _finish(y: Tensor, addends: Sequence[Ring], relu: bool, out: Ring) -> None:
    """Writes `y` (N, I, S, J, T, F), of row i*S + s and column j*T + t what `out` has, `+` addends, then ReLU."""
    N, down, S, across, T, F = y.shape
    room = out.whole()
    to = torch.empty(out.shape, dtype=out.dtype, device=y.device) if room is None else room
    if out.shape[1:3] == (down * S, across * T):
        parts = to.view(N, down, S, across, T, F)
    else:
        y, parts = _cropped(y, *out.shape[1:3]), to
    at_once = relu and not addends and y.dtype == to.dtype
    if at_once:
        torch.clamp_min(y, 0, out=parts)
    else:
        parts.copy_(y)
    for addend in addends:
        to += addend.rows()
    if relu and not at_once:
        to.relu_()
    if room is None:
        out.put(to)


def _cropped(y: Tensor, rows: int, columns: int) -> Tensor:
    """(N, I, S, J, T, F) -> (N, rows, columns, F)."""
    N, down, S, across, T, F = y.shape
    return y.reshape(N, down * S, across * T, F)[:, :rows, :columns]


def weight_gradient(
    x: Tensor,
    dy: Tensor,
    kernel: Pair,
    stride: Pair,
    border: Border,
    *,
    factors: torch.dtype | None = None,
    scale: int = 1,
    unit: float | Tensor = 1.0,
) -> Tensor:
    """`products.weight_gradient`, multiplied in `factors` (None: in the dtype of `x`), times `unit`; in float32, the pictures are summed by
    halves.

    scale: of the depth-to-space behind the convolution, whose output's derivative `dy` is.
    """
    factors = factors or x.dtype
    own = _kernel(x.dtype, x.device, factors)
    in_place = own is not None and stride == kernel and not any(border) and own.aligned(x, dy, kernel, scale)
    if scale > 1 and not in_place:
        dy = products.space_to_depth(dy, (scale, scale))

    def of(x: Tensor, dy: Tensor) -> Tensor:
        if own is not None and in_place:
            return own.windows_gradient(x, dy, kernel, scale, float(unit))
        if own is not None and kernel == (3, 3) and stride == (1, 1) and min(x.shape[3], dy.shape[3]) >= FEWEST:
            return own.weight_gradient(x, dy, border, float(unit))
        # Where kernels have no fast bfloat16, its products would be slower still; in float16 they would sum in it.
        exactly = own is not None and own.factors != torch.bfloat16
        return products.weight_gradient(x, dy, kernel, stride, border, torch.float32 if exactly else factors) * unit

    return by_halves(lambda n: of(x[n], dy[n]), 0, len(x), leaf()) if factors == torch.float32 else of(x, dy)


def bias_gradient(dy: Tensor, dtype: torch.dtype, unit: float | Tensor = 1.0) -> Tensor:
    """`dbias[f] = unit * sum over n, i, j of dy[n, i, j, f]`: a row's in float32 at least, theirs in float64, so in nearly no order at
    all.
    """
    own = _kernel(dy.dtype, dy.device, dy.dtype)
    # float64 from the start would first write down each number as one
    rows = dy.sum(2, dtype=torch.promote_types(dy.dtype, torch.float32)) if own is None else own.row_sums(dy)
    return by_halves(lambda n: rows[n].sum((0, 1), dtype=torch.float64).mul_(unit).to(dtype), 0, len(dy), leaf())


def data_gradient(
    dy: Tensor,
    weight: Tensor,
    stride: Pair,
    border: Border,
    size: Pair,
    *,
    factors: torch.dtype | None = None,
    scale: int = 1,
    addends: Sequence[Tensor] = (),
    mask: Tensor | None = None,
) -> Tensor:
    """The derivative of `convolve` by `x`, (N, *size, C), `+` up to ADDENDS addends, and zero where `mask` is not above zero.

    scale: as of `weight_gradient`.
    """
    if scale > 1 and weight.shape[:2] == stride == (1, 1) and not any(border):
        # y[n, i*S + r, j*S + s, f] = sum over c of x[n, i, j, c] * weight[c, (r, s, f)]: every pixel of x had a block of y to itself
        blocks = weight.reshape(weight.shape[2], scale, scale, -1).permute(1, 2, 3, 0)
        return convolve(dy, blocks, None, (scale, scale), NO_BORDER, factors=factors, addends=addends, mask=mask)
    if scale > 1:
        dy = products.space_to_depth(dy, (scale, scale))
    own = _kernel(dy.dtype, dy.device, factors or dy.dtype)
    around, crop = products.transposed_border((weight.shape[0], weight.shape[1]), stride, border, size, (dy.shape[1], dy.shape[2]))
    if own is not None and _winograd(weight, stride):
        packed = own.pack(weight, True, turned=True)
        A, B, C, F = weight.shape
        return own.convolve(dy, packed, (A, B, F, C), stride, around, winograd=True, crop=crop, addends=addends, mask=mask)
    turned = products.transposed(weight, stride)
    return convolve(dy, turned, None, (1, 1), around, factors=factors, scale=stride, crop=crop, addends=addends, mask=mask)


ADDENDS = 2
"""So many a convolution adds before its one store."""
VECTOR = 16
"""Channels that most kernels compute at a time."""
FEWEST = 12
"""Channels in and out from which F(4x4, 3x3) is the faster way."""


def by_kernels(dtype: torch.dtype, device: torch.device, factors: torch.dtype | None) -> bool:
    """Whether kernels in C compute convolutions of such activations."""
    return _kernel(dtype, device, factors or dtype) is not None


def _kernel(dtype: torch.dtype, device: torch.device, factors: torch.dtype) -> kernels.Kernels | None:
    own = kernels.take(factors, device)
    return own if own is not None and dtype in (torch.float32, own.narrow) else None


def _packed(kernel: kernels.Kernels, weight: Tensor, stride: Pair, packs: Packs) -> Tensor:
    return packs.get(kernel.name, weight, lambda: kernel.pack(weight, _winograd(weight, stride)))


def _finer(factors: torch.dtype) -> torch.dtype:
    return torch.float32 if factors == torch.bfloat16 else factors


def _winograd(weight: Tensor, stride: Pair) -> bool:
    return weight.shape[:2] == (3, 3) and stride == (1, 1) and min(weight.shape[2:]) >= FEWEST


def _shape(weight: Tensor) -> tuple[int, int, int, int]:
    A, B, C, F = weight.shape
    return A, B, C, F


def _ring(x: Tensor | Ring) -> Ring:
    return x if isinstance(x, Ring) else Ring(x, 0, x.shape[1])


def _negative(border: Border) -> Border:
    top, bottom, left, right = border
    return -top, -bottom, -left, -right
