"""Batches made ahead are those that one process would have made, and whatever goes wrong with them is told."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator

import pytest
import torch

from core import ahead
from core.methods import Batch

pytestmark = pytest.mark.skipif(not ahead.possible(), reason="processes can't start as copies of this one here")


def numbered(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    return torch.rand(3, 4, 4, 3, generator=generator), torch.rand(3, 4, 4, 3, generator=generator), torch.full((3, 1, 1, 1), float(step))


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("processes", [1, 2, 5])
@pytest.mark.parametrize("end", [3, 4, 5, 17])
def test_they_are_the_same_and_in_order(processes: int, end: int) -> None:
    seen = [tuple(tensor.clone() for tensor in batch) for batch in ahead.made(numbered, 3, end, processes)]
    assert len(seen) == end - 3
    for step, batch in zip(range(3, end), seen, strict=True):
        assert all(torch.equal(own, right) for own, right in zip(batch, numbered(step), strict=True))


def test_whoever_has_seen_enough_leaves_no_process_behind() -> None:
    batches = ahead.made(numbered, 0, 1000, 2)
    for _ in range(5):
        next(batches)
    batches.close()  # type: ignore[attr-defined]


def test_what_a_process_raises_is_raised_here() -> None:
    def make(step: int) -> Batch:
        if step == 4:
            raise ValueError("step (=4) is one too many")
        return numbered(step)

    with pytest.raises(ValueError, match=r"step \(=4\)"):
        list(ahead.made(make, 0, 9, 2))


def test_a_process_that_is_killed_is_told_of() -> None:
    def make(step: int) -> Batch:
        if step == 3:
            os._exit(9)
        return numbered(step)

    with pytest.raises(ahead.Died, match=r"exit code 9.*memory for 2"):
        list(ahead.made(make, 0, 9, 2))
