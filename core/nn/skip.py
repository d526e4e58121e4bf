"""Connections that carry a layer's input past it. Knows nothing of what it goes past."""

from __future__ import annotations

import torch
from torch import Tensor

from core.nn.module import Module, Sequential, Tape


class Residual(Sequential):
    """`y = x + f(x)`, `f` being the layers inside: a residual block (He et al. 2016), or a U-Net's level with an additive skip."""

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        y = super().forward(x, tape)
        if y.shape != x.shape:
            raise ValueError(f"f(x) has shape {tuple(y.shape)} and x {tuple(x.shape)}: the layers of a Residual must keep the shape")
        return x + y

    def backward(self, dy: Tensor, tape: Tape) -> Tensor:
        # y = x + f(x)
        return super().backward(dy, tape) + dy

    def reach(self, step: int = 1) -> tuple[int, int]:
        return super().reach(step)[0], step


class Concat(Sequential):
    """`y = [x, f(x)]` side by side along the channels: a U-Net's level with a concatenating skip (Ronneberger et al. 2015)."""

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:  # (N, H, W, C) -> (N, H, W, C + F)
        y = torch.cat((x, super().forward(x, tape)), 3)
        if tape is not None:
            tape.append(x.shape[3])
        return y

    def backward(self, dy: Tensor, tape: Tape) -> Tensor:
        # y = [x, f(x)]
        C = tape.pop()
        return super().backward(dy[..., C:], tape) + dy[..., :C]

    derive = Module.derive  # only `backward` knows that the layers get a part of dy

    def reach(self, step: int = 1) -> tuple[int, int]:
        return super().reach(step)[0], step
