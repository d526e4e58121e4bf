"""Photographs found, read and cut into batches: every patch is a piece of a picture, and a step's batch depends on that step alone."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from core import DataError, data
from tests.core.made import flat, photo, refused, save


def numbered(H: int, W: int, first: int = 0) -> Tensor:
    """uint8, no two pixels alike: the three channels count."""
    number = torch.arange(first, first + H * W).view(H, W)
    return torch.stack((number % 251, number // 251, number % 13), 2).to(torch.uint8)


def test_pictures_are_found_by_suffix_in_folders_below_and_as_files(tmp_path: Path) -> None:
    names = ("b.png", "a.JPG", "deep/er/c.webp", "notes.txt", "deep/d.jpeg", ".hidden")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = data.find([tmp_path])
    assert found == [tmp_path / name for name in ("a.JPG", "b.png", "deep/d.jpeg", "deep/er/c.webp")]
    assert data.find([tmp_path / "b.png"]) == [tmp_path / "b.png"]
    assert data.find([tmp_path / "deep", tmp_path / "b.png"]) == [*found[2:], tmp_path / "b.png"]
    assert data.find([tmp_path / "notes.txt"]) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with refused(DataError, f"{tmp_path / 'none'} does not exist: name a picture, or a folder with pictures in it"):
        data.find([tmp_path, tmp_path / "none"])


def test_a_photograph_is_read_as_it_is(tmp_path: Path) -> None:
    picture = numbered(20, 30)
    path = save(tmp_path / "a.png", picture.float() / 255)
    assert torch.equal(data.read(path), picture)
    assert torch.equal(data.pixels(path), picture.float() / 255)


def test_a_large_photograph_is_shrunk_by_a_whole_factor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "LONGEST_SIDE", 8)
    picture = (photo(11, 20) * 255).round()  # 20 > 2 * 8, so by 3: 3 x 6 blocks, two rows and two columns left over
    read = data.read(save(tmp_path / "a.png", picture / 255))
    by_hand = [[picture[3 * y : 3 * y + 3, 3 * x : 3 * x + 3].sum((0, 1)) / 9 for x in range(6)] for y in range(3)]
    assert read.dtype == torch.uint8
    assert read.shape == (3, 6, 3)
    assert (read.float() - torch.stack([torch.stack(row) for row in by_hand])).abs().max() <= 0.501


def test_two_shots_in_floats_are_brought_to_one_scale(tmp_path: Path) -> None:
    """By itself each is brought to [0, 1] by its own least and largest value; of two that show the same, that would part them."""
    one, other = 300 * photo(16, 24)[..., 0], 300 * photo(16, 24)[..., 0]
    one[0, 0], other[3, 5] = -40, 700
    paths = []
    for name, values in (("a.tif", one), ("b.tif", other)):
        Image.fromarray(values.numpy()).save(tmp_path / name)
        paths.append(tmp_path / name)
    assert not torch.allclose(data.pixels(paths[0])[5:], data.pixels(paths[1])[5:], atol=0.05)
    for shot, values in zip(data.shots(*paths), (one, other), strict=True):
        torch.testing.assert_close(shot, ((values + 40) / 740)[..., None].expand(-1, -1, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("side", "shrunk"), [(8, 8), (9, 4), (16, 8), (17, 5)])
def test_the_longest_side_is_at_most_the_limit(side: int, shrunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "LONGEST_SIDE", 8)
    assert max(data.read(save(tmp_path / "a.png", photo(4, side))).shape) == shrunk


@pytest.mark.parametrize(("size", "read"), [((8, 9), (4, 4)), ((7, 30), (7, 30)), ((12, 33), (4, 11))])
def test_a_picture_large_enough_is_halved_and_one_that_was_shrunk_anyway_no_further(
    size: tuple[int, int], read: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "LONGEST_SIDE", 32 if size[1] < 33 else 16)
    assert data.read(save(tmp_path / "a.png", photo(*size)), halved_from=8).shape[:2] == read


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "cut.png", photo(20, 20))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=rf"^{path}: the png picture's IDAT part is damaged or cut short: send an unharmed copy\Z"):
        data.read(path)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=rf"^{tmp_path / 'text.png'}: the file is no picture of a known format"):
        data.read(tmp_path / "text.png")


def orientations(patch: Tensor) -> list[Tensor]:
    """The eight ways to lay a square, by transposing and flipping alone."""
    return [p for t in (patch, patch.transpose(0, 1)) for p in (t, t.flip(0), t.flip(1), t.flip(0, 1))]


def where(patch: Tensor, picture: Tensor) -> list[tuple[int, int, int]]:
    """(y, x, orientation) of every place where the picture holds the patch."""
    P = patch.shape[0]
    return [
        (y, x, o)
        for o, turned in enumerate(orientations(patch))
        for y in range(picture.shape[0] - P + 1)
        for x in range(picture.shape[1] - P + 1)
        if torch.equal(picture[y : y + P, x : x + P], turned)
    ]


def test_every_patch_is_a_piece_of_a_picture_and_all_places_and_orientations_come(generator: torch.Generator) -> None:
    picture = numbered(6, 7)
    batch = data.Photographs([picture], 4).batch(400, generator)
    assert batch.shape == (400, 4, 4, 3)
    assert batch.dtype == torch.float32
    found = [where((patch * 255).round().to(torch.uint8), picture) for patch in batch]
    assert all(len(places) == 1 for places in found)
    assert {places[0] for places in found} == {(y, x, o) for y in range(3) for x in range(4) for o in range(8)}


def test_a_batch_is_in_0_to_1_and_is_the_files_levels(generator: torch.Generator) -> None:
    batch = data.Photographs([numbered(8, 8)], 8).batch(3, generator)
    assert torch.equal(batch, (batch * 255).round() / 255)


def test_pictures_are_drawn_in_proportion_to_their_area(generator: torch.Generator) -> None:
    dark, light = torch.zeros(10, 10, 3, dtype=torch.uint8), torch.full((30, 10, 3), 255, dtype=torch.uint8)
    batch = data.Photographs([dark, light], 6).batch(4000, generator)  # a patch fits into neither at half its size
    assert batch[:, 0, 0, 0].mean().item() == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 4000) ** 0.5)


def test_every_picture_comes_at_half_its_size_too_while_a_patch_fits() -> None:
    picture = numbered(17, 33)
    photographs = data.Photographs([picture], 4)
    assert [tuple(p.shape) for p in photographs.pictures] == [(17, 33, 3), (8, 16, 3), (4, 8, 3)]
    by_hand = [[picture[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].float().sum((0, 1)) / 4 for x in range(16)] for y in range(8)]
    half = torch.stack([torch.stack(row) for row in by_hand]).round()
    assert torch.equal(photographs.pictures[1].float(), half)


def test_pictures_vary_in_development_and_some_are_grey(generator: torch.Generator) -> None:
    pictures = torch.stack([photo(12, 14)] * 400)
    varied = data.vary(pictures, generator)
    assert varied.min() >= 0
    assert varied.max() <= 1
    same = (varied == pictures).flatten(1).all(1)
    grey = (varied == varied[..., :1]).flatten(1).all(1)
    assert same.float().mean().item() == pytest.approx(1 - data.DEVELOPED - data.GREY, abs=0.08)
    assert grey.float().mean().item() == pytest.approx(data.GREY, abs=0.05)
    other = varied[~same & ~grey]
    spread = (other.std((1, 2, 3)) / photo(12, 14).std()).log()
    assert spread.max() > 0.1
    assert spread.min() < -0.1
    torch.testing.assert_close(varied[grey][0], photo(12, 14).mean(2, keepdim=True).expand(-1, -1, 3))


def test_joined_pictures_give_the_very_patches_in_all_orientations(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an accelerator cuts them, here on the processor: from pictures of several widths, down to that of a patch."""
    photographs = data.Photographs([numbered(9, 13), numbered(20, 7, first=500), numbered(6, 6, first=900)], 6)
    joined, turned = data._Joined(photographs.pictures, 6, torch.device("cpu")), set[int]()
    cut = joined.cut

    def noted(chosen: list[int], corners: list[tuple[int, int]], turns: list[int]) -> Tensor:
        turned.update(turns)
        return cut(chosen, corners, turns)

    expected = photographs.batch(100, data.generator_of(1, 2))
    monkeypatch.setattr(joined, "cut", noted)
    monkeypatch.setattr(photographs, "_all", joined)
    assert torch.equal(photographs.batch(100, data.generator_of(1, 2)), expected)
    assert turned == set(range(8))


