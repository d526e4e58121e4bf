"""Pictures decoded in child processes are those decoded here, and whatever becomes of a child is one refusal, no more."""

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from core import Cancelled, Decoders, ImageError, PictureFile, images
from core import decoders as module
from core.decoder import Line
from core.images import FORMATS, Limits, Picture
from core.metadata import Metadata
from tests.core.test_images import SRGB, encoded, exif, moving, noise

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 60.0
BMP = encoded(noise(), "bmp")


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with Decoders(2) as shared:
        yield shared


@pytest.fixture
def wicked() -> Iterator[Decoders]:
    with Decoders(1, "tests.core.wicked") as shared:
        yield shared


def told_to(deed: str) -> bytes:
    return BMP + b"do:" + deed.encode()


def children(decoders: Decoders) -> list[int]:
    return [child.process.pid for child in decoders._idle]


def ended(pid: int) -> bool:
    """Also as a zombie, where whoever should have waited for it has died and the reaper is slow."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition, what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        threading.Event().wait(0.02)


def same(one: Picture, other: Picture) -> bool:
    alphas = (one.alpha, other.alpha)
    return (
        torch.equal(one.samples, other.samples)
        and ((alphas[0] is None) == (alphas[1] is None))
        and (one.alpha is None or other.alpha is None or torch.equal(one.alpha, other.alpha))
        and replace(one, samples=other.samples, alpha=other.alpha) == other
    )


PICTURES = [
    *(images.write(Picture(torch.rand(5, 7, 3)), name) for name in FORMATS),
    images.write(Picture(torch.rand(5, 7, 3), torch.rand(5, 7), depth=16)),
    images.write(Picture(3 * torch.rand(5, 7, 3) - 1, depth=32, format="tiff")),
    images.write(Picture(torch.rand(5, 7, 1), torch.rand(5, 7), grey=True)),
    *(encoded(noise(), "jpeg", exif=exif(number), icc_profile=SRGB, dpi=(72, 72)) for number in range(1, 9)),
    *(encoded(noise("RGBA"), "tiff", tiffinfo={274: number}) for number in (5, 6, 8)),
    images.write(Picture(torch.rand(5, 7, 3), metadata=Metadata(colour=((b"gAMA", b"\0\0\xb1\x8f"),), broken=("text",)))),
    encoded(noise("CMYK"), "jpeg"),
    encoded(noise("P")),
    images.write(Picture(torch.rand(700, 900, 3), depth=16), "tiff"),  # of several strips
]


@pytest.mark.parametrize("data", PICTURES, ids=range(len(PICTURES)))
def test_a_picture_comes_as_it_does_without_a_child(decoders: Decoders, data: bytes) -> None:
    assert same(decoders.read(data), images.read(data))


def test_copied_or_mapped_its_pixels_are_the_same_and_may_be_written_over(decoders: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = decoders.read(BMP)
    monkeypatch.setattr(module, "COPIED_BYTES", 0)
    mapped = decoders.read(BMP)
    assert torch.equal(copied.samples, mapped.samples)
    for picture in (copied, mapped):
        assert not picture.samples.zero_().any()


@pytest.mark.parametrize(
    "data",
    [
        *(images.write(Picture(torch.rand(600, 700, 3)), name) for name in FORMATS if name != "gif"),
        encoded(noise("RGB", 700, 600), "jpeg", exif=exif(3)),
        encoded(noise("RGBA", 700, 600)),
        images.write(Picture(torch.rand(600, 700, 3), depth=16)),
        images.write(Picture(3 * torch.rand(300, 400, 3) - 1, depth=32, format="tiff")),
        images.write(Picture(torch.rand(5, 7, 1), grey=True)),
    ],
    ids=str,
)
def test_a_picture_that_arrives_is_there_from_the_top_as_far_as_it_was_waited_for(decoders: Decoders, data: bytes) -> None:
    whole, stack = images.read(data), decoders.open(data)
    assert stack.arriving is not None
    arriving = stack.arriving(lambda: True)
    for rows in (1, 100, 300, len(whole.samples)):
        rows = min(rows, len(whole.samples))
        arriving.until(rows)
        assert torch.equal(arriving.picture.samples[:rows], whole.samples[:rows])
    assert same(arriving.picture, whole)
    assert arriving.waited > 0


def test_a_file_of_several_frames_does_not_arrive(decoders: Decoders) -> None:
    assert decoders.open(moving("gif")).arriving is None


def test_rows_are_there_before_the_rest_is_decoded_and_may_be_enough(wicked: Decoders) -> None:
    arrive = wicked.open(told_to("halt")).arriving
    assert arrive is not None
    going = [True]
    arriving = arrive(lambda: going[0])
    arriving.until(4)
    assert (arriving.picture.samples[:4] == 7).all()
    (child,) = _pids("tests.core.wicked")
    going.clear()
    going.append(False)
    with pytest.raises(Cancelled):
        arriving.until(5)
    assert ended(child)
    assert same(wicked.read(BMP), images.read(BMP))


def test_of_a_picture_that_nobody_wants_to_the_end_no_child_is_left_at_work(wicked: Decoders) -> None:
    arrive = wicked.open(told_to("halt")).arriving
    assert arrive is not None
    arriving = arrive(lambda: True)
    (child,) = _pids("tests.core.wicked")
    arriving.close()
    assert ended(child)
    assert same(wicked.read(BMP), images.read(BMP))


@pytest.mark.parametrize("deed", ["boast", "stammer"])
def test_rows_that_make_no_sense_cost_the_picture(wicked: Decoders, deed: str) -> None:
    arrive = wicked.open(told_to(deed)).arriving
    assert arrive is not None
    with pytest.raises(ImageError, match="the bmp picture is broken so that its decoder failed"):
        arrive(lambda: True).until(16)
    assert same(wicked.read(BMP), images.read(BMP))


def test_a_file_of_pixels_that_was_cut_short_is_no_picture() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(3))
        file.flush()
        with pytest.raises(module._Gone):
            module._copied(file.fileno(), bytearray(4), 0, 4)


@pytest.mark.parametrize("name", ["gif", "png", "webp", "tiff"])
def test_so_does_every_frame(decoders: Decoders, name: str) -> None:
    data = moving(name, **({} if name == "tiff" else {"duration": [100, 250, 400], "loop": 3}))
    here, there = images.open(data), decoders.open(data)
    assert replace(here, frames=there.frames) == there
    for one, other in zip(here.frames(lambda: True), there.frames(lambda: True), strict=True):
        assert same(one, other)


@pytest.mark.parametrize(
    ("data", "limits"),
    [
        (b"no picture", Limits()),
        (encoded(noise())[:60], Limits()),
        (encoded(noise(), "jpeg")[:-20], Limits()),
        (moving("gif"), Limits()),
        (moving("gif"), Limits(max_frames=2)),
        (encoded(noise()), Limits(max_pixels=34)),
        (encoded(Image.new("F", (2, 2), float("nan")), "tiff"), Limits()),
    ],
)
def test_a_refusal_has_the_same_words(decoders: Decoders, data: bytes, limits: Limits) -> None:
    with pytest.raises(ImageError) as here:
        images.read(data, limits)
    with pytest.raises(ImageError) as there:
        decoders.read(data, limits)
    assert str(there.value) == str(here.value)


@pytest.mark.parametrize("most", [10, 1 << 20])
def test_a_file_that_is_written_in_pieces_is_read_as_one(decoders: Decoders, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On disk it lies where it would take too much memory, and under no name there."""
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", most)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for data in PICTURES[-8:]:
        file = PictureFile()
        for at in range(0, len(data), 7):
            file.write(data[at : at + 7])
        assert (file.size, file.on_disk) == (len(data), len(data) > most)
        for _ in range(2):  # by another child, say
            assert same(decoders.read(file), images.read(data))
        descriptor = file.to_read()
        with pytest.raises(OSError, match=r"not permitted|Bad file descriptor"):
            os.write(descriptor, b"x")  # nor does a child change what the next one reads
        if file.on_disk:
            assert os.readlink(f"/proc/self/fd/{file.to_read()}").endswith(" (deleted)")
    assert file.head == data[:256]
    del file
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("deed", ["crash", "babble", "lie"])
def test_a_child_that_crashes_or_says_what_makes_no_sense_costs_one_picture(wicked: Decoders, deed: str) -> None:
    with pytest.raises(ImageError, match="the bmp picture is broken so that its decoder failed"):
        wicked.read(told_to(deed))
    assert same(wicked.read(BMP), images.read(BMP))


