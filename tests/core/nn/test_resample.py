"""NearestUpsampling, SpaceToDepth and DepthToSpace: where each pixel goes, and its derivative's way back."""

import pytest
import torch

from core.nn import DepthToSpace, Module, NearestUpsampling, SpaceToDepth
from tests.core.nn.errors import refused
from tests.core.nn.gradients import check_gradients
from tests.core.nn.oracles import assert_same, by_engine, by_torch

every_resampling = pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (
            layer(scale),
            (N, *(side * (scale if layer is SpaceToDepth else 1) for side in (3, 4)), 2 * (scale**2 if layer is DepthToSpace else 1)),
        )
        for layer in (NearestUpsampling, SpaceToDepth, DepthToSpace)
        for scale in (1, 2, 3, 4)
        for N in (3, 2)
    ],
    ids=lambda value: f"{type(value).__name__}({value.scale})" if isinstance(value, Module) else str(value),  # type: ignore[attr-defined]
)


@every_resampling
def test_gradients_agree_with_finite_differences(layer: Module, shape: tuple[int, ...], generator: torch.Generator) -> None:
    check_gradients(layer, torch.randn(shape, generator=generator, dtype=torch.float64), generator)


@every_resampling
def test_they_equal_torch(layer: Module, shape: tuple[int, ...], generator: torch.Generator) -> None:
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    dy = torch.randn(layer(x).shape, generator=generator, dtype=torch.float64)
    assert_same(by_engine(layer, x, dy), by_torch(layer, x, dy), 1e-14)


def test_an_enlarged_pixel_is_a_block_and_gathers_the_blocks_derivatives() -> None:
    y, derivatives = by_engine(NearestUpsampling(2), torch.tensor([[1.0, 2]]).view(1, 1, 2, 1), torch.arange(8.0).view(1, 2, 4, 1))
    assert y[0, ..., 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]
    assert derivatives["x"].flatten().tolist() == [0 + 1 + 4 + 5, 2 + 3 + 6 + 7]


def test_a_block_becomes_channels_in_reading_order_and_comes_back() -> None:
    x = torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7]]).view(1, 2, 4, 1)
    deep = SpaceToDepth(2)(x)
    assert deep.tolist() == [[[[0, 1, 4, 5], [2, 3, 6, 7]]]]
    assert torch.equal(DepthToSpace(2)(deep), x)


@pytest.mark.parametrize("permuted", [False, True])
def test_views_that_are_not_contiguous_pass(permuted: bool, generator: torch.Generator) -> None:
    large = torch.randn(2, 9, 13, 8, generator=generator)
    x = large.permute(0, 2, 1, 3)[:, 1:, 1:] if permuted else large[:, 1:, 1:]
    for layer in (NearestUpsampling(2), SpaceToDepth(2), DepthToSpace(2)):
        y = layer(x)
        assert torch.equal(y, layer(x.contiguous()))
        dy = torch.randn(*y.shape[:3], y.shape[3] + 1, generator=generator)[..., 1:]
        assert torch.equal(layer.backward(dy, []), layer.backward(dy.contiguous(), []))


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (SpaceToDepth(2), (1, 7, 4, 3), "x has 7 rows and 4 columns: both must be divisible by scale (=2)"),
        (SpaceToDepth(3), (1, 6, 4, 3), "x has 6 rows and 4 columns: both must be divisible by scale (=3)"),
        (DepthToSpace(2), (1, 6, 4, 6), "x has 6 channels: they must be divisible by scale * scale (=4)"),
    ],
)
def test_a_picture_that_does_not_divide_is_refused_in_words(layer: Module, shape: tuple[int, ...], message: str) -> None:
    with refused(message):
        layer(torch.zeros(shape))


@pytest.mark.parametrize("layer", [NearestUpsampling, SpaceToDepth, DepthToSpace])
def test_a_scale_below_one_is_refused_in_words(layer: type[NearestUpsampling]) -> None:
    with refused("scale (=0) must be at least 1"):
        layer(0)