@pytest.mark.parametrize("turn", range(8))
def test_a_joined_patch_is_turned_and_then_flipped(turn: int) -> None:
    pictures = [numbered(9, 13), numbered(5, 7, first=500)]
    joined = data._Joined(pictures, 4, torch.device("cpu"))
    for index, (y, x) in ((0, (5, 9)), (1, (1, 0))):
        expected = pictures[index][y : y + 4, x : x + 4].rot90(turn % 4)
        cut = joined.cut([index], [(y, x)], [turn])
        assert cut.dtype == torch.uint8
        assert torch.equal(cut[0], expected.flip(1) if turn >= 4 else expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
def test_a_gpu_cuts_the_processors_patches() -> None:
    pictures = [numbered(9, 13), numbered(20, 7, first=500)]
    one, other = (data.Photographs(pictures, 6, device) for device in ("cpu", "cuda"))
    batch = other.batch(50, data.generator_of(3, 4))
    assert batch.device.type == "cuda"
    torch.testing.assert_close(batch.cpu(), one.batch(50, data.generator_of(3, 4)), atol=1e-7, rtol=0)  # a division's last bit


def test_pictures_smaller_than_a_patch_are_left_out(generator: torch.Generator) -> None:
    bytes_of = [(flat(level, side) * 255).to(torch.uint8) for level, side in ((10, 7), (20, 8))]
    photographs = data.Photographs(bytes_of, 8)
    assert len(photographs.pictures) == 1
    assert (photographs.batch(20, generator) == 20 / 255).all()


def test_no_picture_left_is_an_error() -> None:
    message = "none of 2 pictures has 16x16 pixels: add larger pictures or lower patch (=16)"
    with refused(DataError, message):
        data.Photographs([numbered(15, 40), numbered(40, 15)], 16)


def test_a_step_is_told_by_seed_and_step_alone() -> None:
    photographs = data.Photographs([numbered(20, 20)], 8)
    first, again, other_step, other_seed = (photographs.batch(5, data.generator_of(*which)) for which in ((1, 7), (1, 7), (1, 8), (2, 7)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other_step)
    assert not torch.equal(first, other_seed)


def test_steps_of_a_run_do_not_meet_another_runs() -> None:
    drawn = {torch.randint(2**62, (), generator=data.generator_of(seed, step)).item() for seed in range(20) for step in range(200)}
    assert len(drawn) == 4000
    assert torch.rand((), generator=data.generator_of(2**32 - 1, 10**6)) != torch.rand((), generator=data.generator_of(0, 10**6))


def test_no_other_source_of_chance_is_touched(generator: torch.Generator) -> None:
    before = torch.get_rng_state()
    data.Photographs([numbered(20, 20)], 8).batch(5, generator)
    data.generator_of(3, 4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_picture_or_every_one_loses_its_colours(share: float, generator: torch.Generator) -> None:
    varied = data.vary(torch.rand(50, 8, 8, 3, generator=generator), generator, share)
    assert (varied == varied[..., :1]).flatten(1).all(1).float().mean().item() == share
