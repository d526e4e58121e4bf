"""Pieces of work on a processor at the same time, each by one thread from its beginning to its end.

torch's own threads share every operator and meet behind it, ten times for one strip of a convolution. A strip that one thread computes
alone stays in that core's cache, and nobody waits for a thread that a busy machine has taken off its core. Knows nothing of what is
computed.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch


def each(work: Callable[[int], None], items: Sequence[int], device: torch.device) -> None:
    """`work` of each item, by as many threads as torch has in this one; by this one alone, with torch's, where the items are too few."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or len(items) < threads:
        for item in items:
            work(item)
        return
    inference = torch.is_inference_mode_enabled()

    def in_mode(item: int) -> None:
        with torch.inference_mode(inference):
            work(item)

    with _lock:
        team = _team(threads)
    for _ in team.map(in_mode, items):
        pass


@functools.cache
def _team(threads: int) -> ThreadPoolExecutor:
    team, all_there = ThreadPoolExecutor(threads, "clearfold-strip", _alone), threading.Barrier(threads)
    for _ in [*team.map(lambda _: all_there.wait(), range(threads))]:
        pass
    torch.set_num_threads(threads)  # what was set last, by any thread, is what new threads start with
    return team


def _alone() -> None:
    torch.get_num_threads()  # a thread's first look at its number sets it
    torch.set_num_threads(1)


_lock = threading.Lock()
os.register_at_fork(after_in_child=_team.cache_clear)
