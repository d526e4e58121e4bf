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
    "Residuals in Residuals, more than are added at once": lambda g, relu: Residual(
        Residual(Residual(Residual(Conv2d(3, 3, 3, padding=1, generator=g)), Conv2d(3, 3, 1, generator=g), relu()))
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


class TestLean:
    """What adds nothing is left out: channels that the last convolution of a residual block does not read, and blocks of none others."""

    def block(self, generator: torch.Generator, used: int, bias: bool = False) -> Residual:
        last = Conv2d(48, 8, 3, padding=1, bias=bias, generator=generator)
        last.weight[:, :, torch.randperm(48, generator=generator)[used:]] = 0
        return Residual(Conv2d(8, 48, 3, padding=1, generator=generator), ReLU(), last)

    @pytest.mark.parametrize(("used", "left"), [(1, 16), (16, 16), (17, 32), (32, 32), (33, 48), (48, 48)])
    def test_a_blocks_channels_are_whole_vectors_and_its_function_the_same(self, used: int, left: int, generator: torch.Generator) -> None:
        whole = Sequential(
            Conv2d(3, 8, 1, generator=generator), Residual(self.block(generator, used), Conv2d(8, 8, 1, generator=generator))
        )
        lean, x = whole.lean(), torch.randn(2, 5, 6, 3, generator=generator)
        torch.testing.assert_close(lean(x), whole(x))
        assert [p.value.shape[-1] for p in lean.param() if p.name == "1.0.0.weight"] == [left]

    def test_a_block_of_no_channels_is_left_out(self, generator: torch.Generator) -> None:
        kept = self.block(generator, 48)
        whole = Sequential(self.block(generator, 0), Residual(kept, self.block(generator, 0)), Residual())
        lean, x = whole.lean(), torch.randn(1, 4, 4, 8, generator=generator)
        assert torch.equal(lean(x), whole(x))
        assert [p.name for p in lean.param()] == ["0.0.0.weight", "0.0.0.bias", "0.0.2.weight"]
        assert lean.layers[0].layers == (kept,)

    def test_a_block_whose_bias_is_added_stays(self, generator: torch.Generator) -> None:
        block = self.block(generator, 0, bias=True)
        block.layers[2].bias += 1
        x = torch.randn(1, 4, 4, 8, generator=generator)
        assert torch.equal(Sequential(block).lean()(x), block(x))
