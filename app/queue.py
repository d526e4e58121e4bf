"""The queue of training jobs: DBOS, on the same database as the jobs' table. Knows no job but by its id.

DBOS keeps what is queued and sees that each entry is taken by one process. Entries are attempts, `ID.ATTEMPT`. What it cannot tell by
itself, without a service beside it, is that a process has died: `app.worker` does, by the table, and enqueues another attempt. So every
process is an executor of its own to DBOS, and its recovery of entries by an executor's name is never used.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSConfig, DBOSPortableJSONSerializer

NAME = "train"
POLL_SECONDS = 0.5
TAKEN_SECONDS = 15.0
"""An attempt that was taken from the queue so long ago, and whose job still waits, was taken by a process that died."""

_serving: Callable[[str, int], None] | None = None
_alone = threading.Lock()  # DBOS is one to a process


class Queue:
    """What a process needs to put attempts into the queue, on the database of `url`."""

    def __init__(self, url: sa.URL) -> None:
        self._url = url.render_as_string(hide_password=False)
        self._client: DBOSClient | None = None
        self._serves = False
        logging.getLogger("dbos").setLevel(logging.WARNING)
        DBOS.migrate(self._url)  # whoever comes first makes its tables

    def serve(self, attempt: Callable[[str, int], None]) -> None:
        """Starts to take attempts from the queue, one at a time, and calls `attempt(id, number)` in a thread for each."""
        global _serving
        if not _alone.acquire(blocking=False):
            raise RuntimeError(
                "another service in this process takes training jobs already: give each a process, or set train_here = false"
            )
        _serving, self._serves = attempt, True
        try:
            DBOS(config=self._config())
            DBOS.launch()
            DBOS.register_queue(NAME, worker_concurrency=1, polling_interval_sec=POLL_SECONDS, on_conflict="always_update")
        except BaseException:
            self.stop()  # so that it can be tried again
            raise

    def _config(self) -> DBOSConfig:
        return {
            "name": "clearfold",
            "system_database_url": self._url,
            "executor_id": secrets.token_hex(8),
            "application_version": "1",  # else a hash of the code, and jobs queued by an older release would wait for ever
            "serializer": DBOSPortableJSONSerializer(),  # never pickles
            "use_listen_notify": False,
            "log_level": "WARNING",
            "enable_otlp": False,
        }

    def stop(self) -> None:
        """Takes no further attempt; waits for the one that runs, which was told to end."""
        global _serving
        if self._serves:
            DBOS.destroy(workflow_completion_timeout_sec=10)
            _serving, self._serves = None, False
            _alone.release()
        if self._client is not None:
            self._client.destroy()
            self._client = None

    def _connected(self) -> DBOSClient:
        if self._client is None:
            self._client = DBOSClient(
                system_database_url=self._url,
                serializer=DBOSPortableJSONSerializer(),
                application_name="clearfold",
                retry_connection_errors=False,
            )
        return self._client

    def add(self, connection: sa.Connection, id: str, attempt: int) -> None:
        """Puts an attempt into the queue, in a transaction of the caller's."""
        self._connected().enqueue_in_transaction(
            connection,
            {"queue_name": NAME, "workflow_name": "attempt", "workflow_id": f"{id}.{attempt}", "app_version": "1"},
            id,
            attempt,
        )

    def holds(self, id: str, attempt: int) -> bool:
        """Whether an attempt is still to be run: it waits, or was taken a moment ago."""
        found = self._connected().list_workflows(workflow_ids=[f"{id}.{attempt}"], load_input=False, load_output=False)
        if not found or found[0].status not in ("ENQUEUED", "DELAYED", "PENDING"):
            return False
        taken = found[0].dequeued_at
        return found[0].status != "PENDING" or taken is None or time.time() - taken / 1000 < TAKEN_SECONDS

    def cancel(self, id: str, attempt: int) -> None:
        """An attempt that waits is not run."""
        self._connected().cancel_workflow(f"{id}.{attempt}")

    def drop(self, id: str, attempts: Iterable[int]) -> None:
        """Forgets attempts that are over."""
        self._connected().delete_workflows([f"{id}.{attempt}" for attempt in attempts])


@DBOS.workflow(name="attempt")
def _attempt(id: str, number: int) -> None:
    if _serving is not None:
        _serving(id, number)
