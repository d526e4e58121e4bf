"""The engine of an archive on many machines: Ray's actors, each with the weights loaded once. Needs the extra `cluster`.

The pictures, and where answers go, lie on a volume that all machines see; how these find each other, Ray alone knows. An actor that dies is
started anew, by Ray, and what it was at is given to another. Sends nothing to anyone: Ray's own usage report is off.
"""

import dataclasses
import itertools
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import archive
from app.archive import Gate, How, Outcome, Task

if TYPE_CHECKING:
    from core import Auto, Denoiser

AHEAD = 2
"""Tasks that an actor is given at a time: while it does one, the next is there."""
ATTEMPTS = 3
"""A picture is given up when so many actors died at it."""
WAIT_SECONDS = 0.5


class Worker:
    """An actor: the denoiser, and a picture at a time."""

    def __init__(self, how: How) -> None:
        from core import hardware

        hardware.compute_on(1)
        hardware.keep_freed_memory()
        self._how, self._gate = how, Gate()
        self._denoiser: Denoiser | Auto | None = None

    def denoise(self, task: Task, weights: list[Any]) -> Outcome:
        """`weights`: a reference to the files' bytes by name, which come from the driver's machine once."""
        if self._denoiser is None:
            self._denoiser = self._loaded(weights)
        return archive.denoise(task, self._how, self._denoiser, self._gate)

    def _loaded(self, weights: list[Any]) -> "Denoiser | Auto":
        import ray

        with tempfile.TemporaryDirectory() as folder:  # the driver's files may lie where this machine has none
            paths: list[Path] = []
            for name, data in ray.get(weights[0]).items():
                paths.append(Path(folder) / f"{name}.safetensors")
                paths[-1].write_bytes(data)
            return dataclasses.replace(self._how, weights=tuple(paths)).load()


class Cluster:
    """The engine. It joins the cluster, and starts actors, when there is a first task: those that RAY_ADDRESS names, or here alone."""

    def __init__(self, how: How, pictures: int, say: Callable[[str], None] = lambda words: None) -> None:
        """Raises OSError where Ray is not installed. `say`: hears what it runs on."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError:
            raise OSError("engine = ray needs Ray: pip install 'clearfold[cluster]'") from None
        self._ray, self._how, self._pictures, self._say = ray, how, pictures, say

    def run(self, tasks: Iterator[Task], stop: Callable[[], bool]) -> Iterator[Outcome]:
        first = next(tasks, None)
        if first is None:
            return
        self._ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        try:
            yield from self._run(itertools.chain((first,), tasks), stop)
        finally:
            self._ray.shutdown()

    def _run(self, tasks: Iterator[Task], stop: Callable[[], bool]) -> Iterator[Outcome]:
        ray = self._ray
        weights = [ray.put({path.stem: path.read_bytes() for path in self._how.weights})]
        actors = self._start()
        loads = [0] * len(actors)
        again: list[Task] = []
        running: dict[Any, tuple[int, Task]] = {}
        while True:
            while min(loads) < AHEAD and not stop() and (task := again.pop() if again else next(tasks, None)) is not None:
                actor = loads.index(min(loads))
                running[actors[actor].denoise.remote(task, weights)] = actor, task
                loads[actor] += 1
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=WAIT_SECONDS)
            for reference in done:
                actor, task = running.pop(reference)
                loads[actor] -= 1
                try:
                    outcome: Outcome = ray.get(reference)
                except ray.exceptions.RayError as died:
                    if task.attempt + 1 < ATTEMPTS:
                        again.append(_again(task, task.attempt + 1))
                        continue
                    outcome = Outcome(task, error=f"{ATTEMPTS} workers ended while they were at it ({str(died).splitlines()[0]})")
                    task.part.unlink(missing_ok=True)
                for attempt in range(task.attempt):
                    _again(task, attempt).part.unlink(missing_ok=True)
                yield outcome

    def _start(self) -> list[Any]:
        ray, how = self._ray, self._how
        has = ray.cluster_resources()
        gpus = 0 if how.device == "cpu" else int(has.get("GPU", 0))
        count = max(1, min(gpus or int(has.get("CPU", 1)), self._pictures))
        start = ray.remote(Worker).options(num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=-1, max_task_retries=0)
        machines = len([node for node in ray.nodes() if node["Alive"]])
        self._say(f"{' and '.join(path.stem for path in how.weights)} in {count} Ray workers on {machines} machine{'s' * (machines > 1)}")
        return [start.remote(how) for _ in range(count)]


def _again(task: Task, attempt: int) -> Task:
    """Whoever was at it may still write to the other attempt's file."""
    name = task.part.name.removesuffix(f".{task.attempt}.part")
    return dataclasses.replace(task, attempt=attempt, part=task.part.with_name(f"{name}.{attempt}.part"))
