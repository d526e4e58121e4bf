"""Many pictures into a folder: what is done again and what is not, what is written over nothing, and what is left by whoever is killed."""

import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from toys import noise, wait_for

from app import archive, cli
from app.archive import Gate, How, Ledger, Outcome, Plain, Source, Task, Told
from core import Denoiser, Picture, images, networks, weights

ROOT = Path(cli.__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "lively.safetensors"
    values = {p.name: (1.5 * p.value).half() for p in networks.unet(torch.Generator().manual_seed(1)).param()}
    weights.save(path, values, {"title": "Lively", "architecture": "unet"})
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four pictures in a folder, one of them further down."""
    for seed, name in enumerate(("a.png", "b.png", "deep/a.png", "z.png")):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(20, 12, seed=seed).save(path)
    return tmp_path / "in"


class Copying:
    """An engine that writes each picture's own bytes, the last one first, and keeps count."""

    def __init__(self, bad: tuple[str, ...] = ()) -> None:
        self.did: list[str] = []
        self.bad = bad

    def run(self, tasks: Iterator[Task], stop: Callable[[], bool]) -> Iterator[Outcome]:
        for task in reversed(list(tasks)):
            self.did.append(task.source.name)
            if task.source.name in self.bad:
                yield Outcome(task, error="it is bad")
                continue
            task.part.parent.mkdir(parents=True, exist_ok=True)
            task.part.write_bytes(task.source.read_bytes())
            yield Outcome(task, size=task.source.stat().st_size)


def sources(folder: Path) -> list[Source]:
    return [Source(path, folder) for path in sorted(folder.rglob("*.png"))]


def copied(folder: Path, out: Path, how: How, engine: Copying | None = None, given: list[Source] | None = None) -> tuple[Told, list[str]]:
    engine = engine or Copying()
    with Ledger.of(out) as ledger:
        told = archive.run(given or sources(folder), how, engine, lambda source, _: out / source.name, ledger)
    return told, sorted(engine.did)


@pytest.mark.parametrize("hides", [True, False])
def test_while_an_answer_is_written_neither_the_noisy_picture_nor_its_file_is_held(model: Path, hides: bool) -> None:
    """A picture of which nothing is hidden becomes its answer."""
    held: dict[str, weakref.ref[object]] = {}

    class File:
        """What stands for the bytes."""

    def decoded(file: File) -> Iterator[Picture]:
        for number in range(2):
            alpha = torch.ones(12, 20)
            alpha[3:5] = 0 if hides else 1
            noisy = [Picture(torch.rand(12, 20, 3), alpha)]
            held.update(noisy=weakref.ref(noisy[0].samples), file=weakref.ref(file))
            if number == 1:
                del file
            yield noisy.pop()

    def stack() -> images.Stack:
        file = File()
        return images.Stack("png", 2, 20, 12, 480, lambda keep_going: decoded(file))

    denoiser = Denoiser.load(model, "cpu", "float32")
    for number, answer in enumerate(archive._denoised(stack(), denoiser, How((model,), level=0.1), lambda: True, [])):
        assert held["noisy"]() is (None if hides else answer.samples)
        assert (held["file"]() is None) is (number == 1)


def test_an_animation_that_begins_in_black_is_denoised_from_where_there_is_noise(model: Path) -> None:
    noisy = [torch.zeros(32, 32, 3), *(torch.rand(32, 32, 3) for _ in range(2))]
    stack = images.Stack("png", 3, 32, 32, 3 * 32 * 32, lambda keep_going: (Picture(each.clone()) for each in noisy))
    denoiser = Denoiser.load(model, "cpu", "float32")
    came = [each.samples for each in archive._denoised(stack, denoiser, How((model,)), lambda: True, [])]
    assert [torch.equal(one, other) for one, other in zip(came, noisy, strict=True)] == [True, False, False]


def left(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and archive.HIDDEN not in p.parts)


def test_the_second_run_does_nothing(pictures: Path, tmp_path: Path, model: Path) -> None:
    told, did = copied(pictures, tmp_path / "out", How((model,)))
    assert (told.done, told.already, told.failed, did) == (4, 0, {}, ["a.png", "a.png", "b.png", "z.png"])
    assert left(tmp_path / "out") == left(pictures)
    told, did = copied(pictures, tmp_path / "out", How((model,)))
    assert (told.done, told.already, did) == (0, 4, [])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda picture, made: noise(20, 12, seed=9).save(picture),
        lambda picture, made: os.utime(picture, (1, 1)),
        lambda picture, made: made.unlink(),
        lambda picture, made: made.write_bytes(made.read_bytes()[:-1]),
    ],
    ids=["another picture", "another time", "no answer", "half an answer"],
)
def test_what_changed_is_done_again(pictures: Path, tmp_path: Path, model: Path, spoil: Callable[[Path, Path], None]) -> None:
    copied(pictures, tmp_path / "out", How((model,)))
    spoil(pictures / "b.png", tmp_path / "out" / "b.png")
    told, did = copied(pictures, tmp_path / "out", How((model,)))
    assert (told.already, did) == (3, ["b.png"])
    assert (tmp_path / "out" / "b.png").read_bytes() == (pictures / "b.png").read_bytes()


