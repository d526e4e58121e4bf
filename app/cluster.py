"""The engine of an archive on many machines: Ray's actors, each with the weights loaded once. Needs the extra `cluster`.

The pictures, and where answers go, lie on a volume that all machines see; how these find each other, Ray alone knows. An actor that dies is
started anew, by Ray, and what it was at is given to another. Sends nothing to anyone: Ray's own usage report is off.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.archive import Gate, How, Outcome, Task

AHEAD = 2
"""Tasks that an actor is given at a time: while it does one, the next is there."""
ATTEMPTS = 3
"""A picture is given up when so many actors died at it."""
WAIT_SECONDS = 0.5


class Worker:
    """An actor: the denoiser, and a picture at a time."""

    def __init__(self, how: How, weights: dict[str, bytes], threads: int) -> None:
        import tempfile

        from core import hardware

        hardware.compute_on(threads)
        hardware.keep_freed_memory()
        with tempfile.TemporaryDirectory() as folder:  # the driver's files may lie where this machine has none
            paths = [Path(folder) / f"{name}.safetensors" for name in weights]
            for path, data in zip(paths, weights.values(), strict=True):
                path.write_bytes(data)
            self._denoiser = dataclasses.replace(how, weights=tuple(paths)).load()
        self._how, self._gate = how, Gate()

    def denoise(self, task: Task) -> Outcome:
        from app import archive

        return archive.denoise(task, self._how, self._denoiser, self._gate)


class Cluster:
    """The engine. `told`: what it runs on, in words."""

    def __init__(self, ray: Any, how: How, pictures: int) -> None:
        self._ray = ray
        has = ray.cluster_resources()
        gpus = int(has.get("GPU", 0)) if how.device != "cpu" else 0
        count = max(1, min(gpus or int(has.get("CPU", 1)), pictures))
        data = ray.put({path.stem: path.read_bytes() for path in how.weights})
        start = ray.remote(Worker).options(num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=-1, max_task_retries=0)
        self._actors = [start.remote(how, data, 1) for _ in range(count)]
        self.told = f"{count} Ray actors of {len(ray.nodes())} machines"

    def run(self, tasks: Iterator[Task], stop: Callable[[], bool]) -> Iterator[Outcome]:
        ray = self._ray
        again: list[Task] = []
        running: dict[Any, tuple[int, Task]] = {}
        loads = [0] * len(self._actors)
        while True:
            while min(loads) < AHEAD and not stop() and (task := again.pop() if again else next(tasks, None)) is not None:
                actor = loads.index(min(loads))
                running[self._actors[actor].denoise.remote(task)] = actor, task
                loads[actor] += 1
            if not running or stop():
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=WAIT_SECONDS)
            for reference in done:
                actor, task = running.pop(reference)
                loads[actor] -= 1
                try:
                    outcome: Outcome = ray.get(reference)
                except ray.exceptions.RayError as died:
                    if task.attempt + 1 < ATTEMPTS:
                        name = task.part.name.removesuffix(f".{task.attempt}.part")
                        again.append(
                            dataclasses.replace(task, attempt=task.attempt + 1, part=task.part.with_name(f"{name}.{task.attempt + 1}.part"))
                        )
                        continue
                    outcome = Outcome(task, error=f"{ATTEMPTS} workers ended while they were at it ({str(died).splitlines()[0]})")
                for attempt in range(task.attempt):
                    task.part.with_name(task.part.name.removesuffix(f"{task.attempt}.part") + f"{attempt}.part").unlink(missing_ok=True)
                yield outcome


@contextmanager
def joined(how: How, pictures: int) -> Iterator[Cluster]:
    """The cluster that RAY_ADDRESS names, or one on this machine alone. Raises OSError where Ray is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise OSError("engine = ray needs Ray: pip install 'clearfold[cluster]'") from None
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    try:
        yield Cluster(ray, how, pictures)
    finally:
        ray.shutdown()
