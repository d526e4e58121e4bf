"""Pieces of work that threads share: each is done once, as the caller would do it, and no thread's number of threads changes."""

import os
import threading
import time

import pytest
import torch

from core.nn import team

CPU = torch.device("cpu")


def test_every_item_is_done_once_by_threads_that_compute_alone(threads: int) -> None:
    done: list[tuple[int, int]] = []
    team.each(lambda item: done.append((item, torch.get_num_threads())), range(10), CPU)
    assert sorted(done) == [(item, 1) for item in range(10)]
    assert torch.get_num_threads() == threads


def test_each_thread_of_torchs_takes_items() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    meet = threading.Barrier(2, timeout=10)  # one thread alone would wait in vain
    team.each(lambda item: meet.wait() and None, range(2), CPU)
    torch.set_num_threads(before)


def test_too_few_items_are_left_to_torchs_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    found: list[tuple[str, int]] = []
    team.each(lambda item: found.append((threading.current_thread().name, torch.get_num_threads())), range(1), CPU)
    torch.set_num_threads(before)
    assert found == [(threading.current_thread().name, 2)]


def test_a_thread_that_starts_later_has_torchs_number() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    team.each(lambda item: None, range(4), CPU)
    found: list[int] = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    torch.set_num_threads(before)
    assert found == [2]


def test_tensors_of_inference_mode_may_be_written(threads: int) -> None:
    with torch.inference_mode():
        y = torch.zeros(4)
        team.each(lambda item: y[item].fill_(item), range(4), CPU)
    assert y.tolist() == [0, 1, 2, 3]


def test_an_error_comes_out_as_it_is(threads: int) -> None:
    def work(item: int) -> None:
        if item == 2:
            raise ValueError("the third")

    with pytest.raises(ValueError, match=r"^the third$"):
        team.each(work, range(4), CPU)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_has_a_team_of_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    team.each(lambda item: None, range(4), CPU)
    child = os.fork()
    if child == 0:
        team.each(lambda item: None, range(4), CPU)
        os._exit(17)
    for _ in range(1000):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.01)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
    torch.set_num_threads(before)
    assert ended
    assert os.waitstatus_to_exitcode(status) == 17
