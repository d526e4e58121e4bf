"""Every kernel of every instruction set this machine runs, against torch's own convolution and autograd in float64; those for AMX and for
float16 on emulated ones, where it has none."""

import ctypes
import math
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core import kernels
from core.kernels import Border, Kernels, Pair, Ring
from tests.core.conftest import borrowing

EMULATED = {f"{name}, emulated": name for name in ("amx", "avx512_fp16") if name not in kernels.available()}
SETS = [*kernels.available(), *EMULATED]
each_set = pytest.mark.parametrize("own", SETS, indirect=True)
SAME: Border = (1, 1, 1, 1)


@pytest.fixture
def own(request: pytest.FixtureRequest) -> Kernels:
    if (name := EMULATED.get(request.param)) is not None:
        return Kernels(borrowing(request.getfixturevalue("emulated_amx" if name == "amx" else "emulated_float16")), name)
    return kernels.available()[request.param]


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, border: Border) -> Tensor:
    """torch's own, in float64."""
    top, bottom, left, right = border
    padded = F.pad(x.double(), (0, 0, left, right, top, bottom)).permute(0, 3, 1, 2)
    y = F.conv2d(padded, weight.double().permute(3, 2, 0, 1), None if bias is None else bias.double(), stride)
    return y.permute(0, 2, 3, 1)


def assert_near(own: Kernels, got: Tensor, expected: Tensor, roundings: int = 1) -> None:
    """As near as the rounding of factors leaves it: by root mean square, and the worst number. Few numbers may all be unlucky.

    roundings: of what is computed on the way and kept as an activation, and of the result.
    """
    assert got.shape == expected.shape
    unit = max(expected.double().square().mean().sqrt().item(), 1e-3)
    off = (got.double() - expected.double()).div(unit)
    rms, most = off.square().mean().sqrt().item(), off.abs().max().item()
    few, many = {torch.float32: (2e-6, 2e-6), torch.bfloat16: (0.04, 0.013), torch.float16: (0.025, 0.007)}[own.factors]
    limit = (many if got.numel() > 1000 else few) * roundings
    if torch.bfloat16 in (got.dtype, expected.dtype):
        limit += 0.003 * roundings
    elif torch.float16 in (got.dtype, expected.dtype):
        limit += 0.0004 * roundings
    assert rms < limit, f"rms error {rms:.2e} of the output's, limit {limit:.0e}"
    assert most < 12 * limit, f"worst error {most:.2e} of the output's rms, limit {12 * limit:.0e}"