def test_other_settings_do_all_again_and_another_place_for_the_same_weights_does_not(pictures: Path, tmp_path: Path, model: Path) -> None:
    copied(pictures, tmp_path / "out", How((model,)))
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / model.name
    moved.write_bytes(model.read_bytes())
    assert copied(pictures, tmp_path / "out", How((moved,), device="cpu"))[1] == []
    for how in (How((model,), strength=0.5), How((model,), level=0.1), How((model,), quality=80), How((model,), ensemble=True)):
        assert len(copied(pictures, tmp_path / "out", how)[1]) == 4
    moved.write_bytes(model.read_bytes() + b" ")
    assert len(copied(pictures, tmp_path / "out", How((moved,)))[1]) == 4


def test_a_bad_file_is_named_and_tried_again(pictures: Path, tmp_path: Path, model: Path) -> None:
    (pictures / "m.png").write_bytes(b"no picture")
    for _ in range(2):
        told, did = copied(pictures, tmp_path / "out", How((model,)), Copying(bad=("z.png",)))
        assert [told.failed[number].split(": ", 1)[0] for number in sorted(told.failed)] == [
            f"{pictures / name}" for name in ("m.png", "z.png")
        ]
        assert told.failed[4] == f"{pictures / 'z.png'}: it is bad"
        assert left(tmp_path / "out") == ["a.png", "b.png", "deep/a.png"]
    assert (told.already, did) == (3, ["z.png"])


def test_what_is_gone_before_its_turn_is_named(pictures: Path, tmp_path: Path, model: Path) -> None:
    given = sources(pictures)
    (pictures / "b.png").unlink()
    told, _ = copied(pictures, tmp_path / "out", How((model,)), given=given)
    assert list(told.failed) == [1]
    assert "No such file" in told.failed[1]


def test_the_first_of_two_with_one_name_is_written_in_every_run(tmp_path: Path, model: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        noise(20, 12, seed=len(folder)).save(tmp_path / folder / "a.png")
    given = [Source(tmp_path / folder / "a.png", tmp_path / folder) for folder in ("one", "two")]
    for already in (0, 1):
        told, _ = copied(tmp_path, tmp_path / "out", How((model,)), given=given)
        assert told.already == already
        assert told.failed == {1: f"{given[1].path}: not written over {tmp_path / 'out' / 'a.png'}: choose another --output, or rename one"}


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    told = r"another run writes to .*: wait for its end, or choose another folder"
    with Ledger.of(tmp_path), pytest.raises(OSError, match=told), Ledger.of(tmp_path):
        pass


def test_a_broken_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / archive.HIDDEN).mkdir()
    (tmp_path / archive.HIDDEN / archive.LEDGER).write_bytes(b"rubbish" * 1000)
    with (
        pytest.raises(OSError, match=r"ledger.sqlite can't be used \(.*\): remove it, and every picture is made anew"),
        Ledger.of(tmp_path),
    ):
        pass