def test_a_child_that_works_without_end_is_ended_by_the_processors_time(wicked: Decoders) -> None:
    with pytest.raises(ImageError, match=r"more of the processor than max_decode_seconds_per_megapixel = 0.5 and one second more"):
        wicked.read(told_to("spin"))
    assert same(wicked.read(BMP), images.read(BMP))


def test_a_child_that_hangs_is_killed(wicked: Decoders) -> None:
    wicked.read(BMP)
    (first,) = children(wicked)
    with pytest.raises(ImageError, match=r"decoding took longer than max_decode_seconds = 0.3"):
        wicked.read(told_to("sleep"), Limits(max_decode_seconds=0.3))
    assert ended(first)
    assert same(wicked.read(BMP), images.read(BMP))


def test_a_child_that_eats_memory_is_refused_more(wicked: Decoders) -> None:
    with pytest.raises(ImageError, match="decoding took more memory than max_decode_bytes = 50000000 allows"):
        wicked.read(told_to("eat"), Limits(max_decode_bytes=50_000_000))
    assert same(wicked.read(BMP), images.read(BMP))


def test_a_file_may_be_larger_than_the_memory_beside_it(decoders: Decoders) -> None:
    data = images.write(Picture(torch.randint(256, (2000, 2000, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))), "png")
    assert len(data) > 10_000_000
    assert decoders.read(data, Limits(max_decode_bytes=5_000_000)).samples.shape == (2000, 2000, 3)


