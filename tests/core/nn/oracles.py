"""Slow and foreign ways to compute what the engine computes: torch's autograd, unfold and fold, and the plain definition. Never fast."""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from core.nn import (
    Concat,
    Conv2d,
    DepthToSpace,
    DepthwiseGate,
    Gate,
    Module,
    NearestUpsampling,
    ReLU,
    Residual,
    RMSNorm,
    Sequential,
    Sigmoid,
    SpaceToDepth,
    Tape,
    Upsampling,
)

Pair = tuple[int, int]
Derivatives = dict[str, Tensor]


def by_engine(module: Module, x: Tensor, dy: Tensor) -> tuple[Tensor, Derivatives]:
    """The output, and the derivatives of `sum(y * dy)` by name, that of the input as `x`."""
    tape: Tape = []
    y = module.forward(x, tape)
    derivatives = {"x": module.backward(dy, tape)}
    for name, _, derivative in module.param():
        assert derivative is not None
        derivatives[name] = derivative
    return y, derivatives


def by_torch(module: Module, x: Tensor, dy: Tensor) -> tuple[Tensor, Derivatives]:
    """The same by `torch.nn.functional` and autograd, on copies of the module's weights."""
    leaves = {"x": x, **{name: value for name, value, _ in module.param()}}
    leaves = {name: value.detach().clone().requires_grad_() for name, value in leaves.items()}
    y = functional(module, leaves["x"].permute(0, 3, 1, 2), leaves).permute(0, 2, 3, 1)
    grads = torch.autograd.grad(y, list(leaves.values()), dy, materialize_grads=True)
    return y.detach(), dict(zip(leaves, grads, strict=True))


def functional(module: Module, x: Tensor, weights: Derivatives, prefix: str = "") -> Tensor:
    """`module` written with torch's functions, (N, C, H, W) in and out; its weights are taken from `weights` by the names of `param`."""

    def kernel() -> tuple[Tensor, Tensor | None]:
        return weights[prefix + "weight"].permute(3, 2, 0, 1), weights.get(prefix + "bias")

    def inner(x: Tensor) -> Tensor:
        for name, layer in module.modules():
            x = functional(layer, x, weights, f"{prefix}{name}.")
        return x

    match module:
        case Upsampling():
            large = F.interpolate(x, scale_factor=[float(s) for s in module.scale], mode="nearest")
            return F.conv2d(large, *kernel(), padding=module.padding)
        case Conv2d():
            return F.conv2d(x, *kernel(), stride=module.stride, padding=module.padding)
        case NearestUpsampling():
            return F.interpolate(x, scale_factor=float(module.scale), mode="nearest")
        case SpaceToDepth():  # torch's order of channels is (C, S, S), the engine's (S, S, C)
            return _turned(F.pixel_unshuffle(x, module.scale), x.shape[1])
        case DepthToSpace():
            return F.pixel_shuffle(_turned(x, module.scale**2), module.scale)
        case ReLU():
            return F.relu(x)
        case Sigmoid():
            return x.sigmoid()
        case RMSNorm():
            return F.rms_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)
        case Gate():
            return torch.mul(*(x + weights[prefix + "bias"][:, None, None]).chunk(2, 1))
        case DepthwiseGate():
            kernels = weights[prefix + "weight"].permute(2, 0, 1)[:, None]
            return torch.mul(*F.conv2d(x, kernels, weights[prefix + "bias"], padding=1, groups=x.shape[1]).chunk(2, 1))
        case Residual():
            return x + inner(x)
        case Concat():
            return torch.cat((x, inner(x)), 1)
        case Sequential():
            return inner(x)
    raise TypeError(f"no oracle for {type(module).__name__}")


def _turned(x: Tensor, parts: int) -> Tensor:
    """Channels in the order (parts, rest), put in the order (rest, parts)."""
    N, C, H, W = x.shape
    return x.view(N, parts, C // parts, H, W).transpose(1, 2).reshape(N, C, H, W)


def by_unfold(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dy: Tensor) -> tuple[Tensor, Derivatives]:
    """A convolution as unfold and one product, backward as one product each and a fold; tensors in the engine's layout."""
    (N, H, W, _), (A, B, C, M) = x.shape, weight.shape
    columns = F.unfold(x.permute(0, 3, 1, 2), (A, B), stride=stride, padding=padding)  # (N, C*A*B, L)
    matrix = weight.permute(3, 2, 0, 1).reshape(M, C * A * B)
    y = matrix @ columns + (0 if bias is None else bias[:, None])  # (N, M, L)
    d = dy.permute(0, 3, 1, 2).reshape(N, M, -1)
    dx = F.fold(matrix.T @ d, (H, W), (A, B), stride=stride, padding=padding).permute(0, 2, 3, 1)
    dweight = (d @ columns.transpose(1, 2)).sum(0).view(M, C, A, B).permute(2, 3, 1, 0)
    derivatives = {"x": dx, "weight": dweight} | ({} if bias is None else {"bias": d.sum((0, 2))})
    return y.transpose(1, 2).reshape(dy.shape), derivatives


def by_definition(x: Tensor, weight: Tensor, bias: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """A convolution as its sum is written, one number at a time."""
    (N, H, W, C), (A, B, _, M), (S, T), (P, Q) = x.shape, weight.shape, stride, padding
    y = x.new_zeros(N, (H + 2 * P - A) // S + 1, (W + 2 * Q - B) // T + 1, M)
    for n, i, j, f in product(*map(range, y.shape)):
        total = float(bias[f])
        for a, b, c in product(range(A), range(B), range(C)):
            u, v = i * S + a - P, j * T + b - Q
            if 0 <= u < H and 0 <= v < W:
                total += float(x[n, u, v, c]) * float(weight[a, b, c, f])
        y[n, i, j, f] = total
    return y


def assert_same(found: tuple[Tensor, Derivatives], expected: tuple[Tensor, Derivatives], tolerance: float = 1e-10) -> None:
    """Output and every derivative, each relative to its own largest number."""
    assert found[1].keys() == expected[1].keys()
    for name, wanted in {"y": expected[0], **expected[1]}.items():
        given = {"y": found[0], **found[1]}[name]
        assert given.shape == wanted.shape, f"`{name}` has shape {tuple(given.shape)}, the oracle {tuple(wanted.shape)}"
        difference, size = float((given - wanted).abs().max()), float(wanted.abs().max())
        assert difference <= tolerance * size, f"`{name}` differs by {difference:.3g} of {size:.3g}"
