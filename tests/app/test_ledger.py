"""The jobs' table: what is written together, what is told of it, and that two who change a job do not undo one another."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app import ledger
from app.errors import ModelExists, UnknownJob
from app.ledger import Ledger, Record, now
from app.orders import Job, Order
from app.store import StoreError


@pytest.fixture
def table(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path}/jobs.sqlite")


def record(id: str, model: str = "") -> Record:
    order = Order(model=model or f"model-{id}", minutes=1)
    job = Job(id=id, method="clean", model=order.model, parent=None, activate="never", pictures=2, minutes=1, created=now())
    return Record(job, order)


def add(table: Ledger, *ids: str) -> None:
    for id in ids:
        table.add(record(id), lambda connection, record: None)


def status(status: str):
    def edit(record: Record) -> bool:
        record.job.status = status
        return True

    return edit


def test_a_job_is_found_as_it_was_written_and_an_unknown_one_is_said_to_be(table):
    add(table, "a")
    assert table["a"].job == record("a").job.model_copy(update={"created": table["a"].job.created})
    assert table["a"].order.model == "model-a"
    with pytest.raises(UnknownJob, match="id = 'b': there is no such training job"):
        table["b"]


def test_two_jobs_make_no_model_of_one_name_until_one_has_ended(table):
    add(table, "a")
    assert table.claimed("model-a")
    with pytest.raises(ModelExists, match="another training job is about to make it"):
        table.add(record("b", "model-a"), lambda connection, record: None)
    table.change("a", status("cancelled"))
    assert not table.claimed("model-a")
    table.add(record("b", "model-a"), lambda connection, record: None)
    with pytest.raises(ModelExists, match="cancel that first"):
        table.change("a", status("queued"))
    assert table["a"].job.status == "cancelled"


def test_a_job_its_event_and_its_place_in_the_queue_are_written_together_or_not_at_all(table):
    def break_off(connection: object, record: Record) -> None:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        table.add(record("a"), break_off)
    assert table.ids() == set()
    assert table.events("a") == []
    add(table, "a")
    with pytest.raises(RuntimeError, match="killed"):
        table.change("a", status("running"), enqueue=break_off)
    assert table["a"].job.status == "queued"
    assert [event.data["status"] for event in table.events("a")] == ["queued"]


def test_events_are_numbered_and_told_from_any_on_and_a_job_that_is_not_changed_tells_nothing(table):
    add(table, "a", "b")
    table.change("a", status("running"), [("progress", {"step": 1}), ("progress", {"step": 2})])
    table.change("a", lambda record: False, [("progress", {"step": 3})])
    told = table.events("a")
    assert [(event.number, event.kind) for event in told] == [(1, "job"), (2, "progress"), (3, "progress"), (4, "job")]
    assert told[3].data["status"] == "running"
    assert table.events("a", after=2) == told[2:]
    assert (table.last("a", "progress"), table.last("a", "quality")) == ({"step": 2}, None)
    table.remove("a")
    assert table.events("a") == []
    assert table.ids() == {"b"}


def test_pages_have_the_newest_first(table):
    add(table, *"abcde")
    table.change("d", status("running"))
    assert [each.job.id for each in table.page(2)] == ["e", "d"]
    assert [each.job.id for each in table.page(2, before="d")] == ["c", "b"]
    assert [each.job.id for each in table.page(2, before="d", status="running")] == []
    assert [each.job.id for each in table.active()] == list("abcde")
    with pytest.raises(UnknownJob):
        table.page(2, before="x")


def test_changes_at_the_same_time_come_one_after_the_other(table, tmp_path):
    """Over several connections, as several processes have; a read that was not locked would lose some."""
    add(table, "a")
    others = [table, Ledger(str(table.url))]

    def rise(record: Record) -> bool:
        record.job.attempt += 1
        return True

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: others[i % 2].change("a", rise), range(40)))
    assert table["a"].job.attempt == 41
    assert [event.number for event in table.events("a")] == [*range(1, 42)]


def test_a_job_whose_worker_is_silent_is_not_shown_as_running():
    it = record("a")
    it.job.status, it.beat = "running", 1000.0
    it.clock = 1000.0 + ledger.SILENT_SECONDS
    assert it.shown().status == "running"
    it.clock = 1000.1 + ledger.SILENT_SECONDS
    assert it.shown().status == "queued"
    assert it.job.status == "running"


def test_the_address_of_a_postgresql_database_is_taken_with_the_driver_that_is_there(monkeypatch):
    made = []
    monkeypatch.setattr(ledger.sa, "create_engine", lambda url, **options: made.append(url))
    monkeypatch.setattr(ledger._tables, "create_all", lambda engine: None)
    assert Ledger("postgresql://user:secret@host/jobs").url.drivername == "postgresql+psycopg"
    assert made[0].password == "secret"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://user:secret@host:port/jobs", "jobs_url cannot be read: it must be postgresql://USER:PASSWORD@HOST:PORT/NAME"),
        ("postgresql://user:secret@[::1/jobs", "jobs_url cannot be read: "),
        ("nonsense", "jobs_url cannot be read: "),
        ("postgresql://user:secret@x/y?port=none", "jobs_url cannot be read: "),
        ("postgresql://user:secret@x/y?colour=blue", "jobs_url cannot be read: "),
        ("mysql://user:secret@x/y", "jobs_url = mysql://… is no database that is known here: set postgresql://…"),
        ("postgresql+nothing://user:secret@x/y", "jobs_url = postgresql+nothing://… is no database that is known here"),
    ],
)
def test_an_address_of_no_database_is_told_without_its_password(url, told):
    with pytest.raises(StoreError) as refused:
        Ledger(url)
    assert str(refused.value).startswith(told)
    assert "secret" not in str(refused.value)
