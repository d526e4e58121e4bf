"""The training jobs as the service's handlers see them. Puts table, queue, folders and worker together; does the work of none.

Nothing is opened before the first job is ordered, or was by an earlier run: a service that never trains has no database.
"""

import contextlib
import os
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio
import sqlalchemy as sa

from app import folders
from app.errors import DiskFull, JobsAway, ModelExists, NotEnded, NotResumable, UnknownJob, told_when_full
from app.ledger import Ledger, Record, file_of, now
from app.models import Models
from app.orders import Event, Job, Order, Status
from app.queue import Queue
from app.settings import Settings
from app.worker import Worker

RETRY_SECONDS = 5
T = TypeVar("T")


class Jobs:
    """All methods that are coroutines work in threads. They raise Problems."""

    def __init__(self, models: Models, settings: Settings) -> None:
        self._models, self._settings = models, settings
        self._opening = threading.Lock()
        self._ledger: Ledger | None = None
        self._queue: Queue | None = None
        self._worker: Worker | None = None
        self.hung_up = False

    def hang_up(self) -> None:
        """Whoever follows a job is to come back later: this service stops."""
        self.hung_up = True

    # Opening and closing; in threads.

    def resume(self) -> None:
        """Opens what an earlier run left, and goes on with its jobs."""
        if self._settings.jobs_url is not None or file_of(self._settings).exists():
            self._open()

    def close(self) -> None:
        if self._worker is not None:
            self._worker.stop()
        elif self._queue is not None:
            self._queue.stop()
        if self._ledger is not None:
            self._ledger.close()

    def _open(self) -> tuple[Ledger, Queue]:
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

    async def _with(self, work: Callable[[Ledger, Queue], T], id: str | None = None) -> T:
        """What `work` gives. `id`: the job it is about, unknown where no job was ever ordered."""

        def opened() -> T:
            if id is not None and self._ledger is None:
                raise UnknownJob(f"id = {id!r}: there is no such training job.")
            try:
                return work(*self._open())
            except (sa.exc.OperationalError, sa.exc.InterfaceError) as error:
                if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                    raise DiskFull(f"train_dir = '{self._settings.train_dir}' has no space left: nothing was changed; free some.") from None
                raise JobsAway(JobsAway.example, headers={"Retry-After": str(RETRY_SECONDS)}) from None

        return await anyio.to_thread.run_sync(opened)

    # What handlers ask for.

    async def start(self, order: Order, lay_pictures: Callable[[Path], int], parent: Path | None) -> Job:
        """A new job in the queue. `lay_pictures` fills its folder of pictures and counts them, or raises and there is no job."""

        def start(ledger: Ledger, queue: Queue) -> Job:
            if order.model in self._models or ledger.claimed(order.model):
                raise ModelExists(
                    f"model = {order.model!r}: a model with this name is there, or will be, and none is overwritten: choose another name."
                )
            id = secrets.token_hex(4)
            folder = folders.of(self._settings, id)
            try:
                folder.mkdir(parents=True)
                with told_when_full(self._settings.train_dir), folders.locked(folder):  # so that nobody takes it for a stray one
                    pictures = lay_pictures(folder / "pictures")
                    (folder / "order.json").write_text(order.model_dump_json(indent=2))
                    if parent is not None:
                        (folder / "parent").mkdir()
                        _link(parent, folder / "parent" / parent.name)
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
                    ledger.add(Record(job, order), lambda connection, record: queue.add(connection, id, record.job.attempt))
                    return job
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise

        return await self._with(start)

    async def get(self, id: str) -> Job:
        return await self._with(lambda ledger, _: ledger[id].shown(), id)

    async def page(self, limit: int, before: str | None, status: Status | None) -> list[Job]:
        if self._ledger is None:
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

            return ledger.change(id, edit, enqueue=lambda connection, record: queue.add(connection, id, record.job.attempt)).shown()

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
            folders.clear(folders.of(self._settings, id))

        await self._with(remove, id)

    async def file(self, id: str, name: str) -> Path:
        """A file of the job's folder; it may not be there."""
        await self.get(id)
        return folders.of(self._settings, id) / name


def _link(source: Path, target: Path) -> None:
    """The same file under another name, so that the parent may be deleted meanwhile; a copy across file systems."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
