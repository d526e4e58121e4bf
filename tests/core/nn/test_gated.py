"""The parts of a gated block beside torch's functions and autograd: every size from one pixel, every float dtype, every device."""

import copy

import pytest
import torch
from torch import Tensor

from core.nn import DepthwiseGate, Gate, Module, RMSNorm, Tape
from core.nn.gated import EPSILON
from tests.core.nn.errors import refused
from tests.core.nn.gradients import check_gradients
from tests.core.nn.nets import gated_block
from tests.core.nn.oracles import assert_same, by_engine, by_torch

SIZES = [(1, 1), (1, 4), (5, 1), (2, 2), (3, 7), (9, 17)]
every_size = pytest.mark.parametrize("size", SIZES, ids=str)


def layers(C: int, g: torch.Generator) -> dict[str, tuple[Module, int]]:
    """Each layer for C channels out, no bias or weight of it left where it starts, and how many channels it takes."""
    made: dict[str, tuple[Module, int]] = {
        "RMSNorm": (RMSNorm(), C),
        "Gate": (Gate(C), 2 * C),
        "DepthwiseGate": (DepthwiseGate(C, g), 2 * C),
        "block": (gated_block(DepthwiseGate(C, g), C, g), C),
        "block without neighbours": (gated_block(Gate(C), C, g), C),
    }
    for module, _ in made.values():
        for _, value, _ in module.param():
            value.add_(torch.randn(value.shape, generator=g), alpha=0.2)
    return made


LAYERS = list(layers(1, torch.Generator()))
GATES = ["Gate", "DepthwiseGate"]
every_layer = pytest.mark.parametrize("name", LAYERS)
every_gate = pytest.mark.parametrize("name", GATES)


def given(channels: int, size: tuple[int, int], g: torch.Generator, N: int = 2) -> Tensor:
    return torch.randn(N, *size, channels, generator=g, dtype=torch.float64)


@every_size
@every_layer
def test_all_derivatives_agree_with_finite_differences(name: str, size: tuple[int, int], generator: torch.Generator) -> None:
    module, channels = layers(3, generator)[name]
    check_gradients(module.to(dtype=torch.float64), given(channels, size, generator), generator)


@every_size
@every_layer
def test_in_float64_outputs_and_derivatives_are_torchs(name: str, size: tuple[int, int], generator: torch.Generator) -> None:
    module, channels = layers(5, generator)[name]
    module.to(dtype=torch.float64)
    x = given(channels, size, generator)
    dy = torch.randn(module(x).shape, generator=generator, dtype=torch.float64)
    assert_same(by_engine(module, x, dy), by_torch(module, x, dy))


