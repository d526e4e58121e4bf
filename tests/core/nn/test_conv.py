"""Conv2d and Upsampling: finite differences, torch, unfold and the definition as oracles, over kernels, strides, paddings and batches."""

from itertools import product

import pytest
import torch
from torch import Tensor

from core import kernels
from core.nn import Conv2d, NearestUpsampling, Sequential, Tape, Upsampling
from tests.core.nn.errors import refused
from tests.core.nn.gradients import check_gradients
from tests.core.nn.oracles import assert_same, by_definition, by_engine, by_torch, by_unfold

Size = int | tuple[int, int]

KERNELS: list[Size] = [1, 2, 3, 4, 5, (1, 3), (3, 2), (4, 5)]
STRIDES: list[Size] = [1, 2, 3, (2, 1), (1, 3)]
PADDINGS: list[Size] = [0, 1, 2, (2, 0), (1, 3)]
SCALES: list[Size] = [1, 2, 3, (2, 1), (3, 2)]

every_convolution = pytest.mark.parametrize(
    ("kernel", "stride", "padding", "bias"),
    [(*case, i % 2 == 0) for i, case in enumerate(product(KERNELS, STRIDES, PADDINGS))],  # 8 * 5 * 5, so each value meets both
)
every_upsampling = pytest.mark.parametrize(
    ("kernel", "scale", "padding", "bias"),
    [(*case, i % 2 == 0) for i, case in enumerate(product(KERNELS, SCALES, PADDINGS))],
)
BATCHES = (3, 2)
"""The second is an epoch's last, smaller one: the same module takes both."""


def picture(generator: torch.Generator, N: int, H: int = 7, W: int = 10, C: int = 3) -> Tensor:
    return torch.randn(N, H, W, C, generator=generator, dtype=torch.float64)


def double(layer: Conv2d, generator: torch.Generator) -> Conv2d:
    layer.to(dtype=torch.float64)
    if layer.bias is not None:
        layer.bias.uniform_(-1, 1, generator=generator)
    return layer


@every_convolution
def test_convolution_gradients_agree_with_finite_differences(
    kernel: Size, stride: Size, padding: Size, bias: bool, generator: torch.Generator
) -> None:
    layer = double(Conv2d(3, 2, kernel, stride, padding, bias=bias, generator=generator), generator)
    for N in BATCHES:
        check_gradients(layer, picture(generator, N), generator)


@every_upsampling
def test_upsampling_gradients_agree_with_finite_differences(
    kernel: Size, scale: Size, padding: Size, bias: bool, generator: torch.Generator
) -> None:
    layer = double(Upsampling(3, 2, kernel, scale, padding, bias=bias, generator=generator), generator)
    for N in BATCHES:
        check_gradients(layer, picture(generator, N, 5, 6), generator)


@every_convolution
def test_convolution_equals_torch_and_unfold(kernel: Size, stride: Size, padding: Size, bias: bool, generator: torch.Generator) -> None:
    layer = double(Conv2d(3, 2, kernel, stride, padding, bias=bias, generator=generator), generator)
    for N in BATCHES:
        x = picture(generator, N)
        dy = torch.randn(layer.forward(x).shape, generator=generator, dtype=x.dtype)
        found = by_engine(layer, x, dy)
        assert_same(found, by_torch(layer, x, dy))
        assert_same(found, by_unfold(x, layer.weight, layer.bias, layer.stride, layer.padding, dy))


@every_upsampling
def test_upsampling_equals_torch_and_its_two_steps(
    kernel: Size, scale: Size, padding: Size, bias: bool, generator: torch.Generator
) -> None:
    layer = double(Upsampling(3, 2, kernel, scale, padding, bias=bias, generator=generator), generator)
    for N in BATCHES:
        x = picture(generator, N, 5, 6)
        dy = torch.randn(layer.forward(x).shape, generator=generator, dtype=x.dtype)
        found = by_engine(layer, x, dy)
        assert_same(found, by_torch(layer, x, dy))
        if isinstance(scale, int):
            steps = Sequential(NearestUpsampling(scale), double(Conv2d(3, 2, kernel, 1, padding, bias=bias), generator))
            steps.load({"1." + name: value for name, value, _ in layer.param()})
            y, derivatives = by_engine(steps, x, dy)
            assert_same(found, (y, {name.removeprefix("1."): d for name, d in derivatives.items()}))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((2, 3), (1, 2), (1, 0)), ((3, 3), (2, 2), (1, 1)), ((1, 1), (3, 1), (0, 2)), ((4, 5), (1, 1), (0, 0))],
)
def test_convolution_is_its_definition(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], generator: torch.Generator
) -> None:
    layer = double(Conv2d(2, 2, kernel, stride, padding, generator=generator), generator)
    x = picture(generator, 2, 4, 5, 2)
    assert layer.bias is not None
    torch.testing.assert_close(layer(x), by_definition(x, layer.weight, layer.bias, stride, padding), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("H", "W"), [(1, 1), (1, 9), (8, 1), (2, 3)])
@pytest.mark.parametrize("layer", [Conv2d(3, 2, 3, 2, 1), Conv2d(3, 2, 5, 1, 2), Upsampling(3, 2, 5, 2, 2), Upsampling(3, 2, 1, 3)])
def test_the_smallest_pictures_pass(layer: Conv2d, H: int, W: int, generator: torch.Generator) -> None:
    layer.to(dtype=torch.float64)
    x = picture(generator, 1, H, W)
    dy = torch.ones_like(layer(x))
    assert_same(by_engine(layer, x, dy), by_torch(layer, x, dy))


