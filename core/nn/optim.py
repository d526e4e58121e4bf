"""Update rules: parameters and their derivatives in, values changed in place. Knows nothing of networks or losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from core.nn.module import Parameter


def clip(parameters: Sequence[Parameter], longest: float) -> None:
    """Shortens all derivatives together, in place, to a Euclidean norm of at most `longest` (Pascanu et al. 2013).

    One strange batch can give derivatives a hundred times the usual; Adam would remember them for a thousand steps.
    """
    derivatives = [derivative for _, _, derivative in _derived(parameters)]
    norm = torch.stack([derivative.norm() for derivative in derivatives]).norm()
    shorten = (longest / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1)
    for derivative in derivatives:
        derivative.mul_(shorten)


class SGD:
    """Plain gradient descent: `value -= lr * derivative`."""

    def __init__(self, lr: float) -> None:
        self.lr = _positive(lr)

    def __call__(self, parameters: Sequence[Parameter]) -> None:
        for _, value, derivative in _derived(parameters):
            value.sub_(derivative.to(value.dtype), alpha=self.lr)


class Adam:
    """Adam (Kingma & Ba 2015): `value -= lr * m / (sqrt(v) + epsilon)`, with bias-corrected running means of the derivative and its square.

    The moments are kept by parameter name, so one Adam serves one network. `lr` may be set between steps.
    """

    def __init__(self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8) -> None:
        self.lr, self.betas, self.epsilon = _positive(lr), betas, epsilon
        self.step = 0
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, parameters: Sequence[Parameter]) -> None:
        derived = _derived(parameters)  # refused before anything is counted
        self.step += 1
        b1, b2 = self.betas
        for name, value, derivative in derived:
            if name not in self.moments:
                self.moments[name] = torch.zeros_like(value), torch.zeros_like(value)
            m, v = self.moments[name]
            d = derivative.to(value.dtype)
            m.lerp_(d, 1 - b1)  # m = b1 * m + (1 - b1) * d
            v.mul_(b2).addcmul_(d, d, value=1 - b2)  # v = b2 * v + (1 - b2) * d * d
            root = (v / (1 - b2**self.step)).sqrt_().add_(self.epsilon)
            value.addcdiv_(m, root, value=-self.lr / (1 - b1**self.step))

    def state(self) -> dict[str, Tensor]:
        """The moments by name, for a checkpoint; `step` is kept by the caller."""
        return {f"{kind}.{name}": t for name, pair in self.moments.items() for kind, t in zip("mv", pair, strict=True)}

    def resume(self, state: Mapping[str, Tensor], step: int) -> None:
        """Takes a copy of what `state` gave, so that the next update is the very one that would have come."""
        names = [key[2:] for key in state if key.startswith("m.")]
        self.moments = {name: (state["m." + name].clone(), state["v." + name].clone()) for name in names}
        self.step = step


def _derived(parameters: Sequence[Parameter]) -> list[tuple[str, Tensor, Tensor]]:
    derived = []
    for name, value, derivative in parameters:
        if derivative is None:
            raise ValueError(f"`{name}` has no derivative: call backward before train")
        derived.append((name, value, derivative))
    return derived


def _positive(lr: float) -> float:
    if not lr > 0:
        raise ValueError(f"lr (={lr}) must be above 0")
    return lr
