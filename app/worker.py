"""Runs training jobs: takes attempts from the queue, each a child process at low priority, and writes down how they go.

A job's row says who works on it: `attempt`, which only rises, and when its worker was last heard of. Whoever finds a job that runs on
without a worker, by the folder's lock on this machine or by a beat that is long past on another, puts its next attempt into the queue. A
worker that finds its attempt superseded ends its child. So a job runs once, whatever was killed.
"""

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from app import folders, models
from app.errors import Problem
from app.ledger import Ledger, Record, now
from app.orders import ENDED, Quality, Sample, Status
from app.queue import Queue
from app.settings import Settings
from core import WeightsError

TICK_SECONDS = 0.5
SWEEP_SECONDS = 2.0
LEASE_SECONDS = 30.0
LOCK_SECONDS = 5.0
CRASHES = 5
"""So many deaths of the child without a step gained in between, and the job has failed."""
LOST = 20
"""The same of workers: a job that takes the whole service with it, by its memory say, must not do so for ever."""
KEPT = (folders.LOCK, folders.LOG, folders.SAMPLE)
"""What stays of a job that is done, until it is deleted."""
_log = logging.getLogger("clearfold")


class Worker:
    """One a process. `published` is called when a model was made or became the default."""

    def __init__(self, ledger: Ledger, queue: Queue, settings: Settings, published: Callable[[], object] = lambda: None) -> None:
        self._ledger, self._queue, self._settings, self._published = ledger, queue, settings, published
        self._stopping = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep_on, name="clearfold-sweep", daemon=True)

    def start(self) -> None:
        self._sweep()
        self._tidy()
        self._queue.serve(self._attempt)
        self._sweeper.start()

    def stop(self) -> None:
        """Ends the child; its job waits for the next worker."""
        self._stopping.set()
        self._queue.stop()
        self._sweeper.join()

    # Jobs whose worker is gone.

    def _sweep_on(self) -> None:
        while not self._stopping.wait(SWEEP_SECONDS):
            try:
                self._sweep()
            except Exception:
                _log.exception("the training jobs could not be looked through")

    def _sweep(self) -> None:
        for record in self._ledger.active():
            if record.job.status == "queued":
                if not self._queue.holds(record.job.id, record.job.attempt):
                    self._again(record)
            elif self._abandoned(record):
                self._again(record)

    def _tidy(self) -> None:
        """Takes away what processes left behind that were killed while they cleared up, or while they made a thing."""
        jobs = self._settings.train_dir / "jobs"
        strays = folders.strays(jobs, "*", self._ledger.ids()) + folders.strays(models.kept_dir(self._settings), ".*")
        for stray in strays:
            folders.clear(stray)
        for pictures in jobs.glob("*/pictures"):
            with contextlib.suppress(Problem):  # it was deleted just now
                if self._ledger[pictures.parent.name].job.status == "done":
                    folders.clear(pictures.parent, keep=KEPT)

    def _abandoned(self, record: Record) -> bool:
        if record.machine == folders.machine():
            folder = folders.of(self._settings, record.job.id)
            return folders.free(folder) or not folder.is_dir()
        return time.time() - record.beat > LEASE_SECONDS

    def _again(self, seen: Record) -> None:
        """The next attempt of a job that nobody works on; one that was to be cancelled is."""

        def edit(record: Record) -> bool:
            if (record.job.attempt, record.job.status) != (seen.job.attempt, seen.job.status):
                return False  # another was quicker
            if record.job.status == "cancelling":
                _end(record, "cancelled")
            elif record.job.status == "running" and _crashed(record) >= LOST:
                _end(
                    record,
                    "failed",
                    f"Whatever trained it ended {LOST} times without a step gained: see the service's log, then resume it.",
                )
            else:
                record.job.status, record.job.attempt = "queued", record.job.attempt + 1
            return True

        def enqueue(connection: sa.Connection, record: Record) -> None:
            if record.job.status == "queued":
                self._queue.add(connection, record.job.id, record.job.attempt)

        self._ledger.change(seen.job.id, edit, enqueue=enqueue)

    # An attempt, in a thread of the queue's.

    def _attempt(self, id: str, number: int) -> None:
        folder = folders.of(self._settings, id)
        try:
            with folders.locked(folder, LOCK_SECONDS) as lock:
                if lock is None or self._stopping.is_set():
                    return  # the job stays in the queue: the next sweep sees to it
                record = self._ledger.change(id, lambda record: _begin(record, number))
                _Attempt(self._ledger, self._settings, record, folder, lock, self._stopping, self._published).run()
        except (Problem, _Superseded):
            return  # it was deleted, or another attempt has begun
        except Exception:
            _log.exception("training job %s, attempt %d, broke off", id, number)


