"""The contract that every layer keeps, and the containers' base. Knows nothing of convolutions, losses or data.

Shape letters used all through `core.nn`:

    N  pictures in a batch      H, W  rows and columns of the grid      C, F  channels in and out
    K  side of a kernel         S     stride, or scale of a resampling  P     padding on one side

Activations are `(N, H, W, C)`, kernels `(K, K, C, F)`: one pixel's channels lie side by side, so that a window's row is one run of
memory and a convolution is a matrix product on shifted views. A derivative is named `d` and the value's name: `dy` is the loss's
derivative by `y`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

Tape = list[Any]
"""What `forward` leaves for `backward`: each layer appends in forward order and pops in backward order. Inference passes none."""

_TO_BE_LOADED = ContextVar("to_be_loaded", default=False)


@contextmanager
def to_be_loaded() -> Iterator[None]:
    """Modules that the calling thread makes inside have memory for their weights and whatever is in it: random numbers, which others
    replace at once, take longer than those to load."""
    token = _TO_BE_LOADED.set(True)
    try:
        yield
    finally:
        _TO_BE_LOADED.reset(token)


def uniform(*shape: int, bound: float, generator: torch.Generator | None) -> Tensor:
    """New weights, uniform in ±bound."""
    weights = torch.empty(*shape)
    return weights if _TO_BE_LOADED.get() else weights.uniform_(-bound, bound, generator=generator)


class Parameter(NamedTuple):
    """A weight or bias with the derivative that the last `backward` left (None before the first)."""

    name: str
    value: Tensor
    derivative: Tensor | None


Rule = Callable[[Sequence[Parameter]], None]
"""An update rule: changes the values in place by their derivatives. See `core.nn.optim`."""


class Module:
    """A layer: `forward`, its derivative `backward`, and `train`, `param` and `load` for what it learns."""

    weights: tuple[str, ...] = ()
    """Names of the attributes that are learned; the derivative of `weight` is kept as `dweight`."""
    _told: Callable[[Module], None] | None = None
    loss_scale: float | Tensor = 1.0

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """`y = f(x)`. With a tape it leaves there what `backward` needs; without one it keeps nothing."""
        raise NotImplementedError

    def backward(self, dy: Tensor, tape: Tape) -> Tensor:
        """`dy` -> `dx`, the loss's derivative by the output to that by the input; keeps those by the weights for `param`."""
        raise NotImplementedError

    def derive(self, dy: Tensor, tape: Tape) -> None:
        """As `backward`, without the derivative by the input: for a whole network, whose input nobody trains."""
        self.backward(dy, tape)

    def forward_then(self, x: Tensor, tape: Tape | None, addends: Sequence[Tensor] = (), relu: bool = False) -> Tensor:
        """`y = f(x) + addends`, then `max(y, 0)`. A layer that can do both before it stores its output does."""
        return finished(self.forward(x, tape), addends, relu)

    def backward_then(self, dy: Tensor, tape: Tape, addends: Sequence[Tensor] = ()) -> Tensor:
        """`backward`, then `dx + addends`."""
        return finished(self.backward(dy, tape), addends)

    def __call__(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        return self.forward(x, tape)

    def modules(self) -> Iterator[tuple[str, Module]]:
        """The layers directly inside this one, by name."""
        return iter(())

    def param(self) -> list[Parameter]:
        """Every weight and bias with its derivative, own ones first, names as `0.weight`. Computes nothing, changes nothing."""
        own = [Parameter(name, getattr(self, name), getattr(self, "d" + name, None)) for name in self.weights]
        return own + [p._replace(name=f"{name}.{p.name}") for name, inner in self.modules() for p in inner.param()]

    def watch(self, told: Callable[[Module], None] | None) -> None:
        """From now on `told` gets every layer that learns as soon as `backward` has its derivatives; None ends that."""
        self._told = told
        for _, inner in self.modules():
            inner.watch(told)

    def announce(self) -> None:
        """A layer that learns says so when its derivatives are there, in the midst of `backward`."""
        if self._told is not None:
            self._told(self)

    def train(self, rule: Rule) -> None:
        """Updates the module's own weights and biases by `rule` and the derivatives of the last `backward`."""
        rule(self.param())

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Takes weights by name, as `param` names them; they are copied into the module's own dtype and device.

        Raises ValueError, before anything is changed, when a name is missing or unknown or a shape differs.
        """
        own = {p.name: p.value for p in self.param()}
        if missing := sorted(own.keys() - values.keys()):
            raise ValueError(f"weights {missing} are missing: this network needs {len(own)} tensors and was given {len(values)}")
        if unknown := sorted(values.keys() - own.keys()):
            raise ValueError(f"weights {unknown} are unknown to this network: load them into the architecture they were saved from")
        for name, value in own.items():
            if value.shape != values[name].shape:
                raise ValueError(f"`{name}` has shape {tuple(values[name].shape)}, this network needs {tuple(value.shape)}")
        for name, value in own.items():
            value.copy_(values[name])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Module:
        """Moves the weights to a device or dtype, in place, forgets derivatives, and returns the module."""
        for name in self.weights:
            setattr(self, name, getattr(self, name).to(device=device, dtype=dtype))
            setattr(self, "d" + name, None)
        for _, inner in self.modules():
            inner.to(device, dtype)
        return self

    def multiply_in(self, factors: torch.dtype | None, activations: torch.dtype | None = None) -> Module:
        """Sets the dtype to which convolutions round what they multiply, whatever their activations have; None is the activations' own.

        activations: what an exact convolution, which multiplies in float32, hands on to the next layer; None is its input's dtype.
        In place; returns the module. Sums are kept in float32 at least.
        """
        for _, inner in self.modules():
            inner.multiply_in(factors, activations)
        return self

    def scale_loss(self, scale: float | Tensor) -> None:
        """From now on the derivatives that `backward` is given, and gives, are those of `scale` times the loss; by weights, of the loss.

        On an accelerator a tensor of one number, which then nobody need wait for.
        """
        self.loss_scale = scale
        for _, inner in self.modules():
            inner.scale_loss(scale)

    def lean(self) -> Module:
        """The same function, for inference, without what adds nothing; its weights may be new tensors, and have other names."""
        return self

    def reach(self, step: int = 1) -> tuple[int, int]:
        """How far, in pixels of the network's input, an output pixel may look, and the output grid's step in such pixels.

        `step` is the input grid's. Tiles that overlap by the whole network's reach give the untiled result. Both are whole numbers, so
        for a grid finer than the network's input, and where the two directions differ, they are upper bounds.
        """
        return 0, step


def finished(y: Tensor, addends: Sequence[Tensor] = (), relu: bool = False) -> Tensor:
    """`y + addends`, then `max(y, 0)`."""
    for addend in addends:
        if y.shape != addend.shape:
            raise ValueError(f"f(x) has shape {tuple(y.shape)} and x {tuple(addend.shape)}: the layers of a Residual must keep the shape")
        y = y + addend
    return y.relu() if relu else y
