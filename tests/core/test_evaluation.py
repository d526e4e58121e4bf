"""Figures under the published protocol, against the same figures worked out by hand with denoisers that are made up."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core import DataError, evaluation, metrics, noise
from core.evaluation import Pictures, Row
from tests.core.made import photo, refused, save


class Fake:
    """A denoiser that does as it is told, and remembers what it was given."""

    name, device, dtype = "fake", torch.device("cpu"), torch.float32

    def __init__(self, work: Callable[[Tensor], Tensor] = lambda noisy: noisy) -> None:
        self.work = work
        self.given: list[tuple[Tensor, float | None]] = []

    def __call__(self, pixels: Tensor, sigma: float | None = None, /) -> Tensor:
        self.given.append((pixels.clone(), sigma))
        return self.work(pixels)


def measure(fake: Fake, folder: Path, *given: Any, **more: Any) -> list[Row]:
    return evaluation.evaluate(fake, Pictures(folder), *given, **more)


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
    save(tmp_path / "a.png", torch.full((120, 120, 3), 100 / 255))
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
    rows = [Row(15.0, 3, 24.6, 33.5, 0.93, 0.1, 0.01, 0.02, {"a.png": 33.5}), Row(0.0, 3, math.inf, 40.0, 1, 1, 0, 0, {"a.png": math.inf})]
    monkeypatch.chdir(folder)
    told = evaluation.as_json(Fake(), Pictures(Path(".")), rows, blind=False)
    assert json.loads(json.dumps(told, allow_nan=False)) == {
        "model": "fake",
        "device": "cpu",
        "dtype": "float32",
        "set": "clean",
        "real": False,
        "sigma_known": True,
        "ensemble": False,
        "rows": [
            {"sigma": 15.0, "pictures": 3, "noisy_psnr": 24.6, "psnr": 33.5, "ssim": 0.93, "left": 0.1, "shift": 0.01, "worst_shift": 0.02}
            | {"each": {"a.png": 33.5}},
            {"sigma": 0.0, "pictures": 3, "noisy_psnr": None, "psnr": 40.0, "ssim": 1.0, "left": 1.0, "shift": 0.0, "worst_shift": 0.0}
            | {"each": {"a.png": None}},
        ],
    }
    assert evaluation.as_json(Fake(), Pictures(Path(".")), rows, blind=True)["sigma_known"] is False


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    message = f"{tmp_path} holds no picture: name a folder of clean pictures, or of pairs as x_noisy.png with x_clean.png"
    with refused(DataError, message):
        measure(Fake(), tmp_path)


def test_a_picture_too_small_to_measure_is_named(folder: Path) -> None:
    save(folder / "3.png", photo(10, 40))
    with refused(DataError, f"{folder / '3.png'} is 40x10: measure on pictures of 11x11 pixels and more"):
        measure(Fake(), folder, [15])


def test_a_broken_picture_is_named(folder: Path) -> None:
    (folder / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=rf"^{folder / '1.png'}: the file is no picture"):
        measure(Fake(), folder, [15])


class TestFigures:
    """The share of the noise left, and the move of the means, of denoisers that leave and move as much as is known."""

    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    def test_what_is_left_of_the_noise(self, folder: Path, share: float) -> None:
        truth = iter(CLEAN)

        def work(noisy: Tensor) -> Tensor:
            scene = next(truth)
            return scene + share * (noisy - scene)

        (row,) = measure(Fake(work), folder, [25])
        assert row.left == pytest.approx(share, abs=1e-3)

    def test_the_channel_that_moves_most_counts(self, folder: Path) -> None:
        moves = [torch.tensor([0.0, 1.0, -2.0]), torch.tensor([0.5, 0, 0]), torch.tensor([0, 0, 0.2])]
        answers = iter([scene + move / 255 for scene, move in zip(CLEAN, moves, strict=True)])
        (row,) = measure(Fake(lambda noisy: next(answers)), folder, [25])
        assert row.shift == pytest.approx((2 + 0.5 + 0.2) / 3, abs=1e-3)
        assert row.worst_shift == pytest.approx(2, abs=1e-3)

    def test_every_pictures_own(self, folder: Path) -> None:
        (row,) = measure(Fake(), folder, [25])
        assert list(row.each) == ["0.png", "1.png", "2.png"]
        assert sum(row.each.values()) / 3 == pytest.approx(row.psnr, abs=1e-3)


def test_a_grey_picture_gets_the_same_noise_in_all_channels(tmp_path: Path) -> None:
    save(tmp_path / "a.png", photo(64, 64)[..., :1].expand(-1, -1, 3))
    fake = Fake()
    measure(fake, tmp_path, [25])
    ((noisy, _),) = fake.given
    assert noisy.shape == (64, 64, 3)
    assert noise.is_grey(noisy)
    scene = (photo(64, 64)[..., :1] * 255).round() / 255
    assert (noisy - scene).std().item() == pytest.approx(25 / 255, rel=0.05)


class TestPairs:
    """Pictures whose noise is real: each has a clean one, by its name."""

    @pytest.fixture(params=evaluation.PAIRED, ids=str)
    def pairs(self, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
        noisy_end, clean_end = request.param
        for i, shift in enumerate((0.1, 0.02, 0.05)):
            save(tmp_path / f"{i}{clean_end}.png", photo(16, 20, seed=i))
            save(tmp_path / f"{i}{noisy_end}.png", photo(16, 20, seed=i) + shift)
        return tmp_path

    def test_their_noise_is_not_told_and_nothing_is_added(self, pairs: Path) -> None:
        fake = Fake(lambda noisy: noisy - 0.02)
        (row,) = measure(fake, pairs)
        assert (row.sigma, row.pictures) == (None, 3)
        assert [sigma for _, sigma in fake.given] == [None] * 3
        assert torch.equal(fake.given[0][0], metrics.to_8bit(photo(16, 20) + 0.1))
        assert row.noisy_psnr == pytest.approx((20 + 33.98 + 26.02) / 3, abs=0.1)
        assert row.shift == pytest.approx(0.02 * 255, abs=0.01)
        assert next(iter(row.each.values())) == pytest.approx(-20 * math.log10(0.08), abs=0.3)

    def test_a_level_that_is_given_is_told(self, pairs: Path) -> None:
        fake = Fake()
        rows = measure(fake, pairs, [12, 5])
        assert [row.sigma for row in rows] == [12.0, 5.0]
        assert [sigma for _, sigma in fake.given] == [12 / 255] * 3 + [5 / 255] * 3

    def test_a_card_says_that_they_are_real(self, pairs: Path) -> None:
        pictures = Pictures(pairs)
        key, figures = evaluation.recorded(pictures, evaluation.evaluate(Fake(), pictures), blind=False)
        assert key == f"{pairs.name}, real noise"
        assert re.fullmatch(r"\d\d\.\d\d dB, SSIM 0\.\d{4} \(before: \d\d\.\d\d dB\)", figures["not told"])

    def test_a_picture_without_its_other_makes_the_folder_one_of_clean_pictures(self, pairs: Path) -> None:
        save(pairs / "more.png", photo(16, 16))
        assert not Pictures(pairs).real
        assert len(Pictures(pairs)) == 7

    def test_every_other_pair_is_still_a_pair(self, pairs: Path) -> None:
        (whole,), (fewer,) = (evaluation.evaluate(Fake(), pictures) for pictures in (Pictures(pairs), Pictures(pairs).every(2)))
        names = list(whole.each)
        assert fewer.each == {name: whole.each[name] for name in (names[0], names[2])}

    def test_two_sizes_are_no_pair(self, tmp_path: Path) -> None:
        save(tmp_path / "a_clean.png", photo(16, 20))
        save(tmp_path / "a_noisy.png", photo(16, 21))
        with refused(DataError, f"{tmp_path / 'a_noisy.png'} is 21x16 and a_clean.png is 20x16: a pair has one size"):
            measure(Fake(), tmp_path)


def test_a_sheet_shows_worst_median_and_best(folder: Path) -> None:
    scenes = iter(CLEAN)
    pictures = Pictures(folder)
    offsets = iter([0.1, 0.3, 0.2])
    rows = evaluation.evaluate(Fake(lambda noisy: next(scenes) + next(offsets)), pictures, [25])
    assert evaluation.extremes(rows[0]) == {"worst": 1, "median": 2, "best": 0}
    shown = evaluation.shown(Fake(lambda noisy: noisy + 1), pictures, rows, blind=False)
    assert [[picture.shape for _, picture in cells] for cells in shown] == [[(16, 16, 3)] * 3, [(25, 12, 3)] * 3, [(20, 30, 3)] * 3]
    for (line, noisy), (_, denoised), (_, truth) in shown:
        assert torch.equal(denoised, noisy + 1)
        assert f"{by_hand(noisy, truth):.2f} dB" in line
    assert shown[0][0][0].startswith("worst sigma 25 ")
    assert torch.equal(shown[0][2][1], CLEAN[1])
