"""A network fed strip by strip gives what it gives to the whole picture, and keeps no more rows than it needs."""

import functools
import gc
import itertools
import weakref

import pytest
import torch
from torch import Tensor

import core.networks
from core import hardware, kernels
from core.kernels import Ring
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
from core.nn.stream import Convolved, Stream
from tests.core.nn.nets import gated_block


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
        "a gate": Gate(2),
        "a depthwise gate": Sequential(DepthwiseGate(2, g), RMSNorm()),
        "a depthwise gate last in a skip": Residual(Conv2d(4, 8, 1, generator=g), DepthwiseGate(4, g)),
        "gated blocks": Sequential(
            Conv2d(4, 16, 2, stride=2, generator=g),
            Residual(
                gated_block(DepthwiseGate(16, g), 16, g),
                gated_block(Gate(16), 16, g),
                Conv2d(16, 32, 2, stride=2, generator=g),
                Residual(gated_block(DepthwiseGate(32, g), 32, g), gated_block(DepthwiseGate(32, g), 32, g)),
                Conv2d(32, 64, 1, generator=g),
                DepthToSpace(2),
                gated_block(DepthwiseGate(16, g), 16, g),
            ),
        ),
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
    passage = Stream(network, strips, *x.shape[2:], x).begin()
    return torch.cat([passage.push(functools.partial(Ring.put, rows=rows)).rows().clone() for rows in x.split(strips, 1)], 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", networks(torch.Generator()))
@pytest.mark.parametrize("strips", [[36], [4] * 9, [1] * 36, [20, 16], [3, 1, 0, 28, 4], [8, 8, 8, 12]], ids=str)
def test_strips_give_what_the_whole_gives(name: str, strips: list[int], dtype: torch.dtype, generator: torch.Generator) -> None:
    network, x = networks(generator)[name].to(dtype=dtype), torch.randn(1, 36, 12, 4, generator=generator).to(dtype)
    whole = network(x)
    got = streamed(network, x, strips)
    assert got.shape == whole.shape
    torch.testing.assert_close(got, whole, atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=0)


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["levels", "gated blocks"])
def test_with_kernels_they_are_the_same_to_the_bit(name: str, factors: torch.dtype, generator: torch.Generator) -> None:
    network = networks(generator)[name].multiply_in(factors, hardware.activations(factors, torch.device("cpu")))
    x = torch.randn(1, 96, 40, 4, generator=generator)
    if kernels.take(factors, x.device) is not None:
        assert torch.equal(streamed(network, x, [32] * 3), network(x))


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("strips", [[32] * 3, [16, 64, 16]], ids=str)
def test_the_gated_denoiser_gives_the_whole_pictures_answer_to_the_bit(
    strips: list[int], factors: torch.dtype, generator: torch.Generator
) -> None:
    network = core.networks.gated(generator).multiply_in(factors, hardware.activations(factors, torch.device("cpu")))
    x = torch.rand(1, 96, 24, 4, generator=generator)
    if kernels.take(factors, x.device) is not None:
        whole = network(x)
        assert whole.shape == (1, 96, 24, 3)
        assert torch.equal(streamed(network, x, strips), whole)


@pytest.mark.parametrize(
    "layer", [Upsampling(4, 4, 3, padding=1), Concat(Conv2d(4, 4, 3, padding=1))], ids=lambda layer: type(layer).__name__
)
def test_a_layer_that_does_not_stream_is_refused(layer: Module) -> None:
    with pytest.raises(TypeError, match=f"^{type(layer).__name__} can't be streamed: give the whole picture to `forward`$"):
        Stream(layer, [8], 8, 4, torch.zeros(0))


def test_a_skip_over_layers_that_change_the_shape_is_refused(generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match=r"the layers of a Residual must keep the shape$"):
        Stream(Residual(Conv2d(4, 5, 3, padding=1, generator=generator)), [8], 8, 4, torch.zeros(0))


def test_memory_does_not_grow_with_the_picture(generator: torch.Generator) -> None:
    """All rows that are kept, by all layers together, for a picture and for one eight times as tall."""
    network = networks(generator)["levels"]
    sizes = []
    for height in (256, 2048):
        stream = Stream(network, [32] * (height // 32), 8, 4, torch.zeros(0))
        sizes.append(stream.size_bytes())
    assert sizes[1] == sizes[0]


@pytest.mark.parametrize("strips", [[32] * 8, [64, 128, 64], [8] * 32], ids=str)
def test_all_that_is_kept_fits_into_the_memory_of_a_passage(strips: list[int], generator: torch.Generator) -> None:
    """Rows of different layers lie apart from one another, and none outside of what was asked for."""
    stream = Stream(networks(generator)["levels"], strips, 8, 4, torch.zeros(0))
    memory = stream.memory()
    parts = sorted((rows.data_ptr(), rows.data_ptr() + rows.nbytes) for rows in map(memory.of, stream.every))
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(parts))
    assert [start % 64 for start, _ in parts] == [0] * len(parts)


def test_the_last_strip_does_not_let_loose_all_that_waited(generator: torch.Generator) -> None:
    stream = Stream(networks(generator)["levels"], [32] * 16, 8, 4, torch.zeros(0, dtype=torch.float64))
    heights = [work.y.stop - work.y.first for _, works, _ in stream.strips for work in works if isinstance(work, Convolved)]
    assert max(heights) == 32


def test_a_stream_is_forgotten_as_soon_as_it_is_dropped(generator: torch.Generator) -> None:
    gc.disable()  # so that only counting references can free it
    try:
        stream = Stream(networks(generator)["levels"], [64], 8, 4, torch.zeros(0))
        passage = stream.begin()
        passage.push(lambda room: room.data.zero_())
        kept = weakref.ref(stream), weakref.ref(passage)
        del stream, passage
        assert [one() for one in kept] == [None, None]
    finally:
        gc.enable()
