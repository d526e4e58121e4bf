"""The child process that decodes: `python -m core.decoder SOCKET`. Knows no more of the world than the files that it is given.

It takes jobs one after the other, messages of JSON, files and pixels in memory that both processes see:

    {"open": "open_png", "size": …, "limits": {…}, "decode": true} and a file's memory, or none for the file of the job before
                                                                     {"count": …, "width": …, "height": …, "pixels": …, "loop": …}
    then, where it shall decode, for every frame
    {}                                                               {"height": …, "width": …, "channels": …, "alpha": …, …}
    {"tell": …} and memory for its pixels                            {}, and before that, where it shall tell, {"rows": …} of them are there

At any time it may say {"refused": WHY} instead, and waits for the next job. It ends when its socket does. Whatever a decoder does to it,
the kernel ends it once it has used the processor, or the clock, for longer than a job may: no watcher is needed, and no orphan is left.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import resource
import signal
import socket
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import AvifImagePlugin

from core import decoding
from core.decoding import Fill, Frame, ImageError, Limits, Opened, Passed, Samples
from core.metadata import Metadata
from core.vips import pyvips

HEAD_BYTES = 4
PIECE_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 256 << 20
OPENING_SECONDS = 1.0
"""Of the processor, for a header, and for the first megapixel's fraction of a frame."""
BYTES_A_PIXEL = 32
"""Of memory, for a frame: the decoder's planes, 16 bits each, twice over, and what is made of them."""
FILE_COPIES = 1
"""Of memory beside that, for a file: some decoders, of formats whose files are small, read it whole."""
SECONDS_A_GIGABYTE = 5.0
"""Of the processor beside that, to look at a file: the sums of a PNG's parts."""
THREADS = 4
"""Of decoders that can use more than one."""
GRACE_SECONDS = 5.0
"""Past the time for a frame, after which the parent would have ended the child."""


class Line:
    """Messages over a socket: a length, JSON, and perhaps a file descriptor beside it."""

    def __init__(self, end: socket.socket, descriptors: int = 0) -> None:
        """descriptors: how many it takes beside a message; what comes beyond is closed unseen."""
        self.end, self.descriptors = end, descriptors

    def send(self, message: dict[str, Any], descriptor: int | None = None) -> None:
        body = json.dumps(message).encode()
        head = len(body).to_bytes(HEAD_BYTES, "little")
        if descriptor is None:
            self.end.sendall(head + body)
        else:
            socket.send_fds(self.end, [head], [descriptor])
            self.end.sendall(body)

    def receive(self, waiting: Callable[[], None] | None = None) -> tuple[dict[str, Any], int | None] | None:
        """The next message and its descriptor; None once the other side has ended. `waiting` is called after each timeout."""
        if (head := self._read(HEAD_BYTES, waiting)) is None:
            return None
        size = int.from_bytes(head[0], "little")
        if size > MAX_MESSAGE_BYTES or (body := self._read(size, waiting)) is None:
            return None
        try:
            message = json.loads(body[0])
        except ValueError:
            return None
        return (message, head[1]) if isinstance(message, dict) else None

    def _read(self, size: int, waiting: Callable[[], None] | None) -> tuple[bytes, int | None] | None:
        """So many bytes, and the descriptor that came with them."""
        read, descriptor = bytearray(), None
        while len(read) < size:
            try:
                piece, descriptors, _, _ = socket.recv_fds(self.end, min(PIECE_BYTES, size - len(read)), self.descriptors)
            except TimeoutError:
                if waiting is not None:
                    waiting()
                continue
            except ConnectionError:
                return None
            if not piece:
                return None
            descriptor = descriptors[0] if descriptors else descriptor
            read += piece
        return bytes(read), descriptor


# --- frames as JSON ---


def told(frame: Frame) -> dict[str, Any]:
    """A frame as a message."""
    said = frame.metadata
    metadata = {name: None if block is None else _text(block) for name, block in _blocks(said).items()}
    more = {"dpi": said.dpi, "colour": [(_text(name), _text(body)) for name, body in said.colour], "broken": said.broken}
    fields = {field.name: getattr(frame, field.name) for field in dataclasses.fields(Frame) if field.name != "metadata"}
    return fields | {"metadata": metadata | more}


def heard(message: dict[str, Any], limits: Limits) -> Frame:
    """The frame that a message tells; ValueError, KeyError or TypeError if it is none that the limits allow."""
    said = message.pop("metadata")
    blocks = {name: None if said[name] is None else b64decode(said[name]) for name in ("icc", "exif", "xmp", "iptc")}
    dpi = None if said["dpi"] is None else (float(said["dpi"][0]), float(said["dpi"][1]))
    colour = tuple((b64decode(name), b64decode(body)) for name, body in said["colour"])
    metadata = Metadata(**blocks, dpi=dpi, colour=colour, broken=tuple(map(str, said["broken"])))
    frame = Frame(**message | {"changed": tuple(map(str, message["changed"]))}, metadata=metadata)
    sizes = (frame.height, frame.width, frame.channels, frame.milliseconds)
    if not all(type(size) is int for size in sizes) or min(sizes[:3]) < 1 or frame.height * frame.width > limits.max_pixels:
        raise ValueError("its size is out of bounds")
    if frame.channels not in (1, 3) or frame.kind not in decoding.KINDS.values() or not isinstance(frame.alpha, bool):
        raise ValueError("its kind is unknown")
    return frame


