"""Small networks of the engine's own layers, as literal lists, that several tests share. Tests nothing itself."""

from collections.abc import Callable

import torch
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
    Upsampling,
)


def noise2noise(g: torch.Generator, relu: type[ReLU] = ReLU) -> Sequential:
    """(N, 4*H, 4*W, 3) -> (N, 4*H, 4*W, 3), the experiment's network."""
    return Sequential(
        Conv2d(3, 32, 3, stride=2, padding=1, generator=g),
        relu(),
        Conv2d(32, 64, 5, stride=2, padding=2, generator=g),
        relu(),
        Upsampling(64, 32, 5, scale=2, padding=2, generator=g),
        relu(),
        Upsampling(32, 3, 3, scale=2, padding=1, generator=g),
        Sigmoid(),
    )


def unet(g: torch.Generator, relu: type[ReLU] = ReLU) -> Sequential:
    """(N, 4*H, 4*W, 3) -> the same: two levels with additive skips and residual blocks, as the denoiser has them."""
    return Sequential(
        Conv2d(3, 4, 3, padding=1, generator=g),
        Residual(
            Residual(Conv2d(4, 4, 3, padding=1, bias=False, generator=g), relu(), Conv2d(4, 4, 3, padding=1, generator=g)),
            Conv2d(4, 6, 2, stride=2, generator=g),
            relu(),
            Residual(
                Conv2d(6, 8, 3, stride=2, padding=1, generator=g),
                Residual(Conv2d(8, 8, 3, padding=1, generator=g), relu(), Conv2d(8, 8, 1, generator=g)),
                Conv2d(8, 24, 1, generator=g),
                DepthToSpace(2),
            ),
            Conv2d(6, 16, 1, bias=False, generator=g),
            DepthToSpace(2),
        ),
        Conv2d(4, 3, 3, padding=1, generator=g),
    )


def concatenating(g: torch.Generator, relu: type[ReLU] = ReLU) -> Sequential:
    """(N, 4*H, 4*W, 3) -> the same: skips by concatenation, starting at half resolution."""
    return Sequential(
        SpaceToDepth(2),
        Concat(
            Conv2d(12, 5, 3, stride=2, padding=1, generator=g),
            relu(),
            Concat(Conv2d(5, 3, (1, 3), padding=(0, 1), generator=g), relu()),
            NearestUpsampling(2),
            Conv2d(8, 4, 3, padding=1, generator=g),
        ),
        Upsampling(16, 3, 5, scale=2, padding=2, generator=g),
        Sigmoid(),
    )


NETWORKS: dict[str, Callable[..., Sequential]] = {"noise2noise": noise2noise, "unet": unet, "concatenating": concatenating}


def gated_block(gate: Module, C: int, g: torch.Generator) -> Residual:
    """(N, H, W, C) -> the same; `gate` makes C channels of 2C."""
    first, last = Conv2d(C, 2 * C, 1, bias=False, generator=g), Conv2d(C, C, 1, bias=False, generator=g)
    return Residual(RMSNorm(), first, gate, last)


def pair(g: torch.Generator, N: int = 2, H: int = 8, W: int = 12, C: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A picture and a target in [0, 1], not square."""
    x, target = torch.rand(2, N, H, W, C, generator=g, dtype=torch.float64).to(dtype)
    return x, target


def layers(g: torch.Generator) -> dict[str, tuple[Module, tuple[int, int, int]]]:
    """Every module once, with the (H, W, C) of an input that it takes."""
    own = torch.Generator().manual_seed(1)
    return {
        "Conv2d": (Conv2d(3, 5, 3, padding=1, generator=g), (7, 10, 3)),
        "Conv2d stride 2": (Conv2d(3, 5, 5, stride=2, padding=2, bias=False, generator=g), (7, 10, 3)),
        "Conv2d 1x1": (Conv2d(3, 5, 1, generator=g), (7, 10, 3)),
        "Upsampling": (Upsampling(3, 5, 5, scale=2, padding=2, generator=g), (5, 6, 3)),
        "NearestUpsampling": (NearestUpsampling(2), (5, 6, 3)),
        "SpaceToDepth": (SpaceToDepth(2), (6, 10, 3)),
        "DepthToSpace": (DepthToSpace(2), (5, 6, 8)),
        "ReLU": (ReLU(), (7, 10, 3)),
        "Sigmoid": (Sigmoid(), (7, 10, 3)),
        "RMSNorm": (RMSNorm(), (7, 10, 3)),
        "Gate": (Gate(3), (7, 10, 6)),
        "DepthwiseGate": (DepthwiseGate(3, own), (7, 10, 6)),
        "gated block": (gated_block(DepthwiseGate(4, own), 4, own), (7, 10, 4)),
        "Sequential": (Sequential(Conv2d(3, 4, 3, stride=2, generator=g), ReLU(), Conv2d(4, 2, 2, generator=g)), (7, 10, 3)),
        "Residual": (Residual(Conv2d(3, 4, 3, padding=1, generator=g), ReLU(), Conv2d(4, 3, 1, generator=g)), (7, 10, 3)),
        "Concat": (Concat(Conv2d(3, 4, 3, padding=1, generator=g), ReLU()), (7, 10, 3)),
    }


LAYERS = list(layers(torch.Generator()))
LEARNING = [name for name, (module, _) in layers(torch.Generator()).items() if module.param()]