def test_nobody_waits_for_a_picture_that_is_given_up(wicked: Decoders) -> None:
    stack = wicked.open(BMP)
    (child,) = children(wicked)
    os.kill(child, signal.SIGSTOP)
    with pytest.raises(Cancelled):
        next(stack.frames(lambda: False))
    assert ended(child)


def test_a_child_that_is_killed_between_two_frames_costs_the_rest_of_them(decoders: Decoders) -> None:
    frames = decoders.open(moving("gif")).frames(lambda: True)
    next(frames)
    working = [pid for pid in _pids() if pid not in children(decoders)]
    for pid in working:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ImageError, match="its decoder failed"):
        next(frames)
    assert same(decoders.read(BMP), images.read(BMP))


def _pids(module: str = "core.decoder") -> list[int]:
    """The children of this process that decode."""
    task = Path(f"/proc/{os.getpid()}/task")
    pids = [int(pid) for thread in task.iterdir() for pid in (thread / "children").read_text().split()]
    return [pid for pid in pids if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_frames_that_are_not_wanted_to_the_end_leave_no_child_at_work() -> None:
    one = Decoders(1)
    frames = one.open(moving("gif")).frames(lambda: True)
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert same(one.read(BMP), images.read(BMP))
    one.close()


def test_no_child_is_held_while_a_picture_is_worked_on_and_a_second_who_asks_waits() -> None:
    one = Decoders(1)
    frames = one.open(BMP).frames(lambda: True)
    next(frames)
    assert one.open(BMP).count == 1
    moved = one.open(moving("gif")).frames(lambda: True)
    next(moved)
    seen: list[int] = []
    waiting = threading.Thread(target=lambda: seen.append(one.open(BMP).count))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    assert len(list(moved)) == 2
    waiting.join(DEADLINE_SECONDS)
    assert seen == [1]
    one.close()


def test_children_end_with_the_pool_and_with_whoever_started_them() -> None:
    pool = Decoders(1)
    pool.read(BMP)
    (child,) = children(pool)
    pool.close()
    assert ended(child)
    script = (
        "import time; from core import Decoders; d = Decoders(1).__enter__(); print(d._idle[0].process.pid, flush=True); time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: ended(child), "the child's end")


def test_a_child_holds_no_torch_no_key_and_nothing_that_was_open(monkeypatch: pytest.MonkeyPatch) -> None:
    light = "import sys, core.decoder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], cwd=ROOT).returncode == 0
    monkeypatch.setenv("CLEARFOLD_API_KEYS", "secret")
    pool = Decoders(1)
    pool.read(BMP)
    (child,) = children(pool)
    assert b"secret" not in Path(f"/proc/{child}/environ").read_bytes()

    def held() -> list[str]:
        links: list[str] = []
        for number in os.listdir(f"/proc/{child}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                links.append(os.readlink(f"/proc/{child}/fd/{number}").split(":")[0])
        return sorted(links)

    wait_until(lambda: held() == ["/dev/null"] * 3 + ["socket"], "the child to let go of the picture")
    pool.close()


@pytest.mark.parametrize(("takes", "given"), [(0, 0), (1, 1)])
def test_descriptors_that_nobody_asked_for_are_closed(takes: int, given: int, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, open(tmp_path / "file", "wb") as file:
        Line(theirs).send({"a": 1}, file.fileno())
        before = len(os.listdir("/proc/self/fd"))
        received = Line(ours, takes).receive()
        assert received is not None
        assert received[0] == {"a": 1}
        assert len(os.listdir("/proc/self/fd")) - before == given
        if received[1] is not None:
            os.close(received[1])
