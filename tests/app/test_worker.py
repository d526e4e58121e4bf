"""Whose jobs a worker takes over, and whose it leaves alone."""

import errno
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from test_ledger import record

from app import folders, worker
from app.errors import UnknownJob
from app.ledger import Ledger, Record
from app.queue import Queue
from app.settings import Settings
from app.worker import Worker

HOLD = "import sys, fcntl; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"


class Waiting:
    """A stand-in for the queue: which attempts are in it."""

    def __init__(self) -> None:
        self.there: list[tuple[str, int]] = []

    def add(self, connection: object, id: str, attempt: int) -> None:
        self.there.append((id, attempt))

    def cancel(self, id: str, attempt: int) -> None:
        self.there.remove((id, attempt))

    def holds(self, id: str, attempt: int) -> bool:
        return (id, attempt) in self.there


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(train_dir=tmp_path)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path}/jobs.sqlite")


@pytest.fixture
def queue() -> Waiting:
    return Waiting()


@pytest.fixture
def sweep(ledger, queue, settings):
    return Worker(ledger, queue, settings)._sweep


@pytest.fixture
def job(ledger, settings):
    """`job(status, machine, beat)`: a job's row and folder."""

    def make(status: str, machine: str = "", seconds_ago: float = 0.0, attempt: int = 1) -> str:
        it = record(f"job{len(ledger.ids())}")
        it.job.status, it.job.attempt = status, attempt
        it.machine, it.beat = machine or folders.machine(), time.time() - seconds_ago
        folders.of(settings, it.job.id).mkdir(parents=True)
        ledger.add(it, lambda connection, record: None)
        return it.job.id

    return make


def state(ledger: Ledger, id: str) -> tuple[str, int]:
    return ledger[id].job.status, ledger[id].job.attempt


def test_a_job_whose_worker_died_on_this_machine_is_taken_over_at_once(sweep, ledger, queue, job):
    id = job("running", attempt=3)
    sweep()
    assert state(ledger, id) == ("queued", 4)
    assert queue.there == [(id, 4)]
    sweep()
    assert queue.there == [(id, 4)]


def test_a_job_that_another_process_works_on_is_left_alone_and_taken_over_when_that_is_killed(sweep, ledger, queue, job, settings):
    id = job("running", seconds_ago=3600)
    lock = folders.of(settings, id) / folders.LOCK
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        sweep()
        assert state(ledger, id) == ("running", 1)
        other.kill()
    sweep()
    assert state(ledger, id) == ("queued", 2)


@pytest.mark.parametrize(
    ("seconds_ago", "expected"), [(worker.LEASE_SECONDS - 10, ("running", 1)), (worker.LEASE_SECONDS + 1, ("queued", 2))]
)
def test_a_job_of_another_machine_is_taken_over_when_nothing_was_heard_of_it_for_long(sweep, ledger, job, seconds_ago, expected):
    id = job("running", machine="another", seconds_ago=seconds_ago)
    sweep()
    assert state(ledger, id) == expected


def test_a_job_that_was_to_be_cancelled_when_its_worker_died_is_cancelled(sweep, ledger, queue, job):
    id = job("cancelling")
    sweep()
    assert state(ledger, id) == ("cancelled", 1)
    assert ledger[id].job.ended is not None
    assert queue.there == []


def test_a_job_that_ends_every_worker_is_given_up_unless_it_gains_steps(sweep, ledger, job):
    id = job("running")

    def run(step: int) -> None:
        def edit(record: Record) -> bool:
            record.job.status, record.job.step = "running", step
            return True

        ledger.change(id, edit)
        sweep()

    for step in range(1, worker.LOST + 5):
        run(step)
    assert ledger[id].job.status == "queued"
    for _ in range(worker.LOST - 2):
        run(step)
    assert ledger[id].job.status == "queued"
    run(step)
    assert ledger[id].job.status == "failed"
    assert ledger[id].job.reason.startswith("Whatever trained it ended 20 times without a step gained")


def test_a_job_that_waits_but_is_in_no_queue_is_put_into_it(sweep, ledger, queue, job):
    id = job("queued")
    sweep()
    assert state(ledger, id) == ("queued", 2)
    assert queue.there == [(id, 2)]
    ended = job("done")
    sweep()
    assert state(ledger, ended) == ("done", 1)
    assert queue.there == [(id, 2)]


def test_after_the_database_was_away_workers_elsewhere_are_given_time_to_be_heard_of(ledger, queue, settings, job):
    id = job("running", machine="another", seconds_ago=worker.LEASE_SECONDS + 1)
    it = Worker(ledger, queue, settings)
    it._patient_until = time.monotonic() + 60
    it._sweep()
    assert state(ledger, id) == ("running", 1)
    it._patient_until = time.monotonic()
    it._sweep()
    assert state(ledger, id) == ("queued", 2)


