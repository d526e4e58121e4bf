"""The contact sheet: every picture on it, pixel for pixel, under its line."""

import torch
from torch import Tensor

from core import metrics
from core.sheet import BACK, GAP, LINE, SIDE, sheet
from tests.core.made import photo


def at(page: Tensor, top: int, left: int, picture: Tensor) -> Tensor:
    return page[top : top + picture.shape[0], left : left + picture.shape[1]]


def test_pictures_stand_side_by_side_pixel_for_pixel() -> None:
    one, other, third = (metrics.to_8bit(photo(20 + i, 30 + i, seed=i)) for i in range(3))
    page = sheet([[("", one), ("", other)], [("", third)]])
    assert torch.equal(at(page, GAP + LINE, GAP, one), one)
    assert torch.equal(at(page, GAP + LINE, 2 * GAP + third.shape[1], other), other)
    assert torch.equal(at(page, 2 * GAP + 2 * LINE + other.shape[0], GAP, third), third)


def test_values_out_of_range_are_cut_off() -> None:
    page = sheet([[("", photo(20, 30) * 4 - 2)]])
    assert torch.equal(at(page, GAP + LINE, GAP, photo(20, 30)), metrics.to_8bit(photo(20, 30) * 4 - 2))


def test_a_line_stands_above_and_is_cut_to_the_pictures_width() -> None:
    page = sheet([[("noisy " * 100, photo(20, 60)), ("", photo(20, 60))]])
    back = torch.tensor(BACK) / 255
    assert (page[GAP : GAP + LINE, GAP : GAP + 60] != back).any()
    assert (page[GAP : GAP + LINE, GAP + 62 :] == back).all()


def test_of_a_large_picture_the_middle_is_shown() -> None:
    large = metrics.to_8bit(photo(SIDE + 20, SIDE + 41))
    page = sheet([[("", large)]])
    assert torch.equal(at(page, GAP + LINE, GAP, large[10:-10, 20:-21]), large[10:-10, 20:-21])
