"""The training jobs as the service's handlers see them. Puts table, queue, folders and worker together; does the work of none.

Nothing is opened before the first job is ordered, or was by an earlier run: a service that never trains has no database. One whose database
does not answer goes on without, and asks it again and again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import sqlalchemy as sa

from app import folders, store
from app.errors import (
    RETRY_SECONDS,
    DiskFull,
    JobsAway,
    ModelExists,
    NotEnded,
    NotResumable,
    NotWritable,
    Problem,
    StoreAway,
    UnknownJob,
    writing_below,
)
from app.ledger import AWAY, Ledger, Record, file_of, now
from app.models import Models
from app.orders import Event, Job, Order, Status
from app.settings import Settings

if TYPE_CHECKING:
    from app.queue import Queue
    from app.worker import Worker

LOOK_SECONDS = 2.0
ANSWER_SECONDS = 10.0
"""So long a request waits for a database elsewhere. Whether what it asked for was done is then not known."""
_log = logging.getLogger("clearfold")
T = TypeVar("T")


class Jobs:
    """All methods that are coroutines work in threads. They raise Problems."""

    def __init__(self, models: Models, settings: Settings) -> None:
        self._models, self._settings = models, settings
        self._store = store.of(settings)
        self._threads = anyio.CapacityLimiter(16)  # of its own: a database that hangs takes none from pictures
        self._opening = threading.Lock()
        self._ledger: Ledger | None = None
        self._queue: Queue | None = None
        self._worker: Worker | None = None
        self.hung_up = False
        self.waiting: dict[str, int] = {}
        """How many jobs have not ended, by their status, as they were a moment ago."""

    def hang_up(self) -> None:
        """Whoever follows a job is to come back later: this service stops."""
        self.hung_up = True

    # Opening and closing; in threads.

    @property
    def _there(self) -> bool:
        """Whether there may be jobs of which this process knows nothing yet."""
        return self._settings.jobs_url is not None or os.path.exists(file_of(self._settings))  # a folder that is shut hides it

    def resume(self) -> None:
        """Opens what an earlier run left, and goes on with its jobs."""
        if why := self._unwritable():
            _log.warning("%s", NotWritable.because(self._settings.train_dir, why))
            if self._settings.jobs_url is None:
                return
        if self._there:
            try:
                self._open()
            except (*AWAY, OSError) as away:
                _log.warning("the jobs' database does not answer: %s", away)

    def _unwritable(self) -> str | None:
        names = [file_of(self._settings).name + ending for ending in ("", "-wal", "-shm")]
        return folders.unwritable(self._settings.train_dir, *names)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.stop()
        elif self._queue is not None:
            self._queue.stop()
        if self._ledger is not None:
            self._ledger.close()

    def _open(self) -> tuple[Ledger, Queue]:
        from app.queue import Queue  # 0.3 seconds, of which a service that never trains has none
        from app.worker import Worker

        with self._opening:
            if self._ledger is None or self._queue is None:
                ledger = Ledger.of(self._settings)
                queue = Queue(ledger.url)
                if self._settings.train_here:
                    worker = Worker(ledger, queue, self._settings, self._models.refresh)
                    worker.start()
                    self._worker = worker
                self._ledger, self._queue = ledger, queue
            return self._ledger, self._queue

    def _told(self, error: Exception) -> Problem:
        """What one of AWAY means: a table in a file may be all there, and its disk be full or shut."""
        code = getattr(getattr(error, "orig", None), "sqlite_errorcode", 0) & 0xFF  # of an extended one, the kind
        folder = self._settings.train_dir
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and not folders.has_room(folder)):
            return DiskFull(f"train_dir = '{folder}' has no space left: nothing was changed; free some.")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN) and (why := self._unwritable()):
            return NotWritable.because(folder, why)
        return JobsAway(JobsAway.example, headers={"Retry-After": str(RETRY_SECONDS)})

    async def watch(self) -> None:
        """Counts the jobs every two seconds, and opens what could not be opened before."""
        while True:
            if self._ledger is not None or self._there:
                try:
                    self.waiting = await self._with(lambda ledger, _: ledger.counts())
                except (JobsAway, NotWritable, DiskFull) as away:
                    _log.debug("%s", away)
                except Exception:
                    _log.exception("the training jobs could not be counted")
            await anyio.sleep(LOOK_SECONDS)

    async def _with(self, work: Callable[[Ledger, Queue], T], id: str | None = None) -> T:
        """What `work` gives. `id`: the job it is about, unknown where no job was ever ordered."""

        def opened() -> T:
            if id is not None and self._ledger is None and not self._there:
                raise UnknownJob(f"id = {id!r}: there is no such training job.")
            try:
                with writing_below(self._settings.train_dir):
                    return work(*self._open())
            except AWAY as error:
                raise self._told(error) from None

        with anyio.move_on_after(ANSWER_SECONDS if self._settings.jobs_url is not None else math.inf):
            return await anyio.to_thread.run_sync(opened, limiter=self._threads, abandon_on_cancel=True)
        raise JobsAway(JobsAway.example, headers={"Retry-After": str(RETRY_SECONDS)})

    # What handlers ask for.

    async def start(self, order: Order, lay_pictures: Callable[[Path], int], parent: Path | None) -> Job:
        """A new job in the queue, everything for it in the store. `lay_pictures` fills its folder of pictures and counts them, or raises
        and there is no job."""
        taken = await self._with(lambda ledger, _: order.model in self._models or ledger.claimed(order.model))
        if taken:
            raise ModelExists(
                f"model = {order.model!r}: a model with this name is there, or will be, and none is overwritten: choose another name."
            )
        id = secrets.token_hex(4)
        folder = folders.of(self._settings, id)

        def lay() -> int:
            pictures = lay_pictures(folder / "pictures")
            (folder / "order.json").write_text(order.model_dump_json(indent=2))
            if parent is not None:
                (folder / "parent").mkdir()
                _link(parent, folder / "parent" / parent.name)
            self._store.order(id)
            folders.lay_ballast(folder)  # the disk may be full by the time it is the job's turn
            return pictures

        def add(ledger: Ledger, queue: Queue) -> None:
            ledger.add(Record(job, order), lambda connection, record: queue.add(connection, id, record.job.attempt))

        with writing_below(self._settings.train_dir):
            folder.mkdir(parents=True)
            try:
                with folders.locked(folder):  # so that nobody takes it for a stray one
                    pictures = await anyio.to_thread.run_sync(lay)
                    job = Job(
                        id=id,
                        method=order.method,
                        model=order.model,
                        parent=order.parent,
                        activate=order.activate,
                        pictures=pictures,
                        minutes=order.minutes,
                        created=now(),
                    )
                    await self._with(add)
            except JobsAway:
                raise  # perhaps it was written down all the same, and then its files are needed
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(self._unlay, id)
                raise
        await anyio.to_thread.run_sync(self._store.leave, id)
        return job

    def _unlay(self, id: str) -> None:
        self._store.leave(id)
        with contextlib.suppress(Exception):
            self._store.forget(id)

    async def get(self, id: str) -> Job:
        return await self._with(lambda ledger, _: ledger[id].shown(), id)

    async def page(self, limit: int, before: str | None, status: Status | None) -> list[Job]:
        if self._ledger is None and not self._there:
            return []
        return await self._with(lambda ledger, _: [record.shown() for record in ledger.page(limit, before, status)])

    async def events(self, id: str, after: int) -> tuple[list[Event], bool]:
        """Those after a number, and whether there will be no more unless the job is resumed."""

        def read(ledger: Ledger, _: Queue) -> tuple[list[Event], bool]:
            ended = ledger[id].ended  # asked first: what is told at the end is then among the events
            events = ledger.events(id, after)
            return events, ended and not events

        return await self._with(read, id)

    async def cancel(self, id: str) -> Job:
        def cancel(ledger: Ledger, queue: Queue) -> Job:
            def edit(record: Record) -> bool:
                if record.job.status == "queued":
                    record.job.status, record.job.ended = "cancelled", now()
                elif record.job.status == "running":
                    record.job.status = "cancelling"
                else:
                    return False
                return True

            record = ledger.change(id, edit)
            if record.job.status == "cancelled":
                folders.drop_ballast(folders.of(self._settings, id))
                queue.cancel(id, record.job.attempt)
            return record.shown()

        return await self._with(cancel, id)

    async def go_on(self, id: str) -> Job:
        """A cancelled or failed job goes into the queue once more."""

        def again(ledger: Ledger, queue: Queue) -> Job:
            def edit(record: Record) -> bool:
                if record.job.status not in ("cancelled", "failed"):
                    raise NotResumable(
                        f"Training job {id!r} is {record.job.status}: only a cancelled or failed one is resumed.",
                        status_of_job=record.job.status,
                    )
                if record.order.model in self._models:
                    raise ModelExists(f"model = {record.order.model!r}: a model with this name is there by now: order a new job.")
                record.job.status, record.job.attempt = "queued", record.job.attempt + 1
                record.job.ended = record.job.reason = None
                record.crashes, record.crashed_at = 0, None
                return True

            def enqueue(connection: sa.Connection, record: Record) -> None:
                if (folder := folders.of(self._settings, id)).is_dir():
                    folders.lay_ballast(folder)
                queue.add(connection, id, record.job.attempt)

            return ledger.change(id, edit, enqueue=enqueue).shown()

        return await self._with(again, id)

    async def remove(self, id: str) -> None:
        """Forgets an ended job and removes its files; the model that it made stays."""

        def remove(ledger: Ledger, queue: Queue) -> None:
            record = ledger[id]
            if not record.ended:
                raise NotEnded(f"Training job {id!r} is {record.job.status}: cancel it first, or wait until it has ended.")
            ledger.remove(id)
            with contextlib.suppress(sa.exc.DBAPIError):
                queue.drop(id, range(1, record.job.attempt + 1))

        await self._with(remove, id)
        try:
            await anyio.to_thread.run_sync(self._store.forget, id)
        except StoreAway:
            _log.warning("the files of training job %s, which was deleted, stay in the store", id)

    async def file(self, id: str, name: str) -> bytes | None:
        """What may be looked at of a job; None: it is not there."""
        await self.get(id)
        return await anyio.to_thread.run_sync(self._store.shown, id, name)


def _link(source: Path, target: Path) -> None:
    """The same file under another name, so that the parent may be deleted meanwhile; a copy across file systems."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
