"""Noise put on pictures, against its own statistics; noise measured in pictures, against what was put on them."""

import pytest
import torch
from torch import Tensor

from core import metrics, noise
from tests.core.made import photo


def test_added_noise_has_the_deviation_asked_for_and_no_mean(generator: torch.Generator) -> None:
    added = noise.add_gaussian(torch.full((200, 200, 3), 0.5), 0.1, generator) - 0.5
    n = added.numel()
    assert abs(added.mean().item()) < 4 * 0.1 / n**0.5
    assert added.std().item() == pytest.approx(0.1, rel=4 / (2 * n) ** 0.5)
    assert (added.abs() < 0.1).double().mean().item() == pytest.approx(0.6827, abs=0.01)
    assert (added.abs() < 0.2).double().mean().item() == pytest.approx(0.9545, abs=0.01)


def test_added_noise_is_white(generator: torch.Generator) -> None:
    added = noise.add_gaussian(torch.zeros(200, 200, 3), 1.0, generator)
    for one, other in ((added[1:], added[:-1]), (added[:, 1:], added[:, :-1]), (added[..., 0], added[..., 1])):
        assert abs((one * other).mean().item()) < 0.02


def test_added_noise_is_not_clipped(generator: torch.Generator) -> None:
    noisy = noise.add_gaussian(torch.cat((torch.zeros(50, 50, 3), torch.ones(50, 50, 3))), 0.2, generator)
    assert noisy.min() < -0.4
    assert noisy.max() > 1.4


