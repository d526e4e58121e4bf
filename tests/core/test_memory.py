"""Memory that processes have in common. Threads play the processes: each has its own piece, and opens the others'."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch import Tensor

from core import memory

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there are no files in memory here")


def together(*numbers: int, says: Callable[[int, str], str] = lambda who, words: words) -> list[list[Tensor] | None]:
    """What each gets, who asks for so many numbers; `says` is what others hear of it."""
    said: list[str] = [""] * len(numbers)
    barrier = threading.Barrier(len(numbers), timeout=60)

    def one(who: int) -> list[Tensor] | None:
        def told(words: str) -> list[str]:
            said[who] = says(who, words)
            barrier.wait()
            heard = list(said)
            barrier.wait()
            return heard

        return memory.common(numbers[who], told)

    with ThreadPoolExecutor(len(numbers)) as pool:
        return list(pool.map(one, range(len(numbers))))


def test_what_one_writes_the_others_read() -> None:
    first, second, third = together(4, 6, 5)
    assert first
    assert second
    assert third
    assert [len(piece) for piece in first] == [len(piece) for piece in second] == [4, 6, 5]
    for i, piece in enumerate(first):
        piece.fill_(i + 0.5)
    for others in (second, third):
        assert [piece.tolist() for piece in others] == [[0.5] * 4, [1.5] * 6, [2.5] * 5]


@pytest.mark.parametrize(
    "told",
    ["", "/proc/self/fd/100000 no-such-file", f"/proc/{os.getpid()}/exe {'0' * 32}", f"/dev/null {'0' * 32}"],
    ids=["no files in memory", "another machine's process", "another machine's file", "an empty one"],
)
def test_there_is_none_for_all_where_one_is_elsewhere(told: str) -> None:
    assert together(4, 6, says=lambda who, words: told if who and words.startswith("/proc") else words) == [None, None]


def test_no_file_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    kept = together(4, 6)
    assert kept[0]
    assert len(os.listdir("/proc/self/fd")) <= before + 4  # what is mapped keeps a descriptor of its own, in Python
    del kept
    assert len(os.listdir("/proc/self/fd")) == before
