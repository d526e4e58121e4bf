"""Noise put on pictures, against its own statistics; noise measured in pictures, against what was put on them."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
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
        scenes = photo(96, 128).expand(8, -1, -1, -1)
        noisy, _ = noise.add_photographic(scenes, generator)
        assert noisy.shape == scenes.shape
        assert torch.equal(noisy, metrics.to_8bit(noisy))
        added = noisy - scenes
        assert (added.square().mean((1, 2, 3)).sqrt() > 0.5 / 255).all()
        assert (added.square().mean((1, 2, 3)).sqrt() < 60 / 255).all()
        assert (added.mean((1, 2, 3)).abs() < 0.02).all()

    def test_brightens_and_darkens_nothing(self, generator: torch.Generator) -> None:
        """Gamma bends noise towards the dark; only what turns its sign with the noise is taken."""
        added = noise.add_photographic(torch.full((48, 64, 64, 3), 0.5), generator)[0] - 0.5
        assert added.mean().abs() < 0.15 / 255

    def test_leaves_the_scene_that_it_is_given(self, generator: torch.Generator) -> None:
        scenes = photo(16, 24)[None]
        before = scenes.clone()
        noise.add_photographic(scenes, generator)
        assert torch.equal(scenes, before)

    def test_makes_nothing_of_no_pictures(self, generator: torch.Generator) -> None:
        assert [t.shape for t in noise.add_photographic(torch.empty(0, 16, 24, 3), generator)] == [(0, 16, 24, 3)] * 2

    def test_a_mosaic_has_one_channel_a_pixel_and_twice_as_much_green(self) -> None:
        mosaics = noise._bayer(6, 8)
        assert torch.equal(mosaics.sum(1), torch.ones(4, 6, 8))
        assert mosaics.sum((2, 3)).tolist() == [[12, 24, 12]] * 4
        assert len({tuple(mosaic[0].flatten().tolist()) for mosaic in mosaics}) == 4

    def test_demosaicing_interpolates_between_what_is_there(self) -> None:
        """A plane through the values is interpolated to itself, away from the edges."""
        y, x = torch.arange(12.0)[:, None], torch.arange(14.0)
        plane = 1 + 2 * y + 3 * x + torch.tensor([0.0, 100, 200])[:, None, None]
        restored = noise._demosaic(plane * noise._bayer(12, 14))
        torch.testing.assert_close(restored[..., 1:-1, 1:-1], plane[:, 1:-1, 1:-1].expand(4, -1, -1, -1))

    def test_a_colour_matrix_adds_what_its_rows_say(self, generator: torch.Generator) -> None:
        added = torch.randn(1, 3, 8, 8, generator=generator)
        m = 0.2
        matrix = (1 + 3 * m) * torch.eye(3) - m
        zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        mixed = noise._reduced(added, one + 3 * m, zero, zero, zero, zero)
        torch.testing.assert_close(mixed, torch.einsum("cd,ndhw->nchw", matrix, added), atol=1e-5, rtol=1e-4)

    def test_noise_reduction_blurs_lightness_and_colours_each_as_far_as_told(self) -> None:
        point = torch.zeros(2, 3, 31, 41)
        point[:, 0, 15, 20] = 3
        zero, one = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
        spread = noise._reduced(point, one, 0.8 * one, torch.tensor([0.0, 1.5]).view(2, 1, 1, 1), zero, zero)
        assert (spread.sum((2, 3)) - torch.tensor([3.0, 0, 0])).abs().max() < 1e-4
        distance = torch.arange(31.0) - 15
        for plane, variances in ((spread.mean(1), (0.64, 0.64)), (spread[:, 0] - spread[:, 1], (0.64, 0.64 + 2.25))):
            measured = (plane.sum(2) * distance**2).sum(1) / plane.sum((1, 2))
            assert measured.tolist() == pytest.approx(variances, rel=0.02)

    def test_no_weight_of_a_blur_is_so_small_that_processors_are_slow_at_it(self) -> None:
        deviation = torch.linspace(0, 4, 400).view(-1, 1, 1, 1)
        weights = noise._smoothers(96, deviation, deviation, deviation / 4)
        assert weights.sum(2).sub(1).abs().max() < 1e-5
        assert weights[weights != 0].abs().min() > 1e-30

    def test_sharpening_keeps_the_mean_and_raises_what_changes_from_pixel_to_pixel(self) -> None:
        board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2 - 0.5).expand(1, 3, 16, 16) + 3
        zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        sharp = noise._reduced(board, one, zero, zero, 0.5 * one, zero)
        assert sharp.mean().item() == pytest.approx(3, rel=1e-4)
        passed = math.exp(-(math.pi**2) / 2)  # of the quickest wave, by a blur of one pixel
        assert (sharp.std() / board.std()).item() == pytest.approx((1.5 - 0.5 * passed) ** 2, rel=0.02)

    def test_the_level_is_kept_as_far_as_told(self, generator: torch.Generator) -> None:
        added = torch.randn(1, 3, 64, 64, generator=generator).expand(3, -1, -1, -1)
        one = torch.ones(3, 1, 1, 1)
        reduced = noise._reduced(added, one, one, one, 0 * one, torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1))
        fallen, half, kept = (reduced.square().mean((1, 2, 3)) / added.square().mean((1, 2, 3))).sqrt().tolist()
        assert kept == pytest.approx(1, rel=1e-3)
        assert half == pytest.approx(fallen**0.5, rel=1e-3)
        assert fallen < 0.35

    def test_texture_is_spared_and_even_parts_are_not(self, generator: torch.Generator) -> None:
        """Left even, right a board of squares whose lightness deviates by twice as much as what is half spared."""
        squares = (torch.arange(64)[:, None] // 2 + torch.arange(64) // 2) % 2 - 0.5
        scene = (0.5 + torch.cat((torch.zeros(64, 64), 0.16 * squares), 1)).view(1, 64, 128, 1).expand(2, -1, -1, 3)
        flat = torch.tensor([0.25, 1.0]).view(2, 1, 1, 1)
        share, seen = noise._spared(scene, flat, torch.full_like(flat, 0.04))
        assert share.shape == (2, 1, 64, 128)
        assert share[0, 0, :, 16:48].flatten().tolist() == pytest.approx([0.25] * 64 * 32, abs=0.01)
        assert share[0, 0, 16:48, 80:112].mean().item() == pytest.approx(0.25 + 0.75 * 4 / 5, abs=0.02)
        assert share[1].flatten().tolist() == pytest.approx([1.0] * 64 * 128)
        torch.testing.assert_close(seen[1], scene[1])
        left = (seen[0] - 0.5)[16:48, 80:112].abs().mean() / 0.08  # of the squares; nothing was in the even half
        assert left.item() == pytest.approx(0.25 + 0.75 * 4 / 5, abs=0.02)
        torch.testing.assert_close(seen[0, :, 16:48], scene[0, :, 16:48])

    def test_faint_texture_goes_with_the_noise_at_full_size_alone(
        self, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What deviates by a third of what is half spared keeps a third of itself where no noise would be left."""
        for name, only in (("SPARED", 0.25), ("VARYING", 0.03), ("SOFTNESS", 0.01), ("ENLARGEMENT", 1.0), ("SHARPENING", 0.0)):
            monkeypatch.setattr(noise, name, (only, only))
        monkeypatch.setattr(noise, "COMPRESSED", (0.0, 0.0))
        monkeypatch.setattr(noise, "SMOOTHED", 1.0)
        stripes = (0.5 + 0.01 * (torch.arange(32) % 2 * 2 - 1)).view(1, 1, 32, 1).expand(4, 32, 32, 3)
        for shrunk, left in ((0.0, 0.25 + 0.75 / 10), (1.0, 1.0)):
            monkeypatch.setattr(noise, "SHRUNK", shrunk)
            _, shown = noise.add_photographic(stripes, generator)
            assert ((shown - 0.5).abs().mean() / 0.01).item() == pytest.approx(left, abs=0.01)

    def test_even_parts_of_cameras_pictures_have_less_noise(self, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
        """On average over cameras: all but those that reduce no noise or spare nothing."""
        monkeypatch.setattr(noise, "SHRUNK", 1.0)  # the scene as it is
        squares = (torch.arange(64)[:, None] // 2 + torch.arange(64) // 2) % 2 - 0.5
        scene = (0.5 + torch.cat((torch.zeros(64, 64), 0.3 * squares), 1)).view(1, 64, 128, 1).expand(48, -1, -1, 3)
        added = noise.add_photographic(scene, generator)[0] - scene
        even, busy = (added[:, 8:-8, left : left + 48].square().mean((1, 2, 3)).mean() for left in (8, 72))
        assert busy > 1.5 * even

    def test_scenes_at_full_size_are_soft_and_shrunk_ones_as_they_were(
        self, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(noise, "COMPRESSED", (0.0, 0.0))
        scenes = torch.rand(80, 16, 24, 3, generator=generator)
        noisy, shown = noise.add_photographic(scenes, generator)
        same = (shown == scenes).flatten(1).all(1)
        assert 12 <= same.sum() <= 40

        def rough(pictures: Tensor) -> Tensor:
            return pictures.diff(dim=2).square().mean((1, 2, 3))

        assert (rough(shown) < 0.9 * rough(scenes))[~same].all()
        assert ((noisy - shown).square().mean((1, 2, 3)) < (noisy - scenes).square().mean((1, 2, 3)))[~same].all()

    def test_noise_of_neighbours_goes_together_as_white_noise_does_not(self, generator: torch.Generator) -> None:
        added = noise.add_photographic(torch.full((64, 64, 64, 3), 0.4), generator)[0] - 0.4
        added = added - added.mean((1, 2), keepdim=True)
        left = added.square().mean((1, 2, 3))  # some is too weak for 8 bits
        assert (left > 0).sum() >= 60
        together = (added[:, 1:] * added[:, :-1]).mean((1, 2, 3))[left > 0] / left[left > 0]
        assert together.median() > 0.3
        assert together.max() > 0.7

    def test_of_shrunk_pictures_the_lightness_of_neighbours_does_not(self, generator: torch.Generator) -> None:
        """But their colours may."""
        added = (noise.add_photographic(torch.full((96, 64, 64, 3), 0.4), generator)[0] - 0.4).movedim(3, 1)
        grey = added.mean(1)
        red = added[:, 0] - grey

        def together(plane: Tensor) -> Tensor:
            plane = plane - plane.mean((1, 2), keepdim=True)
            return (plane[:, 1:] * plane[:, :-1]).mean((1, 2)) / plane.square().mean((1, 2))

        white = (together(grey).abs() < 0.15) & (grey.std((1, 2)) > 1 / 255)  # less is lost in 8 bits
        assert 5 <= white.sum() <= 30
        assert together(red)[white].max() > 0.6

    def test_light_parts_are_noisier_in_raw_light(self, generator: torch.Generator) -> None:
        """Photon noise: after gamma, whose slope is known, the variance still rises with the signal."""
        halves = torch.cat((torch.full((64, 128, 3), 0.3), torch.full((64, 128, 3), 0.8))).expand(8, -1, -1, -1)
        raw = noise.add_photographic(halves, generator)[0] ** noise.GAMMA
        ratio = raw[:, 72:-8].var((1, 2, 3)) / raw[:, 8:56].var((1, 2, 3))  # away from the seam, over which the blur goes
        assert ratio.log().mean() > 0.5


class TestJpeg:
    @pytest.mark.parametrize("place", [(0, 0), (3, 5), (7, 1)])
    def test_blocks_begin_where_they_are_told_to(self, place: tuple[int, int], generator: torch.Generator) -> None:
        rough = (127 + 30 * torch.randn(64, 64, 1, generator=generator)).round().clamp(0, 255).to(torch.uint8).expand(64, 64, 3)
        left = noise._through_jpeg(rough, 5, 0, place)[..., 0].float()  # in each block, little but its mean
        for axis, begin in enumerate(place):
            jumps = left.diff(dim=axis).abs().mean(1 - axis)
            at_edges = torch.tensor([(i + 1) % 8 == begin for i in range(63)])
            assert jumps[at_edges].min() > 1.5 * jumps[~at_edges].mean()

    @pytest.mark.parametrize("place", [(0, 0), (3, 5), (8, 1)])
    def test_colours_are_halved_as_jpeg_halves_them(self, place: tuple[int, int], generator: torch.Generator) -> None:
        scene = (0.5 + 0.2 * torch.randn(64, 48, 3, generator=generator).clamp(-2, 2)).float()
        steps = (scene * 255).round().to(torch.uint8)
        written = noise._through_jpeg(steps, 100, 2, place).float()
        halved = noise._with_halved_colours(steps / 255, place) * 255
        off = (written - halved).abs()
        assert off[16:48, 16:32].max() < 4  # away from the edge, where the one goes on round it; JPEG rounds to whole steps, twice
        assert (written - steps).abs()[16:48, 16:32].max() > 40

    def test_of_halved_colours_only_lightness_is_as_it_was(self, generator: torch.Generator) -> None:
        scene = 0.3 + 0.4 * torch.rand(15, 22, 3, generator=generator)
        halved = noise._with_halved_colours(scene, (3, 4))
        weights = torch.tensor(noise.LIGHTNESS)
        torch.testing.assert_close(halved @ weights, scene @ weights)
        grey = scene[..., :1].expand(-1, -1, 3)
        torch.testing.assert_close(noise._with_halved_colours(grey, (3, 4)), grey)

    def test_a_scene_whose_colours_were_halved_is_given_so(self, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(noise, "_through_jpeg", lambda steps, *others: steps)
        monkeypatch.setattr(noise, "SHRUNK", 1.0)
        monkeypatch.setattr(noise, "KEPT_QUALITY", 101)
        scenes = torch.rand(64, 16, 16, 3, generator=generator).mul_(0.5).add_(0.25)
        _, shown = noise.add_photographic(scenes, generator)
        changed = (shown != scenes).flatten(1).any(1)
        assert 15 <= changed.sum() <= 48
        weights = torch.tensor(noise.LIGHTNESS)
        torch.testing.assert_close(shown @ weights, scenes @ weights)

    @pytest.mark.parametrize(("quality", "kept"), [(60, True), (59, False)])
    def test_a_scene_is_compressed_as_its_picture_is_if_not_heavily(
        self, quality: int, kept: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(noise, "SHOT", (1e-12, 1e-12))  # hardly any noise
        monkeypatch.setattr(noise, "JPEG_QUALITY", (quality, quality))
        monkeypatch.setattr(noise, "COMPRESSED", (1.0, 0.5))
        noisy, shown = noise.add_photographic(photo(48, 64).expand(16, -1, -1, -1), generator)
        off = (noisy - shown).square().mean((1, 2, 3)).sqrt() * 255
        assert off.median() < 0.3 if kept else off.min() > 0.5  # the median: a value just between two steps goes either way

    def test_pictures_are_compressed_once_and_some_again(self, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[tuple[int, ...]] = []

        def through(steps: Tensor, quality: int, subsampling: int, place: list[int]) -> Tensor:
            seen.append((quality, subsampling, *place))
            return steps

        monkeypatch.setattr(noise, "_through_jpeg", through)
        monkeypatch.setattr(noise, "KEPT_QUALITY", 101)
        noise.add_photographic(photo(16, 16).expand(200, -1, -1, -1), generator)
        assert 180 <= len(seen) <= 240
        qualities, samplings, down, across = zip(*seen, strict=True)
        assert 40 <= min(qualities) < 44 < 96 < max(qualities) <= 100
        assert set(samplings) == {0, 2}
        assert set(down) == set(across) == set(range(16))


class TestSoften:
    def test_pictures_are_blurred_by_one_pixel_and_a_half_at_most(self, generator: torch.Generator) -> None:
        point = torch.zeros(60, 21, 25, 3)
        point[:, 10, 12] = 1
        none = torch.zeros(60, 1, 1, 1)
        soft = noise.soften(point, none, none, generator)
        torch.testing.assert_close(soft.sum((1, 2)), torch.ones(60, 3), atol=1e-4, rtol=0)
        spread = (soft.sum(2)[..., 0] * (torch.arange(21.0) - 10) ** 2).sum(1).sqrt()
        assert 0.1 < spread.min() < 0.5  # the least of them is hardly one
        assert 1.3 < spread.max() < 1.55

    def test_grey_stays_grey(self, generator: torch.Generator) -> None:
        grey = photo(40, 56)[None, ..., :1].expand(8, -1, -1, 3)
        one = torch.ones(8, 1, 1, 1)
        assert all(noise.is_grey(picture) for picture in noise.soften(grey, one, one / 2, generator))

    def test_colours_are_blurred_further_and_lightness_is_not(self, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(noise, "SOFTNESS", (1.0, 1.0))
        point = torch.zeros(1, 33, 33, 3)
        point[:, 16, 16] = torch.tensor([0.9, 0.3, 0.0])  # a mean of 0.4
        soft = noise.soften(point + 0.1, torch.full((1, 1, 1, 1), 2.0), torch.zeros(1, 1, 1, 1), generator) - 0.1
        grey = soft.mean(3)
        away = (torch.arange(33.0) - 16) ** 2
        for plane, start, variance in ((grey, 0.4, 1.0), (soft[..., 0] - grey, 0.5, 5.0)):
            torch.testing.assert_close(plane.sum(), torch.tensor(start), atol=1e-4, rtol=0)
            torch.testing.assert_close((plane.sum(2) * away).sum() / start, torch.tensor(variance), atol=0.01, rtol=0)

    def test_sharpening_raises_what_is_fine_and_leaves_the_mean(self, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(noise, "SOFTNESS", (1.0, 1.0))
        stripes = (0.5 + 0.1 * torch.cos(torch.arange(32.0) * torch.pi / 2)).view(1, 1, 32, 1).expand(1, 32, 32, 3)
        none = torch.zeros(1, 1, 1, 1)
        soft, sharp = (noise.soften(stripes, none, none + amount, generator) for amount in (0.0, 0.5))
        expected = 1.5 - 0.5 * math.exp(-((torch.pi / 2) ** 2) / 2)  # of a quarter of the sampling rate, a blur of one pixel takes that
        torch.testing.assert_close((sharp - 0.5).abs().max() / (soft - 0.5).abs().max(), torch.tensor(expected), atol=1e-3, rtol=0)
        torch.testing.assert_close(sharp.mean(), torch.tensor(0.5), atol=1e-5, rtol=0)


class TestEnlarge:
    def test_pictures_show_their_middle_larger_up_to_four_times(self, generator: torch.Generator) -> None:
        slope = torch.linspace(0.2, 0.8, 40).view(1, 1, 40, 1).expand(60, 32, 40, 3)
        large = noise.enlarge(slope, generator)
        assert large.shape == slope.shape
        rise = (large[:, :, 24] - large[:, :, 15]).mean((1, 2)) / (slope[0, 0, 24, 0] - slope[0, 0, 15, 0])
        assert 0.25 <= rise.min() < 0.35
        assert 0.8 < rise.max() <= 1.001
        torch.testing.assert_close(large.mean((1, 2, 3)), torch.full((60,), 0.5), atol=1e-3, rtol=0)  # its middle

    def test_it_is_the_cubic_that_pillow_has(self, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(noise, "ENLARGEMENT", (2.0, 2.0))
        picture = photo(32, 32)
        ours = noise.enlarge(picture[None], generator)[0]
        for channel in range(3):
            whole = Image.fromarray(picture[..., channel].numpy(), "F")
            theirs = torch.from_numpy(np.array(whole.resize((32, 32), Image.Resampling.BICUBIC, (8, 8, 24, 24))))
            torch.testing.assert_close(ours[4:-4, 4:-4, channel], theirs[4:-4, 4:-4].clamp(0, 1), atol=1e-5, rtol=0)

    def test_grey_stays_grey(self, generator: torch.Generator) -> None:
        assert all(noise.is_grey(picture) for picture in noise.enlarge(photo(40, 56)[None, ..., :1].expand(8, -1, -1, 3), generator))


class TestEither:
    def test_without_a_cameras_noise_every_level_is_told(self, generator: torch.Generator) -> None:
        sigma = torch.rand(12, 1, 1, 1, generator=generator)
        _, _, level = noise.add_either(torch.stack([photo(16, 16)] * 12), sigma, 0.0, generator)
        assert torch.equal(level, sigma)

    def test_a_level_that_is_told_is_that_of_what_was_added_and_most_are_not(self, generator: torch.Generator) -> None:
        clean = torch.stack([photo(32, 32, seed) for seed in range(80)])
        noisy, clean, level = noise.add_either(clean, torch.full((80, 1, 1, 1), 0.1), 0.5, generator)
        from_camera = [torch.equal(picture, metrics.to_8bit(picture)) for picture in noisy]
        assert 25 <= sum(from_camera) <= 55
        told = ((level != noise.UNTOLD) & (level > 0)).flatten()
        assert 8 <= told.sum() <= 35
        assert {camera for camera, heard in zip(from_camera, told.tolist(), strict=True) if heard} == {True, False}
        torch.testing.assert_close(level.flatten()[told], (noisy - clean).square().mean((1, 2, 3)).sqrt()[told], rtol=0.1, atol=0)

    @pytest.mark.parametrize("photographic", [0.0, 0.5])
    def test_of_a_grey_picture_the_level_is_told_that_weighs_the_same(self, photographic: float, generator: torch.Generator) -> None:
        clean = photo(32, 32)[None, ..., :1].expand(60, -1, -1, 3)
        noisy, clean, level = noise.add_either(clean, torch.full((60, 1, 1, 1), 0.1), photographic, generator)
        told = ((level != noise.UNTOLD) & (level > 0)).flatten()
        assert told.any()
        lightness = (
            (noisy - clean).mean(3).square().mean((1, 2)).sqrt()
        )  # of noise in each channel by itself, it is 1 / sqrt(3) of the level
        torch.testing.assert_close(level.flatten()[told] / 3**0.5, lightness[told], rtol=0.15, atol=0)

    @pytest.mark.parametrize("photographic", [0.0, 1.0])
    def test_a_grey_picture_stays_grey(self, photographic: float, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(noise, "UNTOUCHED", 0.0)
        clean = torch.stack((photo(32, 32), photo(32, 32)[..., :1].expand(-1, -1, 3)))
        noisy, clean, _ = noise.add_either(clean, torch.full((2, 1, 1, 1), 0.1), photographic, generator)
        assert not torch.equal(noisy[0, ..., 0], noisy[0, ..., 1])
        assert torch.equal(noisy[1], noisy[1, ..., :1].expand(-1, -1, 3))
        assert not torch.equal(noisy[1], clean[1])

    def test_some_pictures_are_left_as_they_are_where_a_network_is_to_find_the_level(self, generator: torch.Generator) -> None:
        given = torch.stack([photo(16, 16, seed) for seed in range(200)])
        for photographic, least, most in ((0.0, 0, 0), (0.6, 10, 32)):
            noisy, clean, level = noise.add_either(given, torch.full((200, 1, 1, 1), 0.1), photographic, generator)
            same = (noisy == clean).flatten(1).all(1)
            assert least <= same.sum() <= most
            assert all(told in (0.0, torch.tensor(noise.UNTOLD).item()) for told in level.flatten()[same].tolist())

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


@pytest.mark.parametrize("sigma", [5 / 255, 40 / 255])
def test_the_flat_parts_of_a_grey_picture_tell(sigma: float, generator: torch.Generator) -> None:
    """Where most of it is a texture with something in every direction of a patch."""
    scene = torch.randn(160, 200, 1, generator=generator)
    for axis in (0, 1):
        scene = (scene + scene.roll(1, axis)) / 2
    scene = 0.5 + 0.3 * scene
    scene[:60] = torch.linspace(0.3, 0.7, 200)[:, None]
    noisy = noise.add_gaussian(scene, sigma, generator)
    assert noise.estimate_gaussian(noisy) == pytest.approx(sigma, rel=0.15)


def test_a_large_picture_is_measured_on_part_of_its_patches(generator: torch.Generator) -> None:
    noisy = noise.add_gaussian(photo(300, 200), 0.1, generator)
    assert noise.estimate_gaussian(noisy, most=4000) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("shrunk", [1, 2])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16], ids=str)
def test_integers_are_measured_as_the_floats_they_stand_for(dtype: torch.dtype, shrunk: int, generator: torch.Generator) -> None:
    steps = torch.iinfo(dtype).max
    noisy = noise.add_gaussian(photo(100, 120), 0.1, generator).clamp(0, 1).mul(steps).round()
    for picture in (noisy, noisy[..., :1].expand(-1, -1, 3)):
        level = noise.estimate_gaussian(picture.to(dtype), shrunk)
        assert level == pytest.approx(noise.estimate_gaussian(picture / steps, shrunk), rel=1e-4)
        assert level == pytest.approx(0.1 / shrunk, rel=0.1)


@pytest.mark.parametrize("shrunk", [2, 3])
def test_the_means_of_blocks_hold_that_much_less_noise(shrunk: int, generator: torch.Generator) -> None:
    noisy = noise.add_gaussian(photo(241, 322), 0.1, generator)
    assert noise.estimate_gaussian(noisy, shrunk) == pytest.approx(0.1 / shrunk, rel=0.05)
    H, W = (size // shrunk for size in noisy.shape[:2])
    by_hand = noisy[: H * shrunk, : W * shrunk].reshape(H, shrunk, W, shrunk, 3).mean((1, 3))
    assert noise.estimate_gaussian(noisy, shrunk) == pytest.approx(noise.estimate_gaussian(by_hand), rel=1e-3)


@pytest.mark.parametrize("sigma", [10 / 255, 25 / 255])
def test_where_values_are_cut_off_the_rest_of_the_picture_tells(sigma: float, generator: torch.Generator) -> None:
    """Half of the picture is a black night, where an 8-bit file keeps half of the noise."""
    scene = photo(128, 160)
    scene[:, :80] = 0
    noisy = metrics.to_8bit(noise.add_gaussian(scene, sigma, generator))
    assert noise.estimate_gaussian(noisy) == pytest.approx(sigma, rel=0.05)


def test_where_all_is_cut_off_there_is_a_level_still(generator: torch.Generator) -> None:
    night = metrics.to_8bit(noise.add_gaussian(torch.zeros(100, 100, 3), 0.1, generator))
    assert 0.03 < noise.estimate_gaussian(night) < 0.1
    assert noise.estimate_gaussian(torch.ones(100, 100, 3)) == 0


class TestMeasured:
    @pytest.mark.parametrize("sigma", [5 / 255, 15 / 255, 50 / 255])
    @pytest.mark.parametrize("rounded", [False, True])
    def test_white_noise_is_told_from_what_cameras_make_of_it(self, sigma: float, rounded: bool, generator: torch.Generator) -> None:
        noisy = noise.add_gaussian(sky_over_a_field(192, 256), sigma, generator)
        measured = noise.measure(metrics.to_8bit(noisy) if rounded else noisy)
        assert measured.white
        assert measured.sigma == pytest.approx(sigma, rel=0.05)
        assert measured.at_half_size == pytest.approx(sigma / 2, rel=0.1)

    def test_enlarged_noise_is_not_white(self, generator: torch.Generator) -> None:
        small = noise.add_gaussian(photo(96, 128), 0.1, generator)
        enlarged = small.repeat_interleave(2, 0).repeat_interleave(2, 1)
        enlarged = (enlarged + enlarged.roll(1, 0)) / 2
        assert not noise.measure((enlarged + enlarged.roll(1, 1)) / 2).white

    def test_a_cameras_noise_is_not_white(self, generator: torch.Generator) -> None:
        pictures, _ = noise.add_photographic(photo(128, 160).expand(12, -1, -1, -1), generator)
        assert sum(noise.measure(picture).white for picture in pictures) <= 2

    def test_a_clean_picture_holds_no_white_noise(self) -> None:
        assert not noise.measure(photo(128, 160)).white

    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2), (3, 40), (5, 7)])
    def test_a_picture_of_any_size_is_measured(self, size: tuple[int, int], generator: torch.Generator) -> None:
        noise.measure(noise.add_gaussian(flat(*size), 0.1, generator))


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


class TestAtTheEnds:
    """Two shots of a slope, whose noise is known; what lies outside of [0, 1] is clipped."""

    slope = torch.linspace(-0.05, 1.05, 256).view(1, 256, 1).expand(128, 256, 3)

    @pytest.mark.parametrize(("read", "photons"), [(0.1, 0.0), (0.05, 0.01), (0.02, 0.03), (0.0, 0.03)])
    def test_a_sensors_noise_is_found(self, read: float, photons: float, generator: torch.Generator) -> None:
        deviation = (read**2 + photons * self.slope.clamp(0, 1)).sqrt()
        shots = [(self.slope + deviation * torch.randn(self.slope.shape, generator=generator)).clamp(0, 1) for _ in range(2)]
        dark, light = noise.at_the_ends([(shots[0], shots[1])])
        assert dark == pytest.approx(read, rel=0.2, abs=0.02)
        assert light == pytest.approx(math.sqrt(read**2 + photons), rel=0.1)

    def test_without_noise_or_without_a_block_inside_both_are_nothing(self) -> None:
        assert noise.at_the_ends([(self.slope, self.slope)]) == pytest.approx((0, 0), abs=1e-4)
        assert noise.at_the_ends([(torch.zeros(16, 16, 3), torch.ones(16, 16, 3))]) == (0.0, 0.0)
        assert noise.at_the_ends([(torch.rand(7, 7, 3), torch.rand(7, 7, 3))]) == (0.0, 0.0)
