"""Convolution layers and their three gradients. Knows nothing of how a convolution is computed: that is `convolution`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from core.nn import convolution, products
from core.nn.convolution import Packs
from core.nn.module import Module, Tape, uniform
from core.nn.products import Border, Pair

Size = int | Pair
"""One number for both directions, or (rows, columns)."""


class Convolution(Module):
    """What Conv2d and Upsampling share: weights (K, K, C, F), a bias, and how they are multiplied."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Size,
        stride: Size = 1,
        padding: Size = 0,
        *,
        bias: bool = True,
        gain: float = 1.0,
        exact: bool = False,
        careful: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        self.exact, self.careful = exact, careful
        self.kernel, self.stride, self.padding = _pair("kernel", kernel, 1), _pair("stride", stride, 1), _pair("padding", padding, 0)
        self.in_channels = in_channels
        bound = gain / math.sqrt(self.kernel[0] * self.kernel[1] * in_channels)
        self.weight = uniform(*self.kernel, in_channels, out_channels, bound=bound, generator=generator)
        self.bias = torch.zeros(out_channels) if bias else None
        self.dweight: Tensor | None = None
        self.dbias: Tensor | None = None
        self.weights = ("weight", "bias") if bias else ("weight",)
        self.factors: torch.dtype | None = None
        self.yields: torch.dtype | None = None
        self.packs = Packs()

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:  # (N, H, W, C) -> (N, Ho, Wo, F)
        return self.forward_then(x, tape)

    def backward(self, dy: Tensor, tape: Tape) -> Tensor:  # (N, Ho, Wo, F) -> (N, H, W, C)
        return self.backward_then(dy, tape)

    def backward_then(self, dy: Tensor, tape: Tape, addends: Sequence[Tensor] = (), rectified: bool = False) -> Tensor:
        """`backward`, then `dx + addends`, then 0 where the input was not above 0, if it was `rectified` by the ReLU in front."""
        raise NotImplementedError

    def multiply_in(self, factors: torch.dtype | None, activations: torch.dtype | None = None) -> Module:
        if self.exact:
            self.factors, self.yields = torch.float32 if factors == torch.bfloat16 else factors, activations
        else:
            self.factors = factors
        return self

    def reach(self, step: int = 1) -> tuple[int, int]:
        return max(max(P, K - 1 - P) for K, P in zip(self.kernel, self.padding, strict=True)) * step, max(self.stride) * step

    def _grid(self, x: Tensor) -> Pair:
        """Rows and columns of the picture that the kernel moves over."""
        return x.shape[1], x.shape[2]

    def _check(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[3] != self.in_channels:
            raise ValueError(f"x has shape {tuple(x.shape)}: this layer takes (N, H, W, {self.in_channels}), channels last")
        if not x.is_floating_point():
            raise ValueError(f"x is {x.dtype}: this layer takes floats; divide 8-bit pictures by 255")
        for side, size, K, P in zip(("rows", "columns"), self._grid(x), self.kernel, self.padding, strict=True):
            if size + 2 * P < K:
                raise ValueError(
                    f"x gives {size} {side}, with padding (={P}) fewer than kernel (={K}): give a larger picture or more padding"
                )


class Conv2d(Convolution):
    """`y[n, i, j, f] = bias[f] + sum over a, b, c of x[n, i*S + a - P, j*S + b - P, c] * weight[a, b, c, f]`, zero outside the picture.

    Weights start uniform in ±gain / sqrt(K*K*C) (LeCun et al. 1998), biases at zero. A small gain lets a residual branch start as almost
    nothing. Pass a `generator` for the same weights each time. An `exact` layer does not multiply in bfloat16, whose 8 bits are too few:
    it does so in float32, and only what it hands on is rounded; for a `careful` one kernels do so at inference, where it costs little.
    """

    def forward_then(
        self,
        x: Tensor,
        tape: Tape | None,
        addends: Sequence[Tensor] = (),
        relu: bool = False,
        scale: int = 1,
        normal: float = 0.0,
    ) -> Tensor:
        """`Module.forward_then` of the convolution and a depth-to-space by `scale` behind it; `backward_then` and `derive` likewise.

        normal: above 0, pixels are first normalised (see `convolution.convolve`), at inference alone.
        """
        self._check(x)
        if tape is not None:
            tape.append(x)
            self.dweight = self.dbias = None  # the last step's: they would lie beside all that this one keeps
        return convolution.convolve(
            x,
            self.weight,
            self.bias,
            self.stride,
            self._border(),
            factors=self.factors,
            careful=self.careful and tape is None,
            yields=self.yields,
            scale=(scale, scale),
            addends=addends,
            relu=relu,
            normal=normal,
            packs=self.packs if tape is None else None,  # a step of training changes the weights: kept, they would only take memory
        )

    def backward_then(self, dy: Tensor, tape: Tape, addends: Sequence[Tensor] = (), rectified: bool = False, scale: int = 1) -> Tensor:
        x: Tensor = tape[-1]
        dy, scale = self._apart(dy, scale)
        self.derive(dy, tape, scale)
        return convolution.data_gradient(
            dy,
            self.weight,
            self.stride,
            self._border(),
            (x.shape[1], x.shape[2]),
            factors=self.factors,
            scale=scale,
            addends=addends,
            mask=x if rectified else None,
        )

    def derive(self, dy: Tensor, tape: Tape, scale: int = 1) -> None:
        # y = convolve(x, weight) + bias: the first is linear in x and in weight, the second adds to every pixel
        x: Tensor = tape.pop()
        dy, scale = self._apart(dy, scale)
        unit = 1 / self.loss_scale
        self.dweight = convolution.weight_gradient(
            x, dy, self.kernel, self.stride, self._border(), factors=self.factors, scale=scale, unit=unit
        )
        if self.bias is not None:
            self.dbias = convolution.bias_gradient(dy, self.dweight.dtype, unit)
        self.announce()

    def cut(self, in_channels: list[int] | None = None, out_channels: list[int] | None = None) -> Conv2d:
        """The same layer between those of its channels alone, told by their numbers."""
        weight = self.weight if in_channels is None else self.weight[:, :, in_channels]
        weight = weight if out_channels is None else weight[..., out_channels]
        C, F = weight.shape[2:]
        has_bias = self.bias is not None
        layer = Conv2d(C, F, self.kernel, self.stride, self.padding, bias=has_bias, exact=self.exact, careful=self.careful)
        layer.weight = weight.contiguous()
        if self.bias is not None:
            layer.bias = self.bias if out_channels is None else self.bias[out_channels]
        return layer

    def _apart(self, dy: Tensor, scale: int) -> tuple[Tensor, int]:
        """With phases side by side as channels and a scale of 1, unless a 1x1 kernel's derivatives are found where pixels lie."""
        in_place = scale == 1 or (self.kernel == (1, 1) and self.bias is None)
        return (dy, scale) if in_place else (products.space_to_depth(dy, (scale, scale)), 1)

    def _border(self) -> Border:
        return self.padding[0], self.padding[0], self.padding[1], self.padding[1]


class Upsampling(Convolution):
    """Nearest-neighbour upsampling by `scale`, then a convolution of stride 1, in one step and without the large picture between them.

    Output row `i*S + r` meets through tap `a` the enlarged row `i*S + r + a - P`, a copy of the picture's row `i + (r + a - P) // S`. So
    each of the S*S phases of the output is a small convolution of the picture as it came, whose taps are sums of taps of `weight`:

        small[o, q, c, (r, s, f)] = sum over a, b of rows[o, r, a] * columns[q, s, b] * weight[a, b, c, f]

    with zeros and ones in `rows` and `columns`. Behind an upsampling by 2, a 5x5 kernel becomes four of 3x3 on a quarter of the pixels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Size,
        scale: Size = 2,
        padding: Size = 0,
        *,
        bias: bool = True,
        gain: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, 1, padding, bias=bias, gain=gain, generator=generator)
        self.scale = _pair("scale", scale, 1)
        self.rows, self.columns = (_phases(*side) for side in zip(self.scale, self.kernel, self.padding, strict=True))

    def forward_then(self, x: Tensor, tape: Tape | None, addends: Sequence[Tensor] = (), relu: bool = False) -> Tensor:
        self._check(x)  # (N, H, W, C) -> (N, H*S + 2*P - K + 1, ..., F)
        small = self._small()
        if tape is not None:
            tape.append((x, small))
        bias = None if self.bias is None else self.bias.repeat(self.scale[0] * self.scale[1])
        (S, T), (H, W) = self.scale, self._size(x)
        crop = 0, -H % S, 0, -W % T
        return convolution.convolve(
            x, small, bias, (1, 1), self._border_of(x), factors=self.factors, scale=self.scale, crop=crop, addends=addends, relu=relu
        )

    def backward_then(self, dy: Tensor, tape: Tape, addends: Sequence[Tensor] = (), rectified: bool = False) -> Tensor:
        x, small = tape.pop()
        (S, T), (H, W), border = self.scale, self._size(x), self._border_of(x)
        # y = depth_to_space(convolve(x, small))[:, :H, :W]
        dphases = products.space_to_depth(products.pad(dy, (0, -H % S, 0, -W % T)), self.scale)
        kernel, unit = (len(self.rows), len(self.columns)), 1 / self.loss_scale
        dsmall = convolution.weight_gradient(x, dphases, kernel, (1, 1), border, factors=self.factors, unit=unit)
        # small = sum over a, b of rows * columns * weight
        dsmall = dsmall.reshape(*dsmall.shape[:3], S, T, -1)
        self.dweight = torch.einsum("ora,qsb,oqcrsf->abcf", self.rows.to(dsmall), self.columns.to(dsmall), dsmall)
        if self.bias is not None:
            self.dbias = convolution.bias_gradient(dy, dsmall.dtype, unit)
        self.announce()
        mask = x if rectified else None
        return convolution.data_gradient(
            dphases, small, (1, 1), border, (x.shape[1], x.shape[2]), factors=self.factors, addends=addends, mask=mask
        )

    def reach(self, step: int = 1) -> tuple[int, int]:
        fine = -(-step // min(self.scale))
        return super().reach(fine)[0] + step - step // max(self.scale), fine

    def _small(self) -> Tensor:
        """The kernel of all phases, (O, Q, C, S*S*F), at least in float32."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))  # sums of taps are rounded once
        small = torch.einsum("ora,qsb,abcf->oqcrsf", self.rows.to(weight), self.columns.to(weight), weight)
        return small.flatten(3)

    def _border_of(self, x: Tensor) -> Border:
        """The border with which the small convolution yields just the rows and columns that the output's phases have."""
        sides: list[int] = []
        for S, K, P, size, out in zip(self.scale, self.kernel, self.padding, x.shape[1:3], self._size(x), strict=True):
            first, last = -P // S, (S + K - 2 - P) // S
            sides += [-first, -(-out // S) - size + last]
        return sides[0], sides[1], sides[2], sides[3]

    def _grid(self, x: Tensor) -> Pair:
        return x.shape[1] * self.scale[0], x.shape[2] * self.scale[1]

    def _size(self, x: Tensor) -> Pair:
        """Rows and columns of the output."""
        H, W = (size + 2 * P - K + 1 for size, P, K in zip(self._grid(x), self.padding, self.kernel, strict=True))
        return H, W


def _phases(S: int, K: int, P: int) -> Tensor:
    """(O, S, K) of zeros and ones: does tap `a` of phase `r` fall on row `i + o`, `o` counted from the first that any needs?"""
    offset = (torch.arange(S)[:, None] + torch.arange(K) - P).div(S, rounding_mode="floor")  # (S, K)
    span = torch.arange(int(offset.min()), int(offset.max()) + 1)
    return (offset == span[:, None, None]).float()


def _pair(name: str, size: Size, least: int) -> Pair:
    pair = (size, size) if isinstance(size, int) else (size[0], size[1])
    if min(pair) < least:
        raise ValueError(f"{name} (={size}) must be at least {least}")
    return pair
