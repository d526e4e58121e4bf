"""The architectures, each a literal list of layers. Knows nothing of training, files or pictures' formats."""

from __future__ import annotations

import torch
from torch import Tensor

from core.nn import (
    Conv2d,
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
    Tape,
    Upsampling,
)

MULTIPLE = 8
"""Height and width of what the denoisers take are multiples of this."""


def unet(generator: torch.Generator | None = None) -> Sequential:
    """The denoiser: (N, H, W, 4), picture and noise-level map -> (N, H, W, 3), the correction to add to the picture.

    A U-Net (Ronneberger et al. 2015) of residual blocks with additive skips, as in DRUNet (Zhang et al. 2021), that starts at half
    resolution as FFDNet does (Zhang et al. 2018). H and W must be divisible by 8. 4.2 M weights, 196 k multiply-adds a pixel.
    """
    g = generator
    return Sequential(
        SpaceToDepth(2),
        Conv2d(16, 64, 3, padding=1, exact=True, generator=g),  # the picture itself has more than bfloat16's eight bits
        Residual(  # 1/2
            _block(64, g, careful=True),  # without it, of a noise of 50 the largest difference from float32 is 2.7 of 255 in place of 1.8
            _block(64, g, careful=True),
            Conv2d(64, 128, 2, stride=2, bias=False, generator=g),
            Residual(  # 1/4
                _block(128, g),
                _block(128, g),
                Conv2d(128, 256, 2, stride=2, bias=False, generator=g),
                Residual(  # 1/8
                    _block(256, g),
                    _block(256, g),
                ),
                Conv2d(256, 512, 1, bias=False, generator=g),
                DepthToSpace(2),
                _block(128, g),
                _block(128, g),
            ),
            Conv2d(128, 256, 1, bias=False, generator=g),
            DepthToSpace(2),
            _block(64, g),
            _block(64, g),
        ),
        Conv2d(64, 12, 3, padding=1, gain=0.1, exact=True, generator=g),  # in bfloat16 it would add more error than all others do
        DepthToSpace(2),
    )


def _block(channels: int, g: torch.Generator | None, careful: bool = False) -> Residual:
    return Residual(
        Conv2d(channels, channels, 3, padding=1, bias=False, careful=careful, generator=g),
        ReLU(),
        Conv2d(channels, channels, 3, padding=1, bias=False, gain=0.1, generator=g),
    )


def gated(generator: torch.Generator | None = None) -> Sequential:
    """The finer denoiser, of the same sides and sizes as `unet`, with a depth of 58 in place of 10: its blocks are those of NAFNet (Chen et
    al. 2022), whose products are 1x1 convolutions, nine of which cost what one of 3x3 does. 5.9 M weights, 195 k multiply-adds a pixel.

    Without NAFNet's look at the whole picture, so that a picture can pass by strips, and with root-mean-square normalisation.
    """
    return _gated(1, generator)


def deep(generator: torch.Generator | None = None) -> Sequential:
    """`gated` with twice as many blocks: 11.6 M weights, 378 k multiply-adds a pixel. See `deepened`."""
    return _gated(2, generator)


def _gated(times: int, g: torch.Generator | None) -> Sequential:
    return Sequential(
        SpaceToDepth(2),
        Conv2d(16, 64, 3, padding=1, exact=True, generator=g),
        Residual(  # 1/2
            *_gated_blocks(4 * times, 64, g),
            Conv2d(64, 128, 2, stride=2, bias=False, generator=g),
            Residual(  # 1/4
                *_gated_blocks(5 * times, 128, g),
                Conv2d(128, 256, 2, stride=2, bias=False, generator=g),
                Residual(*_gated_blocks(11 * times, 256, g)),  # 1/8
                Conv2d(256, 512, 1, bias=False, generator=g),
                DepthToSpace(2),
                *_gated_blocks(5 * times, 128, g),
            ),
            Conv2d(128, 256, 1, bias=False, generator=g),
            DepthToSpace(2),
            *_gated_blocks(4 * times, 64, g),
        ),
        Conv2d(64, 12, 3, padding=1, gain=0.1, exact=True, generator=g),
        DepthToSpace(2),
    )