def test_the_engine_of_one_machine_has_a_picture_for_each_core(pictures: Path, tmp_path: Path, model: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        how = How((model,), "cpu", "float32", 0.1)
        denoiser = how.load()
        assert [(Plain(how, denoiser, n).workers, Plain(how, denoiser, n).threads) for n in (1, 2, 3, 9)] == [
            (1, 3),
            (2, 1),
            (3, 1),
            (3, 1),
        ]
        with Ledger.of(tmp_path / "out") as ledger:
            told = archive.run(sources(pictures), how, Plain(how, denoiser, 4), lambda source, _: tmp_path / "out" / source.name, ledger)
    finally:
        torch.set_num_threads(before)
    assert (told.done, told.failed) == (4, {})
    assert isinstance(denoiser, Denoiser)
    for name in left(pictures):
        with Image.open(pictures / name) as noisy, Image.open(tmp_path / "out" / name) as made:
            pixels = torch.frombuffer(bytearray(noisy.tobytes()), dtype=torch.uint8).view(12, 20, 3)
            clean = torch.frombuffer(bytearray(made.tobytes()), dtype=torch.uint8).view(12, 20, 3)
        assert torch.equal(clean, denoiser(pixels, 0.1))


def test_stopped_it_leaves_what_is_done_and_no_half_answer(pictures: Path, tmp_path: Path, model: Path) -> None:
    how = How((model,), "cpu", "float32", 0.1)
    stopped = threading.Event()
    for _ in range(4):
        stopped.clear()
        with Ledger.of(tmp_path / "out") as ledger:
            target: Callable[[Source, str], Path] = lambda source, _: tmp_path / "out" / source.name  # noqa: E731
            report: Callable[[Told, Source, str], None] = lambda told, *_: stopped.set() if told.done else None  # noqa: E731
            engine = Plain(how, how.load(), 1)
            told = archive.run(sources(pictures), how, engine, target, ledger, report, stopped.is_set)
        assert told.done >= 1
        assert len(left(tmp_path / "out")) == told.done + told.already
        if told.done + told.already == 4:
            break
    assert left(tmp_path / "out") == left(pictures)


def test_large_pictures_wait_for_each_other_and_one_too_large_comes_in_alone() -> None:
    gate = Gate(100)
    inside: list[int] = []

    def large() -> None:
        with gate.passing(1000):
            inside.append(1000)

    with gate.passing(60):
        other = threading.Thread(target=large)
        other.start()
        with gate.passing(40):
            assert inside == []
    other.join(10)
    assert inside == [1000]


def test_stopped_and_killed_at_any_moment_a_run_is_ended_by_the_next(pictures: Path, tmp_path: Path, model: Path) -> None:
    for seed in range(30):
        noise(300, 200, seed=seed).save(pictures / f"{seed}.png")
    command = [sys.executable, "-m", "app.cli", "denoise", "in", "-o", "out", "--model", str(model), "--sigma", "20", "--dtype", "float32"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        child = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        before = len(list((tmp_path / "out").glob("*.png")))
        wait_for(lambda before=before: len(list((tmp_path / "out").glob("*.png"))) > before + 3, "some answers")  # type: ignore[misc]
        child.send_signal(number)
        _, said = child.communicate(timeout=120)
        assert child.returncode == status
        assert "Traceback" not in said
        if number == signal.SIGINT:
            assert re.search(r"^stopped with \d+ of 34 left: the same command goes on$", said, re.MULTILINE)
            assert not list((tmp_path / "out").rglob("*.part"))
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert left(tmp_path / "out") == left(pictures)
    for name in left(pictures):
        with Image.open(tmp_path / "out" / name) as made:
            made.load()
    assert re.search(r"^\d+ of 34 were there already$", ended.stderr, re.MULTILINE)
