"""The choice between models, on pictures whose noise is known."""

import pytest
import torch

from core import noise
from core.choice import choose
from tests.core.made import photo

BOTH = ("gaussian", "mine", "photo")


@pytest.mark.parametrize("sigma", [3 / 255, 10 / 255, 40 / 255])
def test_white_noise_is_the_gaussian_models(sigma: float, generator: torch.Generator) -> None:
    choice = choose(noise.add_gaussian(photo(160, 200), sigma, generator), BOTH, "mine")
    assert choice.model == "gaussian"
    assert choice.reason.startswith("white noise: ")
    assert float(choice.reason.split()[2]) == pytest.approx(255 * sigma, rel=0.05)


def test_noise_that_goes_over_pixels_is_the_blind_models(generator: torch.Generator) -> None:
    spread = torch.randn(200, 240, 3, generator=generator)
    spread = spread + spread.roll(1, 0)
    noisy = photo(200, 240) + 0.05 * (spread + spread.roll(1, 1))
    choice = choose(noisy, BOTH, "mine")
    assert choice.model == "photo"
    assert choice.reason.startswith("noise is not white: ") or choice.reason.startswith("no white noise: ")


def test_a_picture_without_white_noise_is_the_blind_models() -> None:
    assert choose(photo(100, 120), BOTH, "mine") == ("photo", "no white noise: 0.0 of 255")


@pytest.mark.parametrize(
    ("models", "missing"), [(["gaussian"], "photo"), (["photo", "mine"], "gaussian"), (["mine"], "gaussian and photo")]
)
def test_without_both_it_is_the_default(models: list[str], missing: str) -> None:
    assert choose(photo(20, 20), models, models[0]) == (models[0], f"no {missing} to choose from")


def test_the_finer_ones_are_taken_where_they_are_there(generator: torch.Generator) -> None:
    models = ["photo", "gaussian", "photo-fine", "gaussian-fine", "large"]
    assert choose(photo(100, 120), models, "photo").model == "photo-fine"
    assert choose(noise.add_gaussian(photo(100, 120), 0.1, generator), models, "photo").model == "gaussian-fine"
    assert choose(photo(100, 120), models[1:], "gaussian").model == "photo-fine"


def test_a_reason_fits_into_a_header(generator: torch.Generator) -> None:
    for picture in (photo(64, 64), noise.add_gaussian(photo(64, 64), 0.1, generator), torch.zeros(1, 1, 3)):
        reason = choose(picture, BOTH, "mine").reason
        assert reason.isascii()
        assert reason.isprintable()
