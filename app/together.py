"""The processes that train together: starts them on this machine, or joins those that a launcher such as `torchrun` started.

The process that was asked for several is rank 0 and starts the others with its own command line. Their standard input is a pipe from it:
one whose pipe ends has lost its parent, and ends too.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from core.ranks import Alone

STORE = "CLEARFOLD_STORE"
"""The environment's name for where a started process finds rank 0, as HOST:PORT."""
GRACE_SECONDS = 5.0
"""How long a rank has for its own words when another ended."""


def rank() -> int:
    """This process's number among those that train together; 0 if it trains by itself."""
    return int(os.environ.get("RANK", "0")) if _size() > 1 else 0


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def ranks(device: str, processes: int) -> "Iterator[Alone]":
    """Those that this process trains with, for as long as the block runs. Raises TrainingError, DeviceError or Lost."""
    from core.ranks import ALONE

    if STORE in os.environ:
        with _started(device) as joined:
            yield joined
    elif _size() > 1:
        from core.ranks import Ranks
        from core.trainer import TrainingError

        if processes > 1:
            raise TrainingError(f"nproc (={processes}) is for a command that starts by itself: a launcher has started {_size()} processes")
        with Ranks.joined(_device(device), rank(), _size()) as joined:
            yield joined
    elif processes > 1:
        with _starting(device, processes) as joined:
            yield joined
    else:
        yield ALONE


def restarted() -> bool:
    """Whether `torchrun` started this process anew, after one had ended badly."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _device(device: str) -> "torch.device":
    """A GPU of its own for each process of a machine."""
    from core import hardware

    taken = hardware.take(device)
    if taken.type == "cuda" and (device == "auto" or taken.index is None):
        return hardware.take(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    return taken


@contextmanager
def _started(device: str) -> "Iterator[Alone]":
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from core.ranks import Ranks

    threading.Thread(target=_end_with_parent, daemon=True).start()
    host, port = os.environ[STORE].rsplit(":", 1)
    with Ranks.joined(_device(device), rank(), _size(), TCPStore(host, int(port), is_master=False)) as joined:
        yield joined


def _end_with_parent() -> None:
    os.read(0, 1)
    time.sleep(GRACE_SECONDS)  # a lost connection is told in words meanwhile
    os._exit(1)


@contextmanager
def _starting(device: str, processes: int) -> "Iterator[Alone]":
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from core import hardware
    from core.ranks import Ranks

    taken = _device(device)
    threads = max(1, hardware.threads() // processes)
    hardware.compute_on(threads)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = []
    for number in range(1, processes):
        environment = os.environ | {
            STORE: f"127.0.0.1:{store.port}",
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": str(processes),
            "OMP_NUM_THREADS": str(threads),
        }
        command = [sys.executable, "-m", "app.cli", *sys.argv[1:]]
        # in a session of its own: Ctrl-C is for rank 0, which tells the others
        children.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True))
    ending = threading.Event()
    threading.Thread(target=_watch, args=(children, ending), daemon=True).start()
    try:
        with Ranks.joined(taken, 0, processes, store) as joined:
            yield joined
    finally:
        ending.set()
        for child in children:
            assert child.stdin is not None
            child.stdin.close()
        for child in children:
            try:
                child.wait(2 * GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _watch(children: "list[subprocess.Popen[bytes]]", ending: threading.Event) -> None:
    """Ends this process if another ended badly and it does not notice: it may wait for that one, on a GPU or before they have met."""
    while not ending.wait(0.5):
        bad = [(number, child.returncode) for number, child in enumerate(children, 1) if child.poll()]
        if bad and not ending.wait(GRACE_SECONDS):
            number, status = bad[0]
            print(f"clearfold: process {number} of {len(children) + 1} ended with status {status}: see what it said", file=sys.stderr)
            os._exit(1)
