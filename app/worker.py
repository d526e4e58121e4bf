"""Runs training jobs: takes attempts from the queue, each a child process at low priority, and writes down how they go.

A job's row says who works on it: `attempt`, which only rises, and when its worker was last heard of. Whoever finds a job that runs on
without a worker, by the folder's lock on this machine or by a beat that is long past on another, puts its next attempt into the queue. A
worker that finds its attempt superseded ends its child. So a job runs once, whatever was killed.

A database or a bucket that does not answer stops no training: what is to be told or kept is told and kept when it answers again.
"""

import contextlib
import json
import logging
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from app import catalogue, folders, models, store
from app.catalogue import Catalogue
from app.errors import JobsAway, Problem, StoreAway
from app.ledger import AWAY, Ledger, Record, now
from app.orders import ENDED, Quality, Sample, Status
from app.queue import Queue
from app.settings import Settings
from app.store import FilesGone, Store
from core import WeightsError

TICK_SECONDS = 0.5
SWEEP_SECONDS = 2.0
LEASE_SECONDS = 30.0
LOCK_SECONDS = 5.0
CRASHES = 5
"""So many deaths of the child without a step gained in between, and the job has failed."""
LOST = 20
"""The same of workers: a job that takes the whole service with it, by its memory say, must not do so for ever."""
FULL = "The disk is full: free some space and resume the job."
READY_SECONDS = 10.0
PATIENCE_SECONDS = 10.0
"""After the database was away, or this process was, workers on other machines are given so long to be heard of again."""
T = TypeVar("T")
_log = logging.getLogger("clearfold")


