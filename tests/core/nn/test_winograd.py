"""Convolutions by products at inference, F(4x4, 3x3) and the others: equal to torch's own, whatever the strips, tiles, rings and dtypes."""

import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core import kernels
from core.kernels import Ring
from core.nn import Conv2d, DepthToSpace, ReLU, Residual, Sequential, convolution, products, winograd
from core.nn.convolution import Packs
from core.nn.products import Border, Pair
from core.nn.stream import Stream

SAME: Border = (1, 1, 1, 1)
DTYPES = {  # factors, the input's, the output's: rms error and worst, of the output's rms
    (torch.float32, torch.float32, torch.float32): (3e-6, 3e-5),
    (torch.bfloat16, torch.bfloat16, torch.bfloat16): (0.015, 0.15),
    (torch.bfloat16, torch.float32, torch.float32): (0.015, 0.15),
    (torch.float32, torch.float32, torch.bfloat16): (0.0035, 0.03),
    (torch.float32, torch.bfloat16, torch.bfloat16): (0.0035, 0.03),
}
every_dtype = pytest.mark.parametrize("dtypes", DTYPES, ids=lambda dtypes: " ".join(str(t).removeprefix("torch.") for t in dtypes))


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "take", lambda factors, device: None)


def made(generator: torch.Generator, N: int, H: int, W: int, C: int, M: int, K: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias."""
    x = torch.randn(N, H, W, C, generator=generator)
    return x, torch.randn(K, K, C, M, generator=generator) / math.sqrt(K * K * C), torch.randn(M, generator=generator)


def by_torch(x: Tensor, weight: Tensor, bias: Tensor, stride: Pair, border: Border) -> Tensor:
    """torch's own, in float64."""
    top, bottom, left, right = border
    padded = F.pad(x.double(), (0, 0, left, right, top, bottom)).permute(0, 3, 1, 2)
    return F.conv2d(padded, weight.double().permute(3, 2, 0, 1), bias.double(), stride).permute(0, 2, 3, 1)


def assert_near(got: Tensor, expected: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    assert got.shape == expected.shape
    assert got.dtype == dtypes[2]
    limit, most = DTYPES[dtypes[0], dtypes[1], dtypes[2]]
    off = (got.double().cpu() - expected) / max(1e-3, expected.square().mean().sqrt().item())
    assert off.square().mean().sqrt().item() < limit * (1 if off.numel() > 1000 else 3)
    assert off.abs().max().item() < most


def assert_same_tiles(got: Tensor, expected: Tensor) -> None:
    """Sums in another order, as a library may choose for other sizes, move few roundings to bfloat16; tiles in other places most."""
    torch.testing.assert_close(got, expected, atol=1e-5 if got.dtype == torch.float32 else 0.1, rtol=0)
    assert got.dtype == torch.float32 or (got == expected).float().mean() > 0.95


@every_dtype
@pytest.mark.parametrize("channels", [(16, 32), (130, 128), (16, 12)], ids=str)
def test_every_size_and_border_gives_torchs(
    channels: Pair, dtypes: tuple[torch.dtype, ...], device: torch.device, generator: torch.Generator
) -> None:
    factors, given, yields = dtypes
    for H, W, border in [
        *((H, W, SAME) for H, W in itertools.product((1, 2, 4, 5, 11), repeat=2)),
        *((7, 9, border) for border in [(0, 0, 0, 0), (2, 2, 2, 2), (0, 3, 5, 0), (1, 0, 0, 1), (6, 0, 0, 7)]),
    ]:
        x, weight, bias = made(generator, 2, H, W, *channels)
        x = x.to(device, given)
        got = convolution.convolve(x, weight.to(device), bias.to(device), (1, 1), border, factors=factors, yields=yields, packs=Packs())
        assert_near(got, by_torch(x.cpu(), weight, bias, (1, 1), border), dtypes)


@every_dtype
@pytest.mark.parametrize(("K", "stride"), [(3, 1), (1, 1), (2, 2), (5, 2)])
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("relu", [False, True])
def test_shuffle_addends_and_relu_are_applied_in_that_order(
    K: int, stride: int, scale: int, relu: bool, dtypes: tuple[torch.dtype, ...], device: torch.device, generator: torch.Generator
) -> None:
    factors, given, yields = dtypes
    x, weight, bias = made(generator, 2, 9, 14, 16, 64, K)
    x, border = x.to(device, given), (K // 2, K // 2, K // 2, K // 2)
    expected = by_torch(x.cpu(), weight, bias, (stride, stride), border)
    expected = F.pixel_shuffle(expected.unflatten(3, (scale**2, -1)).transpose(3, 4).flatten(3).permute(0, 3, 1, 2), scale).permute(
        0, 2, 3, 1
    )
    addends = [torch.randn(expected.shape, generator=generator).to(device, yields) for _ in range(2)]
    for number in range(3):
        got = convolution.convolve(
            x, weight.to(device), bias.to(device), (stride, stride), border,
            factors=factors, yields=yields, scale=(scale, scale), addends=addends[:number], relu=relu, packs=Packs(),
        )  # fmt: skip
        total = sum((t.cpu().double() for t in addends[:number]), expected)
        assert_near(got, total.relu() if relu else total, dtypes)


@every_dtype
@pytest.mark.parametrize("channels", [(16, 32), (128, 128)], ids=str)
def test_strips_leave_no_trace(
    channels: Pair, dtypes: tuple[torch.dtype, ...], generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors, given, yields = dtypes
    x, weight, bias = made(generator, 1, 37, 22, *channels)

    def run() -> Tensor:
        return convolution.convolve(x.to(given), weight, bias, (1, 1), SAME, factors=factors, yields=yields, packs=Packs())

    whole, cut = run(), []
    at_a_time = winograd.rows
    monkeypatch.setattr(winograd, "STRIP", {"cpu": 1})
    monkeypatch.setattr(products, "STRIP_BYTES", {"cpu": 20_000})
    monkeypatch.setattr(winograd, "rows", lambda *given: cut.append(at_a_time(*given)) or cut[-1])
    assert_same_tiles(run().to(yields), whole)
    assert all(rows <= 4 for rows in cut)


def test_rows_that_wrap_around_are_read_and_written_where_they_are(generator: torch.Generator) -> None:
    x, weight, bias = made(generator, 1, 20, 12, 16, 16)
    addend = torch.randn(1, 20, 12, 16, generator=generator)
    straight = convolution.convolve(x, weight, bias, (1, 1), SAME, addends=[addend], relu=True, packs=Packs())
    rings = [Ring(torch.zeros(1, 23, 12, 16), first, 20) for first in (9, 22, 15)]
    for ring, rows in zip(rings, (x, addend), strict=False):
        ring.put(rows)
    convolution.convolve(rings[0], weight, bias, (1, 1), SAME, addends=[rings[1]], relu=True, packs=Packs(), out=rings[2])
    torch.testing.assert_close(rings[2].rows(), straight, atol=1e-5, rtol=0)
    assert bool((rings[2].data[:, 12:15] == 0).all()), "rows of the ring that are not the picture's were written"


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16], ids=str)
def test_a_streamed_network_gives_what_the_whole_picture_gives(factors: torch.dtype, threads: int, generator: torch.Generator) -> None:
    def same(C: int) -> Conv2d:
        return Conv2d(C, C, 3, padding=1, generator=generator)

    network = Sequential(
        Conv2d(4, 16, 3, padding=1, exact=True, generator=generator),
        Residual(
            Residual(same(16), ReLU(), same(16)),
            Conv2d(16, 24, 2, stride=2, generator=generator),
            Residual(same(24), ReLU(), same(24)),
            Conv2d(24, 64, 1, generator=generator),
            DepthToSpace(2),
        ),
    ).multiply_in(factors, factors)
    x = torch.randn(1, 96, 40, 4, generator=generator)
    for strips in ([32] * 3, [8] * 12, [40, 56]):
        passage = Stream(network, strips, 40, 4, x).begin()
        got = torch.cat([passage.push(functools.partial(Ring.put, rows=rows)).rows().clone() for rows in x.split(strips, 1)], 1)
        assert_same_tiles(got, network(x))


def test_weights_are_prepared_anew_when_they_have_changed(generator: torch.Generator) -> None:
    x, weight, bias = made(generator, 1, 8, 8, 16, 16)
    packs = Packs()
    before = convolution.convolve(x, weight, bias, (1, 1), SAME, packs=packs)
    weight.neg_()
    after = convolution.convolve(x, weight, -bias, (1, 1), SAME, packs=packs)
    torch.testing.assert_close(after, -before, atol=1e-5, rtol=0)


def test_training_and_float64_take_the_plain_way(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "convolve", None)
    layer, x = Conv2d(16, 16, 3, padding=1, generator=generator), torch.randn(1, 8, 8, 16, generator=generator)
    layer(x, [])
    layer.to(dtype=torch.float64)(x.double())
    with pytest.raises(TypeError):
        layer.to(dtype=torch.float32)(x)
