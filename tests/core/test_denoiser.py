"""The denoiser's door: any size, strips that leave no trace, what it refuses, and what it keeps to itself."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from core import Cancelled, Denoiser, DeviceError, Region, WeightsError, hardware, images, kernels, networks, noise, weights
from core.decoding import Frame
from core.denoiser import STEPS
from core.metadata import Metadata
from core.nn import Module
from core.nn.stream import Passage
from tests.core.made import photo, refused, small

CPU = torch.device("cpu")
SIGMA = 25 / 255


def of(network: Module, dtype: torch.dtype = torch.float32) -> Denoiser:
    return Denoiser(network, {}, "made", CPU, dtype)


def lively(seed: int = 0) -> Module:
    """The true network with weights so large that what is far away is seen."""
    network = networks.unet(torch.Generator().manual_seed(seed))
    for _, value, _ in network.param():
        value *= 2
    return network


@pytest.fixture
def denoiser(generator: torch.Generator) -> Denoiser:
    return of(small(generator))


def by_hand(network: Module, pixels: Tensor, sigma: float) -> Tensor:
    """The whole picture at once: mirrored to a multiple of 8, the noise level as fourth channel, cut and clamped."""
    H, W, _ = pixels.shape
    whole = torch.from_numpy(np.pad(pixels.numpy(), ((0, -H % 8), (0, -W % 8), (0, 0)), "symmetric"))
    level = torch.full((*whole.shape[:2], 1), sigma)
    clean = whole + network.forward(torch.cat((whole, level), 2)[None])[0]
    return clean[:H, :W].clamp(0, 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1), (2, 9), (7, 5), (8, 8), (33, 17), (40, 72)])
def test_a_picture_of_any_size_is_mirrored_to_what_the_network_takes(denoiser: Denoiser, size: tuple[int, int]) -> None:
    noisy = photo(*size)
    clean = denoiser(noisy, SIGMA)
    assert clean.shape == (*size, 3)
    assert clean.dtype == torch.float32
    assert (clean - noisy).abs().max() > 0.01
    torch.testing.assert_close(clean, by_hand(denoiser.network, noisy, SIGMA), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (7, 5), (31, 24)])
def test_the_shipped_architecture_takes_any_size_too(size: tuple[int, int]) -> None:
    network, noisy = lively(), photo(*size)
    torch.testing.assert_close(of(network)(noisy, SIGMA), by_hand(network, noisy, SIGMA), atol=1e-5, rtol=0)


@pytest.mark.parametrize("band", [1, 32, 40, 64, 4096])
@pytest.mark.parametrize("strip", [1, 32, 70, 4096])
def test_bands_and_strips_leave_no_trace(denoiser: Denoiser, band: int, strip: int) -> None:
    noisy = photo(150, 131)
    whole = by_hand(denoiser.network, noisy, SIGMA)
    assert (whole - noisy).abs().max() > 0.05
    torch.testing.assert_close(denoiser(noisy, SIGMA, band=band, strip=strip), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_whatever_the_strips_the_kernels_give_the_same_bits(dtype: torch.dtype) -> None:
    if kernels.take(dtype, CPU) is None:
        return  # products sum in another order for each size
    denoiser = of(lively(), dtype)
    noisy = photo(300, 70)
    whole = denoiser(noisy, SIGMA, strip=4096)
    for strip in (32, 64, 96):
        assert torch.equal(denoiser(noisy, SIGMA, strip=strip), whole)


@pytest.mark.parametrize("strip", [40, 64])
def test_strips_of_the_shipped_architecture_leave_no_trace(strip: int) -> None:
    denoiser, noisy = of(lively()), photo(300, 11)
    whole = denoiser(noisy, SIGMA, strip=4096)
    assert (whole - noisy).abs().max() > 0.05
    passes: list[int] = []
    cut = denoiser(noisy, SIGMA, strip=strip, keep_going=lambda: passes.append(1) is None)
    assert len(passes) == -(-304 // (strip // 32 * 32))
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=0)


REGIONS = [(0, 0, 1, 1), (50, 60, 20, 10), (130, 149, 1, 1), (33, 70, 98, 80), (0, 0, 131, 150), (97, 0, 34, 150), (64, 96, 32, 32)]


@pytest.mark.parametrize("region", REGIONS, ids=str)
def test_a_region_is_that_of_the_whole_pictures_answer(denoiser: Denoiser, region: tuple[int, int, int, int]) -> None:
    noisy, (x, y, width, height) = photo(150, 131), region
    part = denoiser.region(noisy, Region(*region), SIGMA, 1.5)
    torch.testing.assert_close(part, denoiser(noisy, SIGMA, 1.5)[y : y + height, x : x + width], atol=1e-5, rtol=0)


def test_a_region_of_the_shipped_architecture_is_that_of_the_whole_pictures_answer_and_costs_less() -> None:
    denoiser, noisy = of(lively()), photo(40, 1100)
    strips: list[int] = []
    part = denoiser.region(noisy, Region(501, 3, 40, 30), SIGMA, keep_going=lambda: strips.append(1) is None)
    torch.testing.assert_close(part, denoiser(noisy, SIGMA)[3:33, 501:541], atol=1e-5, rtol=0)
    seen, _ = denoiser._around(slice(501, 541), 1100)
    assert 501 - seen.start + seen.stop - 541 < 3 * denoiser._halo


def test_a_grey_region_of_a_picture_with_colour_is_no_grey_picture(denoiser: Denoiser) -> None:
    noisy = photo(150, 131)
    noisy[:, :100] = noisy[:, :100].mean(2, keepdim=True)
    whole = denoiser(noisy, SIGMA)
    torch.testing.assert_close(denoiser.region(noisy, Region(0, 0, 20, 20), SIGMA), whole[:20, :20], atol=1e-5, rtol=0)
    assert not torch.equal(whole[:20, :20, 0], whole[:20, :20, 1])


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.5])
def test_a_region_by_a_blind_network_is_that_of_the_whole_pictures_answer(generator: torch.Generator, strength: float) -> None:
    blind = Denoiser(small(generator), {"blind": True}, "made", CPU, torch.float32)
    noisy = photo(150, 131)
    part = blind.region(noisy, Region(50, 60, 20, 10), strength=strength)
    torch.testing.assert_close(part, blind(noisy, strength=strength)[60:70, 50:70], atol=1e-5, rtol=0)


def test_a_region_that_takes_two_passes_costs_less_than_the_whole(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    blind, noisy = Denoiser(small(generator), {"blind": True}, "made", CPU, torch.float32), photo(40, 2000)
    passes: list[int] = []
    by_strips = blind._by_strips
    monkeypatch.setattr(
        blind, "_by_strips", lambda pixels, *given, **named: passes.append(pixels.shape[1]) or by_strips(pixels, *given, **named)
    )
    whole = blind(noisy, strength=2)
    part = blind.region(noisy, Region(1000, 3, 40, 30), strength=2)
    torch.testing.assert_close(part, whole[3:33, 1000:1040], atol=1e-5, rtol=0)
    assert passes[:2] == [2000, 2000]
    assert passes[2] <= 40 + 4 * blind._halo + 31  # begins on the tiles' grid
    assert passes[3] <= 40 + 2 * blind._halo + 31


def test_a_region_cut_without_its_surroundings_would_differ(denoiser: Denoiser) -> None:
    noisy, region = photo(150, 131), Region(50, 60, 20, 10)
    whole = denoiser(noisy, SIGMA)
    denoiser._halo = 0
    assert (denoiser.region(noisy, region, SIGMA) - whole[60:70, 50:70]).abs().max() > 1e-3


def test_the_noise_level_of_a_region_is_that_of_the_whole_picture(denoiser: Denoiser, generator: torch.Generator) -> None:
    noisy = photo(150, 131)
    noisy[:75] = noise.add_gaussian(noisy[:75], SIGMA, generator).clamp(0, 1)
    region, estimate = Region(40, 100, 60, 40), denoiser.estimate(noisy)
    assert estimate != pytest.approx(denoiser.estimate(noisy[100:140, 40:100]), rel=0.2)
    assert torch.equal(denoiser.region(noisy, region), denoiser.region(noisy, region, estimate))


def test_a_region_with_strength_0_is_the_pictures_own(denoiser: Denoiser) -> None:
    noisy = photo(50, 60)
    assert torch.equal(denoiser.region(noisy, Region(7, 9, 20, 30), strength=0), noisy[9:39, 7:27])


@pytest.mark.parametrize("region", [(0, 0, 0, 5), (0, 0, 5, 0), (-1, 0, 5, 5), (0, -1, 5, 5), (56, 0, 5, 5), (0, 46, 5, 5)], ids=str)
def test_a_region_outside_the_picture_is_refused(denoiser: Denoiser, region: tuple[int, int, int, int]) -> None:
    told = "the region {},{},{},{} (x,y,width,height) must hold a pixel and lie within 60 x 50: move it there"
    with refused(ValueError, told.format(*region)):
        denoiser.region(photo(50, 60), Region(*region), SIGMA)


def test_bands_that_did_not_overlap_would_leave_a_trace(denoiser: Denoiser) -> None:
    noisy = photo(150, 131)
    whole = denoiser(noisy, SIGMA)
    denoiser._halo = 0
    assert (denoiser(noisy, SIGMA, band=40) - whole).abs().max() > 1e-3


def test_a_small_picture_is_done_in_one_pass(denoiser: Denoiser) -> None:
    passes: list[int] = []
    denoiser(photo(100, 100), SIGMA, keep_going=lambda: passes.append(1) is None)
    assert len(passes) == 1


@pytest.mark.parametrize("sigma", [None, 0.0, SIGMA])
def test_strength_0_gives_the_picture_back_bit_for_bit(denoiser: Denoiser, sigma: float | None) -> None:
    noisy = photo(20, 30) * 2 - 0.5  # outside [0, 1] too
    same = denoiser(noisy, sigma, strength=0)
    assert torch.equal(same, noisy)
    assert same.data_ptr() != noisy.data_ptr()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("low", [-3.0, 1e4])
def test_strength_0_gives_back_the_samples_of_a_picture_whose_floats_lie_elsewhere(denoiser: Denoiser, channels: int, low: float) -> None:
    samples = (photo(20, 30) * 7 + low)[..., :channels]
    picture = images.assembled("tiff", Frame(20, 30, channels, False, "float32", Metadata()), samples, None)
    assert torch.equal(picture.denoised(denoiser(picture.visible(), strength=0)).samples, samples)
    assert torch.equal(picture.with_pixels(denoiser(picture.pixels, strength=0)).samples, samples.expand(-1, -1, 3))
    assert not torch.equal(picture.denoised(denoiser(picture.visible(), SIGMA)).samples, samples)


def test_sigma_0_changes_nothing(denoiser: Denoiser) -> None:
    noisy = photo(20, 30)
    assert torch.equal(denoiser(noisy, 0.0), noisy)


def test_without_sigma_it_is_estimated(denoiser: Denoiser, generator: torch.Generator) -> None:
    noisy = noise.add_gaussian(photo(64, 64), SIGMA, generator).clamp(0, 1)
    estimate = denoiser.estimate(noisy)
    assert estimate == pytest.approx(SIGMA, rel=0.15)
    assert torch.equal(denoiser(noisy), denoiser(noisy, estimate))
    assert not torch.equal(denoiser(noisy), denoiser(noisy, estimate * 1.5))


def test_strength_2_is_twice_the_noise_level(denoiser: Denoiser) -> None:
    noisy = photo(16, 24)
    assert torch.equal(denoiser(noisy, SIGMA, strength=2), denoiser(noisy, 2 * SIGMA))
    assert torch.equal(denoiser(noisy, strength=2), denoiser(noisy, 2 * denoiser.estimate(noisy)))
    assert not torch.equal(denoiser(noisy, SIGMA, strength=2), denoiser(noisy, SIGMA))


class TestGrey:
    """A picture of equal channels: told what weighs the same in colour, and grey again to the bit."""

    @pytest.mark.parametrize(("card", "factor"), [({"grey_level": 3**0.5}, 3**0.5), ({}, 1.0)])
    def test_it_is_told_as_much_more_as_the_card_says_and_stays_grey(self, card: dict[str, float], factor: float) -> None:
        network, noisy = lively(), photo(16, 24)[..., :1].expand(-1, -1, 3).contiguous()
        clean = Denoiser(network, card, "made", CPU, torch.float32)(noisy, SIGMA)
        assert torch.equal(clean, clean[..., :1].expand(-1, -1, 3))
        whole = torch.cat((noisy, torch.full((16, 24, 1), factor * SIGMA)), 2)
        by_hand = (noisy + network.forward(whole[None])[0].mean(2, keepdim=True)).clamp(0, 1)
        torch.testing.assert_close(clean, by_hand, atol=1e-5, rtol=0)


def test_grey_pictures_may_have_a_network_of_their_own(generator: torch.Generator) -> None:
    one, other = small(generator), small(generator)
    both, alone = Denoiser(one, {}, "made", CPU, torch.float32, other), Denoiser(other, {}, "made", CPU, torch.float32)
    coloured = photo(24, 32)
    grey = coloured.mean(2, keepdim=True)
    for picture in (grey, grey.expand(-1, -1, 3)):
        assert torch.equal(both(picture, SIGMA), alone(picture, SIGMA))
        assert torch.equal(both.region(picture, Region(2, 3, 9, 8), SIGMA), alone.region(picture, Region(2, 3, 9, 8), SIGMA))
    assert torch.equal(both(coloured, SIGMA), of(one)(coloured, SIGMA))
    assert not torch.equal(both(grey, SIGMA), of(one)(grey, SIGMA))


class TestBlind:
    """A network that finds the noise level by itself: its map holds a mark, unless the level is given by hand."""

    @pytest.fixture
    def blind(self, generator: torch.Generator) -> Denoiser:
        return Denoiser(small(generator), {"blind": True}, "made", CPU, torch.float32)

    def test_it_is_told_that_it_is_not_told(self, blind: Denoiser) -> None:
        noisy = photo(16, 24)
        torch.testing.assert_close(blind(noisy), by_hand(blind.network, noisy, noise.UNTOLD), atol=1e-6, rtol=0)

    def test_what_stands_for_no_level_is_what_its_card_says(self, generator: torch.Generator) -> None:
        noisy = photo(16, 24)
        blind = Denoiser(small(generator), {"blind": True, "untold": SIGMA, "grey_level": 2.0}, "made", CPU, torch.float32)
        torch.testing.assert_close(blind(noisy), by_hand(blind.network, noisy, SIGMA), atol=1e-6, rtol=0)
        grey = noisy[..., :1].expand(-1, -1, 3)  # there, too: it is no level that could weigh more
        expected = by_hand(blind.network, grey, SIGMA).mean(2)
        torch.testing.assert_close(blind(grey)[..., 0], expected, atol=1e-6, rtol=0)

    def test_a_level_given_by_hand_is_told(self, blind: Denoiser) -> None:
        noisy = photo(16, 24)
        torch.testing.assert_close(blind(noisy, SIGMA, strength=0.5), by_hand(blind.network, noisy, SIGMA / 2), atol=1e-6, rtol=0)
        assert torch.equal(blind(noisy, 0.0), noisy)

    def test_at_less_strength_it_makes_less_of_the_same_correction(self, blind: Denoiser) -> None:
        noisy = photo(16, 24)
        half = noisy + 0.5 * (by_hand(blind.network, noisy, noise.UNTOLD) - noisy)
        torch.testing.assert_close(blind(noisy, strength=0.5), half, atol=1e-6, rtol=0)
        assert torch.equal(blind(noisy, strength=0), noisy)

    def test_at_more_strength_it_corrects_what_it_made_by_the_rest(self, blind: Denoiser) -> None:
        noisy = photo(16, 24)
        once = blind(noisy)
        torch.testing.assert_close(blind(noisy, strength=1.5), blind(once, strength=0.5), atol=1e-6, rtol=0)
        torch.testing.assert_close(blind(noisy, strength=2), blind(once), atol=1e-6, rtol=0)

    def test_what_it_found_is_what_it_took_away(self, blind: Denoiser) -> None:
        noisy = photo(16, 24)
        found = (blind(noisy) - noisy).square().mean().sqrt().item()
        assert blind.found(noisy, blind(noisy)) == pytest.approx(found)

    @pytest.mark.parametrize("strength", [-1.0, float("inf"), float("nan")])
    def test_a_strength_out_of_reach_is_refused(self, blind: Denoiser, strength: float) -> None:
        with refused(ValueError, f"sigma (=None) times strength (={strength}) must be finite and not below 0"):
            blind(photo(16, 24), strength=strength)


def test_it_gives_up_between_two_strips_when_told(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    push = Passage.push
    monkeypatch.setattr(Passage, "push", lambda *given: (passes.append(1), push(*given))[1])
    answers = iter([True, False])
    with refused(Cancelled, "the picture was given up between two strips"):
        denoiser(photo(150, 131), SIGMA, strip=8, keep_going=lambda: next(answers))
    assert len(passes) == 1


@pytest.mark.parametrize("kind", [torch.float32, torch.uint8, torch.uint16], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_that_kernels_cannot_take_where_they_lie_get_the_same(kind: torch.dtype, channels: int) -> None:
    """With a fourth channel beside them, as in RGBA: what kernels do in front of the network and behind it, torch does then."""
    denoiser, steps = of(lively()), STEPS.get(kind, 1)
    noisy = (photo(50, 70)[..., :channels] * steps).to(kind)
    apart = torch.cat((noisy, noisy[..., :1]), 2)[..., :channels]
    assert kernels.samples_fit(noisy)
    assert not kernels.samples_fit(apart)
    one, other = denoiser(noisy, SIGMA, strip=32).double(), denoiser(apart, SIGMA, strip=32).double()
    assert (one - other).abs().max() <= (1 if steps > 1 else 1e-6)
    assert steps == 1 or (one != other).double().mean() < 0.01


def test_threads_share_one_denoiser(denoiser: Denoiser) -> None:
    pictures = [photo(20 + 7 * i, 60 - 5 * i, seed=i) for i in range(8)]
    sigmas = [0.02 * (i + 1) for i in range(8)]
    alone = [denoiser(picture, sigma, strip=32) for picture, sigma in zip(pictures, sigmas, strict=True)]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            together = threads.map(lambda picture, sigma: denoiser(picture, sigma, strip=32), pictures, sigmas)
            for ours, theirs in zip(together, alone, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_neither_the_picture_nor_the_network_is_changed(denoiser: Denoiser) -> None:
    noisy = photo(30, 30)
    before, kept = noisy.clone(), [(p.name, p.value.clone(), p.derivative) for p in denoiser.network.param()]
    denoiser(noisy, SIGMA)
    assert torch.equal(noisy, before)
    for (name, value, derivative), now in zip(kept, denoiser.network.param(), strict=True):
        assert now.name == name
        assert torch.equal(now.value, value)
        assert now.derivative is derivative is None


def test_a_result_may_be_changed_in_place(denoiser: Denoiser) -> None:
    clean = denoiser(photo(8, 8), SIGMA)
    expected = clean * 255
    assert torch.equal(clean.mul_(255), expected)


@pytest.mark.parametrize("told", [None, SIGMA])
@pytest.mark.parametrize("is_blind", [True, False])
@pytest.mark.parametrize("strength", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16, torch.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_may_be_written_over(
    generator: torch.Generator, told: float | None, is_blind: bool, strength: float, kind: torch.dtype, channels: int
) -> None:
    """In bands narrower than what the network sees beside them, and with rows at the end that the mirror goes back over."""
    denoiser = Denoiser(small(generator), {"blind": is_blind}, "made", CPU, torch.float32)
    for height, width in ((61, 150), (65, 40), (1, 1), (9, 200)):
        noisy = photo(height, width)[..., :channels]
        noisy = noisy if kind == torch.float32 else noisy.mul(STEPS[kind]).round().to(kind)
        band = denoiser._halo // 2
        apart = denoiser(noisy, told, strength, band=band, strip=8)
        found = denoiser.found(noisy, apart) if is_blind and told is None else denoiser.estimate(noisy) if told is None else told
        place = noisy.clone()
        level = denoiser.over(place, told, strength, band=band, strip=8)
        assert torch.equal(place, apart)
        assert level == pytest.approx(found if strength or told is not None else 0.0)


@pytest.mark.parametrize("size", [(160, 40), (163, 40), (160, 131), (20, 9)], ids=str)
@pytest.mark.parametrize(("sigma", "strength"), [(SIGMA, 1.0), (None, 1.0), (None, 1.5)])
@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("coloured_from", [0, 100, 1000], ids=["coloured", "coloured below", "grey"])
def test_a_picture_that_is_still_being_decoded_is_read_no_further_than_it_is_there(
    size: tuple[int, int], sigma: float | None, strength: float, blind: bool, coloured_from: int, generator: torch.Generator
) -> None:
    denoiser = Denoiser(small(generator), {"blind": True} if blind else {}, "made", CPU, torch.float32)
    noisy = photo(*size).mul(255).round().to(torch.uint8)
    noisy[:coloured_from] = noisy[:coloured_from, :, :1]
    expected, place = noisy.clone(), torch.randint(256, (*size, 3), dtype=torch.uint8, generator=generator)
    found = denoiser.over(expected, sigma, strength, strip=32, band=64)
    asked = [0]

    def arrived(rows: int) -> None:
        assert rows <= size[0]
        if rows > asked[-1]:
            place[asked[-1] : rows] = noisy[asked[-1] : rows]
            asked.append(rows)

    assert denoiser.over(place, sigma, strength, strip=32, band=64, arrived=arrived) == found
    assert torch.equal(place, expected)


def test_of_a_picture_that_is_still_being_decoded_a_strip_is_enough_to_begin(denoiser: Denoiser) -> None:
    noisy, asked = photo(640, 40).mul(255).to(torch.uint8), list[int]()
    denoiser.over(noisy, SIGMA, strip=64, arrived=asked.append)
    assert asked == [256, *range(64, 641, 64)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_only_what_comes_back_as_it_is_may_be_written_over(denoiser: Denoiser, dtype: torch.dtype) -> None:
    with refused(ValueError, f"pixels are {dtype} on cpu: only float32 and integers on the cpu are written over: call the denoiser itself"):
        denoiser.over(photo(12, 9).to(dtype), SIGMA)


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_picture_in_other_floats_comes_back_in_float32(denoiser: Denoiser, dtype: torch.dtype, strength: float) -> None:
    noisy = photo(12, 9)
    clean = denoiser(noisy.to(dtype), SIGMA, strength)
    assert clean.dtype == torch.float32
    torch.testing.assert_close(clean, denoiser(noisy, SIGMA, strength), atol=2e-3, rtol=0)


def test_the_result_lies_between_0_and_1(denoiser: Denoiser) -> None:
    for _, value, _ in denoiser.network.param():
        value *= 3
    clean = denoiser(photo(40, 40), 1.0)
    assert clean.min() == 0
    assert clean.max() == 1


@pytest.mark.parametrize(("kind", "steps"), [(torch.uint8, 255), (torch.uint16, 65535)])
@pytest.mark.parametrize("band", [64, 3072])
def test_integers_come_back_as_integers_rounded_once(denoiser: Denoiser, kind: torch.dtype, steps: int, band: int) -> None:
    noisy = photo(61, 150).mul(steps).round().to(kind)
    clean = denoiser(noisy, SIGMA, band=band)
    of_floats = denoiser(noisy.float() / steps, SIGMA, band=band)
    assert clean.dtype == kind
    assert torch.equal(clean, of_floats.mul(steps).round().to(kind))
    assert torch.equal(denoiser(noisy, SIGMA, strength=0), noisy)
    assert denoiser.estimate(noisy) == denoiser.estimate(noisy.float() / steps)


def test_a_grey_picture_of_one_channel_gives_the_mean_of_what_three_equal_ones_give(denoiser: Denoiser) -> None:
    noisy = photo(40, 33)[..., :1]
    clean = denoiser(noisy, SIGMA)
    assert clean.shape == (40, 33, 1)
    torch.testing.assert_close(clean, denoiser(noisy.expand(-1, -1, 3), SIGMA).mean(-1, keepdim=True), atol=1e-6, rtol=0)
    assert denoiser.estimate(noisy) == denoiser.estimate(noisy.expand(-1, -1, 3))


SHAPE = "a picture is floats in [0, 1], uint8 or uint16, of shape (H, W, 3) or, in grey, (H, W, 1)"


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(4, 5), f"pixels are torch.float32 of shape (4, 5): {SHAPE}"),
        (torch.zeros(3, 4, 5), f"pixels are torch.float32 of shape (3, 4, 5): {SHAPE}"),
        (torch.zeros(4, 5, 4), f"pixels are torch.float32 of shape (4, 5, 4): {SHAPE}"),
        (torch.zeros(1, 4, 5, 3), f"pixels are torch.float32 of shape (1, 4, 5, 3): {SHAPE}"),
        (torch.zeros(0, 5, 3), f"pixels are torch.float32 of shape (0, 5, 3): {SHAPE}"),
        (torch.zeros(4, 5, 3, dtype=torch.int32), f"pixels are torch.int32 of shape (4, 5, 3): {SHAPE}"),
        (torch.full((4, 5, 3), torch.nan), "pixels hold NaN or infinity: a picture is floats in [0, 1]"),
        (torch.full((4, 5, 3), torch.inf), "pixels hold NaN or infinity: a picture is floats in [0, 1]"),
        (torch.full((4, 5, 3), 1e300, dtype=torch.float64), "pixels hold NaN or infinity: a picture is floats in [0, 1]"),  # in float32
    ],
)
def test_what_is_no_picture_is_refused(denoiser: Denoiser, pixels: Tensor, message: str) -> None:
    asked: list[Callable[[Tensor], object]] = [denoiser, lambda p: denoiser(p, SIGMA, strength=0), denoiser.estimate]
    for ask in asked:
        with refused(ValueError, message):
            ask(pixels)


@pytest.mark.parametrize(("sigma", "strength"), [(-0.1, 1.0), (0.1, -1.0), (float("nan"), 1.0), (float("inf"), 1.0), (0.1, float("nan"))])
def test_a_noise_level_that_is_none_is_refused(denoiser: Denoiser, sigma: float, strength: float) -> None:
    with refused(ValueError, f"sigma (={sigma}) times strength (={strength}) must be finite and not below 0"):
        denoiser(photo(8, 8), sigma, strength)


BOUND = 2 / 255
"""How far a pixel in 16 bits may lie from float32's: it is the correction that is rounded, never the picture itself."""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_are_close_to_float32(dtype: torch.dtype, generator: torch.Generator) -> None:
    own = kernels.take(dtype, CPU)
    if own is None and dtype == torch.float16:
        return  # which is multiplied by kernels alone, see test_kernels.py
    noisy = noise.add_gaussian(photo(48, 40), SIGMA, generator)
    fine = of(networks.unet(torch.Generator().manual_seed(0)))(noisy, SIGMA)
    coarse = of(networks.unet(torch.Generator().manual_seed(0)), dtype)(noisy, SIGMA)
    assert coarse.dtype == torch.float32
    assert (fine - noisy.clamp(0, 1)).abs().max() > 0.02
    assert (coarse - fine).abs().max() < BOUND
    # kernels of a processor without bfloat16 multiply in float32 instead
    assert torch.equal(coarse, fine) == (own is not None and own.factors == torch.float32)


