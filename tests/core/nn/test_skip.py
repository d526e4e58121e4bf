"""Sequential, Residual and Concat: what is carried past, and the sum of the derivatives that meet again."""

from collections.abc import Callable

import pytest
import torch

from core.nn import Concat, Conv2d, DepthToSpace, Module, NearestUpsampling, ReLU, Residual, Sequential, Sigmoid
from tests.core.nn.errors import refused
from tests.core.nn.gradients import FarReLU, check_gradients
from tests.core.nn.oracles import assert_same, by_engine, by_torch

CONTAINERS: dict[str, Callable[[torch.Generator, type[ReLU]], Module]] = {
    "Sequential of nothing": lambda g, relu: Sequential(),
    "Residual of nothing": lambda g, relu: Residual(),
    "Concat of nothing": lambda g, relu: Concat(),
    "Sequential": lambda g, relu: Sequential(Conv2d(3, 4, 3, stride=(1, 2), generator=g), relu(), Conv2d(4, 2, 2, generator=g)),
    "Residual": lambda g, relu: Residual(Conv2d(3, 4, 3, padding=1, generator=g), relu(), Conv2d(4, 3, 1, bias=False, generator=g)),
    "Concat": lambda g, relu: Concat(Conv2d(3, 4, 3, padding=1, generator=g), relu()),
    "Residual in Residual": lambda g, relu: Residual(
        Residual(Conv2d(3, 3, 3, padding=1, generator=g), Sigmoid()), Conv2d(3, 12, 2, stride=2, generator=g), DepthToSpace(2)
    ),
    "Concat in Concat": lambda g, relu: Concat(
        Conv2d(3, 2, 2, stride=2, generator=g), Concat(Sigmoid()), NearestUpsampling(2), Conv2d(4, 2, 5, padding=2, generator=g)
    ),
    "Concat in Residual": lambda g, relu: Residual(Concat(Sigmoid()), Conv2d(6, 3, 1, generator=g)),
}
every_container = pytest.mark.parametrize("name", CONTAINERS)


@every_container
def test_gradients_agree_with_finite_differences_in_whole_and_last_batch(name: str, generator: torch.Generator) -> None:
    module = CONTAINERS[name](generator, FarReLU).to(dtype=torch.float64)
    for N in (3, 2):
        check_gradients(module, torch.randn(N, 4, 6, 3, generator=generator, dtype=torch.float64), generator)


@every_container
def test_containers_equal_torch_in_whole_and_last_batch(name: str, generator: torch.Generator) -> None:
    module = CONTAINERS[name](generator, ReLU).to(dtype=torch.float64)
    for N in (3, 2):
        x = torch.randn(N, 4, 6, 3, generator=generator, dtype=torch.float64)
        dy = torch.randn(module(x).shape, generator=generator, dtype=torch.float64)
        assert_same(by_engine(module, x, dy), by_torch(module, x, dy))


def test_a_residual_refuses_layers_that_change_the_shape() -> None:
    upscaled = Residual(NearestUpsampling(2))  # a picture of one pixel would be spread over the larger one without a word
    with refused("f(x) has shape (1, 2, 2, 3) and x (1, 1, 1, 3): the layers of a Residual must keep the shape"):
        upscaled(torch.zeros(1, 1, 1, 3))
