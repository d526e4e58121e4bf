"""Every kernel of every instruction set this machine runs, against torch's own convolution and autograd in float64."""

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core import kernels
from core.kernels import Border, Kernels, Pair

each_set = pytest.mark.parametrize("own", kernels.available().values(), ids=lambda own: own.name)
SAME: Border = (1, 1, 1, 1)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, border: Border) -> Tensor:
    """torch's own, in float64."""
    top, bottom, left, right = border
    padded = F.pad(x.double(), (0, 0, left, right, top, bottom)).permute(0, 3, 1, 2)
    y = F.conv2d(padded, weight.double().permute(3, 2, 0, 1), None if bias is None else bias.double(), stride)
    return y.permute(0, 2, 3, 1)


def assert_near(own: Kernels, got: Tensor, expected: Tensor) -> None:
    """As near as the rounding of factors leaves it: by root mean square, and the worst number. Few numbers may all be unlucky."""
    assert got.shape == expected.shape
    unit = max(expected.double().square().mean().sqrt().item(), 1e-3)
    off = (got.double() - expected.double()).div(unit)
    rms, most = off.square().mean().sqrt().item(), off.abs().max().item()
    limit = (0.013 if got.numel() > 1000 else 0.04) if own.factors == torch.bfloat16 else 2e-6
    if torch.bfloat16 in (got.dtype, expected.dtype):
        limit += 0.003
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
@pytest.mark.parametrize("border", [SAME, (0, 0, 0, 0), (2, 0, 1, 3), (-1, 1, 0, -2)], ids=str)
def test_any_border_of_the_fast_3x3_equals_torchs(own: Kernels, border: Border, generator: torch.Generator) -> None:
    x, weight, _ = made(generator, 2, 9, 12, 24, 20, (3, 3))
    assert_near(own, run(own, x, weight, (1, 1), border, True), convolution(x, weight, None, (1, 1), border))


@each_set
@pytest.mark.parametrize("winograd", [True, False], ids=["F(4x4, 3x3)", "direct"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("F", [16, 20], ids=["whole vectors", "a tail"])
def test_addends_relu_and_mask_are_applied_in_this_order(
    own: Kernels, winograd: bool, dtype: torch.dtype, F: int, generator: torch.Generator
) -> None:
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
    A, B, C, F = weight.shape
    around: Border = (2 - border[0], 2 - border[1], 2 - border[2], 2 - border[3])
    dx = own.convolve(dy, own.pack(weight, True, turned=True), (A, B, F, C), (1, 1), around, winograd=True)
    assert_near(own, dx, x64.grad)


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
