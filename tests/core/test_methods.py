"""What a run learns from: which pictures belong together, what noise is independent, and that each method's target and figure are right."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core import DataError, data, methods, metrics, noise
from core.methods import Apart, Neighbours, Pairing, Pairs, pair
from core.nn import MSE, Censored
from tests.core.made import photo, refused, save

Noisy = Callable[[Tensor, torch.Generator], Tensor]


@pytest.mark.parametrize(
    ("names", "pairs", "clean"),
    [
        (["a_1.png", "a_2.jpg", "b-2.png", "b-1.png"], [(0, 1), (3, 2)], False),
        (["x/cat 1.png", "x/cat 2.png", "y/cat1.png", "y/cat2.png"], [(0, 1), (2, 3)], False),
        (["a_noisy.png", "a_clean.png", "b_CLEAN.png", "b_Noisy.png"], [(0, 1), (3, 2)], True),
        (["first/a.png", "second/a.tif", "first/b.png", "second/b.png"], [(0, 1), (2, 3)], False),
        (["clean/a.png", "noisy/a.png"], [(1, 0)], True),
        (["set\\shots\\a.png", "set\\GT\\a.png"], [(0, 1)], True),
        (["noisy/1.png", "noisy/2.png", "clean/1.png", "clean/2.png"], [(0, 2), (1, 3)], True),
        (["noisy/a_1.png", "noisy/a_2.png", "clean/a_1.png", "clean/a_2.png"], [(0, 2), (1, 3)], True),
        (["p/0001.png", "p/0002.png", "q/0001.png", "q/0002.png"], [(0, 2), (1, 3)], False),  # numbers of scenes, not of shots
        (["1_1.png", "1_2.png"], [(0, 1)], False),
    ],
)
def test_pairs_are_found_by_their_names(names: list[str], pairs: list[tuple[int, int]], clean: bool) -> None:
    assert pair(names) == Pairing(pairs, clean)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a_1.png", "a_2.png", "b_1.png"], "'b_1.png' has no other half: add it, or leave this one out"),
        (["a_1.png", "a_2.png", "a-1.png"], "'a-1.png' and 'a_1.png' are the same half of one pair: rename or leave out one"),
        (["p/a.png", "q/b.png"], "'p/a.png' has no other half: add it, or leave this one out"),
        (
            ["a.png", "b.png"],
            "2 pictures lie in 1 folders: pairs are x_1.png and x_2.png, or x_noisy.png and x_clean.png, or equal names in two folders",
        ),
    ],
)
def test_what_has_no_other_half_is_named(names: list[str], message: str) -> None:
    with refused(DataError, message):
        pair(names)


def white(clean: Tensor, g: torch.Generator) -> Tensor:
    return clean + 0.08 * torch.randn(clean.shape, generator=g)


def rows(clean: Tensor, g: torch.Generator) -> Tensor:
    return white(clean, g) + 0.08 * torch.randn(clean.shape[0], 1, 1, generator=g)


def columns(clean: Tensor, g: torch.Generator) -> Tensor:
    return white(clean, g) + 0.08 * torch.randn(1, clean.shape[1], 1, generator=g)


def coarse(clean: Tensor, g: torch.Generator) -> Tensor:
    """Blocks of 2 x 2 pixels with one value."""
    H, W, _ = clean.shape
    return clean + 0.08 * torch.randn(H // 2, W // 2, 3, generator=g).repeat_interleave(2, 0).repeat_interleave(2, 1)


def smooth(clean: Tensor, g: torch.Generator) -> Tensor:
    H, W, _ = clean.shape
    return clean + 0.08 * torch.randn(H // 8, W // 8, 3, generator=g).repeat_interleave(8, 0).repeat_interleave(8, 1)


@pytest.mark.parametrize(
    ("put_on", "step", "down", "across", "holds", "turns", "words"),
    [
        (white, 1, True, True, True, True, "holds: the noise of neighbours is independent"),
        (rows, 1, True, False, True, False, "holds along columns alone: noise is correlated along rows"),
        (columns, 1, False, True, True, False, "holds along rows alone: noise is correlated along columns"),
        (coarse, 2, True, True, True, True, "holds in part: noise is correlated between neighbours"),
        (smooth, 3, True, True, False, True, "does not hold: noise is correlated over 3 pixels and more"),
    ],
)
def test_how_far_apart_noise_is_independent_is_seen_in_flat_places(
    put_on: Noisy, step: int, down: bool, across: bool, holds: bool, turns: bool, words: str, generator: torch.Generator
) -> None:
    gentle = 0.5 + 0.3 * (photo(256, 192) - 0.5)
    found = methods.correlation(methods.flat([put_on(gentle, generator) for _ in range(2)], share=0.2))
    apart = Apart.of(found)
    assert (apart.step, apart.down, apart.across, apart.holds, apart.turns) == (step, down, across, holds, turns), found
    assert words in apart.told


def test_correlation_is_the_one_that_was_put_in(generator: torch.Generator) -> None:
    x = torch.randn(400, 17, 16, 1, generator=generator)
    mixed = 0.8 * x[:, 1:] + 0.6 * x[:, :-1]  # neighbours along a column share 0.48 of their variance
    found = methods.correlation(mixed)
    assert found[0, 0] == 1
    assert found[1, 0] == pytest.approx(0.48, abs=0.03)
    assert found.flatten()[[1, 2, 3]].abs().max() < 0.03
    assert found[2:].abs().max() < 0.03


def folder(tmp_path: Path, pictures: dict[str, Tensor]) -> Path:
    for name, pixels in pictures.items():
        save(tmp_path / name, pixels)
    return tmp_path


class TestNeighbours:
    @pytest.fixture
    def source(self, tmp_path: Path, generator: torch.Generator) -> Neighbours:
        """Of pictures with stripes along rows: their pixels are paired along columns alone."""
        pictures = {f"{i}.png": rows(0.5 + 0.3 * (photo(96, 64, i) - 0.5), generator) for i in range(5)}
        return Neighbours([folder(tmp_path, pictures)], batch=3, patch=24, steps=4, seed=1, ramp=False)

    def test_two_pictures_are_made_of_different_pixels_of_the_same_cells(self, source: Neighbours, generator: torch.Generator) -> None:
        numbered = torch.arange(2 * 8 * 12.0).reshape(2, 8, 12, 1).expand(2, 8, 12, 3)  # every pixel's value is its place
        chosen = torch.randint(len(source.apart.choices), (2, 4, 6), generator=generator)
        one, other = source.halves(numbered, chosen)
        assert one.shape == other.shape == (2, 4, 6, 3)
        for n in range(2):
            for i in range(4):
                for j in range(6):
                    a, b = (divmod(int(half[n, i, j, 0]) - n * 96, 12) for half in (one, other))
                    assert (a[0] // 2, a[1] // 2) == (b[0] // 2, b[1] // 2) == (i, j)
                    assert a[1] == b[1]
                    assert abs(a[0] - b[0]) == 1

    def test_a_stripe_lies_whole_in_one_of_the_two_pictures(self, source: Neighbours, generator: torch.Generator) -> None:
        striped = torch.randn(2, 16, 1, 1, generator=generator).expand(2, 16, 24, 3)
        one, other = source.halves(striped, source._choose(2, 8, 12, generator))
        assert (one == one[:, :, :1]).all()
        assert (other == other[:, :, :1]).all()
        assert {*one[..., 0, 0].flatten().tolist(), *other[..., 0, 0].flatten().tolist()} == {*striped[..., 0, 0].flatten().tolist()}

    def test_the_target_has_the_derivative_of_the_papers_loss(self, source: Neighbours, generator: torch.Generator) -> None:
        f, g2, d1, d2 = torch.randn(4, 2, 4, 4, 3, generator=generator, dtype=torch.float64)
        R = methods.REGULAR
        n = f.numel()
        paper = 2 * (f - g2) / n + R * 2 * (f - g2 - (d1 - d2)) / n  # d/df of the two squares' means
        ours = MSE().backward(f, g2 + R / (1 + R) * (d1 - d2))
        torch.testing.assert_close((1 + R) * ours, paper)

    def test_a_step_has_the_same_batch_wherever_the_run_began(self, source: Neighbours) -> None:
        def double(noisy: Tensor, level: Tensor | float) -> Tensor:
            return 2 * noisy

        every = list(source.batches(0, double))
        later = list(source.batches(2, double))
        assert (len(every), len(later)) == (4, 2)
        for before, after in zip(every[2:], later, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        one, target, level = every[0]
        assert one.shape == target.shape == (3, 24, 24, 3)
        assert level.shape == (3, 1, 1, 1)

    def test_the_regulariser_takes_out_of_the_target_what_neighbours_differ_by(self, tmp_path: Path) -> None:
        """With no noise, and a denoiser that is perfect, two thirds of the difference are gone."""
        pictures = {f"{i}.png": photo(96, 64, i) for i in range(3)}
        source = Neighbours([folder(tmp_path, pictures)], batch=2, patch=24, steps=1, seed=0, ramp=False)
        ((one, plain, _),) = source.batches(0, lambda noisy, level: 0 * noisy)
        ((_, target, _),) = source.batches(0, lambda noisy, level: noisy)
        torch.testing.assert_close(target - one, (plain - one) / 3, atol=1e-5, rtol=1e-4)

    def test_the_level_told_is_the_one_that_a_service_finds_in_the_whole_picture(self, source: Neighbours, tmp_path: Path) -> None:
        found = {round(noise.estimate_gaussian(data.pixels(tmp_path / f"{i}.png")), 4) for i in range(1, 5)}  # 0.png is held out
        for _, _, levels in source.batches(0, lambda noisy, level: noisy):
            assert {round(level, 4) for level in levels.flatten().tolist()} <= found

    def test_a_better_denoiser_has_the_better_figure(self, tmp_path: Path, generator: torch.Generator) -> None:
        clean = [0.5 + 0.3 * (photo(160, 160, i) - 0.5) for i in range(2)]
        source = Neighbours(
            [folder(tmp_path, {f"{i}.png": white(x, generator) for i, x in enumerate(clean)})],
            batch=1,
            patch=24,
            steps=1,
            seed=0,
            ramp=True,
        )

        def mean(noisy: Tensor, level: Tensor | float) -> Tensor:
            return (noisy + noisy.roll(1, 1) + noisy.roll(1, 2)) / 3

        assert source.measure(mean) > source.measure(lambda noisy, level: noisy) + 0.5

    @pytest.mark.parametrize("count", [0, 1])
    def test_two_pictures_are_needed(self, tmp_path: Path, count: int) -> None:
        pictures = {f"{i}.png": photo(64, 64) for i in range(count)}
        message = f"{count} pictures were found: two are needed at least, one to train on and one to measure with"
        with refused(DataError, message):
            Neighbours([folder(tmp_path, pictures)], 1, 24, 1, 0, False)

    def test_pictures_too_small_for_a_cell_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"^no picture has 48x48 pixels: add larger pictures"):
            Neighbours([folder(tmp_path, {f"{i}.png": photo(15, 64) for i in range(2)})], 1, 24, 1, 0, False)


class TestPairs:
    def shots(self, tmp_path: Path, generator: torch.Generator, put_on: Noisy = white, count: int = 3) -> tuple[Path, list[Tensor]]:
        clean = [photo(64, 96, i) for i in range(count)]
        pictures = {f"{i}_{shot}.png": put_on(x, generator) for i, x in enumerate(clean) for shot in (1, 2)}
        return folder(tmp_path, pictures), clean

    def test_input_and_target_show_the_same_place_in_both_directions(self, tmp_path: Path, generator: torch.Generator) -> None:
        path, _ = self.shots(tmp_path, generator)
        source = Pairs([path], batch=4, patch=32, steps=3, seed=0)
        batches = list(source.batches(0, lambda noisy, level: noisy))
        assert len(batches) == 3
        for one, other, level in batches:
            assert one.shape == other.shape == (4, 32, 32, 3)
            assert not torch.equal(one, other)
            difference = (one - other).std().item()
            assert difference == pytest.approx(0.08 * math.sqrt(2), rel=0.1)  # noise alone: the scene is gone
            assert level.flatten().tolist() == pytest.approx([0.08] * 4, rel=0.25)
        later = list(source.batches(2, lambda noisy, level: noisy))
        assert all(torch.equal(a, b) for a, b in zip(later[0], batches[2], strict=True))

    def test_the_figure_is_the_psnr_against_the_truth_that_nobody_showed(self, tmp_path: Path, generator: torch.Generator) -> None:
        path, clean = self.shots(tmp_path, generator, count=12)
        source = Pairs([path], batch=1, patch=32, steps=1, seed=0)
        held = [0, 8]

        def mean(noisy: Tensor, level: Tensor | float) -> Tensor:
            return (noisy + noisy.roll(1, 1) + noisy.roll(1, 2)) / 3

        for denoise in (mean, lambda noisy, level: noisy):
            wrong = 0.0
            for i in held:
                noisy = data.pixels(path / f"{i}_1.png")
                wrong += (denoise(noisy[None], 0.0)[0].clamp(0, 1) - clean[i]).square().mean().item() / len(held)
            assert source.measure(denoise) == pytest.approx(-10 * math.log10(wrong), abs=0.3)

    def test_noise_that_is_clipped_at_black_is_learned_as_censored_and_measured_elsewhere(
        self, tmp_path: Path, generator: torch.Generator
    ) -> None:
        clean = [photo(64, 96, i) * torch.linspace(0, 1, 96).view(1, -1, 1) for i in range(12)]
        pictures = {f"{i}_{shot}.png": white(x, generator).clamp(0, 1) for i, x in enumerate(clean) for shot in (1, 2)}
        source = Pairs([folder(tmp_path, pictures)], batch=1, patch=32, steps=1, seed=0)
        assert isinstance(source.loss, Censored)
        assert source.loss.dark == pytest.approx(0.08, rel=0.2)
        assert source.loss.light == pytest.approx(0.08, rel=0.3)

        def whole(noisy: Tensor, level: Tensor | float) -> Tensor:
            i = min(range(12), key=lambda i: (noisy[0] - clean[i]).square().sum().item())
            return clean[i][None]

        def lifted(noisy: Tensor, level: Tensor | float) -> Tensor:  # as the mean of clipped shots would have it
            truth = whole(noisy, level)
            return truth + 0.04 * (truth < 0.02)

        assert source.measure(whole) > 40
        assert source.measure(lifted) == pytest.approx(source.measure(whole))

    def test_the_mean_of_clean_targets_is_learned(self, tmp_path: Path, generator: torch.Generator) -> None:
        clean = [photo(64, 96, i) for i in range(3)]
        pictures = {f"noisy/{i}.png": white(x, generator) for i, x in enumerate(clean)} | {f"clean/{i}.png": x for i, x in enumerate(clean)}
        assert isinstance(Pairs([folder(tmp_path, pictures)], batch=1, patch=32, steps=1, seed=0).loss, MSE)

    def test_against_clean_pictures_it_is_the_psnr_and_they_are_never_inputs(self, tmp_path: Path, generator: torch.Generator) -> None:
        clean = [photo(64, 96, i) for i in range(3)]
        pictures = {f"noisy/{i}.png": white(x, generator) for i, x in enumerate(clean)} | {f"clean/{i}.png": x for i, x in enumerate(clean)}
        source = Pairs([folder(tmp_path, pictures)], batch=8, patch=32, steps=1, seed=0)
        expected = metrics.psnr(data.pixels(tmp_path / "noisy/0.png"), data.pixels(tmp_path / "clean/0.png"))
        assert source.measure(lambda noisy, level: noisy) == pytest.approx(expected, abs=0.01)
        assert source.what == "PSNR in dB against the clean pictures"
        ((one, other, _),) = source.batches(0, lambda noisy, level: noisy)
        assert noise.estimate_gaussian(one[0]) > 3 * noise.estimate_gaussian(other[0])

    def test_stripes_keep_their_direction(self, tmp_path: Path, generator: torch.Generator) -> None:
        path, _ = self.shots(tmp_path, generator, put_on=rows)
        source = Pairs([path], batch=16, patch=32, steps=1, seed=0)
        ((one, other, _),) = source.batches(0, lambda noisy, level: noisy)
        stripes = one - other
        assert (stripes.mean(2).std(1) > 3 * stripes.mean(1).std(1)).all()

    def test_other_noise_is_turned_with_its_picture(self, tmp_path: Path, generator: torch.Generator) -> None:
        path, _ = self.shots(tmp_path, generator)
        assert Pairs([path], batch=1, patch=32, steps=1, seed=0)._turns

    def test_a_pair_of_two_sizes_is_refused(self, tmp_path: Path) -> None:
        path = folder(tmp_path, {"a_1.png": photo(40, 40), "a_2.png": photo(40, 48), "b_1.png": photo(40, 40), "b_2.png": photo(40, 40)})
        with pytest.raises(DataError, match=r"a_1\.png and .*a_2\.png differ in size"):
            Pairs([path], 1, 32, 1, 0)

    def test_pairs_of_next_to_no_pixels_are_refused(self, tmp_path: Path) -> None:
        path = folder(tmp_path, {f"{name}_{shot}.png": photo(6, 40) for name in "ab" for shot in (1, 2)})
        with refused(DataError, "no pair has 32x32 pixels: add larger pictures or lower patch (=32)"):
            Pairs([path], 1, 32, 1, 0)

    def test_pairs_smaller_than_a_patch_are_refused(self, tmp_path: Path, generator: torch.Generator) -> None:
        path, _ = self.shots(tmp_path, generator)
        with refused(DataError, "no pair has 72x72 pixels: add larger pictures or lower patch (=72)"):
            Pairs([path], 1, 72, 1, 0)


def test_of_a_large_set_the_middle_of_every_picture_is_kept(tmp_path: Path) -> None:
    path = folder(tmp_path, {"a.png": photo(40, 60), "b.png": photo(20, 20)})
    kept = methods._read([path / "a.png", path / "b.png"], most=1200)
    assert [tuple(each.shape) for each in kept] == [(20, 30, 3), (20, 20, 3)]
    torch.testing.assert_close(kept[0].float(), data.pixels(path / "a.png")[10:30, 15:45], atol=1e-3, rtol=0)


def test_panels_lie_side_by_side() -> None:
    joined = methods.beside([torch.zeros(4, 4, 3), torch.full((4, 4, 3), 2.0)])
    assert joined.shape == (4, 8, 3)
    assert (joined[:, :4] == 0).all()
    assert (joined[:, 4:] == 1).all()
