"""The child process of a training job, driven as the service drives it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toys import DEADLINE_SECONDS, encoded, noise

import app
from app.jobs import Order


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The folder of a job that would run for an hour."""
    (tmp_path / "pictures").mkdir()
    for seed in range(2):
        (tmp_path / f"pictures/{seed}.png").write_bytes(encoded(noise(100, 100, seed)))
    order = Order(model="m", minutes=60, steps=10**6, sigma_min=0, sigma_max=50, parent=None, device="cpu")
    (tmp_path / "order.json").write_text(order.model_dump_json())
    return tmp_path


def child(job: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "app.jobs", str(job)],
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