def test_the_same_generator_adds_the_same_noise() -> None:
    clean = photo(10, 12)
    one, same, other = (noise.add_gaussian(clean, 0.1, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_no_other_source_of_chance_is_touched() -> None:
    before = torch.get_rng_state()
    noise.add_gaussian(photo(10, 12), 0.1, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_each_picture_of_a_batch_has_its_own_level(generator: torch.Generator) -> None:
    clean = torch.full((3, 100, 100, 3), 0.5)
    noisy = noise.add_gaussian(clean, torch.tensor([0.0, 0.1, 0.2]).view(3, 1, 1, 1), generator)
    assert torch.equal(noisy[0], clean[0])
    assert noisy[1].std().item() == pytest.approx(0.1, rel=0.03)
    assert noisy[2].std().item() == pytest.approx(0.2, rel=0.03)


class TestPhotographic:
    """A camera's noise, against what is known of each step."""

    def test_is_in_8bit_steps_and_leaves_the_scene_where_it_was(self, generator: torch.Generator) -> None:
        scene = photo(96, 128)
        for _ in range(8):
            noisy = noise.add_photographic(scene, generator)
            assert noisy.shape == scene.shape
            assert torch.equal(noisy, metrics.to_8bit(noisy))
            assert 0.5 / 255 < (noisy - scene).square().mean().sqrt().item() < 60 / 255
            assert (noisy - scene).mean().abs() < 0.02

    def test_a_mosaic_has_one_channel_a_pixel_and_twice_as_much_green(self) -> None:
        for turn in range(4):
            mosaic = noise._bayer(6, 8, turn)
            assert torch.equal(mosaic.sum(2), torch.ones(6, 8))
            assert mosaic.sum((0, 1)).tolist() == [12, 24, 12]

    @pytest.mark.parametrize("turn", range(4))
    def test_demosaicing_interpolates_between_what_is_there(self, turn: int) -> None:
        """A plane through the values is interpolated to itself, away from the edges."""
        y, x = torch.arange(12.0)[:, None, None], torch.arange(14.0)[:, None]
        plane = 1 + 2 * y + 3 * x + torch.tensor([0.0, 100, 200])
        mosaic = plane * noise._bayer(12, 14, turn)
        torch.testing.assert_close(noise._demosaic(mosaic)[1:-1, 1:-1], plane[1:-1, 1:-1])

    def test_a_blur_keeps_the_mean_and_has_the_deviation_asked_for(self) -> None:
        point = torch.zeros(15, 15, 1)
        point[7, 7] = 1
        spread = noise._blur(point, 0.8)[..., 0]
        distance = torch.arange(15.0) - 7
        assert spread.sum().item() == pytest.approx(1)
        assert (spread.sum(1) * distance**2).sum().item() == pytest.approx(0.64, rel=0.02)
        assert torch.allclose(spread, spread.T)

    def test_noise_of_neighbours_goes_together_as_white_noise_does_not(self, generator: torch.Generator) -> None:
        grey = torch.full((128, 128, 3), 0.4)
        together = []
        for _ in range(6):
            added = noise.add_photographic(grey, generator) - grey
            added = added - added.mean((0, 1))
            together.append(((added[1:] * added[:-1]).mean() / added.square().mean()).item())
        assert min(together) > 0.15

    def test_light_parts_are_noisier_in_raw_light(self, generator: torch.Generator) -> None:
        """Photon noise: after gamma, whose slope is known, the variance still rises with the signal."""
        halves = torch.cat((torch.full((64, 128, 3), 0.3), torch.full((64, 128, 3), 0.8)))
        ratio = 0.0
        for _ in range(8):
            added = noise.add_photographic(halves, generator)
            raw = added**noise.GAMMA
            ratio += (raw[64:].var() / raw[:64].var()).log().item() / 8
        assert ratio > 0.5


class TestEither:
    def test_the_level_told_is_that_of_what_was_added(self, generator: torch.Generator) -> None:
        clean = torch.stack([photo(64, 64, seed) for seed in range(12)])
        noisy, level = noise.add_either(clean, torch.full((12, 1, 1, 1), 0.1), 0.5, generator)
        measured = (noisy - clean).square().mean((1, 2, 3)).sqrt()
        torch.testing.assert_close(level.flatten(), measured, rtol=0.05, atol=0)
        from_camera = [torch.equal(picture, metrics.to_8bit(picture)) for picture in noisy]
        assert 2 <= sum(from_camera) <= 10
        assert all(told == pytest.approx(0.1) or camera for told, camera in zip(level.flatten().tolist(), from_camera, strict=True))

    @pytest.mark.parametrize("photographic", [0.0, 1.0])
    def test_a_grey_picture_stays_grey(self, photographic: float, generator: torch.Generator) -> None:
        clean = torch.stack((photo(32, 32), photo(32, 32)[..., :1].expand(-1, -1, 3)))
        noisy, _ = noise.add_either(clean, torch.full((2, 1, 1, 1), 0.1), photographic, generator)
        assert not torch.equal(noisy[0, ..., 0], noisy[0, ..., 1])
        assert torch.equal(noisy[1], noisy[1, ..., :1].expand(-1, -1, 3))
        assert not torch.equal(noisy[1], clean[1])

    def test_the_levels_given_are_not_changed(self, generator: torch.Generator) -> None:
        sigma = torch.full((4, 1, 1, 1), 0.1)
        noise.add_either(torch.stack([photo(32, 32)] * 4), sigma, 1.0, generator)
        assert torch.equal(sigma, torch.full((4, 1, 1, 1), 0.1))


def flat(H: int, W: int) -> Tensor:
    return torch.full((H, W, 3), 0.5)


def sky_over_a_field(H: int, W: int) -> Tensor:
    """Half smooth, half full of waves."""
    picture = photo(H, W, seed=4)
    picture[: H // 2] = torch.linspace(0.3, 0.7, H // 2)[:, None, None]
    return picture


@pytest.mark.parametrize("sigma", [5 / 255, 15 / 255, 25 / 255, 50 / 255])
@pytest.mark.parametrize("scene", [flat, photo, sky_over_a_field])
def test_the_level_is_measured_within_five_hundredths(scene, sigma: float, generator: torch.Generator) -> None:  # type: ignore[no-untyped-def]
    noisy = noise.add_gaussian(scene(128, 160), sigma, generator)
    assert noise.estimate_gaussian(noisy) == pytest.approx(sigma, rel=0.05)


@pytest.mark.parametrize("sigma", [10 / 255, 40 / 255])
def test_a_grey_picture_of_three_equal_channels_is_measured_as_well(sigma: float, generator: torch.Generator) -> None:
    noisy = noise.add_gaussian(photo(128, 160)[..., :1], sigma, generator).expand(-1, -1, 3)
    assert noise.estimate_gaussian(noisy) == pytest.approx(sigma, rel=0.05)
    assert noise.estimate_gaussian(noisy) == noise.estimate_gaussian(noisy[..., :1])


def test_a_large_picture_is_measured_on_part_of_its_patches(generator: torch.Generator) -> None:
    noisy = noise.add_gaussian(photo(300, 200), 0.1, generator)
    assert noise.estimate_gaussian(noisy, most=8000) == pytest.approx(0.1, rel=0.05)


def test_a_clean_smooth_picture_has_next_to_no_noise() -> None:
    assert noise.estimate_gaussian(flat(40, 40)) == 0
    assert noise.estimate_gaussian(photo(128, 160)) < 1 / 255


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1), (2, 2), (2, 50), (3, 5), (7, 5), (8, 8), (9, 300)])
def test_a_picture_of_any_size_has_a_level(size: tuple[int, int], generator: torch.Generator) -> None:
    level = noise.estimate_gaussian(noise.add_gaussian(flat(*size), 0.1, generator))
    assert 0 <= level < 0.3
    if min(size) == 1:
        assert level == 0


def test_the_picture_is_not_changed(generator: torch.Generator) -> None:
    noisy = noise.add_gaussian(photo(20, 20), 0.1, generator)
    before = noisy.clone()
    noise.estimate_gaussian(noisy)
    assert torch.equal(noisy, before)
