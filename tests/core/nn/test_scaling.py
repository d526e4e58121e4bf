"""Derivatives by weights are those of the loss, however it is scaled, and in float16 none of a tiny loss are lost."""

import pytest
import torch
from torch import Tensor

from core.nn import L1, MSE, Module, Tape, scaling
from tests.core.made import small
from tests.core.nn.nets import NETWORKS, pair


def derivatives(net: Module) -> Tensor:
    return torch.cat([p.derivative.flatten() for p in net.param() if p.derivative is not None])


@pytest.mark.parametrize("network", NETWORKS)
def test_a_scaled_loss_changes_the_derivatives_between_layers_alone(network: str, generator: torch.Generator) -> None:
    net, (x, target) = NETWORKS[network](generator).to(dtype=torch.float64), pair(generator)
    seen = []
    for scale in (1.0, 64.0):
        tape: Tape = []
        dy = L1().backward(net(x, tape), target)
        net.scale_loss(scale)
        seen.append((net.backward(dy * scale, tape) / scale, derivatives(net)))
    assert torch.equal(*(dx for dx, _ in seen))
    assert torch.equal(*(dweights for _, dweights in seen))


@pytest.mark.parametrize("factors", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_only_float16_is_scaled(factors: torch.dtype, generator: torch.Generator) -> None:
    net, (x, target) = NETWORKS["unet"](generator).to(dtype=factors), pair(generator, dtype=factors)
    net.scale_loss(4.0)  # of a step before
    seen = []
    for derive in (net.derive, lambda dy, tape: scaling.derive(net, dy, tape, factors, factors)):
        tape: Tape = []
        dy = MSE().backward(net(x, tape), target)
        derive(dy, tape)
        seen.append(derivatives(net))
    assert torch.equal(seen[0] * 4, seen[1])
    assert net.loss_scale == 1


def by_float16(net: Module, x: Tensor, dy: Tensor) -> Tensor:
    net.multiply_in(torch.float16, torch.float16)
    tape: Tape = []
    net(x, tape)
    scaling.derive(net, dy, tape, torch.float16, torch.float16)
    return derivatives(net)


@pytest.fixture
def exact(generator: torch.Generator) -> tuple[Module, Tensor, Tensor, Tensor]:
    """A network, its input, the derivative of a loss that is tiny, as those of large batches are, and those by the weights, in float64."""
    net, x = small(generator), torch.rand(2, 24, 16, 4, generator=generator)
    dy = torch.randn(2, 24, 16, 3, generator=generator) * 1e-7
    tape: Tape = []
    net.to(dtype=torch.float64)(x.double(), tape)
    net.derive(dy.double(), tape)
    expected = derivatives(net)
    return net.to(dtype=torch.float32), x, dy, expected


@pytest.mark.usefixtures("float16_kernels")
def test_in_float16_a_tiny_loss_has_its_derivatives(exact: tuple[Module, Tensor, Tensor, Tensor]) -> None:
    net, x, dy, expected = exact
    assert (by_float16(net, x, dy) - expected).norm() < 0.05 * expected.norm()  # a few ReLUs are on the other side of 0


@pytest.mark.usefixtures("float16_kernels")
def test_without_the_scale_most_of_them_would_be_lost(
    exact: tuple[Module, Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x, dy, expected = exact
    monkeypatch.setattr(scaling, "LARGEST", dy.abs().max().item())
    assert (by_float16(net, x, dy) - expected).norm() > 0.3 * expected.norm()


@pytest.mark.usefixtures("float16_kernels")
@pytest.mark.parametrize("spread", [1 / 64, 16.0])
def test_the_scale_has_room_on_both_sides(
    spread: float, exact: tuple[Module, Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x, dy, _ = exact
    expected = by_float16(net, x, dy)
    monkeypatch.setattr(scaling, "LARGEST", scaling.LARGEST * spread)
    assert (by_float16(net, x, dy) - expected).norm() < 0.001 * expected.norm()


@pytest.mark.usefixtures("float16_kernels")
@pytest.mark.parametrize("worst", [float("inf"), float("nan")])
def test_in_float16_what_is_not_finite_stays_so(worst: float, exact: tuple[Module, Tensor, Tensor, Tensor]) -> None:
    net, x, dy, _ = exact
    dy[0, 3, 5, 1] = worst
    assert not by_float16(net, x, dy).isfinite().all()
    assert (by_float16(net, x, torch.zeros_like(dy)) == 0).all()
