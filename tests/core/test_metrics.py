"""PSNR against numbers on paper, SSIM against its definition written out slowly."""

import math

import pytest
import torch
from torch import Tensor

from core import metrics
from tests.core.made import photo, refused


def test_psnr_is_ten_decades_of_the_mean_squared_error() -> None:
    truth = torch.zeros(2, 2, 3)
    picture = truth.clone()
    picture[0, 0, 0] = 0.6  # 0.36 / 12 = 0.03
    assert metrics.psnr(picture, truth) == pytest.approx(15.228787452803376, abs=1e-6)
    assert metrics.psnr(truth + 0.1, truth) == pytest.approx(20.0, abs=1e-6)


def test_psnr_is_over_all_pixels_and_channels_of_all_pictures() -> None:
    truth = torch.zeros(2, 1, 1, 1)
    assert metrics.psnr(torch.tensor([0.1, 0.3]).view(2, 1, 1, 1), truth) == pytest.approx(-10 * math.log10(0.05), abs=1e-6)


def test_psnr_of_equal_pictures_is_infinite() -> None:
    assert metrics.psnr(photo(4, 4), photo(4, 4)) == math.inf


def test_psnr_of_nan_is_nan_and_never_the_best() -> None:
    assert math.isnan(metrics.psnr(torch.full((4, 4, 3), torch.nan), photo(4, 4)))


def ssim_by_the_book(x: Tensor, y: Tensor) -> float:
    """Wang et al. 2004, equations 13 to 17: every window of every channel by itself."""
    gauss = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    w = torch.tensor([[a * b for b in gauss] for a in gauss], dtype=torch.float64)
    w /= w.sum()
    H, W, C = x.shape
    values = []
    for i in range(H - 10):
        for j in range(W - 10):
            for c in range(C):
                p, q = (z[i : i + 11, j : j + 11, c].double() for z in (x, y))
                mp, mq = (w * p).sum(), (w * q).sum()
                vp, vq, cov = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum(), (w * (p - mp) * (q - mq)).sum()
                c1, c2 = 0.01**2, 0.03**2
                values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(sum(values) / len(values))


def test_ssim_is_as_the_book_says(generator: torch.Generator) -> None:
    truth = photo(14, 17)
    for picture in (truth + 0.1 * torch.randn(truth.shape, generator=generator), truth * 0.5, 1 - truth, photo(14, 17, seed=2)):
        assert metrics.ssim(picture, truth) == pytest.approx(ssim_by_the_book(picture, truth), abs=1e-9)


def test_ssim_of_equal_pictures_is_1() -> None:
    assert metrics.ssim(photo(20, 30), photo(20, 30)) == pytest.approx(1, abs=1e-12)


def test_ssim_of_a_negative_is_below_0() -> None:
    assert metrics.ssim(1 - photo(20, 30), photo(20, 30)) < 0


def test_ssim_takes_a_picture_of_one_window() -> None:
    assert metrics.ssim(photo(11, 11), photo(11, 11, 1)) == pytest.approx(ssim_by_the_book(photo(11, 11), photo(11, 11, 1)), abs=1e-9)


@pytest.mark.parametrize("size", [(10, 30), (30, 10)])
def test_ssim_refuses_a_picture_smaller_than_its_window(size: tuple[int, int]) -> None:
    with refused(ValueError, f"the picture is {size[1]}x{size[0]}: SSIM needs 11x11 pixels and more"):
        metrics.ssim(photo(*size), photo(*size))


def test_to_8bit_rounds_to_the_nearest_level_and_clamps() -> None:
    given = torch.tensor([-0.3, 0.0, 0.49 / 255, 0.51 / 255, 100.4 / 255, 100.6 / 255, 254.4 / 255, 1.0, 1.7])
    assert torch.equal(metrics.to_8bit(given), torch.tensor([0, 0, 0, 1, 100, 101, 254, 255, 255]) / 255)


def test_to_8bit_keeps_every_level() -> None:
    levels = torch.arange(256) / 255
    assert torch.equal(metrics.to_8bit(levels), levels)


def test_to_8bit_changes_no_picture_in_place() -> None:
    given = torch.tensor([-0.5, 0.3])
    metrics.to_8bit(given)
    assert torch.equal(given, torch.tensor([-0.5, 0.3]))