def _blocks(said: Metadata) -> dict[str, bytes | None]:
    return {"icc": said.icc, "exif": said.exif, "xmp": said.xmp, "iptc": said.iptc}


def _text(block: bytes) -> str:
    return b64encode(block).decode()


# --- shared memory ---


def pixel_bytes(frame: Frame) -> int:
    return frame.height * frame.width * (frame.channels + frame.alpha) * np.dtype(frame.kind).itemsize


def planes(frame: Frame, memory: mmap.mmap | bytearray) -> tuple[Samples, Samples | None]:
    """(H, W, channels) and, behind it, (H, W)."""
    H, W, C = frame.height, frame.width, frame.channels
    samples = np.frombuffer(memory, frame.kind, H * W * C).reshape(H, W, C)
    alpha = np.frombuffer(memory, frame.kind, H * W, samples.nbytes).reshape(H, W) if frame.alpha else None
    return samples, alpha


# --- the process ---


@contextmanager
def bounded(limits: Limits, pixels: int, file_bytes: int = 0) -> Iterator[None]:
    """What is done inside ends the process if it takes too long, and fails if it takes too much memory.

    Where libvips finds too little for a copy of a file it ends the process, so there must be room for the file whatever its size.
    """
    seconds = OPENING_SECONDS + limits.max_decode_seconds_per_megapixel * pixels / 1e6 + SECONDS_A_GIGABYTE * file_bytes / 1e9
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, limits.max_decode_seconds + GRACE_SECONDS)
    now = _data_bytes()
    if now:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = limits.max_decode_bytes + BYTES_A_PIXEL * pixels + FILE_COPIES * file_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (now + most, hard))
    try:
        yield
    except MemoryError as error:
        raise _too_much(limits) from error
    except pyvips.Error as error:
        raise (_too_much(limits) if "memory" in str(error).lower() else error) from error
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        if now:
            resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _too_much(limits: Limits) -> ImageError:
    return ImageError(f"decoding took more memory than max_decode_bytes = {limits.max_decode_bytes} allows: send a smaller picture")


def _data_bytes() -> int:
    """What counts for the limit by now; 0 where that cannot be known."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * mmap.PAGESIZE
    except OSError:
        return 0


def serve(line: Line, job: dict[str, Any], file: int | None, kept: Opened | None) -> Opened | None:
    """Does a job, with a file that comes or with what was `kept` of the job before; gives what is to be kept of this one."""
    limits = Limits(**job["limits"])
    name = job["open"].removeprefix("open_")
    try:
        with decoding.told(name):
            opened = kept if file is None and kept is not None else _opened(job, file, limits)
            line.send({field: getattr(opened, field) for field in ("count", "width", "height", "pixels", "loop")})
            if not job["decode"]:
                return opened
            frames = opened.frames(lambda: None)
            for _ in range(opened.count):
                line.receive()
                with bounded(limits, opened.width * opened.height, job["size"]):
                    frame, fill = next(frames)
                _decode(line, frame, fill, limits)
    except ImageError as refusal:
        line.send({"refused": str(refusal)})
    return None


def _opened(job: dict[str, Any], file: int | None, limits: Limits) -> Opened:
    if file is None:
        sys.exit("a job came without its file")
    data = mmap.mmap(file, job["size"], access=mmap.ACCESS_COPY)  # let go of with the last who reads it
    os.close(file)
    with bounded(limits, min(limits.max_pixels, decoding.canvas_pixels(data)), len(data)):
        return decoding.OPENERS[job["open"]](data, limits)


def _decode(line: Line, frame: Frame, fill: Fill, limits: Limits) -> None:
    line.send(told(frame))
    received = line.receive()
    if received is None or received[1] is None:
        sys.exit()
    tells = bool(received[0].get("tell"))
    _fill(frame, fill, received[1], limits, (lambda rows: line.send({"rows": rows})) if tells else lambda _: None)
    line.send({})  # and has let go of the memory before


def _fill(frame: Frame, fill: Fill, descriptor: int, limits: Limits, passed: Passed) -> None:
    memory = mmap.mmap(descriptor, pixel_bytes(frame))
    os.close(descriptor)
    with bounded(limits, frame.height * frame.width):
        fill(*planes(frame, memory), passed)


def main(descriptor: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threads = min(THREADS, os.cpu_count() or 1)
    AvifImagePlugin.DEFAULT_MAX_THREADS = threads
    if decoding.pillow_heif is not None:
        decoding.pillow_heif.options.DECODE_THREADS = threads
    line = Line(socket.socket(fileno=descriptor), descriptors=1)
    kept = None
    while (received := line.receive()) is not None:
        kept = serve(line, *received, kept)


if __name__ == "__main__":
    main(int(sys.argv[1]))