class Worker:
    """One a process. `published` is called when a model was made or became the default."""

    def __init__(self, ledger: Ledger, queue: Queue, settings: Settings, published: Callable[[], object] = lambda: None) -> None:
        self._ledger, self._queue, self._settings, self._published = ledger, queue, settings, published
        self._store, self._catalogue = store.of(settings), catalogue.of(settings, ledger)
        self._stopping = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep_on, name="clearfold-sweep", daemon=True)
        self._patient_until = self.swept = -math.inf  # by the monotonic clock

    def start(self) -> None:
        self._patient_until = time.monotonic() + PATIENCE_SECONDS
        self._sweep()
        self._tidy()
        self._queue.serve(self._attempt)
        self._sweeper.start()

    def ready(self) -> bool:
        """Whether the database answered a moment ago."""
        return not self._stopping.is_set() and time.monotonic() - self.swept < READY_SECONDS

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
            except AWAY as away:
                self._patient_until = time.monotonic() + PATIENCE_SECONDS
                _log.warning("the jobs' database does not answer: %s", away)
            except Exception:
                self._patient_until = time.monotonic() + PATIENCE_SECONDS
                _log.exception("the training jobs could not be looked through")

    def _sweep(self) -> None:
        self._give_up_if_full()
        for record in self._ledger.active():
            if record.job.status == "queued":
                if not self._queue.holds(record.job.id, record.job.attempt):
                    self._again(record)
            elif self._abandoned(record):
                self._again(record)
        self.swept = time.monotonic()

    def _give_up_if_full(self) -> None:
        """The job whose turn it is has failed when the disk is full: the queue lies there too, and nobody could take the job out of it."""
        active = self._ledger.active() if self._ledger.on_disk else []
        if not active or not all(record.job.status == "queued" or self._abandoned(record) for record in active):
            return
        seen, folder = active[0], folders.of(self._settings, active[0].job.id)
        if folders.has_room(folder):
            return
        folders.drop_ballast(folder)

        def edit(record: Record) -> bool:
            if (record.job.attempt, record.job.status) != (seen.job.attempt, seen.job.status):
                return False  # somebody has taken it after all
            if record.job.status == "cancelling":
                _end(record, "cancelled")
            else:
                _end(record, "failed", FULL)
            return True

        if self._ledger.change(seen.job.id, edit).ended:
            self._queue.cancel(seen.job.id, seen.job.attempt)

    def _tidy(self) -> None:
        """Takes away what processes left behind that were killed while they cleared up, or while they made a thing."""
        self._store.tidy(self._ledger.ids())
        for pictures in (self._settings.train_dir / "jobs").glob("*/pictures"):
            with contextlib.suppress(Problem):  # it was deleted just now
                if self._ledger[pictures.parent.name].job.status == "done":
                    self._store.finish(pictures.parent.name)

    def _abandoned(self, record: Record) -> bool:
        if record.machine == self._store.machine():
            folder = folders.of(self._settings, record.job.id)
            return folders.free(folder) or not folder.is_dir()
        return record.silence > LEASE_SECONDS and time.monotonic() > self._patient_until

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
            self._store.come(id)
            with folders.locked(folder, LOCK_SECONDS) as lock:
                if self._stopping.is_set() or (lock is None and folder.is_dir()):
                    return  # the job stays in the queue: the next sweep sees to it
                if lock is None:
                    self._ledger.change(id, lambda record: _missed(record, number, folder))
                    return
                record = self._ledger.change(id, lambda record: _begin(record, number, self._store.machine()))
                try:
                    attempt = _Attempt(
                        self._ledger, self._store, self._catalogue, self._settings, record, folder, lock, self._stopping, self._published
                    )
                    attempt.run()
                finally:
                    self._store.leave(id)
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
        store: Store,
        catalogue: Catalogue,
        settings: Settings,
        record: Record,
        folder: Path,
        lock: int,
        stopping: threading.Event,
        published: Callable[[], object],
    ) -> None:
        self._ledger, self._store, self._catalogue, self._settings = ledger, store, catalogue, settings
        self._stopping, self._published = stopping, published
        self._state, self._kept = record.state, store.stamp(record.job.id)
        self._keeping: Future[str | None] | None = None
        self._aside = ThreadPoolExecutor(1, "clearfold-keep")
        self._id, self._number, self._order = record.job.id, record.job.attempt, record.order
        self._folder, self._lock = folder, lock
        self._before, self._began = record.job.seconds_trained, time.monotonic()
        self._told = 0.0
        self._measured: int = (ledger.last(self._id, "quality") or {}).get("step", 0)
        self._untold: list[tuple[str, dict[str, Any]]] = []
        self._status: Status = "running"

    def run(self) -> None:
        try:
            self._while_told(lambda: self._store.bring(self._id, self._state))
            self._kept = self._store.stamp(self._id)
            self._run()
        except FilesGone as gone:
            self._settle("failed", f"Its files are gone from the store ({gone}): order a new job.", keep=False)
        except OSError as error:  # no child can be started, or its log not be written
            self._settle("failed", f"The training process could not be run ({error}): mend that and resume the job.")
        finally:
            self._aside.shutdown(cancel_futures=True)

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

    # What is done beside, and again until it is done.

    def _while_told(self, work: Callable[[], T]) -> T:
        """What `work` gives, done aside while the table is told that this worker lives. Raises _Superseded, also when told to
        stop meanwhile."""
        while True:
            doing = self._aside.submit(work)
            while not doing.done():
                with contextlib.suppress(TimeoutError):
                    doing.exception(timeout=TICK_SECONDS)
                self._write([])
            try:
                return doing.result()
            except (StoreAway, JobsAway, *AWAY) as away:
                _log.warning("training job %s waits: %s", self._id, away)
                if self._stopping.wait(SWEEP_SECONDS):
                    raise _Superseded from None  # the next worker sees to it
                self._write([])

    def _keep_state(self) -> None:
        """Brings what the child saved to where another worker finds it, beside the child's work."""
        if self._keeping is not None:
            if not self._keeping.done():
                return
            doing, self._keeping = self._keeping, None
            try:
                self._moved_to(doing.result())
            except (StoreAway, OSError, *AWAY) as away:
                _log.warning("the checkpoint of training job %s is not kept yet: %s", self._id, away)
                self._kept = None
        saved = self._store.stamp(self._id)
        if saved != self._kept:
            self._kept = saved
            self._keeping = self._aside.submit(self._store.keep, self._id)

    def _moved_to(self, state: str | None) -> None:
        """From now on that state counts, and the one before is dropped."""

        def edit(record: Record) -> bool:
            self._mine(record)
            record.state = state
            return True

        self._ledger.change(self._id, edit)
        before, self._state = self._state, state
        with contextlib.suppress(StoreAway):
            self._store.drop(self._id, before)

    def _show(self) -> None:
        with contextlib.suppress(StoreAway):
            self._store.show(self._id)

    def _follow(self) -> tuple[dict[str, Any], int]:
        """Runs a child to its end, or ends it; the last it said, and its exit status."""
        said: dict[str, Any] = {}
        with self._child() as (child, lines):
            ended, code = False, 0
            while not ended and self._status == "running" and not self._stopping.is_set():
                words, ended = _drained(lines, TICK_SECONDS)
                said = words[-1] if words else said
                if any(each.get("panels") for each in words):
                    self._while_told(self._show)  # before it is told that there is something to be seen
                self._write(words)
                self._keep_state()
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
                [sys.executable, "-m", "app.training", str(self._folder), f"{self._seconds():.1f}", self._settings.device],
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
            record.beat, record.job.seconds_trained = record.clock, round(elapsed, 1)
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
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as away:
            _log.warning("training job %s goes on without its database: %s", self._id, away)

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

        def keep() -> None:
            models.keep(self._catalogue, Path(said["weights"]), self._folder / folders.SAMPLE, self._id, self._order.parent)
            if wanted:
                self._catalogue.choose(self._order.model, shipped=False)
            self._published()

        try:
            self._while_told(keep)
        except (OSError, WeightsError, Problem) as error:
            return self._settle("failed", f"The model could not be kept ({error}): mend that and resume the job.")

        def edit(record: Record) -> None:
            record.job.note, record.job.quality, record.job.activated, record.job.seconds_left = said["note"], quality, wanted, 0.0

        self._settle("done", edit=edit, keep=False)
        with contextlib.suppress(StoreAway):
            self._store.finish(self._id)

    def _settle(
        self, status: Status, reason: str | None = None, edit: Callable[[Record], None] = lambda record: None, keep: bool = True
    ) -> None:
        """Writes how the job ended, however long database and store take to answer, on a disk that may be full. `keep`: what it learned, so
        that it can be resumed."""
        folders.drop_ballast(self._folder)
        self._while_told(self._show)
        if keep:
            self._while_told(self._all_kept)

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
            except (sa.exc.DBAPIError, sa.exc.TimeoutError) as away:
                _log.warning("the end of training job %s cannot be written: %s", self._id, away)
                if self._stopping.wait(SWEEP_SECONDS):
                    return

    def _all_kept(self) -> None:
        """What the child saved last; the child has ended, and whatever was being kept before is kept or not by now."""
        doing, self._keeping = self._keeping, None
        if doing is not None and doing.exception() is None:
            self._moved_to(doing.result())
        elif doing is not None:
            self._kept = None
        saved = self._store.stamp(self._id)
        if saved is not None and saved != self._kept:
            self._moved_to(self._store.keep(self._id))
            self._kept = saved

    def _give_back(self) -> None:
        """The job waits again. Its next attempt is put into the queue by whoever sweeps next: here nobody takes one any more."""
        self._show()
        try:
            self._all_kept()
        except (StoreAway, OSError, *AWAY) as away:
            _log.warning("the last checkpoint of training job %s is not kept: %s", self._id, away)

        def edit(record: Record) -> bool:
            self._mine(record)
            record.job.seconds_trained = round(self._seconds(), 1)
            record.job.status = "queued"
            return True

        with contextlib.suppress(sa.exc.DBAPIError, sa.exc.TimeoutError):
            self._ledger.change(self._id, edit)


def _begin(record: Record, number: int, machine: str) -> bool:
    if (record.job.status, record.job.attempt) != ("queued", number):
        raise _Superseded
    record.job.status, record.job.started = "running", record.job.started or now()
    record.beat, record.machine = record.clock, machine
    return True


def _missed(record: Record, number: int, folder: Path) -> bool:
    """There is no folder for the job: on a shared volume it may appear late, but not for ever."""
    if (record.job.status, record.job.attempt) != ("queued", number):
        raise _Superseded
    if _crashed(record) >= CRASHES:
        _end(record, "failed", f"Its files are gone ('{folder}' is not there): order a new job.")
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
