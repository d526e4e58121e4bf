"""The same network with the same weights in torch.nn, as the benchmarks' opponent."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from core.nn import (
    Convolution,
    DepthToSpace,
    DepthwiseGate,
    Gate,
    Module,
    ReLU,
    Residual,
    RMSNorm,
    Sequential,
    Sigmoid,
    SpaceToDepth,
    Upsampling,
)


class Skip(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Norm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(torch.mean(x * x, 1, keepdim=True) + 1e-6)


class Product(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return first * second


def as_torch(module: Module) -> nn.Module:
    """A layer or network of `core.nn` in torch.nn, (N, C, H, W) in and out, with copies of its weights."""
    if isinstance(module, Residual):
        return Skip(*_all_as_torch(module.layers))
    if isinstance(module, Sequential):
        return nn.Sequential(*_all_as_torch(module.layers))
    if isinstance(module, RMSNorm):
        return Norm()
    if isinstance(module, DepthwiseGate):
        C = 2 * module.out_channels
        filters = nn.Conv2d(C, C, 3, padding=1, groups=C)
        with torch.no_grad():
            filters.weight.copy_(module.weight.permute(2, 0, 1)[:, None])
            _bias(filters).copy_(module.bias)
        return nn.Sequential(filters, Product())
    if isinstance(module, ReLU):
        return nn.ReLU(inplace=True)
    if isinstance(module, SpaceToDepth):
        return nn.PixelUnshuffle(module.scale)
    if isinstance(module, DepthToSpace):
        return nn.PixelShuffle(module.scale)
    if isinstance(module, Sigmoid):
        return nn.Sigmoid()
    if isinstance(module, Convolution):
        A, B, C, F = module.weight.shape
        twin = nn.Conv2d(C, F, (A, B), module.stride, module.padding, bias=module.bias is not None)
        with torch.no_grad():
            twin.weight.copy_(module.weight.permute(3, 2, 0, 1))
            if module.bias is not None:
                _bias(twin).copy_(module.bias)
        return nn.Sequential(nn.Upsample(scale_factor=module.scale), twin) if isinstance(module, Upsampling) else twin
    raise TypeError(f"{type(module).__name__} has no twin in torch.nn")


def _all_as_torch(modules: Iterable[Module]) -> Iterator[nn.Module]:
    """Layers in a row. What a gate adds before it multiplies is the bias of the convolution in front of it, which has none of its own."""
    last: nn.Module | None = None
    for module in modules:
        if isinstance(module, Gate):
            if not isinstance(last, nn.Conv2d) or last.bias is not None:
                raise TypeError("a Gate has a twin in torch.nn only behind a convolution without a bias")
            last.bias = nn.Parameter(module.bias.clone())
        last = Product() if isinstance(module, Gate) else as_torch(module)
        yield last


def _bias(twin: nn.Conv2d) -> Tensor:
    assert twin.bias is not None
    return twin.bias


def denoiser(network: Module) -> nn.Module:
    """The twin of `core.networks.unet` or `gated`: its shuffles order channels as torch's do, so that pixel (un)shuffle is torch's own."""
    twin = as_torch(network)
    assert isinstance(twin, nn.Sequential)
    _reorder(twin)
    return twin


def _reorder(twin: nn.Module) -> None:
    """Ours are (row, column, C), torch's (C, row, column): the convolutions beside a shuffle take up the difference."""
    layers = list(twin.children())
    for before, after in itertools.pairwise(layers):
        with torch.no_grad():
            if isinstance(before, nn.PixelUnshuffle) and isinstance(after, nn.Conv2d):
                after.weight.copy_(after.weight.unflatten(1, (before.downscale_factor**2, -1)).transpose(1, 2).flatten(1, 2))
            if isinstance(before, nn.Conv2d) and isinstance(after, nn.PixelShuffle):
                before.weight.copy_(before.weight.unflatten(0, (after.upscale_factor**2, -1)).transpose(0, 1).flatten(0, 1))
                if before.bias is not None:
                    before.bias.copy_(before.bias.unflatten(0, (after.upscale_factor**2, -1)).transpose(0, 1).flatten(0, 1))
    for layer in layers:
        _reorder(layer)