def test_a_job_whose_files_are_gone_is_given_up_after_a_while(ledger, queue, settings, job):
    id = job("queued")
    folders.of(settings, id).rmdir()
    it = Worker(ledger, queue, settings)
    for attempt in range(1, worker.CRASHES):
        it._attempt(id, attempt)
        assert state(ledger, id) == ("queued", attempt)
        it._again(ledger[id])
    it._attempt(id, worker.CRASHES)
    assert state(ledger, id)[0] == "failed"
    assert ledger[id].job.reason.startswith("Its files are gone (")


def test_of_two_workers_that_find_a_job_abandoned_one_takes_it_over(ledger, queue, settings, job):
    id = job("running")
    seen = ledger[id]
    one, other = (Worker(ledger, queue, settings) for _ in range(2))
    one._again(seen)
    other._again(seen)
    assert state(ledger, id) == ("queued", 2)
    assert queue.there == [(id, 2)]


@pytest.mark.parametrize(("status", "number"), [("queued", 1), ("running", 2), ("cancelled", 2), ("done", 2)])
def test_an_attempt_that_is_over_or_superseded_is_not_run(ledger, queue, settings, job, status, number, monkeypatch):
    id = job(status, attempt=2)
    monkeypatch.setattr(worker, "_Attempt", lambda *_: pytest.fail("it was run"))
    Worker(ledger, queue, settings)._attempt(id, number)
    assert state(ledger, id) == (status, 2)
    Worker(ledger, queue, settings)._attempt("gone", 1)


def test_an_attempt_at_a_job_that_somebody_works_on_leaves_it_alone(ledger, queue, settings, job, monkeypatch):
    id = job("queued")
    monkeypatch.setattr(worker, "LOCK_SECONDS", 0.0)
    monkeypatch.setattr(worker, "_Attempt", lambda *_: pytest.fail("it was run"))
    with folders.locked(folders.of(settings, id)):
        Worker(ledger, queue, settings)._attempt(id, 1)
    assert state(ledger, id) == ("queued", 1)


def test_a_job_whose_log_cannot_be_written_has_failed_with_the_reason(ledger, queue, settings, job, monkeypatch):
    id = job("queued")
    (folders.of(settings, id) / folders.LOG).mkdir()  # in its place, as good as a full disk
    Worker(ledger, queue, settings)._attempt(id, 1)
    assert state(ledger, id) == ("failed", 1)
    assert ledger[id].job.reason.startswith("The training process could not be run ([Errno 21] Is a directory")


def test_on_a_full_disk_there_is_room_to_write_down_how_a_job_ended(ledger, queue, settings, job, monkeypatch):
    id = job("queued")
    ballast = folders.of(settings, id) / folders.BALLAST
    held, there = [], []
    change = ledger.change

    def follow(attempt):
        held.append(ballast.stat().st_blocks * 512)
        return {"failed": "The disk is full."}, 0

    def watched(*given, **named):
        there.append(ballast.exists())
        return change(*given, **named)

    monkeypatch.setattr(worker._Attempt, "_follow", follow)
    monkeypatch.setattr(ledger, "change", watched)
    Worker(ledger, queue, settings)._attempt(id, 1)
    assert held[0] >= folders.BALLAST_BYTES
    assert not any(there)  # whenever something was written down, from its beginning to its end
    assert len(there) >= 2
    assert (ledger[id].job.status, ledger[id].job.reason) == ("failed", "The disk is full.")


@pytest.fixture
def full(ledger, settings, monkeypatch):
    """A disk without room, but for what is given back: `full()` says whether anything can be written."""
    change = ledger.change
    laid = [folders.of(settings, id) / folders.BALLAST for id in ledger.ids()]

    def write(*given, **named):
        if all(ballast.exists() for ballast in laid):
            raise sa.exc.OperationalError("UPDATE", {}, Exception("database or disk is full"))
        return change(*given, **named)

    def fill():
        laid[:] = [folders.of(settings, id) / folders.BALLAST for id in ledger.ids()]
        monkeypatch.setattr(folders, "has_room", lambda folder: False)
        monkeypatch.setattr(ledger, "change", write)

    return fill