@pytest.mark.parametrize("C", [3, 16, 48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_size
@every_layer
def test_outputs_and_derivatives_are_torchs_but_for_the_dtypes_last_bits(
    name: str, size: tuple[int, int], dtype: torch.dtype, C: int, device: torch.device, generator: torch.Generator
) -> None:
    """Each number beside the largest of its tensor; what a layer is given and its weights are the same numbers to both."""
    module, channels = layers(C, generator)[name]
    for _, value, _ in module.param():
        value.copy_(value.to(dtype))
    x = given(channels, size, generator).to(dtype)
    dy = torch.randn(*x.shape[:3], C, generator=generator).to(dtype)
    expected = by_torch(copy.deepcopy(module).to(dtype=torch.float64), x.double(), dy.double())
    y, derivatives = by_engine(module.to(device), x.to(device), dy.to(device))
    assert (y.dtype, derivatives["x"].dtype) == (dtype, dtype)
    assert all(derivative.dtype == torch.float32 for kind, derivative in derivatives.items() if kind != "x")
    assert {t.device.type for t in (y, *derivatives.values())} == {device.type}
    layers_deep = 4 if "block" in name else 1
    found = y.cpu().double(), {kind: derivative.cpu().double() for kind, derivative in derivatives.items()}
    assert_same(found, expected, 4 * layers_deep * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_layer
def test_inference_gives_what_training_does(name: str, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> None:
    module, channels = layers(16, generator)[name]
    x = given(channels, (9, 17), generator).to(device, dtype)
    inferred, trained = module.to(device)(x), module(x, [])
    if "block" in name:  # whose normalisation is then the convolution's
        assert float((inferred - trained).norm()) <= 4 * torch.finfo(dtype).eps * float(trained.norm())
    else:
        assert torch.equal(inferred, trained)


@every_layer
def test_a_picture_gives_the_same_alone_as_in_a_batch(name: str, device: torch.device, generator: torch.Generator) -> None:
    module, channels = layers(16, generator)[name]
    x = given(channels, (9, 17), generator, 3).to(device, torch.float32)
    whole = module.to(device)(x)
    for n in range(3):
        torch.testing.assert_close(module(x[n : n + 1]), whole[n : n + 1])


@every_layer
def test_a_view_that_is_not_contiguous_is_read_as_it_looks(name: str, device: torch.device, generator: torch.Generator) -> None:
    module, channels = layers(16, generator)[name]
    module.to(device)
    x = given(channels, (17, 9), generator).to(device, torch.float32).transpose(1, 2)
    dy = torch.randn(2, 17, 9, 16, generator=generator).to(device).transpose(1, 2)
    assert not x.is_contiguous()
    assert_same(by_engine(module, x, dy), by_engine(module, x.contiguous(), dy.contiguous()), 1e-6)


@pytest.mark.parametrize("addends", [0, 1, 2, 3])
@every_layer
def test_what_is_added_is_added_to_output_and_derivative(name: str, addends: int, device: torch.device, generator: torch.Generator) -> None:
    module, channels = layers(16, generator)[name]
    module.to(device)
    x = given(channels, (3, 7), generator).to(device, torch.float32)
    dy = torch.randn(2, 3, 7, 16, generator=generator).to(device)
    y, derivatives = by_engine(module, x, dy)
    beside, under = ([torch.randn(t.shape, generator=generator).to(device) for _ in range(addends)] for t in (dy, x))
    tape: Tape = []
    torch.testing.assert_close(module.forward_then(x, tape, beside), sum(beside, y))
    torch.testing.assert_close(module.backward_then(dy, tape, under), sum(under, derivatives["x"]))
    assert tape == []


@pytest.mark.parametrize("scale", [64.0, torch.tensor(64.0)], ids=["a number", "a tensor"])
@every_gate
def test_derivatives_by_weights_are_those_of_the_loss_however_it_is_scaled(
    name: str, scale: float | Tensor, device: torch.device, generator: torch.Generator
) -> None:
    module, channels = layers(16, generator)[name]
    module.to(device)
    x = given(channels, (5, 6), generator).to(device, torch.float32)
    dy = torch.randn(2, 5, 6, 16, generator=generator).to(device)
    scale = scale.to(device) if isinstance(scale, Tensor) else scale
    _, plain = by_engine(module, x, dy)
    plain = {kind: derivative.clone() for kind, derivative in plain.items()}
    module.scale_loss(scale)
    _, scaled = by_engine(module, x, dy * scale)
    assert torch.equal(scaled.pop("x"), plain.pop("x") * scale)
    for kind, derivative in scaled.items():
        assert torch.equal(derivative, plain[kind]), kind


@every_gate
def test_a_layer_says_so_when_all_its_derivatives_are_there(name: str, generator: torch.Generator) -> None:
    module, channels = layers(3, generator)[name]
    seen: list[list[bool]] = []
    module.watch(lambda told: seen.append([p.derivative is not None for p in told.param()]))
    by_engine(module, given(channels, (3, 4), generator).float(), torch.ones(2, 3, 4, 3))
    assert seen == [[True] * len(module.param())]


def test_a_pixel_that_is_zero_stays_so_and_its_derivative_is_finite(device: torch.device) -> None:
    x = torch.zeros(1, 2, 2, 8, device=device)
    y, derivatives = by_engine(RMSNorm(), x, torch.ones_like(x))
    assert torch.equal(y, x)
    torch.testing.assert_close(derivatives["x"], torch.full_like(x, EPSILON**-0.5))


@pytest.mark.parametrize("size", [1e-2, 1.0, 1e4])
def test_a_normalised_pixel_has_a_mean_square_of_one(size: float, device: torch.device, generator: torch.Generator) -> None:
    x = (given(48, (3, 5), generator) * size).to(device, torch.float32)
    y = RMSNorm()(x)
    torch.testing.assert_close(y.square().mean(3), torch.ones(2, 3, 5, device=device), rtol=0.02, atol=0)
    torch.testing.assert_close(y, x / (x.square().mean(3, keepdim=True) + EPSILON).sqrt())


def test_float16_whose_squares_would_overflow_is_normalised(device: torch.device, generator: torch.Generator) -> None:
    x = (given(16, (3, 5), generator).sign() * 6e4).to(device, torch.float16)
    assert torch.equal(RMSNorm()(x), x.sign())


@pytest.mark.parametrize("gate", [Gate(3), DepthwiseGate(3, torch.Generator().manual_seed(1))], ids=GATES)
def test_biases_start_such_that_the_first_half_passes(gate: Gate | DepthwiseGate) -> None:
    assert gate.bias.tolist() == [0, 0, 0, 1, 1, 1]
    assert gate.bias.dtype == torch.float32


def test_a_gate_starts_as_nearly_its_first_half(generator: torch.Generator) -> None:
    x = given(6, (3, 4), generator) * 1e-3
    torch.testing.assert_close(Gate(3)(x), x[..., :3], rtol=0.01, atol=0)


def test_depthwise_weights_start_uniform_within_a_third_and_by_the_generator() -> None:
    one, same, other = (DepthwiseGate(200, torch.Generator().manual_seed(seed)).weight for seed in (1, 1, 2))
    assert one.shape == (3, 3, 400)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert -1 / 3 <= one.min() < -0.33
    assert 0.33 < one.max() <= 1 / 3
    assert one.var().item() == pytest.approx(1 / 27, rel=0.05)


@every_gate
@pytest.mark.parametrize("shape", [(2, 4, 5, 3), (2, 4, 5, 7), (4, 5, 6)], ids=str)
def test_another_number_of_channels_is_refused(name: str, shape: tuple[int, ...], device: torch.device, generator: torch.Generator) -> None:
    module, tape = layers(3, generator)[name][0].to(device), list[Tensor]()
    with refused(f"x has shape {shape}: this layer takes (N, H, W, 6), channels last"):
        module(torch.zeros(shape, device=device), tape)
    assert tape == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "edge"), [("RMSNorm", 0), ("Gate", 0), ("DepthwiseGate", 1)])
def test_what_is_no_number_stays_so_where_it_is_seen_and_nowhere_else(
    name: str, edge: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    """In what a layer is given: it reaches the outputs that see it. In `dy`: the derivatives of what it hangs on, and of all weights."""
    module, channels = layers(16, generator)[name]
    module.to(device)
    x, seen = given(channels, (9, 17), generator).to(device, dtype), torch.zeros(2, 9, 17, dtype=torch.bool, device=device)
    seen[1, 4 - edge : 5 + edge, 8 - edge : 9 + edge] = True
    dy = torch.randn(2, 9, 17, 16, generator=generator).to(device, dtype)
    spoilt, dspoilt = x.clone(), dy.clone()
    spoilt[1, 4, 8], dspoilt[1, 4, 8] = torch.nan, torch.nan
    for y in (module(spoilt), module(spoilt, [])):
        assert torch.equal(y.isnan().all(3), seen)
        assert torch.equal(y.isnan().any(3), seen)
    _, derivatives = by_engine(module, x, dspoilt)
    dx = derivatives.pop("x").isnan()
    assert torch.equal(dx.all(3), seen)
    assert torch.equal(dx.any(3), seen)
    assert all(derivative.isnan().all() for derivative in derivatives.values())
