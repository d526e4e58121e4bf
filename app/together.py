"""The processes that train together: starts them on this machine, or joins those that a launcher such as `torchrun` started.

The process that was asked for several is rank 0 and starts the others, as `python -m app.together`. Their standard input is a pipe from it,
with the recipe in a line; one whose pipe ends has lost its parent, and ends too.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from core.ranks import Alone
    from core.trainer import Recipe

GRACE_SECONDS = 5.0
"""How long a rank has for its own words when another ended."""


def rank() -> int:
    """This process's number among those that train together; 0 if it trains by itself."""
    return int(os.environ.get("RANK", "0")) if size() > 1 else 0


def size() -> int:
    """How many a launcher has started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def ranks(recipe: "Recipe", processes: int) -> "Iterator[Alone]":
    """Those that this process trains with, for as long as the block runs. Raises TrainingError, DeviceError or Lost."""
    from core.ranks import ALONE, Ranks
    from core.trainer import TrainingError

    if size() > 1:
        if processes > 1:
            raise TrainingError(f"nproc (={processes}) is for a command that starts by itself: a launcher has started {size()} processes")
        with Ranks.joined(_device(recipe.device), rank(), size()) as joined:
            yield joined
    elif processes > 1:
        with _starting(recipe, processes) as joined:
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
def _starting(recipe: "Recipe", processes: int) -> "Iterator[Alone]":
    from core import hardware
    from core.ranks import Ranks

    taken = _device(recipe.device)
    cores = hardware.threads()
    threads = max(1, cores // processes)
    hardware.compute_on(threads)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # these processes talk to nobody outside
    children: list[subprocess.Popen[bytes]] = []
    ending = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        try:
            for number in range(1, processes):
                told = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": processes, "OMP_NUM_THREADS": threads}
                environment = os.environ | {name: str(value) for name, value in told.items()}
                command = [sys.executable, "-m", "app.together", str(meeting)]
                # in a session of its own: Ctrl-C is for rank 0, which tells the others
                child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)
                children.append(child)
                assert child.stdin is not None
                child.stdin.write(json.dumps(dataclasses.asdict(recipe), default=str).encode() + b"\n")
                child.stdin.flush()
            threading.Thread(target=_watch, args=(children, ending), daemon=True).start()
            with Ranks.joined(taken, 0, processes, meeting) as joined:
                yield joined
        finally:
            ending.set()
            hardware.compute_on(cores)
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


def main(meeting: Path) -> None:
    """A started process: trains as it is told, and says nothing but its own mistakes."""
    from core import DataError, DeviceError, WeightsError, trainer
    from core.ranks import Elsewhere, Lost, Ranks

    recipe = _recipe(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with Ranks.joined(_device(recipe.device), rank(), size(), meeting) as joined:
            trainer.train(recipe, ranks=joined)
    except Elsewhere:
        sys.exit(1)
    except (trainer.TrainingError, DataError, WeightsError, DeviceError, Lost, OSError) as mistake:
        sys.exit(f"clearfold: process {rank()}: {mistake}")


def _recipe(line: bytes) -> "Recipe":
    from core.trainer import Recipe

    plain = json.loads(line)
    for name in ("out", "initial", "validation"):
        plain[name] = plain[name] and Path(plain[name])
    return Recipe(**plain | {"data": tuple(map(Path, plain["data"])), "sigma": tuple(plain["sigma"])})


def _end_with_parent() -> None:
    os.read(0, 1)
    time.sleep(GRACE_SECONDS)  # a lost connection is told in words meanwhile
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