def test_a_view_of_a_larger_picture_gives_what_its_copy_gives(generator: torch.Generator) -> None:
    x = picture(generator, 4, 12, 14, 6)[1:3, 2:9, 1::2, ::2]
    for layer in (Conv2d(3, 2, 3, 2, 1), Conv2d(3, 4, 1), Upsampling(3, 2, 5, 2, 2)):
        layer.to(dtype=torch.float64)
        dy = torch.randn(layer(x).permute(0, 3, 1, 2).shape, generator=generator, dtype=x.dtype).permute(0, 2, 3, 1)
        assert_same(by_engine(layer, x, dy), by_engine(layer, x.contiguous(), dy.contiguous()))


@pytest.mark.parametrize("gain", [1.0, 0.1])
@pytest.mark.parametrize("kind", [Conv2d, Upsampling])
def test_weights_start_uniform_within_their_bound_and_biases_at_zero(kind: type[Conv2d], gain: float, generator: torch.Generator) -> None:
    layer = kind(8, 64, (3, 5), gain=gain, generator=generator)
    assert layer.bias is not None
    assert layer.weight.shape == (3, 5, 8, 64)
    bound = gain / (3 * 5 * 8) ** 0.5
    assert 0.99 * bound < float(layer.weight.abs().max()) <= bound * (1 + 1e-6)
    assert float(layer.weight.var()) == pytest.approx(bound**2 / 3, rel=0.05)
    assert layer.bias.count_nonzero() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": 0}, "kernel (=0) must be at least 1"),
        ({"kernel": (3, 0)}, "kernel (=(3, 0)) must be at least 1"),
        ({"kernel": 3, "stride": 0}, "stride (=0) must be at least 1"),
        ({"kernel": 3, "padding": -1}, "padding (=-1) must be at least 0"),
    ],
)
def test_a_convolution_says_what_is_wrong_with_its_shape(arguments: dict[str, Size], message: str) -> None:
    with refused(message):
        Conv2d(3, 2, **arguments)  # type: ignore[arg-type]


def test_an_upsampling_says_what_is_wrong_with_its_scale() -> None:
    with refused("scale (=0) must be at least 1"):
        Upsampling(3, 2, 3, scale=0)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (Conv2d(3, 2, 3), (1, 8, 8, 4), "x has shape (1, 8, 8, 4): this layer takes (N, H, W, 3), channels last"),
        (Conv2d(3, 2, 3), (8, 8, 3), "x has shape (8, 8, 3): this layer takes (N, H, W, 3), channels last"),
        (
            Conv2d(3, 2, (1, 5), padding=1),
            (1, 8, 2, 3),
            "x gives 2 columns, with padding (=1) fewer than kernel (=5): give a larger picture or more padding",
        ),
        (
            Upsampling(3, 2, 5, 2),
            (1, 2, 8, 3),
            "x gives 4 rows, with padding (=0) fewer than kernel (=5): give a larger picture or more padding",
        ),
    ],
)
def test_a_picture_that_does_not_fit_is_refused_in_words(layer: Conv2d, shape: tuple[int, ...], message: str) -> None:
    with refused(message):
        layer(torch.zeros(shape))


def test_a_careful_layers_kernel_multiplies_in_float32_where_nothing_is_learned(generator: torch.Generator) -> None:
    careful, exact, plain = (
        Conv2d(16, 16, 3, padding=1, generator=torch.Generator().manual_seed(1), **kind).multiply_in(torch.bfloat16, torch.bfloat16)
        for kind in ({"careful": True}, {"exact": True}, {})
    )
    x = torch.randn(1, 8, 8, 16, generator=generator).bfloat16()
    there = kernels.take(torch.float32, torch.device("cpu")) is not None  # products multiply as they are told
    assert torch.equal(careful.forward(x), (exact if there else plain).forward(x))
    tapes: list[Tape] = [[], []]
    assert torch.equal(careful.forward(x, tapes[0]), plain.forward(x, tapes[1]))
    dx = [layer.backward(torch.ones(1, 8, 8, 16).bfloat16(), tape) for layer, tape in zip((careful, plain), tapes, strict=True)]
    assert torch.equal(*dx)


def test_an_exact_layer_multiplies_in_float32_and_rounds_what_it_hands_on(generator: torch.Generator) -> None:
    layers = {exact: Conv2d(16, 16, 3, padding=1, exact=exact, generator=torch.Generator().manual_seed(1)) for exact in (False, True)}
    x = torch.randn(1, 8, 8, 16, generator=generator)
    exactly = layers[True](x)
    rounded = {exact: layer.multiply_in(torch.bfloat16).forward(x) for exact, layer in layers.items()}
    assert torch.equal(rounded[True], exactly)
    torch.testing.assert_close(rounded[False], exactly, atol=0.1, rtol=0)
    layers[False].multiply_in(None)
    assert torch.equal(layers[False](x), exactly)
    assert torch.equal(layers[True].multiply_in(torch.bfloat16, torch.bfloat16).forward(x), exactly.bfloat16())
    x = x.bfloat16()
    exactly = layers[True].multiply_in(None).forward(x.float())
    assert torch.equal(layers[True].multiply_in(torch.bfloat16, torch.bfloat16).forward(x), exactly.bfloat16())