def made(generator: torch.Generator, N: int, H: int, W: int, C: int, F: int, K: Pair) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias."""
    x = torch.randn(N, H, W, C, generator=generator)
    return x, torch.randn(*K, C, F, generator=generator) / math.sqrt(K[0] * K[1] * C), torch.randn(F, generator=generator)


def run(own: Kernels, x: Tensor, weight: Tensor, stride: Pair, border: Border, winograd: bool, **more: object) -> Tensor:
    A, B, C, F = weight.shape
    return own.convolve(x, own.pack(weight, winograd), (A, B, C, F), stride, border, winograd=winograd, **more)  # type: ignore[arg-type]


@each_set
@pytest.mark.parametrize("side", [(1, 1), (1, 7), (4, 4), (5, 3), (8, 13), (17, 22)], ids=str)
@pytest.mark.parametrize("channels", [(1, 1), (3, 5), (4, 16), (16, 64), (20, 12), (64, 64), (128, 80), (80, 128)], ids=str)
@pytest.mark.parametrize("winograd", [True, False], ids=["F(4x4, 3x3)", "direct"])
def test_a_3x3_convolution_equals_torchs(own: Kernels, side: Pair, channels: Pair, winograd: bool, generator: torch.Generator) -> None:
    x, weight, bias = made(generator, 2, *side, *channels, (3, 3))
    assert_near(own, run(own, x, weight, (1, 1), SAME, winograd, bias=bias), convolution(x, weight, bias, (1, 1), SAME))


@each_set
@pytest.mark.parametrize("channels", [(64, 64), (128, 128), (256, 256)], ids=str)
def test_enough_tiles_for_several_blocks_and_threads(own: Kernels, channels: Pair, threads: int, generator: torch.Generator) -> None:
    x, weight, bias = made(generator, 3, 30, 41, *channels, (3, 3))
    assert_near(own, run(own, x, weight, (1, 1), SAME, True, bias=bias), convolution(x, weight, bias, (1, 1), SAME))


@each_set
@pytest.mark.parametrize(
    ("kernel", "stride", "border"),
    [
        ((1, 1), (1, 1), (0, 0, 0, 0)),
        ((2, 2), (2, 2), (0, 0, 0, 0)),
        ((3, 3), (2, 2), SAME),
        ((5, 5), (2, 2), (2, 2, 2, 2)),
        ((2, 5), (1, 3), (1, 0, 4, 2)),
        ((4, 3), (2, 1), (0, 3, 0, 1)),
        ((3, 3), (1, 1), (-1, 1, 0, -2)),
        ((1, 1), (1, 1), (3, 3, 3, 3)),
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [(1, 1), (3, 32), (32, 64), (40, 12)], ids=str)
def test_any_kernel_stride_and_border_equals_torchs(
    own: Kernels, kernel: Pair, stride: Pair, border: Border, channels: Pair, threads: int, generator: torch.Generator
) -> None:
    x, weight, bias = made(generator, 2, 11, 14, *channels, kernel)
    assert_near(own, run(own, x, weight, stride, border, False, bias=bias), convolution(x, weight, bias, stride, border))


@each_set
@pytest.mark.parametrize("width", [5, 16, 17, 31, 32, 33, 47, 50, 70, 405])
@pytest.mark.parametrize("channels", [(32, 64), (40, 80), (6, 48), (64, 16), (160, 64)], ids=str)
@pytest.mark.parametrize("K", [1, 2])
def test_windows_that_are_multiplied_where_they_lie(own: Kernels, width: int, channels: Pair, K: int, generator: torch.Generator) -> None:
    x, weight, bias = made(generator, 2, 3 * K, width * K, *channels, (K, K))
    x = x.to(own.factors)
    assert_near(own, run(own, x, weight, (K, K), (0, 0, 0, 0), False, bias=bias), convolution(x, weight, bias, (K, K), (0, 0, 0, 0)))


@each_set
@pytest.mark.parametrize("border", [SAME, (0, 0, 0, 0), (2, 0, 1, 3), (-1, 1, 0, -2)], ids=str)
def test_any_border_of_the_fast_3x3_equals_torchs(own: Kernels, border: Border, generator: torch.Generator) -> None:
    x, weight, _ = made(generator, 2, 9, 12, 24, 20, (3, 3))
    assert_near(own, run(own, x, weight, (1, 1), border, True), convolution(x, weight, None, (1, 1), border))


@each_set
@pytest.mark.parametrize("winograd", [True, False], ids=["F(4x4, 3x3)", "direct"])
@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "16 bits"])
@pytest.mark.parametrize("F", [16, 20, 32], ids=lambda F: f"{F} channels")
def test_addends_relu_and_mask_are_applied_in_this_order(
    own: Kernels, winograd: bool, narrow: bool, F: int, generator: torch.Generator
) -> None:
    dtype = own.narrow if narrow else torch.float32
    x, weight, bias = made(generator, 2, 9, 6, 16, F, (3, 3))
    addend, another, mask = (torch.randn(2, 9, 6, F, generator=generator).to(dtype) for _ in range(3))
    y = run(own, x.to(dtype), weight, (1, 1), SAME, winograd, bias=bias, addends=[addend, another], relu=True, mask=mask)
    expected = (convolution(x.to(dtype), weight, bias, (1, 1), SAME) + addend + another).relu() * (mask > 0)
    assert y.dtype == dtype
    assert_near(own, y, expected.to(dtype))
    assert torch.equal(y == 0, (y == 0) | (mask <= 0))


@each_set
@pytest.mark.parametrize("winograd", [True, False], ids=["F(4x4, 3x3)", "direct"])
@pytest.mark.parametrize("F", [12, 64, 80], ids=lambda F: f"{F} channels")
@pytest.mark.parametrize("crop", [(0, 0, 0, 0), (1, 0, 1, 1)], ids=str)
def test_depth_to_space_and_crop_are_those_of_torch(own: Kernels, winograd: bool, F: int, crop: Border, generator: torch.Generator) -> None:
    x, weight, bias = made(generator, 2, 5, 7, 16, F, (3, 3))
    phases = (
        convolution(x, weight, bias, (1, 1), SAME).unflatten(3, (4, F // 4)).transpose(3, 4).flatten(3)
    )  # as torch's pixel_shuffle wants
    large = torch.pixel_shuffle(phases.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    expected = large[:, crop[0] : large.shape[1] - crop[1], crop[2] : large.shape[2] - crop[3]]
    assert_near(own, run(own, x, weight, (1, 1), SAME, winograd, bias=bias, scale=2, crop=crop), expected)


@each_set
@pytest.mark.parametrize(
    "size", [(1, 1, 1, 16, 16), (2, 9, 9, 3, 5), (2, 17, 22, 20, 12), (3, 27, 33, 64, 64), (1, 50, 45, 36, 80)], ids=str
)
@pytest.mark.parametrize("border", [SAME, (0, 2, 1, 1)], ids=str)
def test_the_gradients_of_a_3x3_convolution_equal_autograds(
    own: Kernels,
    size: tuple[int, int, int, int, int],
    border: Border,
    threads: int,
    generator: torch.Generator,
) -> None:
    x, weight, _ = made(generator, *size, (3, 3))
    x64, weight64 = x.double().requires_grad_(), weight.double().requires_grad_()
    y = convolution(x64, weight64, None, (1, 1), border)
    dy = torch.randn(y.shape, generator=generator)
    y.backward(dy.double())
    assert x64.grad is not None
    assert weight64.grad is not None
    assert_near(own, own.weight_gradient(x, dy, border), weight64.grad)
    assert torch.equal(own.weight_gradient(x, dy, border, 0.25), own.weight_gradient(x, dy, border) / 4)
    A, B, C, F = weight.shape
    around: Border = (2 - border[0], 2 - border[1], 2 - border[2], 2 - border[3])
    dx = own.convolve(dy, own.pack(weight, True, turned=True), (A, B, F, C), (1, 1), around, winograd=True)
    assert_near(own, dx, x64.grad)


@each_set
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 5, 7), (3, 8, 9), (2, 12, 15)], ids=str)
@pytest.mark.parametrize("layer", [(1, 32, 1, 64), (2, 16, 1, 48), (1, 48, 2, 64), (1, 128, 2, 256), (2, 64, 1, 128)], ids=str)
@pytest.mark.parametrize("half", [False, True], ids=["float32", "of 16 bits"])
def test_the_weight_gradient_of_windows_side_by_side_is_autograds(
    own: Kernels, size: tuple[int, int, int], layer: tuple[int, int, int, int], half: bool, threads: int, generator: torch.Generator
) -> None:
    (N, down, across), (K, C, S, channels) = size, layer
    dtype = own.narrow if half else torch.float32
    if C * K % own.lanes or channels // S % own.lanes:
        C, channels = 2 * C, 2 * channels
    x, weight, _ = made(generator, N, down * K, across * K, C, channels, (K, K))
    x = x.to(dtype)
    weight64 = weight.double().requires_grad_()
    phases = convolution(x, weight64, None, (K, K), (0, 0, 0, 0)).unflatten(3, (S, S, -1))  # (N, H, W, S, S, F)
    y = phases.transpose(2, 3).reshape(N, down * S, across * S, -1)
    dy = torch.randn(y.shape, generator=generator).to(dtype)
    y.backward(dy.double())
    assert weight64.grad is not None
    assert own.aligned(x, dy, (K, K), S)
    assert_near(own, own.windows_gradient(x, dy, (K, K), S), weight64.grad)
    assert torch.equal(own.windows_gradient(x, dy, (K, K), S, 0.25), own.windows_gradient(x, dy, (K, K), S) / 4)


@each_set
def test_windows_that_do_not_fill_the_picture_or_whole_vectors_are_not_aligned(own: Kernels) -> None:
    vector = own.lanes
    assert own.aligned(torch.empty(1, 4, 6, vector), torch.empty(1, 2, 3, vector), (2, 2))
    assert not own.aligned(torch.empty(1, 5, 6, vector), torch.empty(1, 2, 3, vector), (2, 2))
    assert not own.aligned(torch.empty(1, 4, 6, vector - 1), torch.empty(1, 2, 3, vector), (2, 2))
    assert not own.aligned(torch.empty(1, 4, 6, vector), torch.empty(1, 2, 3, vector - 4), (2, 2))
    assert not own.aligned(torch.empty(1, 4, 6, vector), torch.empty(1, 5, 6, vector), (1, 1), 2)


def given(own: Kernels, half: bool, *size: int, generator: torch.Generator) -> Tensor:
    """An activation."""
    return torch.randn(*size, generator=generator).to(own.narrow if half else torch.float32)


def wanted(x: Tensor) -> Tensor:
    """The same in float64, whose derivative is asked for."""
    return x.double().requires_grad_()


each_half = pytest.mark.parametrize("half", [False, True], ids=["float32", "of 16 bits"])


@each_set
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 5, 9), (1, 33, 17), (3, 1, 2)], ids=str)
@pytest.mark.parametrize("C", [1, 16, 35, 64, 128], ids=lambda C: f"{C} channels")
@pytest.mark.parametrize("filtered", [False, True], ids=["gate", "filtered"])
@each_half
def test_a_gate_and_its_derivatives_are_autograds(
    own: Kernels, size: tuple[int, int, int], C: int, filtered: bool, half: bool, threads: int, generator: torch.Generator
) -> None:
    x, dy = given(own, half, *size, 2 * C, generator=generator), given(own, half, *size, C, generator=generator)
    weight = torch.randn(3, 3, 2 * C, generator=generator) / 3 if filtered else None
    bias = torch.randn(2 * C, generator=generator)
    inside, weights, biases = wanted(x), None if weight is None else wanted(weight), wanted(bias)
    before = inside
    if weights is not None:
        before = F.conv2d(inside.permute(0, 3, 1, 2), weights.permute(2, 0, 1)[:, None], padding=1, groups=2 * C).permute(0, 2, 3, 1)
    multiplied = before + biases
    y, kept = own.gate(x, weight, bias, keep=filtered)
    first, second = multiplied.chunk(2, 3)
    assert_near(own, y, (first * second).detach(), 2)
    if filtered:
        assert_near(own, kept, multiplied.detach())
        multiplied = multiplied + (kept.double() - multiplied).detach()  # backward knows it as it was kept
    first, second = multiplied.chunk(2, 3)
    (first * second).backward(dy.double())
    if weight is None or weights is None:
        dx, _, dbias = own.gate_backward(dy, x, bias)
    else:
        dx, dweight, dbias = own.gate_backward(dy, kept, None, x, weight)
        assert_near(own, dweight, weights.grad, 2)
    assert_near(own, dx, inside.grad, 2)
    assert_near(own, dbias, biases.grad, 2)


@each_set
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 5, 9), (3, 1, 130)], ids=str)
@pytest.mark.parametrize("C", [1, 12, 16, 35, 64, 130], ids=lambda C: f"{C} channels")
@each_half
def test_rows_are_summed_in_float32(own: Kernels, size: tuple[int, int, int], C: int, half: bool, generator: torch.Generator) -> None:
    x = given(own, half, *size, C, generator=generator)
    sums = own.row_sums(x)
    assert sums.dtype == torch.float32
    rounded = own.factors == torch.float16 and not half  # those take float32 as float16
    torch.testing.assert_close(sums, x.double().sum(2).float(), rtol=1e-5, atol=2e-2 if rounded else 1e-4)


@each_set
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 5, 9), (1, 3, 40)], ids=str)
@pytest.mark.parametrize("C", [3, 16, 35, 64, 256], ids=lambda C: f"{C} channels")
@each_half
def test_normalised_pixels_and_their_derivative_are_autograds(
    own: Kernels, size: tuple[int, int, int], C: int, half: bool, threads: int, generator: torch.Generator
) -> None:
    x, dy, addend = (given(own, half, *size, C, generator=generator) for _ in range(3))
    inside = wanted(x)
    expected = F.rms_norm(inside, (C,), eps=1e-6)
    expected.backward(dy.double())
    y, scale = own.normalised(x, 1e-6, keep=True)
    assert_near(own, y, expected.detach())
    assert_near(own, own.normalised_backward(dy, y, scale, addend), inside.grad + addend, 3)


@each_set
@pytest.mark.parametrize("width", [1, 5, 17, 40, 405])
@pytest.mark.parametrize("channels", [(16, 32), (64, 128), (35, 20), (256, 64)], ids=str)
@each_half
def test_a_1x1_convolution_of_normalised_pixels(own: Kernels, width: int, channels: Pair, half: bool, generator: torch.Generator) -> None:
    x, (_, weight, _) = given(own, half, 2, 3, width, channels[0], generator=generator), made(generator, 1, 1, 1, *channels, (1, 1))
    got = run(own, 5 * x, weight, (1, 1), (0, 0, 0, 0), False, normal=1e-6)
    assert_near(own, got, F.rms_norm(5 * x.double(), channels[:1], eps=1e-6) @ weight[0, 0].double())


@each_set
@pytest.mark.parametrize("width", [5, 6, 11, 13, 40, 405])
@pytest.mark.parametrize("channels", [(64, 64), (35, 32), (128, 96), (16, 20)], ids=str)
@pytest.mark.parametrize("normal", [0.0, 1e-6])
def test_a_convolution_and_the_gate_at_its_store_are_both_one_after_the_other(
    own: Kernels, generator: torch.Generator, width: int, channels: tuple[int, int], normal: float
) -> None:
    C, half = channels
    x, weight, gate = made(generator, 2, 3, width, C, 2 * half, (1, 1))
    x = x.to(own.factors)
    fits = own.gates((1, 1, C, 2 * half), width, x.dtype)
    assert fits == (half % own.lanes == 0 and width >= own.grain and (own.factors != torch.bfloat16 or C % 2 == 0))
    assert not own.gates((1, 1, C, 2 * half), width, torch.float64)  # what is read is multiplied as it lies
    if not fits:
        return
    y = torch.full((2, 3, width, half), math.nan, dtype=x.dtype)
    plan = own.gated_plan(own.pack_gated(weight), (1, 1, C, 2 * half), width, gate, normal)
    plan(Ring(x, 0, 3), (0, 0), Ring(y, 0, 3))
    convolved = run(own, x, weight, (1, 1), (0, 0, 0, 0), False, normal=normal)
    gated = own.gate(convolved, None, gate)[0]
    assert y.equal(gated)
    for outputs in (own.lanes, half, half + 4):  # and another convolution behind them
        assert own.gates((1, 1, C, 2 * half), width, x.dtype, outputs) == (own.factors != torch.float16 and outputs % own.lanes == 0)
        if not own.gates((1, 1, C, 2 * half), width, x.dtype, outputs):
            continue
        last = made(generator, 1, 1, 1, half, outputs, (1, 1))[1]
        addends = [t.to(x.dtype) for t in torch.randn(2, 2, 3, width, outputs, generator=generator)]
        y = torch.full((2, 3, width, outputs), math.nan, dtype=x.dtype)
        then = own.pack(last, False), outputs
        plan = own.gated_plan(own.pack_gated(weight), (1, 1, C, 2 * half), width, gate, normal, then)
        plan(Ring(x, 0, 3), (0, 0), Ring(y, 0, 3), [Ring(t, 0, 3) for t in addends])
        assert y.equal(run(own, gated, last, (1, 1), (0, 0, 0, 0), False, addends=addends))


@each_set
@pytest.mark.parametrize("counts", [(1,), (15, 16), (40_000, 33, 1, 16_384), (16_385, 0, 70_000)], ids=str)
def test_adams_update_is_its_formula(own: Kernels, counts: tuple[int, ...], threads: int, generator: torch.Generator) -> None:
    tensors, expected, versions = [], [], []
    for count in counts:
        value, m, v, d = torch.randn(4, count, generator=generator).unbind()
        v.square_()
        expected_m, expected_v = 0.9 * m.double() + 0.1 * d.double(), 0.99 * v.double() + 0.01 * d.double() ** 2
        step = 0.01 / (1 - 0.9**7) * expected_m / ((expected_v / (1 - 0.99**7)).sqrt() + 1e-3)
        tensors.append((value, m, v, d))
        expected.append((value.double() - step, expected_m, expected_v, d.double()))
        versions.append(value._version)
    own.adam(tensors, (0.9, 0.99), 7, 0.01, 1e-3)
    for of, right, version in zip(tensors, expected, versions, strict=True):
        assert of[0]._version > version, "packed weights would be kept"
        for got, to_be in zip(of, right, strict=True):
            torch.testing.assert_close(got.double(), to_be, rtol=1e-5, atol=1e-6)


def picture(kind: torch.dtype, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Samples of that kind, with the least and the most among them, as rows of a wider picture."""
    H, W, C = size
    if kind == torch.float32:
        whole = torch.rand(H, W + 5, C, generator=generator)
    else:
        whole = torch.randint(0, int(kernels.SAMPLES[kind][1]) + 1, (H, W + 5, C), generator=generator).to(kind)
    whole[0, 0], whole[-1, -6] = 0, kernels.SAMPLES[kind][1]
    return whole[:, :W]


