"""The Noise2Noise experiment: pairs are made of their photographs' pixels alone, scores are as on paper, and both recipes learn."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core import DataError, DeviceError, reproduce
from core.networks import noise2noise
from core.reproduce import Epoch, Pictures
from tests.core.made import photo, refused, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photographs of just the size of one crop, so that it is known where every block lies; and one too small."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(10):
        save(folder / f"{i}.png", textured(i))
    save(folder / "small.png", photo(255, 300))
    return folder


def textured(i: int) -> Tensor:
    """Waves that are still there at an eighth of the size, and grain that is not."""
    waves = photo(32, 32, seed=i).repeat_interleave(8, 0).repeat_interleave(8, 1)
    grain = torch.randn(256, 256, 3, generator=torch.Generator().manual_seed(i))
    return (2 * waves - 0.5 + 0.1 * grain).clamp(0, 1)


def blocks(i: int) -> Tensor:
    """(32, 32, 64, 3): the pixels of every 8x8 block of photograph i, as ints."""
    pixels = textured(i).mul(255).round().int()
    out = torch.empty(32, 32, 64, 3, dtype=torch.int32)
    for y in range(32):
        for x in range(32):
            out[y, x] = pixels[8 * y : 8 * y + 8, 8 * x : 8 * x + 8].reshape(64, 3)
    return out


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[Pictures, Pictures]:
    return reproduce.pictures([folder], 450, seed=3)


def taken_from(picture: Tensor, block: Tensor) -> bool:
    """Whether every pixel of a picture, all three channels together, is one of its own block's 64."""
    return bool((block == picture[:, :, None].int()).all(3).any(2).all())


@pytest.fixture(scope="module")
def sources() -> list[Tensor]:
    return [blocks(i) for i in range(10)]


def source_of(picture: Tensor, sources: list[Tensor]) -> int:
    found = [i for i, block in enumerate(sources) if taken_from(picture, block)]
    assert len(found) == 1
    return found[0]


def test_there_are_as_many_as_asked_and_a_fiftieth_to_validate_on(made: tuple[Pictures, Pictures]) -> None:
    training, validation = made
    assert training.noisy.shape == training.other.shape == (450, 32, 32, 3)
    assert validation.noisy.shape == validation.other.shape == (9, 32, 32, 3)
    assert {t.dtype for t in (training.noisy, training.other, validation.noisy, validation.other)} == {torch.uint8}


def test_every_noisy_pixel_is_one_of_its_own_block_and_a_pair_is_of_one_photograph(
    made: tuple[Pictures, Pictures], sources: list[Tensor]
) -> None:
    training, _ = made
    for first, second in zip(training.noisy[:20], training.other[:20], strict=True):
        assert source_of(first, sources) == source_of(second, sources)


def test_the_clean_picture_is_the_rounded_mean_of_its_blocks(made: tuple[Pictures, Pictures], sources: list[Tensor]) -> None:
    _, validation = made
    for noisy, clean in zip(validation.noisy, validation.other, strict=True):
        mean = sources[source_of(noisy, sources)].double().mean(2)
        assert torch.equal(clean.double(), (mean + 0.5).floor())


def test_nine_photographs_in_ten_are_for_training_and_none_is_for_both(made: tuple[Pictures, Pictures], sources: list[Tensor]) -> None:
    training, validation = made
    seen = {source_of(picture, sources) for picture in training.noisy[:18]}
    unseen = {source_of(picture, sources) for picture in validation.noisy}
    assert len(seen) == 9  # taken in turn, so the first nine are all there are
    assert unseen == set(range(10)) - seen


def test_the_two_of_a_pair_are_independent(made: tuple[Pictures, Pictures], sources: list[Tensor]) -> None:
    training, _ = made
    errors: list[tuple[Tensor, Tensor]] = []
    same = 0.0
    for first, second in zip(training.noisy[:45], training.other[:45], strict=True):
        mean = sources[source_of(first, sources)].double().mean(2)
        errors.append((first - mean, second - mean))
        same += (first == second).all(2).double().mean().item() / 45
    one, two = (torch.stack(side).flatten() for side in zip(*errors, strict=True))
    n = len(one)
    assert abs((one * two).mean() / (one.std() * two.std())) < 4 / n**0.5
    assert abs(one.mean()) < 4 * one.std() / n**0.5
    assert same == pytest.approx(1 / 64, abs=0.003)  # the same pixel by chance, and no oftener


def test_all_pixels_of_a_block_come(made: tuple[Pictures, Pictures], sources: list[Tensor]) -> None:
    training, _ = made
    mine = list(training.noisy[::9])
    block = sources[source_of(mine[0], sources)]
    picked = {int((block[y, x] == p[y, x].int()).all(1).nonzero()[0]) for p in mine for y in range(8) for x in range(8)}
    assert picked == set(range(64))


def test_a_crop_lies_anywhere_in_a_larger_photograph(tmp_path: Path) -> None:
    ramp = torch.arange(300).view(300, 1, 1).expand(300, 260, 3) / 300  # how dark the top is tells where the crop lies
    for i in range(10):
        save(tmp_path / f"{i}.png", ramp)
    training, _ = reproduce.pictures([tmp_path], 300)
    tops = training.noisy[:, 0, 0, 0].float() / 255 * 300  # of its first block's rows: 0 to 44, and up to 7 more
    assert tops.min() < 6
    assert 45 < tops.max() < 52


