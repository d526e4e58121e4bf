"""Point-by-point nonlinearities. Each leaves its output on the tape: its derivative can be told from that alone."""

from __future__ import annotations

import torch
from torch import Tensor

from core.nn.module import Module, Tape


class ReLU(Module):
    """`y = max(x, 0)`; the derivative at the kink is 0. NaN stays NaN."""

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        y = x.relu()
        if tape is not None:
            tape.append(y)
        return y

    def backward(self, dy: Tensor, tape: Tape) -> Tensor:
        # y = max(x, 0): dy passes where the output rose above 0
        y: Tensor = tape.pop()
        return masked(dy, y)


class Sigmoid(Module):
    """`y = 1 / (1 + exp(-x))`."""

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        y = x.sigmoid()
        if tape is not None:
            tape.append(y)
        return y

    def backward(self, dy: Tensor, tape: Tape) -> Tensor:
        # dy/dx = y * (1 - y)
        y: Tensor = tape.pop()
        return dy * y * (1 - y)


def masked(dy: Tensor, y: Tensor) -> Tensor:
    """`dy` where `y` is above zero, else 0: the derivative of a ReLU, told from its output."""
    return torch.gt(y, 0, out=torch.empty_like(y)).mul_(dy)  # ones and zeros in y's dtype: a bool mask takes five times as long
