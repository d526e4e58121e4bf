"""What is kept of decoded pictures, for how long, and what goes when there is no room."""

import pytest
import torch

from app.errors import UnknownPicture
from app.kept import Kept
from core import Picture, images


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def stack(count: int = 1, side: int = 10) -> images.Stack:
    return images.Stack("png", count, side, side, count * side * side, lambda keep_going: iter(()))


def picture(side: int = 10) -> Picture:  # 3 side² bytes
    return Picture(torch.zeros(side, side, 3, dtype=torch.uint8))


def test_it_is_given_as_often_as_it_is_asked_for():
    kept, mine = Kept(1000, 60), picture()
    token = kept.keep(stack(), mine, "cat.png")
    for _ in range(2):
        found = kept[token]
        assert found.name == "cat.png"
        assert [each is mine for each in found.stack.frames(lambda: True)] == [True]


def test_it_goes_when_nobody_asked_for_it_in_time():
    clock = Clock()
    kept = Kept(1000, 60, clock)
    token = kept.keep(stack(), picture(), "")
    clock.now = 59
    assert kept[token]
    clock.now = 118
    assert kept[token]  # asked for 59 seconds ago
    clock.now = 178
    kept.forget()
    assert kept.size == 0
    with pytest.raises(UnknownPicture, match=r"^The picture is not kept here, or no longer: send it again\.$"):
        kept[token]


def test_what_was_asked_for_longest_ago_makes_room():
    kept = Kept(700, 60)
    first, second = (kept.keep(stack(), picture(), name) for name in "ab")
    assert kept[first]
    third = kept.keep(stack(), picture(), "c")
    assert kept.size == 600
    assert kept[first]
    assert kept[third]
    with pytest.raises(UnknownPicture):
        kept[second]


def test_one_that_is_too_large_is_not_kept_and_takes_nobodys_place():
    kept = Kept(300, 60)
    token = kept.keep(stack(), picture(), "")
    assert kept.keep(stack(), picture(11), "") is None
    alpha = torch.zeros(10, 10, dtype=torch.uint8)
    assert kept.keep(stack(), Picture(picture().samples, alpha), "") is None
    assert kept[token]


def test_several_frames_are_not_kept_and_with_no_room_nothing_is():
    assert not Kept(1000, 60).fits(stack(count=2, side=2))
    assert not Kept(99, 60).fits(stack())
    assert not Kept(0, 60).fits(stack(side=1))
    assert Kept(1000, 60).fits(stack())
