"""The mean of eight views beside the eight answers that it is the mean of, each view made by NumPy."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from core import Auto, Cancelled, Denoiser, Ensemble
from tests.core.made import photo, small

CPU = torch.device("cpu")
SIGMA = 25 / 255


@pytest.fixture
def denoiser(generator: torch.Generator) -> Denoiser:
    return Denoiser(small(generator), {}, "made", CPU, torch.float32)


def answers(denoiser: Denoiser, pixels: Tensor, sigma: float | None, strength: float = 1.0) -> Iterator[np.ndarray]:
    """Those to the picture and its transpose, each upside down, back to front, both or neither."""
    for order in ((0, 1, 2), (1, 0, 2)):
        for axes in ((), (0,), (1,), (0, 1)):
            seen = np.flip(pixels.numpy().transpose(order), axes).copy()
            yield np.flip(denoiser(torch.from_numpy(seen), sigma, strength).numpy(), axes).transpose(order)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (24, 24), (33, 18)])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_mean_of_the_answers_to_eight_views(denoiser: Denoiser, size: tuple[int, int], channels: int) -> None:
    noisy = photo(*size)[..., :channels]
    expected = np.mean([*answers(denoiser, noisy, SIGMA, 0.8)], 0)
    clean = Ensemble(denoiser)(noisy, SIGMA, 0.8)
    assert (clean.shape, clean.dtype) == (noisy.shape, torch.float32)
    torch.testing.assert_close(clean, torch.from_numpy(expected), atol=1e-6, rtol=0)
    assert size == (1, 1) or (clean - denoiser(noisy, SIGMA, 0.8)).abs().max() > 1e-4, "one view would do"


@pytest.mark.parametrize(("dtype", "steps"), [(torch.uint8, 255), (torch.uint16, 65535)])
def test_integers_are_rounded_once_behind_the_mean(denoiser: Denoiser, dtype: torch.dtype, steps: int) -> None:
    noisy = photo(20, 30).mul(steps).round().to(dtype)
    expected = np.mean([*answers(denoiser, noisy.float() / steps, SIGMA)], 0) * steps
    clean = Ensemble(denoiser)(noisy, SIGMA)
    assert clean.dtype == dtype
    assert (clean.double() - torch.from_numpy(expected)).abs().max() <= (0.51 if steps == 255 else 0.6)


def test_the_noise_level_is_estimated_once(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(denoiser, "estimate", lambda pixels: asked.append(pixels.shape) or 0.1)
    assert torch.equal(Ensemble(denoiser)(photo(20, 30)), Ensemble(denoiser)(photo(20, 30), 0.1))
    assert asked == [(20, 30, 3)]


def test_a_blind_network_is_told_no_level(generator: torch.Generator) -> None:
    blind, noisy = Denoiser(small(generator), {"blind": True}, "made", CPU, torch.float32), photo(20, 30)
    torch.testing.assert_close(Ensemble(blind)(noisy), torch.from_numpy(np.mean([*answers(blind, noisy, None)], 0)), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("sigma", "strength"), [(0.0, 1.0), (SIGMA, 0.0), (None, 0.0)])
def test_nothing_to_remove_changes_nothing(denoiser: Denoiser, sigma: float | None, strength: float) -> None:
    noisy = photo(20, 30)
    assert torch.equal(Ensemble(denoiser)(noisy, sigma, strength), noisy)


def test_a_clean_picture_comes_back_from_a_blind_network_as_it_is(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    blind, clean = Denoiser(small(generator), {"blind": True}, "made", CPU, torch.float32), photo(20, 30).mul(255).byte()
    monkeypatch.setattr(blind, "is_clean", lambda pixels, keep_going: True)
    assert torch.equal(Ensemble(blind)(clean), clean)


def test_it_writes_over_a_picture_and_takes_the_model_that_suits(denoiser: Denoiser) -> None:
    noisy = photo(20, 30)
    over = noisy.clone()
    several = Ensemble(Auto({"made": denoiser}, "made"))
    several.over(over, SIGMA, 1.0)
    assert torch.equal(over, Ensemble(denoiser)(noisy, SIGMA))
    assert (several.name, Ensemble(denoiser).name, several.device, several.dtype) == ("auto", "made", CPU, torch.float32)


@pytest.mark.parametrize(("sigma", "strength"), [(-0.1, 1.0), (SIGMA, -1.0), (float("nan"), 1.0)])
def test_what_the_denoiser_refuses_it_refuses(denoiser: Denoiser, sigma: float, strength: float) -> None:
    with pytest.raises(ValueError, match="must be finite and not below 0"):
        Ensemble(denoiser)(photo(8, 8), sigma, strength)


def test_it_can_be_given_up(denoiser: Denoiser) -> None:
    with pytest.raises(Cancelled):
        Ensemble(denoiser)(photo(20, 30), SIGMA, keep_going=lambda: False)
