"""Batches made ahead by other processes, where an accelerator would otherwise wait for the processor that makes them.

A camera's noise takes one core a second for three megapixels, and an accelerator learns from tens of them in that time.

Knows nothing of noise.
"""

from __future__ import annotations

import math
import mmap
import multiprocessing
import multiprocessing.context
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection

import torch
from torch import Tensor

from core.methods import Batch

SLOTS = 2
"""Of each process: one is learned from while the next one is made."""


class Died(RuntimeError):
    """A process that makes batches has ended before its time."""


def possible() -> bool:
    """Processes start as copies of this one, so they have all it knows and nothing is sent to them: not every system can do that."""
    return "fork" in multiprocessing.get_all_start_methods()


def made(make: Callable[[int], Batch], first: int, end: int, processes: int) -> Iterator[Batch]:
    """`make(step)` for all steps from `first` to before `end`, in order, each made by one of so many processes with one thread.

    All batches have the shapes and types of the first, which is made here, and lie on the processor; each is gone with the next one.
    `make` may not touch an accelerator. Raises what it raises, or Died.
    """
    if first >= end:
        return
    sample = make(first)
    yield sample
    context = multiprocessing.get_context("fork")
    workers: list[tuple[list[Batch], Connection, multiprocessing.context.ForkProcess]] = []
    try:
        for number in range(min(processes, end - first - 1)):
            slots = [(_shared(sample[0]), _shared(sample[1]), _shared(sample[2])) for _ in range(SLOTS)]
            here, there = context.Pipe()
            steps = range(first + 1 + number, end, processes)
            others = [connection for _, connection, _ in workers]
            process = context.Process(target=_work, args=(make, steps, slots, there, [here, *others]), daemon=True)
            process.start()
            there.close()  # so that the other end's death is told by this one's
            workers.append((slots, here, process))
        for step in range(first + 1, end):
            turn, worker = divmod(step - first - 1, processes)
            slots, connection, process = workers[worker]
            try:
                failure = connection.recv()
            except (EOFError, ConnectionResetError):
                process.join()
                raise Died(
                    f"a process that made batches has ended (exit code {process.exitcode}): is there memory for {processes}?"
                ) from None
            if failure is not None:
                raise failure
            yield slots[turn % SLOTS]
            with suppress(BrokenPipeError):  # if its last batch was this one, it has ended
                connection.send(None)  # the slot may be written again
    finally:
        for _, connection, process in workers:
            process.kill()  # not asked: it has this process's handlers of signals
            process.join()
            connection.close()


def _shared(like: Tensor) -> Tensor:
    """Memory of this process and its copies; not of /dev/shm, which is small in containers."""
    memory = mmap.mmap(-1, max(1, like.numel() * like.element_size()))
    return torch.frombuffer(memory, dtype=like.dtype, count=math.prod(like.shape)).view(like.shape)


def _work(make: Callable[[int], Batch], steps: range, slots: list[Batch], told: Connection, others: list[Connection]) -> None:
    for connection in others:
        connection.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal's group, the process that learns alone says what is to be done
    torch.set_num_threads(1)  # OpenMP's workers did not come along
    try:
        for turn, step in enumerate(steps):
            if turn >= SLOTS:
                told.recv()
            for own, value in zip(slots[turn % SLOTS], make(step), strict=True):
                own.copy_(value)
            told.send(None)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # nobody waits any more
        return
    except Exception as error:
        told.send(error)
