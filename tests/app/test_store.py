"""Where jobs' files and models' are kept: the same behaviour of a folder, of a bucket on the disk and of one behind an S3 server."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app import folders, store
from app.errors import StoreAway
from app.settings import Settings
from app.store import Bucket, FilesGone, Folder, StoreError
from tests.benchmarks import cluster

Machine = Callable[[str], tuple[Settings, store.Store]]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty bucket behind a server, and the way there in the environment."""
    with cluster.bucket(tmp_path_factory.mktemp("s3")) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.delenv("CLEARFOLD_STORE_URL")
        yield environment["CLEARFOLD_STORE_URL"]


def machines(tmp_path: Path, url: str | None) -> Machine:
    """`machine(name)`: its settings and store; with a bucket each has a folder of its own, else they share one."""

    def machine(name: str) -> tuple[Settings, store.Store]:
        train_dir = tmp_path / (name if url else "shared")
        train_dir.mkdir(exist_ok=True)
        settings = Settings(train_dir=train_dir, store_url=url, jobs_url=f"sqlite:///{tmp_path}/jobs.sqlite")
        return settings, store.of(settings)

    return machine


@pytest.fixture(params=["folder", "file", "s3"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    if request.param == "folder":
        return machines(tmp_path, None)
    if request.param == "file":
        (tmp_path / "bucket").mkdir()
        return machines(tmp_path, f"file://{tmp_path}/bucket")
    return machines(tmp_path, f"{request.getfixturevalue('s3')}/{tmp_path.name}")


def lay(folder: Path, **files: str) -> None:
    for name, words in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(words)


def lies(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


ORDERED = {"order_json": "{}", "pictures__1_png": "picture", "parent__gaussian_safetensors": "weights"}
LEARNED = {"plan_json": "steps", "made__m_checkpoint": "checkpoint", "made__m_safetensors": "weights", "made__m_md": "card"}
SHOWN = {"log_txt": "words", "sample_png": "picture"}


def test_a_job_is_begun_and_gone_on_with_elsewhere(machine):
    (there, service), (here, first), (other, second) = machine("service"), machine("first"), machine("second")
    lay(folders.of(there, "a"), **ORDERED)
    service.order("a")
    service.leave("a")

    first.come("a")
    first.bring("a", None)
    folder = folders.of(here, "a")
    assert lies(folder) == {"order.json": "{}", "pictures/1.png": "picture", "parent/gaussian.safetensors": "weights"}
    assert service.shown("a", folders.LOG) is None
    lay(folder, **LEARNED, **SHOWN, made__trial_safetensors="none of it", made___m_checkpoint_tmp="half")
    first.show("a")
    state = first.keep("a")
    (folder / "made/m.checkpoint").write_text("never kept")
    if state is not None:
        folders.clear(folder)  # its machine is lost

    second.come("a")
    second.bring("a", state)
    found = lies(folders.of(other, "a"))
    assert found["order.json"] == "{}"
    assert found["plan.json"] == "steps"
    assert found["log.txt"] == "words"
    assert found["made/m.safetensors"] == "weights"
    if state is not None:
        assert found["made/m.checkpoint"] == "checkpoint"
        assert "made/trial.safetensors" not in found
    assert service.shown("a", folders.SAMPLE) == b"picture"

    second.finish("a")
    second.leave("a")
    assert service.shown("a", folders.SAMPLE) == b"picture"
    second.come("a")
    if state is not None:
        with pytest.raises(FilesGone):
            second.bring("a", None)
    service.forget("a")
    assert service.shown("a", folders.SAMPLE) is None


def test_a_state_that_is_dropped_is_gone_and_the_next_one_there(tmp_path):
    (tmp_path / "bucket").mkdir()
    settings, bucket = machines(tmp_path, f"file://{tmp_path}/bucket")("one")
    lay(folders.of(settings, "a"), **ORDERED, **LEARNED)
    bucket.order("a")
    before = bucket.keep("a")
    stamp = bucket.stamp("a")
    (folders.of(settings, "a") / "made/m.checkpoint").write_text("later")
    os.utime(folders.of(settings, "a") / "made/m.checkpoint", (1, 1))
    assert bucket.stamp("a") != stamp
    after = bucket.keep("a")
    assert before != after
    bucket.drop("a", before)
    kept = {path.relative_to(tmp_path / "bucket/jobs/a").parts[:2] for path in (tmp_path / "bucket/jobs/a").rglob("*") if path.is_file()}
    assert kept == {("ordered.tar",), ("state", after)}
    bucket.bring("a", after)
    assert (folders.of(settings, "a") / "made/m.checkpoint").read_text() == "later"


def test_a_models_files_are_found_everywhere_until_they_are_dropped(machine, tmp_path):
    (_, one), (_, other) = machine("one"), machine("other")
    lay(tmp_path / "made", m_safetensors="weights", m_md="card", lock="")
    one.put_model("key", tmp_path / "made")
    assert lies(other.model("key")) == {"m.md": "card", "m.safetensors": "weights"}
    one.drop_model("key")
    _, third = machine("third")
    if isinstance(third, Bucket):
        with pytest.raises(FilesGone):
            third.model("key")
    else:
        assert not third.model("key").exists()


def test_what_is_left_on_a_machine_is_taken_away_and_what_somebody_works_in_is_not(machine):
    settings, one = machine("one")
    for id in ("left", "busy"):
        lay(folders.of(settings, id), **ORDERED)
    with folders.locked(folders.of(settings, "left")):
        pass
    with folders.locked(folders.of(settings, "busy")):
        one.tidy(set())
    assert not folders.of(settings, "left").exists()
    assert folders.of(settings, "busy").exists()


def test_processes_with_one_folder_are_one_machine_and_with_two_are_two_unless_the_store_is_the_folder(machine):
    (_, one), (_, again), (_, other) = machine("one"), machine("one"), machine("other")
    assert one.machine() == again.machine()
    assert (one.machine() == other.machine()) is isinstance(one, Folder)


def test_a_bucket_that_does_not_answer_is_said_to_be_away(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{cluster.free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    _, bucket = machines(tmp_path, "s3://nobody/there")("one")
    with pytest.raises(StoreAway, match="does not answer: try again in 5 seconds") as away:
        bucket.shown("a", folders.LOG)
    assert away.value.headers == {"Retry-After": "5"}


def test_a_bucket_that_there_is_not_is_to_be_mended_and_no_files_are_said_to_be_gone(tmp_path, s3):
    settings, bucket = machines(tmp_path, "s3://nobody/there")("one")
    lay(folders.of(settings, "a"), **ORDERED)
    with pytest.raises(StoreAway):
        bucket.order("a")


def test_a_bucket_without_its_library_or_with_an_address_of_no_kind_is_refused(tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="store_url = 'magic://x': "):
        machines(tmp_path, "magic://x")("one")
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    with pytest.raises(StoreError, match=r"pip install 'clearfold\[s3\]'"):
        machines(tmp_path, "s3://x")("one")
