"""Training jobs: one at a time, each in a child process. Holds them in memory only: a restart forgets them.

The seam is a folder and a pipe. The parent writes `order.json` and `pictures/` into the job's folder and runs
`python -m app.jobs FOLDER`; the child says on its standard output how it goes, one JSON object a line:
`{"step": 20, "steps": 900, "loss": …, "psnr": …, "seconds_left": …}`, at last `{"weights": PATH}` or
`{"failed": REASON}`. A child whose standard input ends has lost its parent, and ends too.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio
from anyio.abc import ByteReceiveStream, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream
from pydantic import BaseModel, Field

from app.errors import AlreadyTraining, ModelExists, UnknownJob
from app.models import SUFFIX, Models, trained_dir
from app.settings import Settings
from core import DataError, Denoiser, DeviceError, WeightsError

if TYPE_CHECKING:
    from core import trainer  # slow to start and of use to the child alone

NICE = 10
TRIAL_STEPS = 4
MAX_LINE_BYTES = 65_536


class Order(BaseModel):
    """What a child is told to do. `sigma_*` in 8-bit steps; `parent`: weights to start from, None: from scratch."""

    model: str
    minutes: float
    steps: int | None  # None: as many as fit
    sigma_min: float
    sigma_max: float
    parent: Path | None
    device: str


class Job(BaseModel):
    """How a training job goes."""

    id: str = Field(examples=["9b1c4e02"])
    status: Literal["queued", "running", "done", "failed"] = Field(default="queued", examples=["running"])
    model: str = Field(description="Name of the model being made.", examples=["my-scanner"])
    step: int | None = Field(default=None, examples=[120])
    steps: int | None = Field(default=None, examples=[900])
    loss: float | None = Field(default=None, examples=[0.021])
    psnr: float | None = Field(default=None, description="In dB, on pictures kept apart.", examples=[31.4])
    seconds_left: float | None = Field(default=None, examples=[512.0])
    reason: str | None = Field(default=None, description="Why the job failed.", examples=[None])


class Jobs:
    """The jobs of this run of the service. Their children end when the task group is cancelled."""

    def __init__(self, group: TaskGroup, models: Models, settings: Settings) -> None:
        self._group = group
        self._models = models
        self._settings = settings
        self._jobs: dict[str, Job] = {}
        self._ended: dict[str, anyio.Event] = {}

    def __getitem__(self, id: str) -> Job:
        if id not in self._jobs:
            raise UnknownJob(f"id = {id!r}: there is no such training job.")
        return self._jobs[id]

    async def ended(self, id: str) -> Job:
        """The job, once it is done or failed."""
        await self._ended[id].wait()
        return self[id]

    async def start(self, order: Order, lay_pictures: Callable[[Path], object]) -> Job:
        """A new job, running soon. `lay_pictures` fills its folder of pictures, or raises and there is no job."""
        for other in self._jobs.values():
            if other.status in ("queued", "running"):
                raise AlreadyTraining(
                    f"Training job {other.id!r} is running, and one runs at a time: wait until it has ended.",
                    job=other.id,
                )
        if order.model in self._models:
            raise ModelExists(f"model = {order.model!r}: a model with this name is there, and none is overwritten: choose another name.")
        job = Job(id=secrets.token_hex(4), model=order.model)
        self._jobs[job.id] = job  # from here on the one place is taken
        folder = (self._settings.train_dir / "jobs" / job.id).absolute()
        try:
            await anyio.to_thread.run_sync(lay_pictures, folder / "pictures")
            (folder / "order.json").write_text(order.model_dump_json(indent=2))
        except BaseException:
            del self._jobs[job.id]
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._ended[job.id] = anyio.Event()
        self._group.start_soon(self._follow, job, folder)
        return job

    async def _follow(self, job: Job, folder: Path) -> None:
        try:
            await self._run(job, folder)
        except Exception as error:  # whatever it is, it is this job's end and not the service's
            job.status, job.reason = "failed", f"{type(error).__name__}: {error}"
        finally:
            shutil.rmtree(folder / "pictures", ignore_errors=True)
            for rest in folder.glob("*"):
                if rest.name != "log.txt":
                    with contextlib.suppress(OSError):
                        rest.unlink()
            self._ended[job.id].set()

    async def _run(self, job: Job, folder: Path) -> None:
        said: dict[str, Any] = {}
        log = folder / "log.txt"
        with log.open("wb") as errors:
            async with await anyio.open_process(
                [sys.executable, "-m", "app.jobs", str(folder)],
                stdin=subprocess.PIPE,
                stderr=errors,
                cwd=Path(__file__).parents[1],
                start_new_session=True,  # Ctrl-C is the parent's to handle
            ) as child:
                assert child.stdout is not None
                async for said in _lines(child.stdout):
                    if "step" in said:
                        job.status = "running"
                        for name, value in said.items():
                            if value is not None:  # psnr is told only when it was just measured
                                setattr(job, name, value)
                code = await child.wait()
        if "weights" in said and code == 0:
            self._models.add(await anyio.to_thread.run_sync(self._keep, Path(said["weights"])))
            job.status, job.seconds_left = "done", 0.0
        else:
            job.status, job.reason = "failed", said.get("failed") or _last_words(code, log)

    def _keep(self, weights: Path) -> Denoiser:
        """The model in `weights`, proved to load, its files moved to where such models are kept."""
        denoiser = Denoiser.load(weights, self._settings.device)
        kept = trained_dir(self._settings)
        kept.mkdir(parents=True, exist_ok=True)
        for file in (weights.with_suffix(".md"), weights):  # the card first: the weights make it a model
            os.replace(file, kept / file.name)
        return denoiser


async def _lines(stream: ByteReceiveStream) -> AsyncIterator[dict[str, Any]]:
    lines = BufferedByteReceiveStream(stream)
    while True:
        try:
            yield json.loads(await lines.receive_until(b"\n", MAX_LINE_BYTES))
        except (anyio.EndOfStream, anyio.IncompleteRead):
            return


def _last_words(code: int, log: Path) -> str:
    end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
    lines = log.read_text(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    return f"The training process {end}: {last}"


# The child's side.


def main(folder: Path) -> None:
    os.nice(NICE)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    parent = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log, not among the JSON lines

    def say(**words: Any) -> None:
        print(json.dumps(words), file=parent)

    from core import trainer  # after the pipe is up, so that a failing import is told too

    def report(at: trainer.Progress) -> None:
        say(step=at.step, steps=at.steps, loss=at.loss, psnr=at.psnr, seconds_left=at.seconds_left)

    order = Order.model_validate_json((folder / "order.json").read_text())
    deadline = time.monotonic() + order.minutes * 60
    try:
        recipe = trainer.Recipe(
            data=(folder / "pictures",),
            out=folder / f"{order.model}{SUFFIX}",
            sigma=(order.sigma_min / 255, order.sigma_max / 255),
            lr=1e-3 if order.parent is None else 2e-4,  # the full rate would first undo what the parent knows
            initial=order.parent,
            device=order.device,
        )
        steps = order.steps or _steps_until(deadline, recipe)
        recipe = dataclasses.replace(recipe, steps=steps, warm_up=min(recipe.warm_up, steps // 10))
        weights = trainer.train(recipe, report, stop=lambda: time.monotonic() > deadline)
    except (trainer.TrainingError, DataError, WeightsError, DeviceError) as error:
        traceback.print_exc()
        say(failed=str(error))
    else:
        say(weights=str(weights))


def _steps_until(deadline: float, recipe: "trainer.Recipe") -> int:
    """How many steps will fit, by the pace of a few: the learning rate falls towards a last step that must be known."""
    from core import trainer

    paces: list[float] = []
    trial = dataclasses.replace(recipe, steps=TRIAL_STEPS, out=recipe.out.with_name("trial.safetensors"))
    trainer.train(trial, lambda at: paces.append(at.pixels_per_second), stop=lambda: time.monotonic() > deadline)
    return max(1, int((deadline - time.monotonic()) * paces[-1] / (recipe.batch * recipe.patch**2)))


def _end_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin, whose lock would hinder an orderly end
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