@pytest.mark.parametrize(("scale", "dtype"), [(1.0, torch.float16), (1e4, torch.float32)])
def test_float16_is_not_taken_for_a_network_that_may_overflow_it(
    scale: float, dtype: torch.dtype, tmp_path: Path, small_unet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels.take(torch.float16, CPU) is None:
        return
    monkeypatch.setattr(hardware, "fast_dtype", lambda device, float16=True: torch.float16 if float16 else torch.float32)
    values = {p.name: p.value for p in small(torch.Generator().manual_seed(3)).param()}
    first = next(iter(values))
    weights.save(tmp_path / "loud.safetensors", {**values, first: values[first] * scale}, {"architecture": "unet"})
    assert Denoiser.load(tmp_path / "loud.safetensors", "cpu").dtype == dtype
    assert Denoiser.load(tmp_path / "loud.safetensors", "cpu", "float16").dtype == torch.float16


@pytest.fixture
def file(tmp_path: Path, small_unet: None) -> Path:
    values = {p.name: p.value for p in small(torch.Generator().manual_seed(3)).param()}
    weights.save(tmp_path / "sharp.safetensors", values, {"architecture": "unet", "title": "Sharp"})
    return tmp_path / "sharp.safetensors"


def test_loaded_from_a_file_it_tells_what_it_took(file: Path) -> None:
    denoiser = Denoiser.load(str(file), "cpu", "float32")
    assert (denoiser.name, denoiser.device, denoiser.dtype) == ("sharp", CPU, torch.float32)
    assert denoiser.card == {"architecture": "unet", "title": "Sharp"}
    noisy = photo(9, 9)
    torch.testing.assert_close(denoiser(noisy, SIGMA), of(small(torch.Generator().manual_seed(3)))(noisy, SIGMA))


def test_auto_takes_the_processor_where_there_is_no_gpu(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    denoiser = Denoiser.load(file)
    assert denoiser.device == CPU
    assert denoiser.dtype == hardware.fast_dtype(CPU)
    assert all(p.value.dtype == torch.float32 for p in denoiser.network.param())


def test_a_gpu_that_is_not_there_is_missed_before_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    message = (
        f'device = "cuda" needs a CUDA GPU, and torch {torch.__version__} sees 0 here: use "auto" or "cpu", '
        "or install the NVIDIA driver and a CUDA build of torch"
    )
    with refused(DeviceError, message):
        Denoiser.load(tmp_path / "missing.safetensors", device="cuda")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing.safetensors"
    with refused(WeightsError, f"{path} does not exist: name a .safetensors file, or a model of `clearfold models`"):
        Denoiser.load(path)


class TestClean:
    """A large 8-bit picture in which a blind network finds no noise comes back as it is, after a look at pieces of it."""

    @pytest.fixture(autouse=True)
    def _large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("core.denoiser.LARGE", 400 * 500)

    @pytest.fixture
    def shy(self, generator: torch.Generator) -> Denoiser:
        """It takes a little of what it sees away, and so nothing of what is dark."""
        network = small(generator)
        for _, value, _ in network.param():
            value *= 0.5
        return Denoiser(network, {"blind": True}, "made", CPU, torch.float32)

    def dark(self, kind: torch.dtype = torch.uint8) -> Tensor:
        return torch.zeros(400, 500, 3).to(kind)

    def test_it_comes_back_as_it_is_and_no_noise_was_found(self, shy: Denoiser) -> None:
        clean = self.dark()
        assert shy.is_clean(clean)
        assert torch.equal(shy(clean), clean)
        assert shy.over(clean.clone()) == 0
        assert torch.equal(shy.region(clean, Region(3, 5, 40, 30)), clean[5:35, 3:43])

    def test_it_passes_through_where_there_is_noise_in_one_place(self, shy: Denoiser) -> None:
        noisy = self.dark()
        noisy[150:350, 250:] = 200
        assert not shy.is_clean(noisy)
        assert not torch.equal(shy(noisy), noisy)
        assert shy.over(noisy.clone()) > 0

    def test_a_region_is_judged_by_the_whole(self, shy: Denoiser) -> None:
        noisy = self.dark().repeat(2, 1, 1)
        noisy[600:, 200:] = 200
        assert shy.is_clean(noisy[:400])
        assert torch.equal(shy.region(noisy, Region(0, 0, 500, 400)), shy(noisy)[:400])

    @pytest.mark.parametrize("changed", ["small", "finer", "told", "strong"])
    def test_any_other_is_denoised_without_a_look(self, shy: Denoiser, changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
        picture = self.dark(torch.uint16 if changed == "finer" else torch.uint8)[: 399 if changed == "small" else 400]
        passed: list[tuple[int, ...]] = []
        by_strips = shy._by_strips
        monkeypatch.setattr(
            shy, "_by_strips", lambda pixels, *given, **named: passed.append(pixels.shape) or by_strips(pixels, *given, **named)
        )
        shy(picture, SIGMA if changed == "told" else None, 1.5 if changed == "strong" else 1.0)
        assert set(passed) == {picture.shape}

    @pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1), (400, 500), (300, 4000)])
    def test_the_pieces_lie_within_and_apart(self, shy: Denoiser, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        places = torch.arange(size[0] * size[1] * 3, dtype=torch.int32).view(*size, 3)
        seen: list[Tensor] = []
        monkeypatch.setattr(shy, "_by_strips", lambda pixels, *given: seen.append(pixels) or 0.0)
        picture = torch.zeros(*size, 3, dtype=torch.uint8)
        assert shy.is_clean(picture)
        offsets = [piece.storage_offset() for piece in seen]
        assert 16 <= len(set(offsets)) == len(offsets) <= 32
        assert all(piece.shape == (min(192, size[0]), min(192, size[1]), 3) for piece in seen)
        assert max(offsets) < places.numel()

    def test_who_gives_it_up_is_heard(self, shy: Denoiser) -> None:
        with pytest.raises(Cancelled):
            shy.is_clean(self.dark(), lambda: False)