@pytest.mark.parametrize(("before", "after"), [("queued", "failed"), ("running", "failed"), ("cancelling", "cancelled")])
def test_on_a_full_disk_a_job_that_nobody_can_take_has_failed_with_the_reason(sweep, ledger, queue, settings, job, full, before, after):
    id, next = job(before), job("queued")
    for each in (id, next):
        queue.add(None, each, 1)
        folders.lay_ballast(folders.of(settings, each))
    full()
    sweep()
    assert (ledger[id].job.status, ledger[id].job.reason) == (after, worker.FULL if after == "failed" else None)
    assert queue.there == [(next, 1)]  # whose turn comes when this one is over
    assert state(ledger, next) == ("queued", 1)
    sweep()
    assert (ledger[next].job.status, ledger[next].job.reason) == ("failed", "The disk is full: free some space and resume the job.")


def test_a_full_disk_is_for_the_job_that_runs_there_to_tell_of(sweep, ledger, queue, settings, job, full):
    job("queued")
    running = job("running")
    queue.add(None, "job0", 1)
    full()
    with folders.locked(folders.of(settings, running)):
        sweep()
    assert (state(ledger, "job0"), state(ledger, running)) == (("queued", 1), ("running", 1))


def test_room_is_what_a_ballast_fits_in(tmp_path, monkeypatch):
    assert folders.has_room(tmp_path)

    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders.os, "posix_fallocate", full)
    assert not folders.has_room(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_why_nothing_can_be_written_is_found_without_writing(tmp_path, monkeypatch):
    assert folders.unwritable(tmp_path / "not/yet/there", "jobs.sqlite") is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert folders.unwritable(tmp_path / "file") == "Not a directory"
    assert folders.unwritable(tmp_path / "file/in/it") == "Not a directory"
    assert folders.unwritable(tmp_path / ("n" * 300)) == "File name too long"
    monkeypatch.setattr(folders.os, "access", lambda path, mode: path == tmp_path)
    assert folders.unwritable(tmp_path, "file") == "Permission denied"
    assert folders.unwritable(tmp_path, "none") is None


def test_folders_that_belong_to_no_job_are_strays_unless_somebody_fills_them(settings, job):
    known = job("done")
    left, filled, foreign = (folders.of(settings, name) for name in ("left", "filled", "foreign"))
    for folder in (left, filled, foreign):
        (folder / "pictures").mkdir(parents=True)
    with folders.locked(left):
        pass
    (foreign / folders.LOCK).write_text("another machine")
    with folders.locked(filled):
        assert folders.strays(settings.train_dir / "jobs", "*", {known}) == [left]
    folders.clear(left)
    assert not left.exists()


def test_what_was_left_by_processes_that_were_killed_is_taken_away_at_the_start(ledger, queue, settings, job):
    done, failed = (folders.of(settings, job(status)) for status in ("done", "failed"))
    for folder in (done, failed):
        (folder / "pictures").mkdir()
        (folder / folders.LOG).touch()
    with folders.workshop(settings.train_dir / "models") as busy:
        left = settings.train_dir / "models" / ".left"
        left.mkdir()
        with folders.locked(left):
            pass
        Worker(ledger, queue, settings)._tidy()
        assert busy.exists()
    assert not left.exists()
    assert not busy.exists()
    assert [path.name for path in done.iterdir()] == [folders.LOG]
    assert sorted(path.name for path in failed.iterdir()) == [folders.LOG, "pictures"]


def test_the_queue_gives_an_attempt_to_one_who_takes_it_and_a_cancelled_one_to_none(ledger):
    """With the library itself, as the service uses it."""
    queue = Queue(ledger.url)
    taken: list[tuple[str, int]] = []

    def put(id: str, attempt: int) -> None:
        def edit(record: Record) -> bool:
            record.job.attempt = attempt
            return True

        ledger.change(id, edit, enqueue=lambda connection, record: queue.add(connection, id, attempt))

    for id in "ab":
        ledger.add(record(id), lambda connection, record: queue.add(connection, record.job.id, 1))
    assert queue.holds("a", 1)
    assert not queue.holds("a", 2)
    queue.cancel("a", 1)
    assert not queue.holds("a", 1)
    put("a", 2)
    with pytest.raises(UnknownJob):
        put("c", 1)
    queue.serve(lambda id, attempt: taken.append((id, attempt)))
    try:
        with pytest.raises(RuntimeError, match="another service in this process takes training jobs already"):
            Queue(ledger.url).serve(lambda id, attempt: None)
        deadline = time.monotonic() + 60
        while len(taken) < 2:
            assert time.monotonic() < deadline, taken
            time.sleep(0.05)
    finally:
        queue.stop()
    assert sorted(taken) == [("a", 2), ("b", 1)]
    assert not queue.holds("b", 1)
