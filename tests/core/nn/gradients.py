"""A gradient check: backward's derivatives beside central differences, in float64. Knows no layer and trusts no other gradient."""

from collections.abc import Callable

import torch
from torch import Tensor

from core.nn import Module, ReLU, Tape

STEP = 1e-5


def check_derivative(name: str, value: Tensor, derivative: Tensor | None, loss: Callable[[], Tensor], generator: torch.Generator) -> None:
    """Moves `value` alone, in place, along two random directions: each meets every element, so one wrong element shows."""
    assert derivative is not None, f"`{name}` has no derivative"
    assert derivative.shape == value.shape, f"`{name}` has shape {tuple(value.shape)}, its derivative {tuple(derivative.shape)}"
    kept = value.clone()
    for _ in range(2):
        direction = torch.rand(value.shape, generator=generator, dtype=value.dtype) * 2 - 1
        above, below = (float((value.copy_(kept + step * direction), loss())[1]) for step in (STEP, -STEP))
        value.copy_(kept)
        told, found = float((derivative * direction).sum()), (above - below) / (2 * STEP)
        bound = 1e-7 * (1 + float((derivative * direction).abs().sum()))
        assert abs(told - found) < bound, f"`{name}`: backward says {told:.12g}, finite differences say {found:.12g}"


def check_gradients(module: Module, x: Tensor, generator: torch.Generator) -> None:
    """Every derivative of `module` at `x`, one argument at a time; the loss is a random weighting of all outputs."""
    tape: Tape = []
    dy = torch.randn(module.forward(x, tape).shape, generator=generator, dtype=x.dtype)
    dx = module.backward(dy, tape)
    assert tape == [], "backward must take from the tape all that forward left"
    for name, value, derivative in (("x", x, dx), *module.param()):
        check_derivative(name, value, derivative, lambda: (module.forward(x) * dy).sum(), generator)


class FarReLU(ReLU):
    """A ReLU that says so when a finite difference steps over its kink, where no derivative holds."""

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        if tape is not None:
            self.sides = x > 0
        assert torch.equal(x > 0, self.sides), "a step crossed ReLU's kink: take another seed"
        return super().forward(x, tape)