def test_the_same_seed_makes_the_same_bits(folder: Path, made: tuple[Pictures, Pictures]) -> None:
    for seed, alike in ((3, True), (4, False)):
        again = reproduce.pictures([folder], 450, seed=seed)
        for ours, theirs in zip(again, made, strict=True):
            assert torch.equal(ours.noisy, theirs.noisy) is alike
            assert torch.equal(ours.other, theirs.other) is alike


def test_too_few_photographs_are_refused(tmp_path: Path) -> None:
    for i in range(9):
        save(tmp_path / f"{i}.png", torch.full((256, 256, 3), 0.5))
    save(tmp_path / "small.png", torch.full((255, 400, 3), 0.5))
    with refused(DataError, "9 photographs of at least 256x256 pixels were found: 10 are needed, 1000 are right"):
        reproduce.pictures([tmp_path])


def test_the_two_scores_are_as_on_paper() -> None:
    truth = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    pictures = torch.stack((torch.full((32, 32, 3), 0.1), torch.full((32, 32, 3), 0.01)))
    mean_of_psnr, psnr_of_mean = reproduce.score(pictures, truth)
    assert mean_of_psnr == pytest.approx((20 + 40) / 2, abs=1e-4)
    assert psnr_of_mean == pytest.approx(-10 * math.log10((0.01 + 0.0001) / 2), abs=1e-4)
    assert reproduce.score(torch.zeros(2, 32, 32, 3), truth) == (math.inf, math.inf)


def test_denoise_is_the_network_rounded_to_8_bits(generator: torch.Generator) -> None:
    network = noise2noise(generator)
    noisy = torch.randint(0, 256, (251, 32, 32, 3), generator=generator, dtype=torch.uint8)  # one more than a part
    clean = reproduce.denoise(network, noisy)
    expected = network.forward(noisy.float() / 255)
    assert torch.equal(clean, (clean * 255).round() / 255)
    assert (clean - expected).abs().max() <= 0.5 / 255 + 1e-5


@pytest.mark.parametrize("recipe", ["report", "better"])
def test_a_short_training_improves_both_scores(made: tuple[Pictures, Pictures], recipe: str) -> None:
    training, validation = made
    batches: list[tuple[int, int]] = []
    epochs: list[Epoch] = []
    before = reproduce.score(reproduce.denoise(noise2noise(torch.Generator().manual_seed(0)), validation.noisy), validation.other)
    network = reproduce.train(
        training, validation, recipe, 3, "cpu", "float32", 0, lambda done, total: batches.append((done, total)), epochs.append
    )
    assert batches == [(i, 27) for i in range(1, 28)]
    assert [epoch.number for epoch in epochs] == [1, 2, 3]
    assert epochs[-1].mean_of_psnr > before[0] + 0.1
    assert epochs[-1].psnr_of_mean > before[1] + 0.1
    assert epochs[-1].loss < epochs[0].loss
    assert 0 < epochs[0].seconds < epochs[1].seconds < epochs[2].seconds
    result = reproduce.score(reproduce.denoise(network, validation.noisy), validation.other)
    assert result == (epochs[-1].mean_of_psnr, epochs[-1].psnr_of_mean)  # what is returned is what was measured


@pytest.mark.parametrize("recipe", ["report", "better"])
def test_training_with_the_same_seed_gives_the_same_bits(made: tuple[Pictures, Pictures], recipe: str) -> None:
    training = Pictures(made[0].noisy[:120], made[0].other[:120])  # the last batch is smaller
    one, same, other = (reproduce.train(training, made[1], recipe, 1, "cpu", "float32", seed).param() for seed in (1, 1, 2))
    assert all(torch.equal(a.value, b.value) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0].value, other[0].value)


def test_the_reports_recipe_is_plain_gradient_descent_at_rate_2(made: tuple[Pictures, Pictures]) -> None:
    training = Pictures(made[0].noisy[:50], made[0].other[:50])  # one batch, so one step
    trained = reproduce.train(training, made[1], "report", 1, "cpu", "float32", 0).param()
    x, t = (pictures.float() / 255 for pictures in (training.noisy, training.other))

    def loss_with(nudge: float) -> float:
        network = noise2noise(torch.Generator().manual_seed(0))
        network.param()[-1].value[0] += nudge  # the last bias
        return (network.forward(x) - t).double().square().mean().item()

    slope = (loss_with(0.01) - loss_with(-0.01)) / 0.02
    assert trained[-1].value[0].item() == pytest.approx(-2 * slope, rel=1e-3)


def test_an_unknown_recipe_is_refused(made: tuple[Pictures, Pictures]) -> None:
    with refused(ValueError, 'recipe = "best" must be "report" or "better"'):
        reproduce.train(*made, recipe="best")


def test_a_gpu_that_is_not_there_is_refused(made: tuple[Pictures, Pictures], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match=r'^device = "cuda" needs a CUDA GPU'):
        reproduce.train(*made, device="cuda")
