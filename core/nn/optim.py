"""Update rules: parameters and their derivatives in, values changed in place. Knows nothing of networks or losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from core import kernels
from core.nn.module import Parameter


def clip(parameters: Sequence[Parameter], longest: float, lengths: Tensor | None = None) -> None:
    """Shortens all derivatives together, in place, to a Euclidean norm of at most `longest` (Pascanu et al. 2013).

    One strange batch can give derivatives a hundred times the usual; Adam would remember them for a thousand steps.
    lengths: the `norms` of the whole network's derivatives, where `parameters` are a part of them.
    """
    norm = (norms(parameters) if lengths is None else lengths).norm()
    shorten = (longest / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1)
    derivatives = [derivative for _, _, derivative in _derived(parameters)]
    if derivatives:
        torch._foreach_mul_(derivatives, shorten)


def norms(parameters: Sequence[Parameter]) -> Tensor:
    """Each derivative's Euclidean norm, one behind the other."""
    return torch.stack(torch._foreach_norm([derivative for _, _, derivative in _derived(parameters)]))


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
        by_kernel: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        others: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        own: kernels.Kernels | None = None
        for name, value, derivative in derived:
            if name not in self.moments:
                self.moments[name] = torch.zeros_like(value), torch.zeros_like(value)
            m, v = self.moments[name]
            d = derivative.to(value.dtype)
            kernel = kernels.take(value.dtype, value.device) if value.dtype == torch.float32 and value.is_contiguous() else None
            if kernel is not None:
                own = kernel
                by_kernel.append((value, m, v, d.contiguous()))
            else:
                others.append((value, m, v, d))
        if own is not None:
            own.adam(by_kernel, self.betas, self.step, self.lr, self.epsilon)
        if others:  # all at once, a few large pieces of work on an accelerator
            values, ms, vs, ds = map(list, zip(*others, strict=True))
            torch._foreach_lerp_(ms, ds, 1 - b1)  # m = b1 * m + (1 - b1) * d
            torch._foreach_mul_(vs, b2)
            torch._foreach_addcmul_(vs, ds, ds, 1 - b2)  # v = b2 * v + (1 - b2) * d * d
            roots = torch._foreach_div(vs, 1 - b2**self.step)
            torch._foreach_sqrt_(roots)
            torch._foreach_add_(roots, self.epsilon)
            torch._foreach_addcdiv_(values, ms, roots, -self.lr / (1 - b1**self.step))

    def state(self) -> dict[str, Tensor]:
        """The moments by name, for a checkpoint; `step` is kept by the caller."""
        return {f"{kind}.{name}": t for name, pair in self.moments.items() for kind, t in zip("mv", pair, strict=True)}

    def resume(self, state: Mapping[str, Tensor], step: int) -> None:
        """Takes a copy of what `state` gave, so that the next update is the very one that would have come."""
        names = [key[2:] for key in state if key.startswith("m.")]
        self.moments = {name: (state["m." + name].clone(), state["v." + name].clone()) for name in names}
        self.step = step


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of a polynomial that brings every singular value between 0 and 1 near 1 in five rounds (Jordan et al. 2024)."""


LEAST = 1e-20
"""Of means, what is smaller becomes 0, every FADING steps. One whose derivative stays away would fall to 1e-44 and remain there, and some
processors take fifty times as long to multiply such numbers."""
FADING = 128


class Muon:
    """Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"): momentum, made orthogonal before each step.

    A convolution's weight (K, K, C, F) is taken as a matrix of K*K*C by F. Of the derivative's running mean M = U S Vt only the
    directions U Vt are kept, so that rare ones count as much as common ones; the step is as large as Adam's commonly is,
    0.2 by root mean square (Liu et al. 2025, "Muon is Scalable for LLM Training"). Biases, and weights with FEWEST channels or fewer on
    either side, are trained by Adam at the same rate.
    """

    FEWEST = 16
    ROUNDS = 5

    def __init__(self, lr: float = 1e-3, momentum: float = 0.95, factors: torch.dtype = torch.float32) -> None:
        """`factors`: what the device multiplies fast; of bfloat16, large matrices are made orthogonal so, see `orthogonal_coarsely`."""
        self.lr, self.momentum, self.factors = _positive(lr), momentum, factors
        self.adam = Adam(lr)
        self.means: dict[str, Tensor] = {}

    def __call__(self, parameters: Sequence[Parameter]) -> None:
        _derived(parameters)  # refused before anything is counted
        matrices = [p for p in parameters if p.value.dim() == 4 and min(p.value.shape[2:]) > self.FEWEST]
        names = {p.name for p in matrices}
        self.adam.lr = self.lr
        self.adam([p for p in parameters if p.name not in names])
        for alike in _alike(_derived(matrices)):
            values = [value for _, value, _ in alike]
            for name, value, _ in alike:
                if name not in self.means:
                    self.means[name] = torch.zeros_like(value)
            means, ds = [self.means[name] for name, _, _ in alike], [d.to(value.dtype) for _, value, d in alike]
            torch._foreach_lerp_(means, ds, 1 - self.momentum)
            if self.adam.step % FADING == 0:
                for m in means:
                    m.masked_fill_(m.abs() < LEAST, 0)
            ahead = torch.stack(torch._foreach_lerp(ds, means, self.momentum))  # Nesterov's momentum
            flat = ahead.flatten(1, 3)
            coarse = self.factors == torch.bfloat16 and min(flat.shape[1:]) >= LARGE
            steps = orthogonal_coarsely(flat) if coarse else orthogonal(flat)
            length = self.lr * 0.2 * math.sqrt(max(steps.shape[1:]))
            torch._foreach_sub_(values, [*steps.to(ahead.dtype).view_as(ahead)], alpha=length)

    def state(self) -> dict[str, Tensor]:
        """The means and moments by name, for a checkpoint; `step` is kept by the caller."""
        return {f"mean.{name}": mean for name, mean in self.means.items()} | self.adam.state()

    def resume(self, state: Mapping[str, Tensor], step: int) -> None:
        """Takes a copy of what `state` gave, so that the next update is the very one that would have come."""
        self.means = {name.removeprefix("mean."): mean.clone() for name, mean in state.items() if name.startswith("mean.")}
        self.adam.resume({name: moment for name, moment in state.items() if not name.startswith("mean.")}, step)


def orthogonal(matrix: Tensor) -> Tensor:
    """(..., M, N) = U S Vt -> nearly U Vt, in matrix products alone: `X = p(X Xt) X` in each round of Newton-Schulz, p being
    `p(G) = a + b G + c G^2`.

    X is never written down: it is Q times the first one, Q being the product of all `p(G)`, and G = X Xt, on the matrix's shorter side,
    becomes `p(G) G p(G)` (Zhang, Amsel, Chen & Dao 2026, "Gram Newton-Schulz"). Of a matrix nine times as long as wide, as that of a 3x3
    kernel is, this takes 40 % of the products. In float32 at least: G has the squares of all singular values, and in that precision those
    of five decades come out right to 0.0003.
    """
    a, b, c = NEWTON_SCHULZ

    def p(G: Tensor) -> Tensor:
        y = (torch.addmm if G.dim() == 2 else torch.baddbmm)(G, G, G, beta=b, alpha=c)
        y.diagonal(dim1=-2, dim2=-1).add_(a)
        return y

    X, wide = _lying(matrix)
    G = X @ X.mT
    Q = last = p(G)
    for _ in range(Muon.ROUNDS - 1):
        G = last @ G @ last
        last = p(G)
        Q = last @ Q
    Y: Tensor = Q @ X
    return Y if wide else Y.mT


LARGE = 128
"""Shorter side from which on two cores of a Zen 5 are sooner by bfloat16: with 256x512 1.6 ms in place of 4.0, with 1152x128 alike."""


def orthogonal_coarsely(matrix: Tensor) -> Tensor:
    """The same as `orthogonal` to a hundredth, or, where singular values go over three decades, to a tenth: in bfloat16, as Jordan et al.
    2024 have it. X itself goes through the rounds, for in that precision `X Xt` would lose directions of less than a tenth of the largest.
    More products, where those are several times as fast.
    """
    a, b, c = NEWTON_SCHULZ
    X, wide = _lying(matrix)
    X = X.bfloat16().contiguous()
    add = torch.addmm if X.dim() == 2 else torch.baddbmm
    for _ in range(Muon.ROUNDS):
        G = X @ X.mT
        X = add(X, add(G, G, G, beta=b, alpha=c), X, beta=a)
    return X if wide else X.mT


def _lying(matrix: Tensor) -> tuple[Tensor, bool]:
    """In float32 at least and of length 1, turned on its side if it is longer than wide; and whether it was not."""
    wide = matrix.shape[-2] <= matrix.shape[-1]
    X = (matrix if wide else matrix.mT).to(torch.promote_types(matrix.dtype, torch.float32))
    return X / X.norm(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(X.dtype).tiny), wide


def _alike(derived: Sequence[tuple[str, Tensor, Tensor]]) -> list[list[tuple[str, Tensor, Tensor]]]:
    """What to compute at once: one by one on a processor, whose caches more would only fill; elsewhere all of one shape."""
    groups: dict[object, list[tuple[str, Tensor, Tensor]]] = {}
    for each in derived:
        name, value, _ = each
        groups.setdefault(name if value.device.type == "cpu" else value.shape, []).append(each)
    return list(groups.values())


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
