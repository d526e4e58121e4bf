"""Photographs in memory, and the batches a training run sees. Knows nothing of noise, networks or files' formats.

A batch is told by (seed, step) alone, so a run that is resumed at step 1000 goes on with the very batch 1000.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from core import images

LONGEST_SIDE = 2048
"""Larger photographs are shrunk by a whole factor first: that removes JPEG's traces and the camera's own noise from the clean side."""


class DataError(ValueError):
    """Training pictures that can't be used; the message is for users."""


def find(folders: Iterable[Path]) -> list[Path]:
    """All files with a picture's suffix in the folders and below them, sorted; a file is taken as it is."""
    suffixes = {suffix for form in images.FORMATS.values() for suffix in form.suffixes}
    found: list[Path] = []
    for folder in folders:
        if not folder.exists():
            raise DataError(f"{folder} does not exist: name a picture, or a folder with pictures in it")
        inside = sorted(folder.rglob("*")) if folder.is_dir() else [folder]
        found += [path for path in inside if path.is_file() and path.suffix.lower() in suffixes]
    return found


def pixels(path: Path) -> Tensor:
    """One photograph as (H, W, 3) floats in [0, 1]. Raises DataError, which names the file."""
    return _picture(path).pixels


def shots(one: Path, other: Path) -> tuple[Tensor, Tensor]:
    """Two photographs of the same as `pixels` gives them, but on one scale: what float files hold outside of [0, 1] spans both."""
    both = _picture(one), _picture(other)
    low, high = min(picture.span[0] for picture in both), max(picture.span[1] for picture in both)

    def scaled(picture: images.Picture) -> Tensor:
        own_low, own_high = picture.span
        if picture.span == (low, high):
            return picture.pixels
        return picture.pixels.mul((own_high - own_low) / (high - low)).add((own_low - low) / (high - low))

    return scaled(both[0]), scaled(both[1])


def _picture(path: Path) -> images.Picture:
    try:
        return images.read(path.read_bytes(), images.Limits(max_pixels=400_000_000, max_total_pixels=400_000_000))
    except images.ImageError as error:
        raise DataError(f"{path}: {error}") from None


def read(path: Path, halved_from: float = math.inf) -> Tensor:
    """One photograph as (H, W, 3) uint8, its longest side at most LONGEST_SIDE; at half its size at most, if both sides have `halved_from`
    pixels.
    """
    photo = pixels(path)
    least = 2 if min(photo.shape[:2]) >= halved_from else 1
    return _shrunk(photo.mul(255), max(least, -(-max(photo.shape[:2]) // LONGEST_SIDE)))


def _shrunk(picture: Tensor, by: int) -> Tensor:
    """(H, W, 3) in 8-bit steps -> the means of blocks of by x by, uint8."""
    H, W = picture.shape[0] // by, picture.shape[1] // by
    blocks = picture[: H * by, : W * by].reshape(H, by, W, by, 3)
    return blocks.float().mean((1, 3)).round().to(torch.uint8)


class Photographs:
    """Pictures to cut patches from, each drawn in proportion to its area; each also at half its size, a quarter and so on.

    The smaller ones are sharper and freer of JPEG's traces and of grain than what a camera wrote. They are kept on `device`, and so are the
    patches cut from them.
    """

    def __init__(self, pictures: Sequence[Tensor], patch: int, device: torch.device | str = "cpu") -> None:
        self.pictures = []
        for picture in pictures:
            while min(picture.shape[:2]) >= patch:
                self.pictures.append(picture)
                picture = _shrunk(picture, 2)
        if not self.pictures:
            raise DataError(f"none of {len(pictures)} pictures has {patch}x{patch} pixels: add larger pictures or lower patch (={patch})")
        self.patch, device = patch, torch.device(device)
        self.areas = torch.tensor([float(p.shape[0] * p.shape[1]) for p in self.pictures])
        self._all: _Joined | None = None if device.type == "cpu" else _Joined(self.pictures, patch, device)

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """(size, patch, patch, 3) float in [0, 1], each patch in one of its eight orientations."""
        chosen = torch.multinomial(self.areas, size, replacement=True, generator=generator).tolist()
        places = torch.rand(size, 2, generator=generator).tolist()
        turns = torch.randint(8, (size,), generator=generator).tolist()
        P = self.patch
        sizes = [self.pictures[index].shape for index in chosen]
        corners = [(int(v * (H - P + 1)), int(u * (W - P + 1))) for (H, W, _), (v, u) in zip(sizes, places, strict=True)]
        if self._all is not None:
            return self._all.cut(chosen, corners, turns).float().div_(255)
        out = torch.empty(size, P, P, 3, dtype=torch.uint8)
        for i, (index, (y, x), turn) in enumerate(zip(chosen, corners, turns, strict=True)):
            cut = self.pictures[index][y : y + P, x : x + P].rot90(turn % 4)
            out[i] = cut.flip(1) if turn >= 4 else cut
        return out.float().div_(255)


class _Joined:
    """Pictures one behind the other on an accelerator, to which a batch's patches are one piece of work, not hundreds."""

    def __init__(self, pictures: list[Tensor], patch: int, device: torch.device) -> None:
        self.pixels = torch.cat([picture.reshape(-1, 3) for picture in pictures]).to(device)
        self.widths = [picture.shape[1] for picture in pictures]
        self.begins = [0, *itertools.accumulate(picture.shape[0] * picture.shape[1] for picture in pictures)]
        places = torch.arange(patch**2).view(patch, patch)
        turned = torch.stack([(p if turn < 4 else p.flip(1)) for turn in range(8) for p in [places.rot90(turn % 4)]])
        self._down, self._across = (turned // patch).to(device), (turned % patch).to(device)

    def cut(self, chosen: Sequence[int], corners: Sequence[tuple[int, int]], turns: Sequence[int]) -> Tensor:
        """(size, patch, patch, 3) uint8: of each chosen picture the patch whose upper left corner is told, in that orientation."""
        first = [self.begins[index] + y * self.widths[index] + x for index, (y, x) in zip(chosen, corners, strict=True)]
        told = torch.tensor([first, [self.widths[index] for index in chosen], turns]).to(self.pixels.device)
        begin, width, turn = told[0].view(-1, 1, 1), told[1].view(-1, 1, 1), told[2]
        return self.pixels[begin + self._down[turn] * width + self._across[turn]]


GREY = 0.1
"""The share of pictures that lose their colours."""
DEVELOPED = 0.25
"""The share of pictures that are developed anew: other gamma, contrast and saturation."""


def vary(pictures: Tensor, generator: torch.Generator, in_grey: float = GREY) -> Tensor:
    """(N, H, W, 3) in [0, 1] -> the same, some as another photographer would have developed them and a share of them in grey."""
    N = len(pictures)
    drawn = torch.rand(4, N, generator=generator).to(pictures.device)
    kind, gamma, contrast, saturation = (t.view(N, 1, 1, 1) for t in drawn)
    grey = pictures.mean(3, keepdim=True)
    other = (grey + (0.4 + 1.4 * saturation) * (pictures - grey)).clamp_(0, 1) ** torch.exp(0.8 * gamma - 0.4)
    middle = other.mean((1, 2, 3), keepdim=True)
    other = (middle + (0.6 + 0.8 * contrast) * (other - middle)).clamp_(0, 1)
    pictures = torch.where(kind < DEVELOPED, other, pictures)
    return torch.where(kind >= 1 - in_grey, grey, pictures)


def generator_of(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step of one run, whatever came before."""
    # The CPU's generator takes 32 bits of what it is given; an odd multiplier scatters the runs over all of them.
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + step) % 2**32)
