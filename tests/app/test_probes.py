"""What a worker answers to whoever watches it."""

from pathlib import Path

import httpx
import pytest
from test_ledger import record

from app import probes
from app.errors import PROBLEM_JSON
from app.ledger import Ledger
from tests.benchmarks import cluster


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path}/jobs.sqlite")


def test_a_worker_is_alive_at_once_and_ready_when_it_takes_jobs_and_counts_them(ledger):
    ready = False
    ledger.add(record("a"), lambda connection, record: None)
    with (
        probes.answering(("127.0.0.1", 0), ledger, lambda: ready) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}") as client,
    ):
        assert client.get("/livez").json() == {"status": "live"}
        answer = client.get("/readyz")
        assert (answer.status_code, answer.headers["content-type"]) == (503, PROBLEM_JSON)
        ready = True
        assert client.get("/readyz").json() == {"status": "ready"}
        assert "clearfold_jobs_queued 1.0\n" in client.get("/metrics").text
        assert client.get("/train").status_code == 404
        assert client.post("/livez").status_code == 501
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{host}:{port}/livez")


def test_what_the_database_does_not_tell_is_not_made_up():
    away = Ledger(f"postgresql://nobody@127.0.0.1:{cluster.free_port()}/nothing")
    with probes.answering(("127.0.0.1", 0), away, lambda: False) as (host, port):
        assert httpx.get(f"http://{host}:{port}/metrics").status_code == 503


def test_without_a_port_nothing_is_answered(ledger):
    with probes.answering(None, ledger, lambda: True) as address:
        assert address is None