def _gated_blocks(count: int, channels: int, g: torch.Generator | None) -> list[Residual]:
    """Each of two halves: one that looks at a pixel's neighbours, and one that does not."""
    blocks = []
    for _ in range(count):
        for gate in (DepthwiseGate(channels, g), Gate(channels)):
            first = Conv2d(channels, 2 * channels, 1, bias=False, generator=g)
            last = Conv2d(channels, channels, 1, bias=False, gain=0.1, generator=g)
            blocks.append(Residual(RMSNorm(), first, gate, last))
    return blocks


def deepened(network: Module, generator: torch.Generator | None = None) -> Sequential:
    """`deep` with the weights of `network`, a `gated`, that computes the same: behind each block stands one that adds nothing yet, for
    its last weights are 0 (as in Net2Net, Chen et al. 2016).
    """
    assert isinstance(network, Sequential)
    larger = deep(generator)
    _fill(larger, network)
    return larger


def _fill(larger: Sequential, smaller: Sequential) -> None:
    given = iter(smaller.layers)
    halves = 0  # of blocks, by now; every second block is new
    for layer in larger.layers:
        if isinstance(layer, Residual) and isinstance(layer.layers[0], RMSNorm):
            halves += 1
            if (halves - 1) % 4 >= 2:
                layer.layers[-1].param()[0].value.zero_()
                continue
        ours = next(given)
        if isinstance(layer, Sequential) and isinstance(ours, Sequential):
            _fill(layer, ours)
        else:
            layer.load({p.name: p.value for p in ours.param()})


def noise2noise(generator: torch.Generator | None = None) -> Sequential:
    """The small denoiser of the Noise2Noise experiment (see `core.reproduce`): (N, 32, 32, 3) -> (N, 32, 32, 3), both in [0, 1]."""
    g = generator
    return Sequential(
        Conv2d(3, 32, 3, stride=2, padding=1, exact=True, generator=g),
        ReLU(),
        Conv2d(32, 64, 5, stride=2, padding=2, generator=g),
        ReLU(),
        Upsampling(64, 32, 5, scale=2, padding=2, generator=g),
        ReLU(),
        Upsampling(32, 3, 3, scale=2, padding=1, generator=g),
        Sigmoid(),
    )


ARCHITECTURES = {"unet": unet, "gated": gated, "deep": deep}
"""The denoisers, by the name that a weights file carries."""


def correct(network: Module, noisy: Tensor, sigma: Tensor | float, tape: Tape | None = None) -> Tensor:
    """The denoised pictures: `noisy + network([noisy, sigma])`, the sum in float32.

    noisy: (N, H, W, 3) float32, sigma: a number or (N, 1, 1, 1), in [0, 1] image units.
    """
    return noisy + network.forward(with_level(noisy, sigma), tape).float()


def with_level(noisy: Tensor, sigma: Tensor | float) -> Tensor:
    """(N, H, W, 3) and its noise level as `correct` takes it -> (N, H, W, 4), what the network takes."""
    level = torch.as_tensor(sigma, dtype=noisy.dtype, device=noisy.device)
    both = level.expand(*noisy.shape[:3], 4).contiguous()  # with the pixels written over it, half as long as `cat` takes
    both[..., :3] = noisy
    return both


PROBE = 64
"""Side of the made pictures on which a network shows how large its numbers become."""
HEADROOM = 16
"""So many times as large they may become, and must not overflow."""


def has_room(network: Module) -> bool:
    """Whether pictures HEADROOM times as bright as white, with a noise as strong, pass through without an overflow."""
    uniform = torch.rand(1, PROBE, PROBE, 4, generator=torch.Generator().manual_seed(0)).mul(HEADROOM)
    blocks = (uniform[:, ::8, ::8] > HEADROOM / 2).float().mul(HEADROOM).repeat_interleave(8, 1).repeat_interleave(8, 2)
    device = network.param()[0].value.device
    with torch.no_grad():
        return all(bool(network(x.to(device)).isfinite().all()) for x in (uniform, blocks))


def multiply_adds(network: Module, step: int = 1) -> float:
    """Multiply-adds of all convolutions per pixel of the network's input, as the layers are written; `step` is the input grid's."""
    if isinstance(network, Sequential):
        total = 0.0
        for layer in network.layers:
            total += multiply_adds(layer, step)
            step = layer.reach(step)[1]
        return total
    return network.weight.numel() / network.reach(step)[1] ** 2 if isinstance(network, Convolution | DepthwiseGate) else 0.0
