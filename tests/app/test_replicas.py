"""Several processes as one service: a job that goes on on another machine, and what every replica tells of it."""

import re
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient
from toys import encoded, noise, wait_for

from app.ledger import Ledger
from app.main import create_app
from app.settings import Settings
from tests.benchmarks import cluster

PICTURES = [("files", (f"{seed}.png", encoded(noise(100, 100, seed)))) for seed in range(2)]


def test_a_job_goes_on_on_another_machine_from_what_the_bucket_keeps_and_every_replica_tells_the_same(
    tmp_path: Path, models_dir: Path, database: str
) -> None:
    with ExitStack() as stack:
        environment = stack.enter_context(cluster.bucket(tmp_path)) | {
            "CLEARFOLD_JOBS_URL": database,
            "CLEARFOLD_MODELS_DIR": str(models_dir),
        }
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in environment.items():
            patch.setenv(name, value)

        def replica(name: str) -> TestClient:
            settings = Settings(train_dir=tmp_path / name, train_here=False, device="cpu")
            return stack.enter_context(TestClient(create_app(settings)))

        def worker(name: str) -> cluster.Machine:
            machine = cluster.Machine("worker", name, tmp_path, environment | {"CLEARFOLD_TRAIN_DIR": str(tmp_path / name)})
            stack.callback(machine.kill)
            machine.start()
            return machine

        one, other = replica("one"), replica("other")
        asked = {"steps": "16", "minutes": "60", "model": "mine", "parent": "scratch", "activate": "always"}
        id = one.post("/train", files=PICTURES, data=asked).json()["id"]
        assert other.get(f"/train/{id}").json()["status"] == "queued"
        wait_for(lambda: "clearfold_jobs_unfinished 1" in other.get("/metrics").text, "the count of jobs")

        first = worker("first")
        wait_for(lambda: (other.get(f"/train/{id}").json()["step"] or 0) >= 3, "a step behind the first one that is saved")
        sample = f"/train/{id}/sample.png"
        wait_for(lambda: other.get(sample).content == one.get(sample).content, "one sample, between two that are written")
        first.kill(signal.SIGTERM)
        assert list((tmp_path / "first/jobs").iterdir()) == []
        assert one.get(f"/train/{id}").json()["status"] == "queued"

        worker("second")
        wait_for(lambda: other.get(f"/train/{id}").json()["status"] == "done", "the job's end")
        begins = [int(step) for step in re.findall(r"^began with step (\d+) of 16$", one.get(f"/train/{id}/log").text, re.MULTILINE)]
        assert begins[0] == 1
        assert begins[1] > 1  # every second step is measured, told, and then saved
        assert len(begins) == 2
        of_the_job = (f"/train/{id}", f"/train/{id}/events", f"/train/{id}/log", f"/train/{id}/sample.png")
        for path in (*of_the_job, "/models", "/models/mine/weights"):
            assert one.get(path).content == other.get(path).content, path
        assert one.get("/models").json()["default"] == "mine"
        picture = encoded(noise())
        assert other.post("/denoise", content=picture).headers["X-Clearfold-Model"] == "mine"
        assert other.delete(f"/train/{id}").status_code == 204
        assert one.get(f"/train/{id}").status_code == 404


def test_while_the_database_is_away_pictures_are_denoised_and_jobs_are_told_to_come_back(
    tmp_path: Path, models_dir: Path, database: str, postgres: cluster.Postgres
) -> None:
    settings = Settings(models_dir=models_dir, train_dir=tmp_path, jobs_url=database, train_here=False, device="cpu")
    with TestClient(create_app(settings)) as client:
        id = client.post("/train", files=PICTURES, data={"parent": "scratch"}).json()["id"]
        postgres.stop()
        try:
            for method, path in (
                ("GET", "/train"), ("GET", f"/train/{id}"), ("POST", f"/train/{id}/cancel"), ("GET", f"/train/{id}/events"),
            ):  # fmt: skip
                answer = client.request(method, path)
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5"), path
                assert answer.json()["title"] == "The jobs' database does not answer"
            ordered = client.post("/train", files=PICTURES, data={"parent": "scratch"})
            assert (ordered.status_code, ordered.headers["Retry-After"]) == (503, "5")
            assert client.put("/models/default", json={"model": "same"}).status_code == 503
            assert client.get("/models").json()["default"] == "same"
            assert client.get("/readyz").status_code == 200
            assert client.post("/denoise", content=encoded(noise())).status_code == 200
            with TestClient(create_app(settings.model_copy(update={"train_dir": tmp_path / "later"}))) as later:
                assert later.get("/livez").status_code == 200
                assert later.get("/readyz").json()["detail"].startswith("jobs_url: its database has not answered yet")
                assert later.post("/denoise?model=same", content=encoded(noise())).status_code == 200
                postgres.start()
                wait_for(lambda: later.get("/readyz").status_code == 200, "the models")
                assert later.get(f"/train/{id}").json() == client.get(f"/train/{id}").json()
        finally:
            if not postgres.running:
                postgres.start()
        assert client.post(f"/train/{id}/cancel").json()["status"] == "cancelled"


def test_an_order_is_taken_to_be_unknown_when_the_database_goes_away_over_it_and_its_files_are_kept(
    tmp_path: Path, models_dir: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been written down; a job without its files would be lost."""
    settings = Settings(models_dir=models_dir, train_dir=tmp_path, jobs_url=database, train_here=False, device="cpu")

    def lost(*_: object) -> None:
        raise sa.exc.OperationalError("commit", {}, Exception("the connection was lost"))

    with TestClient(create_app(settings)) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "add", lost)
            assert client.post("/train", files=PICTURES, data={"parent": "scratch"}).status_code == 503
        assert len(list((tmp_path / "jobs").glob("*/order.json"))) == 1
