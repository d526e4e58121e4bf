"""The child process of a training job: `python -m app.training FOLDER SECONDS DEVICE`. Knows the job's folder and nothing of the service.

In the folder lie `order.json`, `pictures/`, perhaps `parent/NAME.safetensors`, and what an earlier attempt left: `plan.json` and a
checkpoint, from which it goes on. SECONDS were trained before. It says on its standard output how it goes, one JSON object a line:

    {"step": 20, "steps": 900, "loss": …, "psnr": …, "panels": …, …}     after a step; `psnr` when it was measured, and `sample.png` is new
    {"note": …, "quality": …, "weights": PATH}                           at last, or
    {"failed": REASON}

A child whose standard input ends has lost its parent, and ends too.
"""

import contextlib
import dataclasses
import errno
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.orders import Order

if TYPE_CHECKING:
    from torch import Tensor

    from core import trainer  # slow to start and of use to the child alone

NICE = 19
CHECKPOINT_SECONDS = 20.0
MEASUREMENTS = 12
GENTLE = {"clean": 0.2, "pairs": 0.5, "noisy": 0.2}
"""Of the learning rate, by method, where there is a parent: the full rate would first undo what it knows. But pairs show what it may never
have seen: of striped noise, 20 pairs gained 3.08 dB in 2000 steps at half the rate, and 2.98 dB at the full one; of white noise, which the
parent knows, 1000 steps lose 0.05 dB at half the rate, and 0.13 dB at the full one.
"""
SAMPLE = "sample.png"


def main(folder: Path, seconds: float, device: str = "auto") -> None:
    _step_back()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    parent = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log, not among the JSON lines

    def say(**words: Any) -> None:
        print(json.dumps(words), file=parent)

    try:
        order = Order.model_validate_json((folder / "order.json").read_text())
        deadline = time.monotonic() + order.minutes * 60 - seconds

        from core import DataError, DeviceError, WeightsError, trainer, weights  # after the pipe is up: a failing import is told too

        begun = False

        def report(at: trainer.Progress) -> None:
            nonlocal begun
            if not begun:
                print(f"began with step {at.step} of {at.steps}", file=sys.stderr, flush=True)
                begun = True
            panels = None if at.sample is None else _keep_sample(folder, at.sample)
            told = {name: value for name, value in vars(at).items() if name != "sample"}
            left = max(0.0, min(at.seconds_left, deadline - time.monotonic()))  # whichever ends first
            say(**told | {"seconds_left": round(left, 1)}, panels=panels)

        try:
            recipe = _recipe(order, folder, deadline, device)
            made = trainer.train(recipe, report, stop=lambda: time.monotonic() > deadline, resume=recipe.checkpoint.exists())
            card = weights.load(made)[1]
            say(note=card["note"], quality=card["quality"], weights=str(made))
        except (trainer.TrainingError, DataError, WeightsError, DeviceError) as error:
            traceback.print_exc()
            say(failed=str(error))
    except OSError as error:
        traceback.print_exc()
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        say(failed=f"The disk is full ({error}): free some space and resume the job." if full else f"{type(error).__name__}: {error}")


def _recipe(order: Order, folder: Path, deadline: float, device: str) -> "trainer.Recipe":
    """The order as the trainer knows it. What is decided once, at the first attempt, is kept in `plan.json`."""
    from core import trainer

    initial = next(iter(sorted((folder / "parent").glob("*.safetensors"))), None)
    recipe = trainer.Recipe(
        data=(folder / "pictures",),
        out=folder / "made" / f"{order.model}.safetensors",
        method=order.method,
        sigma=(order.sigma_min / 255, order.sigma_max / 255),
        photographic={"gaussian": 0.0, "mixed": 0.3, "camera": 1.0}[order.noise],
        initial=initial,
        checkpoint_seconds=CHECKPOINT_SECONDS,
        device=device,
    )
    if initial is not None:
        recipe = dataclasses.replace(recipe, lr=recipe.lr * GENTLE[order.method])
    for left in (folder / "made").glob(".*"):  # a file that an earlier attempt was killed in the middle of
        left.unlink()
    plan = folder / "plan.json"
    if not plan.exists():
        steps = order.steps or trainer.steps_within(recipe, deadline - time.monotonic())
        warm_up, every = min(recipe.warm_up, steps // 10), -(-steps // MEASUREMENTS)
        decided = {"steps": steps, "lr": recipe.lr, "warm_up": warm_up, "evaluate_every": every}
        _write(plan, json.dumps(decided).encode())
    return dataclasses.replace(recipe, **json.loads(plan.read_text()))


def _keep_sample(folder: Path, sample: "Tensor") -> list[str]:
    """Writes the sample; which panels it has."""
    from core import Picture, images

    _write(folder / SAMPLE, images.write(Picture(sample)))
    return ["before", "parent", "now"] if sample.shape[1] == 3 * sample.shape[0] else ["before", "now"]


def _write(path: Path, data: bytes) -> None:
    """So that a reader sees the old file or the new one."""
    fresh = path.with_name(f".{path.name}")
    fresh.write_bytes(data)
    os.replace(fresh, path)


def _step_back() -> None:
    """Lowers this process' priority, and that of its session, where Linux shares the processor among sessions first (see sched(7)).

    Among sessions the niceness of a process means nothing: beside a job, pictures took ten times as long.
    """
    os.nice(NICE)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICE))


def _end_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin, whose lock would hinder an orderly end
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
