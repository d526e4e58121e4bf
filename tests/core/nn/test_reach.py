"""How far a network looks: a pixel of the input is changed, and no output farther than `reach` says may notice."""

from fractions import Fraction

import pytest
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
    SpaceToDepth,
    Upsampling,
)
from tests.core.nn.nets import concatenating, gated_block, noise2noise, unet

G = torch.Generator().manual_seed(1)

LAYERS: dict[str, tuple[Module, int, int, int]] = {
    "nothing": (Sequential(), 0, 0, 1),
    "ReLU": (ReLU(), 0, 0, 1),
    "RMSNorm": (RMSNorm(), 0, 0, 1),
    "Gate": (Gate(2), 0, 0, 1),
    "DepthwiseGate": (DepthwiseGate(2, G), 1, 1, 1),
    "a gated block at half resolution": (Sequential(SpaceToDepth(2), gated_block(DepthwiseGate(16, G), 16, G)), 3, 3, 2),
    "1x1": (Conv2d(4, 2, 1), 0, 0, 1),
    "3x3": (Conv2d(4, 2, 3, padding=1), 1, 1, 1),
    "4x4, uneven": (Conv2d(4, 2, 4, padding=1), 2, 2, 1),
    "5x5 without padding": (Conv2d(4, 2, 5), 4, 4, 1),
    "1x1 with padding": (Conv2d(4, 2, 1, padding=3), 3, 3, 1),
    "1x5": (Conv2d(4, 2, (1, 5), padding=(0, 2)), 2, 2, 1),
    "stride 2": (Conv2d(4, 2, 3, stride=2, padding=1), 1, 1, 2),
    "stride 3, then 5x5": (Sequential(Conv2d(4, 2, 3, stride=3, padding=1), Conv2d(2, 2, 5, padding=2)), 7, 7, 3),
    "space to depth": (SpaceToDepth(2), 1, 1, 2),
    "space to depth, then 3x3": (Sequential(SpaceToDepth(3), Conv2d(36, 2, 3, padding=1)), 5, 5, 3),
    "Residual": (Residual(Conv2d(4, 4, 5, padding=2), Conv2d(4, 4, 3, padding=1)), 3, 3, 1),
    # down to a block's first pixel and up to its last: each way may add, though no pixel goes both
    "down and up, nothing between": (Sequential(SpaceToDepth(2), DepthToSpace(2)), 2, 0, 1),
    "down and up by nearest": (Sequential(Conv2d(4, 4, 2, stride=2), NearestUpsampling(2)), 2, 1, 1),
    "down and up by Upsampling": (Sequential(Conv2d(4, 4, 2, stride=2), Upsampling(4, 2, 3, 2, 1)), 3, 2, 1),
    "down and up in a Concat": (Concat(Conv2d(4, 8, 2, stride=2), Conv2d(8, 8, 3, padding=1), DepthToSpace(2)), 4, 3, 1),
}
"""Module, its reach, how far a changed pixel is really noticed, the step of its output's grid."""

FINER: dict[str, tuple[Module, Fraction]] = {
    "nearest": (NearestUpsampling(3), Fraction(1, 3)),
    "depth to space": (DepthToSpace(2), Fraction(1, 2)),
    "up": (Upsampling(4, 2, 3, 2, 1), Fraction(1, 2)),
    "up, looking far": (Upsampling(4, 2, 9, 2, 4), Fraction(1, 2)),
    "up, then looking far": (Sequential(DepthToSpace(2), Conv2d(1, 1, 9, padding=4)), Fraction(1, 2)),
    "up, far, down": (Sequential(NearestUpsampling(2), Conv2d(4, 1, 9, padding=4), Conv2d(1, 1, 2, stride=2)), Fraction(1)),
}
"""Grids finer than the input's, for which reach may tell too much, never too little."""

WHOLE = {"unet": unet(G), "noise2noise": noise2noise(G), "concatenating": concatenating(G)}


def noticed(module: Module, step: Fraction, C: int, H: int = 48, W: int = 60) -> Fraction:
    """How far, in input pixels, the farthest output lies that a changed pixel reaches, over changed pixels in all phases of 12."""
    module.to(dtype=torch.float64)
    x = torch.rand(1, H, W, C, generator=G, dtype=torch.float64)
    y, farthest = module(x), Fraction(0)
    for i in range(12):
        row, column = H // 2 + i, W // 2 - 5 * i % 12
        changed = x.clone()
        changed[0, row, column] -= 3
        rows, columns = (module(changed) != y).any(3)[0].nonzero(as_tuple=True)
        farthest = max([farthest, *_distances(rows, row, step), *_distances(columns, column, step)])
    return farthest


def _distances(outputs: Tensor, pixel: int, step: Fraction) -> list[Fraction]:
    return [abs(output * step - pixel) for output in set(outputs.tolist())]


@pytest.mark.parametrize("name", LAYERS)
def test_reach_is_how_far_a_changed_pixel_may_be_noticed(name: str) -> None:
    module, reach, farthest, step = LAYERS[name]
    assert module.reach() == (reach, step)
    assert noticed(module, Fraction(step), 4) == farthest


@pytest.mark.parametrize("name", FINER)
def test_reach_never_tells_too_little_where_a_grid_is_finer_than_the_input(name: str) -> None:
    module, step = FINER[name]
    farthest, reach = noticed(module, step, 4, 24, 32), module.reach()[0]
    assert farthest <= reach <= 2 * farthest + 2


@pytest.mark.parametrize("scale", [(4, 2), (2, 4)])
def test_reach_covers_both_directions_of_a_scale_that_differs(scale: tuple[int, int]) -> None:
    coarse = [Conv2d(4, 4, 4, stride=4, generator=G), Upsampling(4, 4, 3, scale, 1, generator=G)]
    for layers in (coarse, [*coarse, Conv2d(4, 4, 9, padding=4, generator=G)]):
        module = Sequential(*layers).to(dtype=torch.float64)
        x = torch.rand(1, 64, 64, 4, generator=G, dtype=torch.float64)
        y, changed = module(x), x.clone()
        changed[0, 32, 32] -= 3
        for axis, seen in enumerate((module(changed) != y).any(3)[0].nonzero(as_tuple=True)):
            assert max(_distances(seen, 32, Fraction(4, scale[axis]))) <= module.reach()[0]


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_network_looks_no_farther_than_its_reach_and_not_much_less_far(name: str) -> None:
    reach, step = WHOLE[name].reach()
    assert step == 1
    farthest = noticed(WHOLE[name], Fraction(1), 3)
    assert farthest <= reach <= farthest + 4


def test_a_tile_that_overlaps_by_the_reach_gives_the_whole_pictures_answer() -> None:
    network = unet(G).to(dtype=torch.float64)
    halo = -(-network.reach()[0] // 4) * 4
    x = torch.rand(1, 64, 96, 3, generator=G, dtype=torch.float64)
    tile = network(x[:, 24 - halo : 32 + halo, 40 - halo : 56 + halo])[:, halo:-halo, halo:-halo]
    torch.testing.assert_close(tile, network(x)[:, 24:32, 40:56], rtol=0, atol=1e-12)
