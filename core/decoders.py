"""Decodes pictures in child processes, so that no file can crash, hang or fill the process that asks. Decodes nothing here.

Every byte of a file from outside is first looked at by C code in a child (see `core.decoder`): a crash there costs that one picture and
a restart of 0.2 s. A child is killed when its time is over or nobody wants its picture any more, and is refused memory beyond the limit.
It holds no key and no socket but its own, and what it says is JSON and samples, checked here and never run.

All formats go this way, small pictures too: the files and the pixels lie in memory that both see, and what it costs beside decoding is
1.5 ms of a processor for a JPEG of 256x256 and 4 ms for one of a megapixel. Children start as they are needed, some 30 MB each, and none
is held while a picture of one frame is denoised, but for its last rows while the first are (`Stack.arriving`); encoding stays with who
asks, as it reads nothing but pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch

from core import decoder, images
from core.decoder import Line
from core.decoding import Frame, GoOn, late
from core.denoiser import Cancelled
from core.images import DEFAULT_LIMITS, Arriving, ImageError, KeepGoing, Limits, Picture, Stack

LOOK_SECONDS = 0.05
"""Between two questions whether the picture is still wanted."""
COPIED_BYTES = 16 << 20
"""Pixels of up to so many bytes are copied from the child's file, more are mapped: when a mapping ends, the threads on all other cores are
interrupted, which takes milliseconds on a virtual machine."""
MAX_JOBS = 1000
"""Then a child is replaced: whatever a library leaks goes with it."""
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")
"""What a child is told of its surroundings: no keys, no addresses."""
TRIMMED = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "4194304", "MALLOC_TRIM_THRESHOLD_": "8388608"}
"""Large blocks go back to the system as they are freed; small ones would be fetched anew, page by page, for every picture."""
IN_MEMORY_BYTES = 64 << 20
"""Of a file; a larger one lies on disk until it is decoded."""
ALLOCATED_BYTES = 64 << 20
"""Of pixels, for which there are pages before the child writes them; those of a larger picture come when its other copies have gone."""
HEAD_BYTES = 256
PIECE_BYTES = 1 << 20
TOO_LATE = (-signal.SIGPROF, -signal.SIGALRM)

_log = logging.getLogger("clearfold")


class PictureFile:
    """A file's bytes, written piece by piece, that children see: in memory or, of more than IN_MEMORY_BYTES, on disk, under no name.

    It lasts until it is closed, or as long as somebody holds it.
    """

    def __init__(self) -> None:
        self.head = b""
        """Its first bytes, enough to tell its format."""
        self.size = 0
        self.on_disk = self._sealed = False
        self._descriptors = [_memory("file")]  # the first is written to, the last is what a child is given
        self.close = weakref.finalize(self, _close, self._descriptors)
        """For when nobody reads it any more: what was refused may be held by its error, and that by the frames it came through."""

    @classmethod
    def of(cls, data: bytes) -> Self:
        file = cls()
        file.write(data)
        return file

    def copy(self, data: BinaryIO) -> None:
        while piece := data.read(PIECE_BYTES):
            self.write(piece)

    def write(self, piece: bytes) -> None:
        if not self.on_disk and self.size + len(piece) > IN_MEMORY_BYTES:
            self._move_to_disk()
        _put(self._descriptors[0], piece)
        self.size += len(piece)
        self.head = (self.head + piece[:HEAD_BYTES])[:HEAD_BYTES] if len(self.head) < HEAD_BYTES else self.head

    def to_read(self) -> int:
        """A descriptor to read it by; from now on it is whole, and nobody changes it."""
        if not self.on_disk and not self._sealed:
            _sealed(self._descriptors[0], "SHRINK", "GROW", "WRITE", "SEAL")
        self._sealed = True
        return self._descriptors[-1]

    def _move_to_disk(self) -> None:
        memory = self._descriptors.pop()
        try:
            descriptor, path = tempfile.mkstemp()
            self._descriptors.append(descriptor)
            try:
                self._descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            finally:
                os.unlink(path)
            os.lseek(memory, 0, os.SEEK_SET)
            while piece := os.read(memory, PIECE_BYTES):
                _put(descriptor, piece)
        finally:
            os.close(memory)
        self.on_disk = True


def _put(descriptor: int, piece: bytes) -> None:
    """All of it: a write may take less."""
    left = memoryview(piece)
    while left:
        left = left[os.write(descriptor, left) :]


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


class _Gone(Exception):
    """The child has ended in the middle of a job, or said what makes no sense."""


class _Child:
    """One child, and the socket to it."""

    def __init__(self, module: str) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                cwd=Path(__file__).parents[1],
                env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ} | TRIMMED,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the parent's to handle
                pass_fds=(theirs.fileno(),),
            )
        ours.settimeout(LOOK_SECONDS)
        self.line = Line(ours)
        self.jobs = 0
        self.busy = False  # in the middle of a job
        self.keeps = 0  # the number of the file that it has open

    def say(self, message: dict[str, Any], descriptor: int | None = None) -> None:
        try:
            self.line.send(message, descriptor)
        except OSError as error:
            raise _Gone from error

    def hear(self, limits: Limits, go_on: GoOn) -> dict[str, Any]:
        """What it answers; ImageError if that is a refusal or does not come in time."""
        deadline = time.monotonic() + limits.max_decode_seconds

        def waiting() -> None:
            go_on()
            if time.monotonic() > deadline:
                raise late(limits)

        received = self.line.receive(waiting)
        if received is None:
            raise _Gone
        if isinstance(refused := received[0].get("refused"), str):
            self.busy = False
            raise ImageError(refused)
        return received[0]

    def end(self) -> int:
        """Its exit status."""
        self.line.end.close()
        self.process.kill()
        return self.process.wait()


class Decoders:
    """`most` child processes at a time, each running `module`. Whoever finds none free waits for one; threads may share it."""

    def __init__(self, most: int, module: str = "core.decoder") -> None:
        self._module = module
        self._places = threading.BoundedSemaphore(most)
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._numbers = itertools.count(1)
        self._closed = False

    def __enter__(self) -> Self:
        """Has one ready for the first picture."""
        self._put(_Child(self._module))
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the children that have nothing to do, and the others once they have done it."""
        with self._lock:
            self._closed, idle, self._idle = True, self._idle, []
        for child in idle:
            child.end()

    def open(self, data: bytes | PictureFile, limits: Limits = DEFAULT_LIMITS) -> Stack:
        """As `images.open`."""
        file = data if isinstance(data, PictureFile) else PictureFile.of(data)
        form = images.known(file.head)
        number = next(self._numbers)
        with self._job(form.name, number, file, limits, lambda: None, decode=False) as (_, header):
            count, width, height, pixels, loop = (header.get(name) for name in ("count", "width", "height", "pixels", "loop"))
        if not (isinstance(count, int) and isinstance(width, int) and isinstance(height, int) and isinstance(pixels, int)):
            raise _broken(form.name)

        def frames(keep_going: KeepGoing) -> Iterator[Picture]:
            return self._frames(form.name, number, file, count, limits, keep_going)

        def arriving(keep_going: KeepGoing) -> Arriving:
            return Arriving(self._coming(form.name, number, file, limits, keep_going))

        loop = loop if isinstance(loop, int) else None
        return Stack(form.name, count, width, height, pixels, frames, loop, arriving if count == 1 else None)

    def read(self, data: bytes | PictureFile, limits: Limits = DEFAULT_LIMITS) -> Picture:
        """As `images.read`."""
        return images.only(self.open(data, limits))

    def _frames(self, name: str, number: int, file: PictureFile, count: int, limits: Limits, keep_going: KeepGoing) -> Iterator[Picture]:
        go_on = _going(keep_going)
        with self._job(name, number, file, limits, go_on, decode=True) as (child, _):
            for _ in range(count - 1):
                yield _frame(child, name, limits, go_on)
            last = [_frame(child, name, limits, go_on)]
            child.busy = False
        yield last.pop()

    def _coming(
        self, name: str, number: int, file: PictureFile, limits: Limits, keep_going: KeepGoing
    ) -> Generator[tuple[Picture, int], None, None]:
        """The only frame, for `Arriving`."""
        go_on = _going(keep_going)
        with self._job(name, number, file, limits, go_on, decode=True) as (child, _):
            for picture, rows in _rows(child, name, limits, go_on, tell=True):
                if rows < len(picture.samples):
                    yield picture, rows
            child.busy = False
        yield picture, rows

    @contextmanager
    def _job(
        self, name: str, number: int, file: PictureFile, limits: Limits, go_on: GoOn, decode: bool
    ) -> Iterator[tuple[_Child, dict[str, Any]]]:
        """A child that has opened the file, and what it found; the one that has opened it before, if that is free and did nothing else."""
        with self._child(name, number, limits, go_on) as child:
            job = {"open": images.FORMATS[name].open.__name__, "size": file.size, "limits": dataclasses.asdict(limits), "decode": decode}
            child.say(job, None if child.keeps == number else file.to_read())
            child.keeps = 0
            header = child.hear(limits, go_on)
            child.busy = decode
            if not decode:
                child.keeps = number
            yield child, header

    @contextmanager
    def _child(self, name: str, number: int, limits: Limits, go_on: GoOn) -> Iterator[_Child]:
        while not self._places.acquire(timeout=LOOK_SECONDS):
            go_on()
        try:
            child = self._take(number)
            try:
                yield child
            except _Gone as gone:
                status = child.end()
                if status in TOO_LATE:
                    raise _too_slow(limits) from gone
                _log.warning("a decoder of %s pictures ended with status %d", name, status)
                raise _broken(name) from gone
            finally:
                self._put(child)
        finally:
            self._places.release()

    def _take(self, number: int) -> _Child:
        with self._lock:
            child = next((each for each in self._idle if each.keeps == number), self._idle[-1] if self._idle else None)
            if child is not None:
                self._idle.remove(child)
        if child is not None and child.process.poll() is not None:
            child.end()
            child = None
        child = child or _Child(self._module)
        child.jobs += 1
        child.busy = True
        return child

    def _put(self, child: _Child) -> None:
        if child.busy or child.jobs >= MAX_JOBS or child.process.returncode is not None:
            child.end()
            if self._idle or self._closed:
                return
            child = _Child(self._module)  # it starts while nobody waits for it
        with self._lock:
            if not self._closed:
                self._idle.append(child)
                return
        child.end()


