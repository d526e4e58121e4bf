"""POST /train and GET /train/{id}, with true child processes."""

import io
import os
import signal
import zipfile
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from toys import DEADLINE_SECONDS, encoded, noise, wait_for

PICTURES = [("files", (f"{seed}.png", encoded(noise(100, 100, seed)))) for seed in range(3)]


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


def end_of(client: TestClient, id: str) -> dict:
    async def ended():
        import anyio

        with anyio.fail_after(DEADLINE_SECONDS):
            await client.app_state["jobs"].ended(id)

    client.portal.call(ended)
    return client.get(f"/train/{id}").json()


def test_a_model_is_trained_from_a_zip_and_can_then_be_asked_for(live, tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for _, (name, data) in PICTURES:
            archive.writestr(f"my pictures/{name}", data)
        archive.writestr("__MACOSX/my pictures/._0.png", b"what a file manager leaves behind")
    started = live.post(
        "/train",
        files={"files": ("pictures.zip", file.getvalue())},
        data={"model": "mine", "steps": "2", "sigma_min": "10", "sigma_max": "20"},
    )
    assert started.status_code == 202, started.text
    job = started.json()
    assert started.headers["Location"] == f"/train/{job['id']}"
    assert (job["status"], job["model"]) == ("queued", "mine")

    job = end_of(live, job["id"])
    assert (job["status"], job["step"], job["steps"], job["reason"]) == ("done", 2, 2, None)
    assert job["loss"] > 0
    assert job["psnr"] > 10
    assert [model["name"] for model in live.get("/models").json()["models"]] == ["same", "mine"]
    denoised = live.post("/denoise?model=mine", content=encoded(noise()))
    assert denoised.headers["X-Clearfold-Model"] == "mine"
    assert sorted(file.name for file in (tmp_path / "train").rglob("*") if file.is_file()) == [
        "log.txt",
        "mine.md",
        "mine.safetensors",
    ]


def test_by_minutes_alone_a_job_ends_in_time_and_starts_from_scratch_if_asked(live):
    started = live.post("/train", files=PICTURES, data={"minutes": "0.001", "parent": "scratch"})
    job = end_of(live, started.json()["id"])
    assert job["status"] == "done", job
    assert job["step"] == 1


def test_one_job_runs_at_a_time_and_a_killed_one_has_failed_with_the_reason(live, tmp_path):
    first = live.post("/train", files=PICTURES, data={"minutes": "60"})
    assert first.status_code == 202
    second = live.post("/train", files=PICTURES)
    assert second.status_code == 409
    assert second.json()["job"] == first.json()["id"]

    (child,) = wait_for(lambda: children(tmp_path), "the child process")
    os.kill(child, signal.SIGKILL)
    job = end_of(live, first.json()["id"])
    assert job["status"] == "failed"
    assert job["reason"].startswith("The training process was ended by SIGKILL")
    assert live.post("/train", files=PICTURES, data={"model": "same"}).json()["title"].startswith("A model with this")


def test_a_job_runs_and_tells_how_it_goes_and_is_ended_when_the_service_stops(live, tmp_path):
    id = live.post("/train", files=PICTURES, data={"steps": "1000000", "minutes": "60"}).json()["id"]

    def running():
        job = live.get(f"/train/{id}").json()
        return job if job["status"] == "running" else None

    job = wait_for(running, "the first step")
    assert job["step"] >= 1
    assert job["steps"] == 1_000_000
    assert job["loss"] > 0
    assert job["seconds_left"] > 0
    (child,) = children(tmp_path)
    assert os.getpriority(os.PRIO_PROCESS, child) > os.getpriority(os.PRIO_PROCESS, 0)
    live.__exit__()
    assert children(tmp_path) == []


def test_an_unknown_job_is_said_to_be_unknown(live):
    answer = live.get("/train/nothing")
    assert (answer.status_code, answer.json()["detail"]) == (404, "id = 'nothing': there is no such training job.")


@pytest.mark.parametrize(
    ("files", "data", "status", "detail"),
    [
        (PICTURES[:1], {}, 422, "files holds 1 pictures, and 2 are needed at least"),
        ([("files", ("a.txt", b"words"))], {}, 422, "'a.txt' is not a picture that can be read: leave it out."),
        (PICTURES, {"sigma_min": "30", "sigma_max": "20"}, 422, "sigma_min = 30 must not be above sigma_max = 20"),
        (PICTURES, {"sigma_max": "nan"}, 422, "sigma_max = 'nan': Input should be a finite number."),
        (PICTURES, {"minutes": "9999"}, 422, "minutes = 9999: max_train_minutes = 1440: ask for fewer."),
        (PICTURES, {"model": "../evil"}, 422, "model = '../evil': String should match pattern"),
        (PICTURES, {"parent": "nobody"}, 404, "model = 'nobody': there is no such model. There are: 'same'."),
        (PICTURES, {"colour": "blue"}, 422, "colour = 'blue': Extra inputs are not permitted."),
    ],
)
def test_what_cannot_be_trained_is_refused_and_leaves_nothing_behind(live, tmp_path, files, data, status, detail):
    answer = live.post("/train", files=files, data=data)
    assert answer.status_code == status, answer.text
    assert detail in answer.json()["detail"]
    assert [path for path in (tmp_path / "train").rglob("*") if path.is_file()] == []
    assert live.get("/readyz").status_code == 200
