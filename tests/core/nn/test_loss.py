"""MSE, L1, Charbonnier and LogMSE: values and derivatives against torch and finite differences, and what they refuse."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.nn import L1, MSE, Charbonnier, LogMSE
from tests.core.nn.errors import refused
from tests.core.nn.gradients import check_derivative

Loss = MSE | L1 | Charbonnier | LogMSE


def torch_charbonnier(epsilon: float, prediction: Tensor, target: Tensor) -> Tensor:
    return ((prediction - target) ** 2 + epsilon**2).sqrt().mean()


def torch_log_mse(floor: float, prediction: Tensor, target: Tensor) -> Tensor:
    return torch.stack([0.01 * torch.log(F.mse_loss(p, t) + floor**2) for p, t in zip(prediction, target, strict=True)]).mean()


LOSSES: dict[str, tuple[Loss, Callable[[Tensor, Tensor], Tensor]]] = {
    "MSE": (MSE(), F.mse_loss),
    "L1": (L1(), F.l1_loss),
    "Charbonnier": (Charbonnier(), lambda p, t: torch_charbonnier(1e-3, p, t)),
    "Charbonnier wide": (Charbonnier(0.5), lambda p, t: torch_charbonnier(0.5, p, t)),
    "LogMSE": (LogMSE(), lambda p, t: torch_log_mse(0.5 / 255, p, t)),
    "LogMSE wide": (LogMSE(0.5), lambda p, t: torch_log_mse(0.5, p, t)),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
BATCHES = (3, 2)


def apart(generator: torch.Generator, N: int) -> tuple[Tensor, Tensor]:
    """Two batches that differ by 0.1 and more everywhere, either way."""
    target, gap, side = torch.rand(3, N, 5, 7, 3, generator=generator, dtype=torch.float64)
    return target + (0.1 + gap) * torch.where(side < 0.5, -1.0, 1.0), target


@every_loss
def test_the_derivative_agrees_with_finite_differences_in_whole_and_last_batch(name: str, generator: torch.Generator) -> None:
    loss = LOSSES[name][0]
    for N in BATCHES:
        prediction, target = apart(generator, N)
        derivative = loss.backward(prediction, target)
        check_derivative("prediction", prediction, derivative, lambda: loss.forward(prediction, target), generator)  # noqa: B023


@every_loss
def test_value_and_derivative_equal_torch_in_whole_and_last_batch(name: str, generator: torch.Generator) -> None:
    loss, by_torch = LOSSES[name]
    for N in BATCHES:
        prediction, target = apart(generator, N)
        leaf = prediction.clone().requires_grad_()
        expected = by_torch(leaf, target)
        torch.testing.assert_close(loss.forward(prediction, target), expected.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(loss.backward(prediction, target), torch.autograd.grad(expected, leaf)[0], rtol=1e-12, atol=0)


@every_loss
def test_the_derivative_of_equal_pictures_is_zero(name: str) -> None:
    loss = LOSSES[name][0]
    assert loss.backward(torch.ones(2, 3, 4, 1), torch.ones(2, 3, 4, 1)).count_nonzero() == 0


@every_loss
def test_a_loss_in_bfloat16_is_summed_in_float64(name: str, device: torch.device, generator: torch.Generator) -> None:
    loss = LOSSES[name][0]
    prediction, target = (t.to(device, torch.bfloat16) for t in apart(generator, 40))
    value, derivative = loss.forward(prediction, target), loss.backward(prediction, target)
    assert (value.dtype, derivative.dtype) == (torch.float64, torch.bfloat16)
    torch.testing.assert_close(value, loss.forward(prediction.double(), target.double()), rtol=1e-5, atol=0)
    torch.testing.assert_close(derivative.double(), loss.backward(prediction.double(), target.double()), rtol=2**-8, atol=0)


@every_loss
def test_shapes_that_differ_are_refused_in_words(name: str) -> None:
    loss = LOSSES[name][0]
    for step in (loss.forward, loss.backward):
        with refused("prediction has shape (2, 4, 4, 3) and target (2, 4, 4, 1): they must be equal"):
            step(torch.zeros(2, 4, 4, 3), torch.zeros(2, 4, 4, 1))


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan")])
def test_charbonnier_needs_an_epsilon(epsilon: float) -> None:
    with refused(f"epsilon (={epsilon}) must be above 0: use L1 for the loss without it"):
        Charbonnier(epsilon)


@pytest.mark.parametrize("floor", [0.0, -1.0, float("nan")])
def test_log_mse_needs_a_floor(floor: float) -> None:
    with refused(f"floor (={floor}) must be above 0: try 0.002, half an 8-bit step"):
        LogMSE(floor)


def test_log_mse_tells_the_mean_psnr() -> None:
    """Two pictures of 20 and 40 dB: 30 dB in the mean, whatever their mean square error."""
    target = torch.zeros(2, 8, 8, 3, dtype=torch.float64)
    prediction = target + torch.tensor([0.1, 0.01], dtype=torch.float64).view(2, 1, 1, 1)
    value = LogMSE(floor=1e-9).forward(prediction, target).item()
    assert -value / LogMSE.FACTOR * 10 / math.log(10) == pytest.approx(30)
