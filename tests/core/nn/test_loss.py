"""MSE, L1, Charbonnier, LogMSE and Censored: values and derivatives against torch and finite differences, and what they refuse."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.nn import L1, MSE, Censored, Charbonnier, LogMSE
from tests.core.nn.errors import refused
from tests.core.nn.gradients import check_derivative

Loss = MSE | L1 | Censored | Charbonnier | LogMSE


def torch_charbonnier(epsilon: float, prediction: Tensor, target: Tensor) -> Tensor:
    return ((prediction - target) ** 2 + epsilon**2).sqrt().mean()


def torch_log_mse(floor: float, prediction: Tensor, target: Tensor) -> Tensor:
    return torch.stack([0.01 * torch.log(F.mse_loss(p, t) / floor**2 + 1) for p, t in zip(prediction, target, strict=True)]).mean()


LOSSES: dict[str, tuple[Loss, Callable[[Tensor, Tensor], Tensor]]] = {
    "MSE": (MSE(), F.mse_loss),
    "L1": (L1(), F.l1_loss),
    "Charbonnier": (Charbonnier(), lambda p, t: torch_charbonnier(1e-3, p, t)),
    "Charbonnier wide": (Charbonnier(0.5), lambda p, t: torch_charbonnier(0.5, p, t)),
    "Censored within": (Censored(0.1, 0.2), lambda p, t: F.mse_loss(p, t)),
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
    assert loss.backward(torch.full((2, 3, 4, 1), 0.5), torch.full((2, 3, 4, 1), 0.5)).count_nonzero() == 0


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
    assert -10 / math.log(10) * (value / LogMSE.FACTOR + 2 * math.log(1e-9)) == pytest.approx(30)


class TestCensored:
    def clipped(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Predictions around and outside of [0, 1], and targets of which a third each is 0, within and 1."""
        prediction = 3 * torch.rand(3, 5, 7, 3, generator=generator, dtype=torch.float64) - 1
        return prediction, (3 * torch.rand(3, 5, 7, 3, generator=generator, dtype=torch.float64) - 1).clamp(0, 1)

    @staticmethod
    def by_torch(dark: float, light: float, prediction: Tensor, target: Tensor) -> Tensor:
        likely = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1)
        below = -2 * dark**2 * likely.cdf(-prediction / dark).log()
        above = -2 * light**2 * likely.cdf((prediction - 1) / light).log()
        return torch.where(target == 0, below, torch.where(target == 1, above, (prediction - target) ** 2)).mean()

    def test_value_and_derivative_equal_torch(self, generator: torch.Generator) -> None:
        loss, (prediction, target) = Censored(0.3, 0.5), self.clipped(generator)
        assert 0.2 < (target == 0).double().mean() < 0.45
        leaf = prediction.clone().requires_grad_()
        expected = self.by_torch(0.3, 0.5, leaf, target)
        torch.testing.assert_close(loss.forward(prediction, target), expected.detach(), rtol=1e-9, atol=0)
        torch.testing.assert_close(
            loss.backward(prediction, target), torch.autograd.grad(expected, leaf)[0], rtol=1e-5, atol=1e-14
        )  # its cdf ends

    def test_the_derivative_agrees_with_finite_differences(self, generator: torch.Generator) -> None:
        loss, (prediction, target) = Censored(0.1, 0.2), self.clipped(generator)
        check_derivative("prediction", prediction, loss.backward(prediction, target), lambda: loss.forward(prediction, target), generator)

    @pytest.mark.parametrize("truth", [0.0, 0.03, 0.95, 1.0])
    def test_what_fits_clipped_noise_best_is_the_truth(self, truth: float, generator: torch.Generator) -> None:
        target = (truth + 0.1 * torch.randn(200_000, generator=generator, dtype=torch.float64)).clamp(0, 1).view(1, 1, -1, 1)
        guesses = [truth + step / 500 for step in range(-20, 21)]

        def best(loss: Loss) -> float:
            return min(guesses, key=lambda guess: loss.forward(torch.full_like(target, guess), target).item())

        assert best(Censored(0.1, 0.1)) == pytest.approx(truth, abs=0.0021)
        assert abs(best(MSE()) - truth) > 0.015

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_far_away_it_stays_finite_and_without_noise_it_is_mse(self, dtype: torch.dtype) -> None:
        prediction, target = torch.tensor([-40.0, -0.5, 0.5, 0.5, 1.5, 40]).to(dtype), torch.tensor([0.0, 0, 0, 1, 1, 1]).to(dtype)
        loss = Censored(0, 0)
        assert loss.forward(prediction, target).isfinite()
        derivative = loss.backward(prediction, target)
        expected = MSE().backward(prediction, target) * torch.tensor([0, 0, 1, 1, 0, 0])  # what lies outside fits
        torch.testing.assert_close(derivative.float(), expected.float(), rtol=1e-2, atol=1e-6)

    @pytest.mark.parametrize("name", ["dark", "light"])
    def test_a_deviation_is_not_negative(self, name: str) -> None:
        with refused(f"{name} (=-0.1) must be 0 or above: it is a deviation"):
            Censored(**{"dark": 0.1, "light": 0.1, name: -0.1})
