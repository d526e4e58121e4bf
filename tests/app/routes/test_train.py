"""POST /train and /train/{id}, with true child processes."""

import errno
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient
from toys import DEADLINE_SECONDS, Toy, decoded, encoded, noise, wait_for

import app
from app import folders, worker
from app.jobs import Jobs
from app.main import create_app
from app.settings import Settings

ROOT = Path(app.__file__).parents[1]
PICTURES = [("files", (f"{seed}.png", encoded(noise(100, 100, seed)))) for seed in range(3)]
ENDED = ("cancelled", "done", "failed")


def children(folder: Path) -> list[int]:
    """The processes that were started to train in `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:  # it ended while we looked
            continue
    return found


def post(client: TestClient, files: list = PICTURES, **data: str) -> dict:
    answer = client.post("/train", files=files, data=data)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == f"/train/{answer.json()['id']}"
    return answer.json()


def told(client: TestClient, id: str, after: int = 0) -> Iterator[tuple[int, str, dict]]:
    """The events that are sent until the job has ended."""
    with client.stream("GET", f"/train/{id}/events", headers={"Last-Event-ID": str(after)}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        event: dict[str, str] = {}
        for line in answer.iter_lines():
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                event[name] = value
            elif not line and "id" in event:
                yield int(event["id"]), event["event"], json.loads(event["data"])
                event = {}


def end_of(client: TestClient, id: str) -> dict:
    """The job once it has ended, by its events."""
    *_, (_, kind, job) = told(client, id)
    assert kind == "job"
    assert job == client.get(f"/train/{id}").json()
    assert job["status"] in ENDED
    return job


def running(client: TestClient, id: str, step: int = 1) -> dict:
    def at_step() -> dict | None:
        job = client.get(f"/train/{id}").json()
        assert job["status"] not in ENDED, job
        return job if job["status"] == "running" and (job["step"] or 0) >= step else None

    return wait_for(at_step, "a running job")


@pytest.fixture
def settings(models_dir: Path, tmp_path: Path) -> Settings:
    return Settings(models_dir=models_dir, train_dir=tmp_path / "train", device="cpu")


def test_a_model_is_trained_from_a_zip_and_can_then_be_asked_for(live, tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for _, (name, data) in PICTURES:
            archive.writestr(f"my pictures/{name}", data)
        archive.writestr("__MACOSX/my pictures/._0.png", b"what a file manager leaves behind")
    zipped = [("files", ("pictures.zip", file.getvalue()))]
    job = post(live, zipped, model="mine", steps="2", sigma_min="10", sigma_max="20", activate="always")
    assert (job["status"], job["model"], job["parent"], job["pictures"]) == ("queued", "mine", "same", 3)
    taken = live.post("/train", files=PICTURES, data={"model": "mine"})
    assert (taken.status_code, taken.json()["title"]) == (409, "A model with this name is there")

    events = list(told(live, job["id"]))
    assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
    assert [data["status"] for _, kind, data in events if kind == "job"] == ["queued", "running", "done"]
    assert [data["step"] for _, kind, data in events if kind == "quality"] == [1, 2]
    assert list(told(live, job["id"], after=3)) == events[3:]
    assert live.get(f"/train/{job['id']}/events", headers={"Last-Event-ID": str(len(events))}).status_code == 204

    job = live.get(f"/train/{job['id']}").json()
    assert job == events[-1][2]
    assert (job["status"], job["step"], job["steps"], job["reason"], job["attempt"]) == ("done", 2, 2, None, 1)
    assert job["loss"] > 0
    assert job["psnr"] > 10
    quality = job["quality"]
    assert quality["what"] == "PSNR in dB at sigma 15 in 8-bit steps"
    assert quality["before"] == quality["parent"] != quality["trained"] == pytest.approx(job["psnr"], abs=1e-3)  # `same` corrects nothing
    assert quality["better"] is (quality["trained"] > quality["parent"])

    sample = live.get(f"/train/{job['id']}/sample.png")
    before, parent = (decoded(live.get(f"/train/{job['id']}/sample.png?show={panel}").content) for panel in ("before", "parent"))
    assert job["sample"] == {"panels": ["before", "parent", "now"], "step": 2}
    assert decoded(sample.content).size == (3 * 96, 96)
    assert before.tobytes() == parent.tobytes()
    assert live.get("/models/mine/sample.png").content == sample.content
    again = live.get(f"/train/{job['id']}/sample.png", headers={"If-None-Match": sample.headers["ETag"]})
    assert again.status_code == 304

    listed = live.get("/models").json()
    assert [(model["name"], model["default"], model["job"]) for model in listed["models"]] == [
        ("same", False, None),
        ("mine", True, job["id"]),
    ]
    denoised = live.post("/denoise", content=encoded(noise()))
    assert denoised.headers["X-Clearfold-Model"] == "mine"

    kept = [file.relative_to(tmp_path / "train").as_posix() for file in (tmp_path / "train").rglob("*") if file.is_file()]
    assert sorted(name for name in kept if "sqlite" not in name) == [
        f"jobs/{job['id']}/lock",
        f"jobs/{job['id']}/log.txt",
        f"jobs/{job['id']}/sample.png",
        "models/default",
        "models/mine.md",
        "models/mine.png",
        "models/mine.safetensors",
    ]
    assert live.get(f"/train/{job['id']}/log").text.startswith("-- attempt 1, ")
    assert live.post(f"/train/{job['id']}/resume").status_code == 409
    assert live.post(f"/train/{job['id']}/cancel").json() == job
    assert live.delete(f"/train/{job['id']}").status_code == 204
    assert live.get(f"/train/{job['id']}").status_code == 404
    assert not (tmp_path / f"train/jobs/{job['id']}").exists()
    assert live.get("/train").json() == {"jobs": [], "next": None}


def test_jobs_wait_for_one_another_and_are_cancelled_before_and_while_they_run(live, tmp_path):
    first, second = (post(live, minutes="60", steps="1000000", parent="scratch")["id"] for _ in range(2))
    assert running(live, first)["parent"] is None
    (child,) = children(tmp_path)
    assert os.getpriority(os.PRIO_PROCESS, child) == 19
    assert [job["status"] for job in live.get("/train").json()["jobs"]] == ["queued", "running"]
    page = live.get("/train?limit=1").json()
    assert ([job["id"] for job in page["jobs"]], page["next"]) == ([second], f"/train?limit=1&before={second}")
    assert [job["id"] for job in live.get(page["next"]).json()["jobs"]] == [first]
    assert [job["id"] for job in live.get("/train?status=running").json()["jobs"]] == [first]

    assert live.post(f"/train/{second}/cancel").json()["status"] == "cancelled"
    assert live.post(f"/train/{second}/cancel").json()["status"] == "cancelled"
    assert live.delete(f"/train/{first}").status_code == 409
    assert live.post(f"/train/{first}/cancel").json()["status"] == "cancelling"
    assert end_of(live, first)["status"] == "cancelled"
    assert children(tmp_path) == []
    assert live.get(f"/train/{second}").json()["started"] is None


def test_a_child_that_is_killed_goes_on_until_it_was_killed_too_often_and_can_then_be_resumed(live, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "CRASHES", 2)
    id = post(live, minutes="60", steps="4")["id"]
    for _ in range(2):
        (child,) = wait_for(lambda: children(tmp_path / "train"), "the child process")
        os.kill(child, signal.SIGKILL)
        wait_for(lambda child=child: child not in children(tmp_path), "the end of the child")
    job = end_of(live, id)
    assert job["status"] == "failed"
    assert job["reason"].startswith("The training process was ended by SIGKILL")
    assert "it goes on from its last checkpoint" in live.get(f"/train/{id}/log").text
    assert live.post(f"/train/{id}/resume").json()["attempt"] == 2
    assert live.post(f"/train/{id}/resume").status_code == 409
    job = end_of(live, id)
    assert (job["status"], job["step"], job["reason"]) == ("done", 4, None)


def test_a_service_that_stops_ends_the_child_and_the_next_one_goes_on_with_the_job(settings, tmp_path):
    with TestClient(create_app(settings)) as client:
        id = post(client, steps="24", minutes="60", parent="scratch")["id"]
        running(client, id, step=3)  # of 24, measured and saved at every second
    assert children(tmp_path) == []
    with TestClient(create_app(settings)) as client:
        job = end_of(client, id)
        assert (job["status"], job["step"], job["attempt"]) == ("done", 24, 2)
        statuses = [data["status"] for _, kind, data in told(client, id) if kind == "job"]
        assert statuses == ["queued", "running", "queued", "queued", "running", "done"]
        steps = [data["step"] for _, kind, data in told(client, id) if kind == "quality"]
        assert steps == [*range(2, 25, 2)]  # each told once, wherever the kill fell between telling and saving


def test_a_service_may_leave_the_training_to_a_worker_elsewhere(settings):
    apart = settings.model_copy(update={"train_here": False})
    environment = {**os.environ, "CLEARFOLD_TRAIN_DIR": str(settings.train_dir), "CLEARFOLD_MODELS_DIR": str(settings.models_dir)}
    with TestClient(create_app(apart)) as client:
        id = post(client, steps="1", model="mine", activate="always")["id"]
        with subprocess.Popen([sys.executable, "-m", "app.cli", "worker", "--device", "cpu"], env=environment, cwd=ROOT) as process:
            job = end_of(client, id)
            process.terminate()
            assert process.wait(DEADLINE_SECONDS) == 0
        assert job["status"] == "done", job
        wait_for(lambda: client.get("/models").json()["default"] == "mine", "the model that another process made")


@pytest.mark.parametrize("method", ["pairs", "noisy"])
def test_noisy_pictures_alone_or_in_pairs_are_trained_on(live, method):
    names = ["a_1.png", "a_2.png", "b_1.png", "b_2.png"]
    files = [("files", (name, encoded(noise(104, 100, seed)))) for seed, name in enumerate(names)]
    job = end_of(live, post(live, files, method=method, steps="1", model="mine")["id"])
    assert job["status"] == "done", job
    assert job["note"]
    assert ("pairs" in job["quality"]["what"]) is (method == "pairs")
    card = live.get("/models/mine").json()["card"]
    assert (card["method"], card["parent"], card["quality"]) == (method, "same", job["quality"])


def test_by_minutes_alone_a_job_ends_in_time_and_starts_from_scratch_if_asked(live):
    job = end_of(live, post(live, minutes="0.001", parent="scratch")["id"])
    assert job["status"] == "done", job
    assert job["step"] == 1
    assert job["sample"]["panels"] == ["before", "now"]
    assert live.get(f"/train/{job['id']}/sample.png?show=parent").status_code == 404


def test_an_unknown_job_is_said_to_be_unknown(live):
    for answer in (live.get("/train/nothing"), live.get("/train/nothing/events"), live.post("/train/nothing/cancel")):
        assert (answer.status_code, answer.json()["detail"]) == (404, "id = 'nothing': there is no such training job.")


@pytest.mark.parametrize(
    ("files", "data", "status", "detail"),
    [
        (PICTURES[:1], {}, 422, "files holds 1 pictures, and 2 are needed at least"),
        ([("files", ("a.txt", b"words"))], {}, 422, "'a.txt' is not a picture that can be read: leave it out."),
        (PICTURES, {"sigma_min": "30", "sigma_max": "20"}, 422, "sigma_min = 30 must not be above sigma_max = 20"),
        (PICTURES, {"sigma_max": "nan"}, 422, "sigma_max = 'nan': Input should be a finite number."),
        (PICTURES, {"minutes": "9999"}, 422, "minutes = 9999: max_train_minutes = 1440: ask for fewer."),
        (PICTURES, {"model": "../evil"}, 422, "model = '../evil': must be small letters, digits, '.', '_' and '-', a letter or"),
        (PICTURES, {"model": "default"}, 422, "model = 'default': must be another name: this one has a meaning of its own."),
        (
            PICTURES,
            {"model": "m" * 64},
            422,
            "': must be small letters, digits, '.', '_' and '-', a letter or a digit first, at most 63 of them.",
        ),
        (PICTURES, {"model": "same"}, 409, "model = 'same': a model with this name is there"),
        (PICTURES, {"parent": "nobody"}, 404, "model = 'nobody': there is no such model. There are: 'same'."),
        (PICTURES, {"colour": "blue"}, 422, "colour = 'blue': there is no such field. There are: files, method, model, minutes,"),
        (PICTURES, {"method": "magic"}, 422, "method = 'magic': Input should be 'clean', 'pairs' or 'noisy'"),
        (PICTURES, {"method": "noisy", "sigma_max": "20"}, 422, "are for method = 'clean'"),
        (PICTURES, {"method": "pairs"}, 422, "files holds 3 pictures, and 4 are needed at least, one pair to train on"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_leaves_nothing_behind(live, tmp_path, files, data, status, detail):
    answer = live.post("/train", files=files, data=data)
    assert answer.status_code == status, answer.text
    assert detail in answer.json()["detail"]
    assert list((tmp_path / "train/jobs").rglob("*")) == []
    assert live.get("/train").json()["jobs"] == []


def test_a_wish_in_the_address_is_not_passed_over_in_silence(live, tmp_path):
    told = {
        "?method=noisy&model=x": "method = 'noisy': method is a field of the form, not of the address: -F method=noisy; "
        "model = 'x': model is a field of the form, not of the address: -F model=x.",
        "?colour=blue": "colour = 'blue': there is no such parameter. There are: none.",
    }
    for query, detail in told.items():
        answer = live.post(f"/train{query}", files=PICTURES, data={"minutes": "1"})
        assert (answer.status_code, answer.json()["detail"]) == (422, detail)
        assert answer.json()["errors"][0]["in"] == "query"
    assert not (tmp_path / "train").exists()
    assert live.get("/train?state=running").json()["detail"] == (
        "state = 'running': there is no such parameter. There are: limit, before, status."
    )


def test_more_files_than_are_taken_are_refused_in_words_of_ours(serve):
    with serve(Toy(), max_train_pictures=2) as client:
        answer = client.post("/train", files=[*PICTURES, *PICTURES])
    assert answer.status_code == 422
    assert answer.json()["detail"] == "There are more files than max_train_pictures = 2: send fewer at a time."


def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_from_the_start_is_told_and_nothing_is_left(live, tmp_path, monkeypatch):
    monkeypatch.setattr(folders.os, "pwrite", full)
    answer = live.post("/train", files=PICTURES)
    assert (answer.status_code, answer.json()["title"]) == (507, "The disk is full")
    assert list((tmp_path / "train/jobs").rglob("*")) == []


def test_the_number_of_an_event_is_none_without_end(live):
    assert live.get("/train/00000000/events", headers={"Last-Event-ID": "9" * 25}).status_code == 422


def test_a_train_dir_that_is_none_is_told_at_the_start_and_to_whoever_would_write_there(settings, tmp_path, models_dir, caplog):
    (tmp_path / "train").write_text("a file in the folder's place")
    told = f"train_dir = '{tmp_path}/train' cannot be written (Not a directory): give it to this user, or set CLEARFOLD_TRAIN_DIR."
    with TestClient(create_app(settings)) as client:
        assert told in caplog.messages
        assert client.post("/denoise", content=encoded(noise())).status_code == 200
        assert client.get("/train").json()["jobs"] == []
        for answer in (
            client.post("/train", files=PICTURES),
            client.put("/models/mine", content=(models_dir / "same.safetensors").read_bytes()),
            client.put("/models/default", json={"model": "same"}),
        ):
            assert (answer.status_code, answer.json()["title"]) == (507, "The folder for training cannot be written")
            assert answer.json()["detail"] == told


@pytest.mark.parametrize(
    ("code", "why", "room", "kind"),
    [
        (sqlite3.SQLITE_READONLY_DIRECTORY, "Read-only file system", True, "not-writable"),
        (sqlite3.SQLITE_CANTOPEN, "Permission denied", True, "not-writable"),
        (sqlite3.SQLITE_CANTOPEN, None, True, "jobs-away"),
        (sqlite3.SQLITE_BUSY, "Permission denied", True, "jobs-away"),
        (sqlite3.SQLITE_FULL, None, True, "disk-full"),
        (sqlite3.SQLITE_IOERR_SHMSIZE, None, False, "disk-full"),
        (sqlite3.SQLITE_IOERR_SHMSIZE, None, True, "jobs-away"),
    ],
)
def test_a_table_on_a_disk_that_is_shut_or_full_is_not_one_that_does_not_answer(live, monkeypatch, code, why, room, kind):
    def shut(self):
        cause = sqlite3.OperationalError("the library's own words")
        cause.sqlite_errorcode = code
        raise sa.exc.OperationalError("INSERT", {}, cause)

    monkeypatch.setattr(Jobs, "_open", shut)
    monkeypatch.setattr(folders, "unwritable", lambda folder, *names: why)
    monkeypatch.setattr(folders, "has_room", lambda folder: room)
    answer = live.post("/train", files=PICTURES)
    assert answer.json()["type"] == f"urn:clearfold:problem:{kind}"
    assert answer.status_code == (503 if kind == "jobs-away" else 507)
    assert ("Retry-After" in answer.headers) == (kind == "jobs-away")
    assert (f"cannot be written ({why}): give it to this user" in answer.json()["detail"]) == (kind == "not-writable")


def test_room_to_tell_of_a_full_disk_is_there_from_the_order_on_and_again_when_it_is_resumed(settings, monkeypatch):
    with TestClient(create_app(settings.model_copy(update={"train_here": False}))) as client:
        id = post(client)["id"]
        ballast = folders.of(settings, id) / folders.BALLAST
        assert ballast.stat().st_blocks * 512 >= folders.BALLAST_BYTES
        client.post(f"/train/{id}/cancel")
        assert not ballast.exists()
        with monkeypatch.context() as patch:
            patch.setattr(folders.os, "posix_fallocate", full)
            assert client.post(f"/train/{id}/resume").status_code == 507
            assert client.get(f"/train/{id}").json()["status"] == "cancelled"
        assert client.post(f"/train/{id}/resume").json()["status"] == "queued"
        assert ballast.exists()
