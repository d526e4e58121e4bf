"""Figures under the published protocol, against the same figures worked out by hand with denoisers that are made up."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from core import DataError, Denoiser, evaluation, metrics
from core.evaluation import Row
from tests.core.made import photo, refused, save


class Fake:
    """A denoiser that does as it is told, and remembers what it was given."""

    name, device, dtype = "fake", torch.device("cpu"), torch.float32

    def __init__(self, work: Callable[[Tensor], Tensor] = lambda noisy: noisy) -> None:
        self.work = work
        self.given: list[tuple[Tensor, float | None]] = []

    def __call__(self, pixels: Tensor, sigma: float | None = None) -> Tensor:
        self.given.append((pixels.clone(), sigma))
        return self.work(pixels)


def measure(fake: Fake, folder: Path, *given: Any, **more: Any) -> list[Row]:
    return evaluation.evaluate(cast(Denoiser, fake), folder, *given, **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, (H, W) in enumerate([(20, 30), (16, 16), (25, 12)]):
        save(tmp_path / "clean" / f"{i}.png", photo(H, W, seed=i))
    return tmp_path / "clean"


def clean(i: int, H: int, W: int) -> Tensor:
    return (photo(H, W, seed=i) * 255).round() / 255


CLEAN = [clean(0, 20, 30), clean(1, 16, 16), clean(2, 25, 12)]


def by_hand(picture: Tensor, truth: Tensor) -> float:
    return -10 * math.log10(((picture.double() - truth.double()) ** 2).mean().item())


def test_the_noise_is_gaussian_of_the_level_and_unclipped(tmp_path: Path) -> None:
    save(tmp_path / "black.png", torch.zeros(120, 120, 3))
    fake = Fake()
    measure(fake, tmp_path, [25])
    ((noisy, sigma),) = fake.given
    assert sigma == 25 / 255
    assert noisy.mean().abs().item() < 0.002
    assert noisy.std().item() == pytest.approx(25 / 255, rel=0.02)
    assert noisy.min() < -0.3


def test_noise_is_the_same_each_time_and_each_pictures_own(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / name, photo(16, 16))
    one, two = Fake(), Fake()
    measure(one, tmp_path, [15])
    torch.manual_seed(99)
    measure(two, tmp_path, [15])
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(one.given, two.given, strict=True))
    assert not torch.equal(one.given[0][0], one.given[1][0])


def test_figures_are_means_over_pictures_of_the_result_rounded_to_8_bits(folder: Path) -> None:
    fake = Fake(lambda noisy: 0.5 * noisy + 0.2)
    (row,) = measure(fake, folder, [25])
    noisy = [picture for picture, _ in fake.given]
    rounded = [(0.5 * picture + 0.2).clamp(0, 1).mul(255).round() / 255 for picture in noisy]
    assert (row.sigma, row.pictures) == (25.0, 3)
    assert row.noisy_psnr == pytest.approx(sum(map(by_hand, noisy, CLEAN)) / 3, abs=1e-4)
    assert row.psnr == pytest.approx(sum(map(by_hand, rounded, CLEAN)) / 3, abs=1e-4)
    assert row.ssim == pytest.approx(sum(map(metrics.ssim, rounded, CLEAN)) / 3, abs=1e-4)


def test_the_result_is_rounded_and_the_noisy_input_is_not(tmp_path: Path) -> None:
    save(tmp_path / "a.png", torch.full((40, 40, 3), 100 / 255))
    (row,) = measure(Fake(lambda noisy: torch.full_like(noisy, 100.4 / 255)), tmp_path, [0.3])
    assert row.psnr == math.inf
    assert row.noisy_psnr == pytest.approx(-20 * math.log10(0.3 / 255), abs=0.2)  # rounding would have taken it all away


def test_every_level_has_a_row_in_the_order_asked(folder: Path) -> None:
    fake = Fake()
    rows = measure(fake, folder)
    assert [row.sigma for row in rows] == [15.0, 25.0, 50.0]
    assert [sigma for _, sigma in fake.given] == [s / 255 for s in (15, 15, 15, 25, 25, 25, 50, 50, 50)]
    assert rows[0].noisy_psnr > rows[1].noisy_psnr > rows[2].noisy_psnr


def test_blind_it_is_not_told_the_level(folder: Path) -> None:
    fake = Fake()
    measure(fake, folder, [15], blind=True)
    assert [sigma for _, sigma in fake.given] == [None] * 3


def test_it_tells_how_far_it_is(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    measure(Fake(), folder, [15, 25], after_picture=lambda done, total: told.append((done, total)))
    assert told == [(i, 6) for i in range(1, 7)]


def test_as_json_it_says_what_was_measured_with_what(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(15.0, 3, 24.6, 33.5, 0.93), Row(0.0, 3, math.inf, 40.0, 1.0)]
    monkeypatch.chdir(folder)
    told = evaluation.as_json(cast(Denoiser, Fake()), Path("."), rows, blind=False)
    assert json.loads(json.dumps(told, allow_nan=False)) == {
        "model": "fake",
        "device": "cpu",
        "dtype": "float32",
        "set": "clean",
        "sigma_known": True,
        "rows": [
            {"sigma": 15.0, "pictures": 3, "noisy_psnr": 24.6, "psnr": 33.5, "ssim": 0.93},
            {"sigma": 0.0, "pictures": 3, "noisy_psnr": None, "psnr": 40.0, "ssim": 1.0},
        ],
    }
    assert evaluation.as_json(cast(Denoiser, Fake()), Path("."), rows, blind=True)["sigma_known"] is False


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with refused(DataError, f"{tmp_path} holds no picture: name a folder of clean pictures"):
        measure(Fake(), tmp_path)


def test_a_picture_too_small_to_measure_is_named(folder: Path) -> None:
    save(folder / "3.png", photo(10, 40))
    with refused(DataError, f"{folder / '3.png'} is 40x10: measure on pictures of 11x11 pixels and more"):
        measure(Fake(), folder, [15])


def test_a_broken_picture_is_named(folder: Path) -> None:
    (folder / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=rf"^{folder / '1.png'}: the file is no picture"):
        measure(Fake(), folder, [15])