class _Superseded(Exception):
    """Another attempt at the job has begun, or the job is gone."""


class _Attempt:
    """One attempt from its child's start to the row that says how it ended."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        record: Record,
        folder: Path,
        lock: int,
        stopping: threading.Event,
        published: Callable[[], object],
    ) -> None:
        self._ledger, self._settings, self._stopping, self._published = ledger, settings, stopping, published
        self._id, self._number, self._order = record.job.id, record.job.attempt, record.order
        self._folder, self._lock = folder, lock
        self._before, self._began = record.job.seconds_trained, time.monotonic()
        self._told = 0.0
        self._measured: int = (ledger.last(self._id, "quality") or {}).get("step", 0)
        self._untold: list[tuple[str, dict[str, Any]]] = []
        self._status: Status = "running"

    def run(self) -> None:
        try:
            self._run()
        except OSError as error:  # no child can be started, or its log not be written
            self._settle("failed", f"The training process could not be run ({error}): mend that and resume the job.")

    def _run(self) -> None:
        folders.lay_ballast(self._folder)
        while True:
            said, code = self._follow()
            if self._status == "cancelling":
                return self._settle("cancelled")
            if self._stopping.is_set():
                return self._give_back()
            if "weights" in said and code == 0:
                return self._keep(said)
            if "failed" in said:
                return self._settle("failed", said["failed"])
            words = _last_words(code, self._folder / folders.LOG)
            if code >= 0 or not self._goes_on(words):
                return self._settle("failed", words)

    def _follow(self) -> tuple[dict[str, Any], int]:
        """Runs a child to its end, or ends it; the last it said, and its exit status."""
        said: dict[str, Any] = {}
        with self._child() as (child, lines):
            ended, code = False, 0
            while not ended and self._status == "running" and not self._stopping.is_set():
                words, ended = _drained(lines, TICK_SECONDS)
                said = words[-1] if words else said
                self._write(words)
            if ended:
                code = child.wait()
        words, _ = _drained(lines, 0)  # what it said before it was ended, of steps that its checkpoint may hold
        if words:
            self._write(words)
        return said, code

    @contextmanager
    def _child(self) -> Iterator[tuple["subprocess.Popen[bytes]", "queue.SimpleQueue[dict[str, Any] | None]"]]:
        lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        with (self._folder / folders.LOG).open("ab") as log:
            log.write(f"-- attempt {self._number}, {now().isoformat()}\n".encode())
            log.flush()
            child = subprocess.Popen(
                [sys.executable, "-m", "app.training", str(self._folder), f"{self._seconds():.1f}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=Path(__file__).parents[1],
                start_new_session=True,  # Ctrl-C is the parent's to handle
                pass_fds=(self._lock,),  # the folder is taken as long as the child lives
            )

        def read() -> None:
            assert child.stdout is not None
            for line in child.stdout:
                with contextlib.suppress(ValueError):  # cut short by a kill
                    lines.put(json.loads(line))
            lines.put(None)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield child, lines
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            reader.join()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def _write(self, words: list[dict[str, Any]]) -> None:
        """Tells the table that this worker lives and how far the child is, and learns whether to go on."""
        elapsed = self._seconds()
        steps = [each for each in words if "step" in each]
        events = self._untold
        if steps and elapsed - self._told >= max(1.0, elapsed / 300):  # a long job's events are as many as a short one's
            self._told = elapsed
            events.append(("progress", _some(steps[-1], "step", "steps", "loss", "pixels_per_second", "seconds_left")))
            events[-1][1]["seconds_trained"] = round(elapsed, 1)
        for each in steps:  # an attempt may measure once more what the one before had told, but not saved
            if each["psnr"] is not None and each["step"] > self._measured:
                self._measured = each["step"]
                events.append(("quality", _some(each, "step", "psnr")))

        def edit(record: Record) -> bool:
            self._mine(record)
            record.beat, record.job.seconds_trained = time.time(), round(elapsed, 1)
            for each in steps:
                for name in ("step", "steps", "loss", "psnr", "seconds_left"):
                    if each[name] is not None:
                        setattr(record.job, name, each[name])
                if each["panels"]:
                    record.job.sample = Sample(panels=each["panels"], step=each["step"])
            return True

        try:
            self._status = self._ledger.change(self._id, edit, events).job.status
            self._untold = []
        except sa.exc.DBAPIError as away:
            _log.warning("training job %s goes on without its database: %s", self._id, away.orig)

    def _mine(self, record: Record) -> None:
        if record.job.attempt != self._number or record.job.status not in ("running", "cancelling"):
            raise _Superseded

    def _goes_on(self, words: str) -> bool:
        """Whether a killed child is started once more: unless it was killed again and again without a step in between."""

        def edit(record: Record) -> bool:
            self._mine(record)
            _crashed(record)
            return True

        with (self._folder / folders.LOG).open("a") as log:
            log.write(f"{words}; it goes on from its last checkpoint, if there is one\n")
        return self._ledger.change(self._id, edit).crashes < CRASHES

    def _keep(self, said: dict[str, Any]) -> None:
        quality = Quality(**said["quality"]) if said["quality"] else None
        wanted = self._order.activate == "always" or (self._order.activate == "if_better" and quality is not None and quality.better)
        try:
            models.keep(self._settings, Path(said["weights"]), self._folder / folders.SAMPLE, self._id, self._order.parent)
            if wanted:
                models.choose(self._settings, self._order.model)
            self._published()
        except (OSError, WeightsError, Problem) as error:
            return self._settle("failed", f"The model could not be kept ({error}): mend that and resume the job.")

        def edit(record: Record) -> None:
            record.job.note, record.job.quality, record.job.activated, record.job.seconds_left = said["note"], quality, wanted, 0.0

        self._settle("done", edit=edit)
        folders.clear(self._folder, keep=KEPT)

    def _settle(self, status: Status, reason: str | None = None, edit: Callable[[Record], None] = lambda record: None) -> None:
        """Writes how the job ended, however long the database takes to answer, on a disk that may be full."""
        folders.drop_ballast(self._folder)

        def ending(record: Record) -> bool:
            self._mine(record)
            record.job.seconds_trained = round(self._seconds(), 1)
            edit(record)
            _end(record, status, reason)
            return True

        while True:
            try:
                self._ledger.change(self._id, ending)
                return
            except sa.exc.DBAPIError as away:
                _log.warning("the end of training job %s cannot be written: %s", self._id, away.orig)
                if self._stopping.wait(SWEEP_SECONDS):
                    return

    def _give_back(self) -> None:
        """The job waits again. Its next attempt is put into the queue by whoever sweeps next: here nobody takes one any more."""

        def edit(record: Record) -> bool:
            self._mine(record)
            record.job.seconds_trained = round(self._seconds(), 1)
            record.job.status = "queued"
            return True

        with contextlib.suppress(sa.exc.DBAPIError):
            self._ledger.change(self._id, edit)


def _begin(record: Record, number: int) -> bool:
    if (record.job.status, record.job.attempt) != ("queued", number):
        raise _Superseded
    record.job.status, record.job.started = "running", record.job.started or now()
    record.beat, record.machine = time.time(), folders.machine()
    return True


def _crashed(record: Record) -> int:
    """How often it crashed by now since it last gained a step."""
    gained = (record.job.step or 0) > (record.crashed_at or 0)
    record.crashes, record.crashed_at = 1 if gained else record.crashes + 1, record.job.step
    return record.crashes


def _end(record: Record, status: Status, reason: str | None = None) -> None:
    assert status in ENDED
    record.job.status, record.job.reason, record.job.ended = status, reason, now()
    record.job.seconds_left = 0.0 if status == "done" else None


def _drained(lines: "queue.SimpleQueue[dict[str, Any] | None]", seconds: float) -> tuple[list[dict[str, Any]], bool]:
    """What was said by now, waiting so long for the first of it, and whether that was the last."""
    news: list[dict[str, Any] | None] = []
    with contextlib.suppress(queue.Empty):
        news.append(lines.get(timeout=seconds) if seconds else lines.get_nowait())
        while True:
            news.append(lines.get_nowait())
    return [each for each in news if each is not None], None in news


def _some(words: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: words[name] for name in names}


def _last_words(code: int, log: Path) -> str:
    end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
    lines = log.read_text(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    return f"The training process {end}: {last}"
