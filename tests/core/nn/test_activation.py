"""ReLU and Sigmoid, away from the kink and on it."""

import pytest
import torch
from torch import Tensor

from core.nn import Module, ReLU, Sigmoid
from tests.core.nn.gradients import FarReLU, check_gradients
from tests.core.nn.oracles import assert_same, by_engine, by_torch

every_shape = pytest.mark.parametrize("shape", [(3, 5, 7, 2), (2, 5, 7, 2), (1, 1, 1, 1), (2, 1, 9, 5)])


def signed(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers in ±[0.1, 3.1]."""
    size, side = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    return torch.where(side < 0.5, -0.1 - 3 * size, 0.1 + 3 * size)


@every_shape
@pytest.mark.parametrize("layer", [FarReLU(), Sigmoid()], ids=["ReLU", "Sigmoid"])
def test_gradients_agree_with_finite_differences(layer: Module, shape: tuple[int, ...], generator: torch.Generator) -> None:
    check_gradients(layer, signed(shape, generator), generator)


@every_shape
@pytest.mark.parametrize("layer", [ReLU(), Sigmoid()], ids=["ReLU", "Sigmoid"])
def test_they_equal_torch(layer: Module, shape: tuple[int, ...], generator: torch.Generator) -> None:
    x, dy = signed(shape, generator), signed(shape, generator)
    assert_same(by_engine(layer, x, dy), by_torch(layer, x, dy))


def test_relu_on_its_kink_has_no_slope_and_lets_nan_through() -> None:
    x = torch.tensor([-1.0, -0.0, 0.0, 2.0, torch.nan, torch.inf])
    y, derivatives = by_engine(ReLU(), x, torch.ones(6))
    torch.testing.assert_close(y, torch.tensor([0.0, 0.0, 0.0, 2.0, torch.nan, torch.inf]), equal_nan=True)
    assert derivatives["x"].tolist()[:4] == [0, 0, 0, 1]


def test_sigmoid_far_out_is_flat_and_finite() -> None:
    y, derivatives = by_engine(Sigmoid(), torch.tensor([-1000.0, 0.0, 1000.0]), torch.ones(3))
    assert y.tolist() == [0, 0.5, 1]
    assert derivatives["x"].tolist() == [0, 0.25, 0]
