"""The child process of a training job, driven as the worker drives it."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toys import DEADLINE_SECONDS, encoded, noise

import app
from app.orders import Order
from app.training import _recipe


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The folder of a job that would run for an hour."""
    (tmp_path / "pictures").mkdir()
    for seed in range(2):
        (tmp_path / f"pictures/{seed}.png").write_bytes(encoded(noise(100, 100, seed)))
    (tmp_path / "order.json").write_text(Order(model="m", minutes=60, steps=10**6).model_dump_json())
    return tmp_path


def child(job: Path, seconds: float = 0.0, prepare: str = "pass") -> "subprocess.Popen[bytes]":
    code = f"import sys; from pathlib import Path; {prepare}; from app.training import main; main(Path({str(job)!r}), {seconds}, 'cpu')"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(app.__file__).parents[1],
    )


def test_a_child_ends_when_its_parent_is_gone(job):
    with child(job) as process:
        assert json.loads(process.stdout.readline())["step"] == 1
        process.stdin.close()
        assert process.wait(DEADLINE_SECONDS) == 1


def test_the_time_left_is_that_of_whichever_ends_first(job):
    with child(job, seconds=3500.0) as process:  # of an hour, and of a million steps
        assert 0 < json.loads(process.stdout.readline())["seconds_left"] < 100
        process.stdin.close()
    (job / "order.json").write_text(Order(model="m", minutes=60, steps=3, device="cpu").model_dump_json())
    (job / "plan.json").unlink()
    with child(job) as process:
        left = [json.loads(line)["seconds_left"] for line in process.stdout if b"seconds_left" in line]
    assert len(left) == 3
    assert left[-1] == 0


@pytest.mark.parametrize(("method", "rate"), [("noisy", 2e-4), ("pairs", 5e-4)])
def test_the_learning_rate_is_decided_once_and_is_higher_where_a_parent_may_have_seen_nothing_alike(job, models_dir, method, rate):
    (job / "parent").mkdir()
    shutil.copy(models_dir / "same.safetensors", job / "parent")
    order = Order(model="m", method=method, minutes=60, steps=2, device="cpu")
    decided = [dataclasses.asdict(_recipe(order, job, time.monotonic() + 3600, "cpu")) for _ in range(2)]
    assert decided[0] == decided[1]
    assert decided[0]["lr"] == pytest.approx(rate)
    assert json.loads((job / "plan.json").read_text())["lr"] == pytest.approx(rate)


def test_a_child_that_cannot_train_says_why(job):
    (job / "pictures/1.png").unlink()
    with child(job) as process:
        said = [json.loads(line) for line in process.stdout]
        assert process.wait(DEADLINE_SECONDS) == 0
    assert list(said[-1]) == ["failed"]
    assert "two pictures are needed" in said[-1]["failed"]


def test_a_child_that_breaks_leaves_its_last_words_in_the_log(job):
    (job / "order.json").write_text("{")
    with child(job) as process:
        log = process.stderr.read()
        assert process.wait(DEADLINE_SECONDS) == 1
    assert b"Order" in log


def test_a_disk_that_is_full_is_said_to_be_and_the_checkpoint_before_is_kept(job):
    order = Order(model="m", minutes=60, steps=2)
    (job / "order.json").write_text(order.model_dump_json())
    # A file that may not grow as large as a checkpoint is refused by the kernel just as by a full disk.
    with child(job, prepare="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))") as process:
        said = [json.loads(line) for line in process.stdout]
        assert process.wait(DEADLINE_SECONDS) == 0
    assert said[-1]["failed"].startswith("The disk is full (")
    assert [path.name for path in (job / "made").iterdir()] == []
    with child(job) as process:
        said = [json.loads(line) for line in process.stdout]
    assert said[-1]["weights"] == str(job / "made/m.safetensors")


def test_time_that_was_trained_before_counts(job):
    (job / "order.json").write_text(Order(model="m", minutes=1).model_dump_json())
    with child(job, seconds=60.0) as process:
        said = [json.loads(line) for line in process.stdout]
    assert [line["step"] for line in said if "step" in line] == [1]
    assert "weights" in said[-1]


def test_a_job_steps_back_among_processes_and_its_session_among_sessions():
    said = "import os; from pathlib import Path; from app import training; training._step_back(); print(os.nice(0)); "
    said += "session = Path('/proc/self/autogroup'); print(session.read_text().split()[-1] if session.exists() else 19)"
    child = subprocess.run(
        [sys.executable, "-c", said],
        cwd=Path(app.__file__).parents[1],
        start_new_session=True,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert child.stdout.split() == ["19", "19"]
