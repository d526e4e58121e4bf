"""A network fed strip by strip gives what it gives to the whole picture, and keeps no more rows than it needs."""

import gc
import weakref

import pytest
import torch
from torch import Tensor

from core import kernels
from core.nn import Concat, Conv2d, DepthToSpace, Module, NearestUpsampling, ReLU, Residual, Sequential, Sigmoid, SpaceToDepth, Upsampling
from core.nn.stream import Rows, Stream


def networks(g: torch.Generator) -> dict[str, Module]:
    def same(C: int) -> Conv2d:
        return Conv2d(C, C, 3, padding=1, generator=g)

    def block(C: int) -> Residual:
        return Residual(same(C), ReLU(), same(C))

    return {
        "a convolution": Conv2d(4, 5, 3, padding=1, generator=g),
        "a stride of 2": Sequential(Conv2d(4, 16, 5, stride=2, padding=2, generator=g), ReLU(), Conv2d(16, 7, 2, stride=2, generator=g)),
        "without padding": Sequential(Conv2d(4, 5, 3, generator=g), Sigmoid(), Conv2d(5, 4, (3, 1), padding=(1, 0), generator=g)),
        "much padding": Conv2d(4, 5, 3, padding=4, generator=g),
        "pointwise layers alone": Sequential(ReLU(), Sigmoid()),
        "nothing": Sequential(),
        "shuffles": Sequential(SpaceToDepth(2), DepthToSpace(2), NearestUpsampling(3)),
        "a convolution shuffled": Sequential(Conv2d(4, 64, 3, padding=1, generator=g), DepthToSpace(2)),
        "a shuffle in a skip": Residual(SpaceToDepth(2), Conv2d(16, 16, 3, padding=1, generator=g), DepthToSpace(2)),
        "a ReLU last in a skip": Residual(same(4), ReLU()),
        "an identity with a skip": Residual(),
        "skips in skips, more than are added at once": Residual(Residual(Residual(Residual(same(4))))),
        "blocks": Sequential(Conv2d(4, 16, 3, padding=1, generator=g), block(16), block(16)),
        "levels": Sequential(
            Conv2d(4, 16, 3, padding=1, generator=g),
            Residual(
                block(16),
                Conv2d(16, 24, 2, stride=2, generator=g),
                Residual(
                    block(24),
                    Conv2d(24, 24, 2, stride=2, generator=g),
                    block(24),
                    Conv2d(24, 96, 1, generator=g),
                    DepthToSpace(2),
                    block(24),
                ),
                Conv2d(24, 64, 1, generator=g),
                DepthToSpace(2),
                block(16),
            ),
        ),
    }


def streamed(network: Module, x: Tensor, strips: list[int]) -> Tensor:
    stream, parts = Stream(network, *x.shape[1:]), []
    for rows in x.split(strips, 1):
        parts += [ready.clone() for ready in stream.push(rows)]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", networks(torch.Generator()))
@pytest.mark.parametrize("strips", [[36], [4] * 9, [1] * 36, [20, 16], [3, 1, 0, 28, 4], [8, 8, 8, 12]], ids=str)
def test_strips_give_what_the_whole_gives(name: str, strips: list[int], dtype: torch.dtype, generator: torch.Generator) -> None:
    network, x = networks(generator)[name].to(dtype=dtype), torch.randn(1, 36, 12, 4, generator=generator).to(dtype)
    whole = network(x)
    got = streamed(network, x, strips)
    assert got.shape == whole.shape
    torch.testing.assert_close(got, whole, atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=0)


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16], ids=str)
def test_with_kernels_they_are_the_same_to_the_bit(factors: torch.dtype, generator: torch.Generator) -> None:
    network, x = networks(generator)["levels"].multiply_in(factors), torch.randn(1, 96, 40, 4, generator=generator)
    if kernels.take(factors, x.device) is not None:
        assert torch.equal(streamed(network, x, [32] * 3), network(x))


@pytest.mark.parametrize(
    "layer", [Upsampling(4, 4, 3, padding=1), Concat(Conv2d(4, 4, 3, padding=1))], ids=lambda layer: type(layer).__name__
)
def test_a_layer_that_does_not_stream_is_refused(layer: Module) -> None:
    with pytest.raises(TypeError, match=f"^{type(layer).__name__} can't be streamed: give the whole picture to `forward`$"):
        Stream(layer, 8, 8, 4)


def test_a_skip_over_layers_that_change_the_shape_is_refused(generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match=r"the layers of a Residual must keep the shape$"):
        Stream(Residual(Conv2d(4, 5, 3, padding=1, generator=generator)), 8, 8, 4)


def test_memory_does_not_grow_with_the_picture(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    """The most rows that are ever kept, by all layers together, for a picture and for one eight times as tall."""
    kept: list[Rows] = []
    made = Rows.__init__

    def noted(self: Rows, *given: int) -> None:
        made(self, *given)
        kept.append(self)

    monkeypatch.setattr(Rows, "__init__", noted)
    totals = []
    for height in (256, 2048):
        kept.clear()
        network = networks(generator)["levels"]
        streamed(network, torch.zeros(1, height, 8, 4), [32] * (height // 32))
        totals.append(sum(rows.data.numel() for rows in kept if rows.data is not None))
    assert totals[1] == totals[0]


def test_the_last_strip_does_not_let_loose_all_that_waited(generator: torch.Generator) -> None:
    stream = Stream(networks(generator)["levels"], 512, 8, 4)
    heights = [ready.shape[1] for rows in torch.zeros(1, 512, 8, 4).split(32, 1) for ready in stream.push(rows)]
    assert max(heights) == 32
    assert sum(heights) == 512


def test_a_stream_is_forgotten_as_soon_as_it_is_dropped(generator: torch.Generator) -> None:
    gc.disable()  # so that only counting references can free it
    try:
        stream = Stream(networks(generator)["levels"], 64, 8, 4)
        list(stream.push(torch.zeros(1, 64, 8, 4)))
        kept = weakref.ref(stream)
        del stream
        assert kept() is None
    finally:
        gc.enable()
