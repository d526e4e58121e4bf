"""Layers one after another, and connections that carry their input past them. Knows which neighbours are computed at once, not how."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from core.nn import convolution
from core.nn.activation import ReLU, masked
from core.nn.conv import Conv2d, Convolution
from core.nn.convolution import ADDENDS, VECTOR
from core.nn.gated import EPSILON, RMSNorm
from core.nn.module import Module, Tape, finished
from core.nn.resample import DepthToSpace


class _Link(NamedTuple):
    layer: Module
    scale: int = 1
    """Of a depth-to-space behind the layer, a Conv2d, which is computed with it."""
    relu: bool = False
    """A ReLU stands behind them, and is computed with the layer, a convolution."""

    def forward(self, x: Tensor, tape: Tape | None, addends: Sequence[Tensor] = (), relu: bool = False, normal: float = 0.0) -> Tensor:
        if isinstance(self.layer, Conv2d):
            return self.layer.forward_then(x, tape, addends, relu, self.scale, normal)
        return self.layer.forward_then(x, tape, addends, relu)

    def backward(self, dy: Tensor, tape: Tape, addends: Sequence[Tensor] = (), rectified: bool = False) -> Tensor:
        if isinstance(self.layer, Conv2d):
            return self.layer.backward_then(dy, tape, addends, rectified, self.scale)
        if isinstance(self.layer, Convolution):
            return self.layer.backward_then(dy, tape, addends, rectified)
        return self.layer.backward_then(dy, tape, addends)

    def derive(self, dy: Tensor, tape: Tape) -> None:
        if isinstance(self.layer, Conv2d):
            self.layer.derive(dy, tape, self.scale)
        else:
            self.layer.derive(dy, tape)


def normalises(layer: Module, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a kernel computes that layer of each pixel divided by its root mean square, at inference: a 1x1 convolution of stride 1."""
    if not isinstance(layer, Conv2d) or layer.kernel != (1, 1) or layer.stride != (1, 1) or layer.padding != (0, 0):
        return False
    return convolution.by_kernels(dtype, device, layer.factors)


class Sequential(Module):
    """`y = fn(... f2(f1(x)))`.

    A depth-to-space and a ReLU behind a convolution happen at the convolution's one store; the ReLU's derivative, when the convolution
    behind it stores its own; a normalisation in front of a 1x1 convolution, at inference, while that reads its pixels. The tape and all
    derivatives are those of the layers one by one.
    """

    def __init__(self, *layers: Module) -> None:
        self.layers = layers
        self._links: list[_Link] = []
        for layer in layers:
            last = self._links[-1] if self._links else None
            if last and isinstance(layer, ReLU) and isinstance(last.layer, Convolution) and not last.relu:
                self._links[-1] = last._replace(relu=True)
            elif last and isinstance(layer, DepthToSpace) and isinstance(last.layer, Conv2d) and last.scale == 1 and not last.relu:
                self._links[-1] = last._replace(scale=layer.scale)
            else:
                self._links.append(_Link(layer))
        self._first = next((i for i, link in enumerate(self._links) if link.layer.param()), len(self._links))
        """The first that learns: what is in front of it needs no derivative, if the input needs none."""

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        return self.forward_then(x, tape)

    def forward_then(self, x: Tensor, tape: Tape | None, addends: Sequence[Tensor] = (), relu: bool = False) -> Tensor:
        normal = 0.0  # of a normalisation that the convolution behind it computes
        for i, link in enumerate(self._links):
            if link.relu:
                x = link.forward(x, tape, relu=True, normal=normal)
                if tape is not None:
                    tape.append(x)
            elif i == len(self._links) - 1:
                return link.forward(x, tape, addends, relu, normal)
            elif tape is None and isinstance(link.layer, RMSNorm) and normalises(self._links[i + 1].layer, x.dtype, x.device):
                normal = EPSILON
                continue
            else:
                x = link.forward(x, tape, normal=normal)
            normal = 0.0
        return finished(x, addends, relu)

    def backward(self, dy: Tensor, tape: Tape) -> Tensor:
        return self.backward_then(dy, tape)

    def backward_then(self, dy: Tensor, tape: Tape, addends: Sequence[Tensor] = ()) -> Tensor:
        dy = self._backward_to(0, dy, tape)
        return self._links[0].backward(dy, tape, addends) if self._links else finished(dy, addends)

    def derive(self, dy: Tensor, tape: Tape) -> None:
        dy = self._backward_to(self._first, dy, tape)
        for link in self._links[self._first : self._first + 1]:
            link.derive(dy, tape)
        tape.clear()  # of what is in front

    def _backward_to(self, first: int, dy: Tensor, tape: Tape) -> Tensor:
        """The derivative by what that layer put out before its ReLU."""
        done = False  # the ReLU behind the layer, by the layer behind that
        for i in reversed(range(first, len(self._links))):
            link = self._links[i]
            if link.relu:
                y = tape.pop()
                dy = dy if done else masked(dy, y)
            if i == first:
                break
            done = self._links[i - 1].relu and isinstance(link.layer, Convolution)
            dy = link.backward(dy, tape, rectified=done)
        return dy

    def modules(self) -> Iterator[tuple[str, Module]]:
        return ((str(i), layer) for i, layer in enumerate(self.layers))

    def lean(self) -> Sequential:
        """Without channels of residual blocks whose every weight in the last convolution is zero, and blocks that have no others."""
        kept = [layer for layer in self.layers if not (isinstance(layer, Residual) and layer.used() == [])]
        return type(self)(*(layer.lean() for layer in kept))

    def reach(self, step: int = 1) -> tuple[int, int]:
        total = 0
        for layer in self.layers:
            reach, step = layer.reach(step)
            total += reach
        return total, step