def _going(keep_going: KeepGoing) -> GoOn:
    def go_on() -> None:
        if not keep_going():
            raise Cancelled("the picture was given up while it was decoded")

    return go_on


def _frame(child: _Child, name: str, limits: Limits, go_on: GoOn) -> Picture:
    ((picture, _),) = _rows(child, name, limits, go_on, tell=False)
    return picture


def _rows(child: _Child, name: str, limits: Limits, go_on: GoOn, tell: bool) -> Iterator[tuple[Picture, int]]:
    """The next frame and how many rows of it are there: all, or, if the child is to `tell` and it is not large, from none on ever more."""
    child.say({})
    try:
        frame = decoder.heard(child.hear(limits, go_on), limits)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ImageError):
            raise
        raise _Gone from error
    size = decoder.pixel_bytes(frame)
    tell = tell and size <= COPIED_BYTES and not frame.alpha and frame.kind != "float32"  # of floats all are looked at first
    descriptor, done = _memory("pixels"), 0
    try:
        os.ftruncate(descriptor, size)
        _sealed(descriptor, "SHRINK", "GROW", "SEAL")
        mapped = mmap.mmap(descriptor, size) if size > COPIED_BYTES else None
        child.say({"tell": tell}, descriptor)
        if size <= ALLOCATED_BYTES:
            _allocate(descriptor, size)
        memory = mapped or bytearray(size)
        picture = _assembled(name, frame, memory) if tell else None
        if picture is not None:
            yield picture, 0
        while (rows := child.hear(limits, go_on).get("rows")) is not None:
            if picture is None or type(rows) is not int or rows > frame.height:
                raise _Gone
            if rows * size // frame.height > done:
                done = _copied(descriptor, memory, done, rows * size // frame.height)
                yield picture, rows
        if isinstance(memory, bytearray):
            _copied(descriptor, memory, done, size)
    finally:
        os.close(descriptor)
    yield picture or _assembled(name, frame, memory), frame.height


def _assembled(name: str, frame: Frame, memory: mmap.mmap | bytearray) -> Picture:
    samples, alpha = decoder.planes(frame, memory)
    return images.assembled(name, frame, torch.from_numpy(samples), None if alpha is None else torch.from_numpy(alpha))


def _too_slow(limits: Limits) -> ImageError:
    return ImageError(
        f"decoding took more of the processor than max_decode_seconds_per_megapixel = {limits.max_decode_seconds_per_megapixel:g} "
        "and one second more: send a smaller picture"
    )


def _broken(name: str) -> ImageError:
    return ImageError(f"the {name} picture is broken so that its decoder failed: save it anew as plain PNG or JPEG")


def _memory(name: str) -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _sealed(descriptor: int, *seals: str) -> None:
    """The child cannot change what the parent relies on: a file that shrinks would end whoever reads it."""
    if hasattr(fcntl, "F_ADD_SEALS"):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, sum(getattr(fcntl, f"F_SEAL_{seal}") for seal in seals))


def _allocate(descriptor: int, size: int) -> None:
    """Pages for all of it, while the child decodes: the child, which would ask for one after the other, would wait for each."""
    if hasattr(os, "posix_fallocate"):
        with contextlib.suppress(OSError):  # the child will find out
            os.posix_fallocate(descriptor, 0, size)


def _copied(descriptor: int, memory: mmap.mmap | bytearray, start: int, stop: int) -> int:
    """Those bytes of the file into memory; `stop`."""
    with memoryview(memory) as room, open(descriptor, "rb", buffering=0, closefd=False) as file:
        file.seek(start)
        while start < stop:
            read = file.readinto(room[start:stop])
            if not read:
                raise _Gone  # where no seal keeps the child from making the file shorter
            start += read
    return stop