each_kind = pytest.mark.parametrize("kind", [*kernels.SAMPLES], ids=str)


@each_set
@each_kind
@pytest.mark.parametrize("size", [(2, 2, 3), (2, 2, 1), (4, 10, 1), (34, 50, 3), (6, 72, 3)], ids=str)
@pytest.mark.parametrize("first", [0, 3])
def test_pixels_are_laid_as_the_network_takes_them(
    own: Kernels, kind: torch.dtype, size: tuple[int, int, int], first: int, threads: int, generator: torch.Generator
) -> None:
    samples, (H, W, _) = picture(kind, size, generator), size
    ring = Ring(torch.full((1, H // 2 + 3, W // 2, 16), math.nan), first, H // 2)
    own.lay(samples, 0.25, ring)
    laid = torch.cat((samples.float().div(kernels.SAMPLES[kind][1]).expand(H, W, 3), torch.full((H, W, 1), 0.25)), 2)
    blocks = F.pixel_unshuffle(laid.permute(2, 0, 1), 2).view(4, 4, H // 2, W // 2)  # channels, places in a block
    assert torch.equal(ring.rows()[0], blocks.permute(2, 3, 1, 0).flatten(2))
    assert ring.data.isnan().sum() == 3 * (W // 2) * 16, "it wrote past its rows"


@each_set
@each_kind
@pytest.mark.parametrize("size", [(1, 1, 3), (1, 1, 1), (5, 7, 1), (33, 50, 3), (6, 70, 3)], ids=str)
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "16 bits"])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_corrections_are_added_and_samples_stay_samples(
    own: Kernels, kind: torch.dtype, size: tuple[int, int, int], grey: bool, narrow: bool, share: float, generator: torch.Generator
) -> None:
    dtype = own.narrow if narrow else torch.float32
    noisy, (H, W, C), one = picture(kind, size, generator), size, kernels.SAMPLES[kind][1]
    corrections = Ring(torch.randn(1, H + 2, W + 4, 3, generator=generator).mul(0.2).to(dtype), 4 % (H + 2), H)
    clean = torch.zeros(H, W + 1, C, dtype=kind)
    taken = own.correct(noisy, share, corrections, 3, grey, clean[:, :W], measured=True)

    x, correction = noisy.double() / one, corrections.rows()[0, :, 3 : 3 + W].double()
    correction = correction.mean(2, keepdim=True) if grey or C == 1 else correction
    expected = (x + share * correction).clamp(0, 1) * one
    got = clean[:, :W].double()
    if kind == torch.float32:
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    else:
        assert ((got - expected).abs() <= 0.5 + 1e-2).all()
        near = (got - expected).abs() < 0.49
        assert torch.equal(got[near], expected.round()[near])
    assert not clean[:, W:].any(), "it wrote past its columns"
    assert taken == pytest.approx((x - got / one).square().sum().item(), rel=1e-5)

    assert own.correct(noisy, share, corrections, 3, grey, noisy) == 0.0
    assert torch.equal(noisy, clean[:, :W])


def test_rows_that_do_not_lie_side_by_side_are_not_taken() -> None:
    assert kernels.samples_fit(torch.zeros(4, 6, 3)[1:, 2:])
    assert not kernels.samples_fit(torch.zeros(4, 6, 4)[..., :3])
    assert not kernels.samples_fit(torch.zeros(6, 4, 3).transpose(0, 1))
    assert not kernels.samples_fit(torch.zeros(4, 6, 3).flip(1)[:, ::2])
    assert not kernels.samples_fit(torch.zeros(4, 6, 3, dtype=torch.float64))


@each_set
@pytest.mark.parametrize("winograd", [True, False], ids=["F(4x4, 3x3)", "direct"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_passed_on_and_not_far(own: Kernels, winograd: bool, value: float, generator: torch.Generator) -> None:
    x, weight, bias = made(generator, 1, 20, 20, 16, 16, (3, 3))
    x[0, 9, 9, 3] = value
    lost = ~run(own, x, weight, (1, 1), SAME, winograd, bias=bias).isfinite().all(3)[0]
    assert lost[8:11, 8:11].all()  # all outputs that look at it; with F(4x4, 3x3) the rest of their tiles, too
    lost[8:12, 8:12] = False
    assert not lost.any()
    if math.isnan(value):
        assert run(own, x, weight, (1, 1), SAME, winograd, relu=True)[0, 9, 9].isnan().all()


@each_set
def test_activations_that_begin_anywhere_in_memory(own: Kernels, generator: torch.Generator) -> None:
    x, weight, _ = made(generator, 1, 9, 6, 16, 16, (3, 3))
    moved = torch.empty(x.numel() + 3)[3:].view(x.shape).copy_(x)
    assert torch.equal(run(own, moved, weight, (1, 1), SAME, True), run(own, x, weight, (1, 1), SAME, True))


@each_set
def test_the_same_bits_twice_and_with_another_number_of_threads(own: Kernels, generator: torch.Generator) -> None:
    x, weight, _ = made(generator, 2, 33, 26, 64, 64, (3, 3))
    before = torch.get_num_threads()
    results = []
    for number in (1, 2, 2):
        torch.set_num_threads(number)
        results.append((run(own, x, weight, (1, 1), SAME, True), own.weight_gradient(x, x, SAME)))
    torch.set_num_threads(before)
    for y, dweight in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(dweight, results[0][1])


def vectors_and_registers(library: Path) -> tuple[Kernels, Kernels]:
    return Kernels(borrowing(library), "avx512_bf16"), Kernels(borrowing(library), "amx")


@pytest.mark.parametrize("channels", [(16, 16), (32, 32), (48, 80), (64, 64), (100, 33), (128, 192)], ids=str)
def test_amx_sums_what_vectors_sum_in_another_order(emulated_amx: Path, channels: Pair, generator: torch.Generator) -> None:
    x, weight, _ = made(generator, 2, 21, 37, *channels, (3, 3))
    dy = torch.randn(2, 21, 37, channels[1], generator=generator)
    for what in (
        lambda own: run(own, x, weight, (1, 1), SAME, True),
        lambda own: run(own, x, weight, (2, 2), SAME, False),
        lambda own: run(own, x.bfloat16(), weight[:2, :2], (2, 2), (1, 0, 1, 0), False, yields=torch.float32),
        lambda own: run(own, x.bfloat16(), weight[:1, :1], (1, 1), (0, 0, 0, 0), False, yields=torch.float32),
        lambda own: own.weight_gradient(x, dy, SAME),
    ):
        expected, got = (what(own) for own in vectors_and_registers(emulated_amx))
        off = (got - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert off < 2e-6


def test_amx_sums_whole_numbers_exactly(emulated_amx: Path, generator: torch.Generator) -> None:
    x = torch.randint(-8, 9, (2, 5, 70, 72), generator=generator).bfloat16()
    weight = torch.randint(-8, 9, (1, 1, 72, 112), generator=generator).float()
    _, own = vectors_and_registers(emulated_amx)
    y = run(own, x, weight, (1, 1), (0, 0, 0, 0), False, yields=torch.float32)
    assert torch.equal(y.double(), convolution(x, weight, None, (1, 1), (0, 0, 0, 0)))


def test_amxs_registers_are_given_back_after_each_job(emulated_amx: Path, generator: torch.Generator) -> None:
    library = borrowing(emulated_amx)
    own = Kernels(library, "amx")
    x, weight, _ = made(generator, 1, 9, 40, 32, 32, (3, 3))
    assert library.emulated_in_use() == 0
    run(own, x, weight, (1, 1), SAME, True)
    assert library.emulated_in_use() == 0
    run(own, x, weight, (1, 1), SAME, False)
    assert library.emulated_in_use() == 0
    run(own, x.bfloat16(), weight[:1, :1], (1, 1), (0, 0, 0, 0), False)
    assert library.emulated_in_use() == 0
    own.weight_gradient(x, x, SAME)
    assert library.emulated_in_use() == 0


@pytest.mark.parametrize(
    ("lack", "refusal"),
    [
        ("absent", None),
        ("small", "its registers are smaller than 16 rows of 64 bytes"),
        ("unsaved", "the system does not save its registers"),
        ("refused", "the system refuses its registers: Operation not permitted"),
        ("wrong", "its products are not those of AVX-512"),
        ("nothing", ""),
    ],
)
def test_amx_is_taken_only_where_it_is_there_allowed_and_right(
    lack: str, refusal: str | None, emulated_amx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMULATED_AMX", lack)
    monkeypatch.delenv("CLEARFOLD_KERNEL", raising=False)
    library = borrowing(shutil.copy(emulated_amx, tmp_path))  # a copy asks its processor anew
    for name in ("avx512_fp16", "avx512_bf16", "avx512", "avx2"):  # of these the library holds the second alone
        setattr(library, f"clearfold_runs_{name}", lambda name=name: name == "avx512_bf16")
    monkeypatch.setattr(kernels, "_library", lambda: (library, ""))
    taken = ["amx", "avx512_bf16"] if refusal == "" else ["avx512_bf16"]
    assert list(kernels.available.__wrapped__()) == taken
    assert kernels.why() == f"this processor runs {', '.join(taken)}" + (f"; it has AMX, but {refusal}" if refusal else "")
    monkeypatch.setattr(kernels, "available", kernels.available.__wrapped__)
    own = kernels.take(torch.bfloat16, torch.device("cpu"))
    assert own is not None
    assert own.name == taken[0]


def test_a_compiler_too_old_for_amx_builds_the_rest(tmp_path: Path) -> None:
    if not shutil.which("cc"):
        pytest.skip("there is no compiler")
    root = Path(__file__).parents[2]
    sources = [str(root / "core/kernels" / f"{name}.c") for name in ("amx", "processor", "team")]
    built = tmp_path / "_kernels.so"
    emulated = ["-D__builtin_cpu_supports(set)=1", f"-I{root}/tests/core/emulated"]
    subprocess.run(["cc", "-DCLEARFOLD_WITHOUT_AMX", *emulated, "-fPIC", "-shared", *sources, "-o", str(built)], check=True)
    library = ctypes.CDLL(str(built))
    library.clearfold_refuses_amx.restype = ctypes.c_char_p
    assert not library.clearfold_runs_amx()
    assert library.clearfold_refuses_amx() == b"the compiler that built the kernels does not know it"


BEYOND = {
    "": r"[yz]mm|tmm|\{%k|^v",
    "avx2": r"zmm|tmm|%k[0-7]|[xy]mm(1[6-9]|2\d|3[01])",
    "avx512": r"tmm|bf16|(?<!vcvtps2)ph\b",  # a conversion that AVX-512 has had from its first processor on
    "avx512_bf16": r"tmm|ph\b",
    "avx512_fp16": r"tmm|bf16",
    "amx": r"$^",
}
"""What no function of a set holds. Without a set: what runs before the processor has been asked."""


def test_no_function_holds_an_instruction_of_another_set() -> None:
    if not shutil.which("objdump") or not (built := sorted(Path(kernels.__file__).parent.glob("_kernels*.so"))):
        pytest.skip("there is no objdump, or nothing was built")
    told = subprocess.run(["objdump", "-d", "--no-show-raw-insn", str(built[0])], capture_output=True, text=True, check=True).stdout
    code: dict[str, list[str]] = defaultdict(list)
    for line in told.splitlines():
        if name := re.match(r"[0-9a-f]+ <(.+)>:", line):
            suffix = re.search(r"_(avx2|avx512|avx512_bf16|avx512_fp16|amx)(\.|$)", name[1])
            of = suffix[1] if suffix else ""
        elif "\t" in line:
            code[of].append(line.split("\t", 1)[1])
    assert set(code) <= set(BEYOND)
    for of, lines in code.items():
        beyond = [line for line in lines if re.search(BEYOND[of], line)]
        assert beyond == [], f"functions of {of or 'no set'} hold {len(beyond)} instructions beyond it"
    for instruction in ("ldtilecfg", "tilezero", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease") if "amx" in code else ():
        assert any(line.startswith(instruction) for line in code["amx"]), f"no {instruction} in the kernels for AMX"


def in_a_process(kernel: str, code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CLEARFOLD_KERNEL": kernel}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_the_environment_forces_one_or_none() -> None:
    for name in ["none", *kernels.available()]:
        ran = in_a_process(name, "from core import kernels; print(*kernels.available())")
        assert ran.stdout.strip() == ("" if name == "none" else name), ran.stderr


def test_one_that_is_not_there_is_refused() -> None:
    usable = ", ".join(["auto", "none", *kernels.available()])
    ran = in_a_process("sse", "from core import kernels; kernels.available()")
    assert ran.stderr.splitlines()[-1] == (
        f'core.kernels.KernelError: CLEARFOLD_KERNEL = "sse" is not available here ({kernels.why()}): use {usable}'
    )