class Residual(Sequential):
    """`y = x + f(x)`, `f` being the layers inside: a residual block (He et al. 2016), or a U-Net's level with an additive skip."""

    def forward_then(self, x: Tensor, tape: Tape | None, addends: Sequence[Tensor] = (), relu: bool = False) -> Tensor:
        if len(addends) < ADDENDS:
            return super().forward_then(x, tape, [x, *addends], relu)
        return finished(super().forward_then(x, tape, [x]), addends, relu)

    def used(self) -> list[int] | None:
        """Of a residual block, the channels between its convolutions that the last one reads; None of anything else."""
        if [type(layer) for layer in self.layers] != [Conv2d, ReLU, Conv2d]:
            return None
        last = self.layers[2]
        assert isinstance(last, Conv2d)
        if last.bias is not None and last.bias.any():
            return [*range(last.in_channels)]
        return [i for i, weights in enumerate(last.weight.transpose(0, 2)) if weights.any()]

    def lean(self) -> Sequential:
        used = self.used()
        if used is None:
            return super().lean()
        first, relu, last = self.layers
        assert isinstance(first, Conv2d)
        assert isinstance(last, Conv2d)
        others = (i for i in range(last.in_channels) if i not in used)
        kept = sorted([*used, *itertools.islice(others, -len(used) % VECTOR)])  # what the kernels compute anyway
        return Residual(first.cut(out_channels=kept), relu, last.cut(in_channels=kept)) if len(kept) < last.in_channels else self

    def backward_then(self, dy: Tensor, tape: Tape, addends: Sequence[Tensor] = ()) -> Tensor:
        # y = x + f(x)
        if len(addends) < ADDENDS:
            return super().backward_then(dy, tape, [dy, *addends])
        return finished(super().backward_then(dy, tape, [dy]), addends)

    def reach(self, step: int = 1) -> tuple[int, int]:
        return super().reach(step)[0], step


class Concat(Sequential):
    """`y = [x, f(x)]` side by side along the channels: a U-Net's level with a concatenating skip (Ronneberger et al. 2015)."""

    def forward_then(self, x: Tensor, tape: Tape | None, addends: Sequence[Tensor] = (), relu: bool = False) -> Tensor:
        y = torch.cat((x, super().forward_then(x, tape)), 3)  # (N, H, W, C) -> (N, H, W, C + F)
        if tape is not None:
            tape.append(x.shape[3])
        return finished(y, addends, relu)

    def backward_then(self, dy: Tensor, tape: Tape, addends: Sequence[Tensor] = ()) -> Tensor:
        # y = [x, f(x)]
        C = tape.pop()
        return finished(super().backward_then(dy[..., C:], tape) + dy[..., :C], addends)

    derive = Module.derive  # only `backward` knows that the layers get a part of dy

    def reach(self, step: int = 1) -> tuple[int, int]:
        return super().reach(step)[0], step
