"""Puts still pictures, each encoded by itself, together into one animated file, GIF, PNG or WebP, and takes such a PNG apart.

Every frame that is put there covers the whole canvas and stands by itself, so that one after the other can be written and forgotten.
Decodes no pixel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, Protocol

from core.metadata import png_chunk

PNG_HEAD = b"\x89PNG\r\n\x1a\n"
MAX_DELAY = 65_535  # of what a format counts in


class Animation(Protocol):
    def __init__(self, file: BinaryIO, width: int, height: int, count: int, loop: int | None) -> None:
        """`count` frames will come; `loop`: how many times all of it is shown, 0 for ever, None: not told."""

    def add(self, still: bytes, milliseconds: int) -> None:
        """The next frame, a file of its own."""

    def end(self) -> None: ...


class Gif:
    """Source: GIF89a specification; Netscape's application block for the loop."""

    def __init__(self, file: BinaryIO, width: int, height: int, count: int, loop: int | None) -> None:
        self._file = file
        file.write(b"GIF89a" + struct.pack("<HHBBB", width, height, 0x70, 0, 0))
        if loop is not None and loop != 1:
            again = max(0, min(loop - 1, 65_535))  # after the first time; 0: for ever
            file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", again) + b"\0")

    def add(self, still: bytes, milliseconds: int) -> None:
        table_bits = still[10] & 7
        at = 13 + (3 << table_bits + 1 if still[10] & 0x80 else 0)
        table, clear, clear_index = still[13:at], 0, 0
        while still[at] == 0x21:  # extensions
            if still[at + 1] == 0xF9:
                clear, clear_index = still[at + 3] & 1, still[at + 6]
            at += 2
            while still[at]:
                at += still[at] + 1
            at += 1
        left, top, width, height = struct.unpack_from("<4H", still, at + 1)
        delay = min(MAX_DELAY, milliseconds // 10)
        self._file.write(b"\x21\xf9\x04" + struct.pack("<BHB", 2 << 2 | clear, delay, clear_index) + b"\0")  # 2: then back to nothing
        if still[at + 9] & 0x80:  # it has a table of its own
            self._file.write(still[at:-1])
        else:
            interlaced = still[at + 9] & 0x40
            self._file.write(
                b"\x2c" + struct.pack("<4HB", left, top, width, height, 0x80 | interlaced | table_bits) + table + still[at + 10 : -1]
            )

    def end(self) -> None:
        self._file.write(b"\x3b")


class Png:
    """Source: Portable Network Graphics Specification, third edition, 11.3.6."""

    def __init__(self, file: BinaryIO, width: int, height: int, count: int, loop: int | None) -> None:
        self._file, self._size, self._count, self._plays = file, (width, height), count, 1 if loop is None else loop
        self._number, self._frames = 0, 0

    def add(self, still: bytes, milliseconds: int) -> None:
        chunks = list(_png_chunks(still))
        if not self._frames:
            self._file.write(still[:8])
            for kind, body in chunks:
                if kind == b"IDAT":
                    break
                self._file.write(png_chunk(kind, body))
            self._file.write(png_chunk(b"acTL", struct.pack(">II", self._count, self._plays)))
        delay, unit = (milliseconds, 1000) if milliseconds <= MAX_DELAY else (min(MAX_DELAY, milliseconds // 10), 100)
        self._write(b"fcTL", struct.pack(">IIIIHHBB", *self._size, 0, 0, delay, unit, 0, 0))
        for kind, body in chunks:
            if kind == b"IDAT" and not self._frames:
                self._file.write(png_chunk(kind, body))
            elif kind == b"IDAT":
                self._write(b"fdAT", body)
        self._frames += 1

    def end(self) -> None:
        self._file.write(png_chunk(b"IEND", b""))

    def _write(self, kind: bytes, body: bytes) -> None:
        self._file.write(png_chunk(kind, struct.pack(">I", self._number) + body))
        self._number += 1


class Part(NamedTuple):
    """A frame as an animated PNG has it: a PNG of its own, where it lies on the canvas, and how."""

    still: bytes
    left: int
    top: int
    milliseconds: int
    over: bool  # what is seen through it, rather than in its place
    cleared: bool  # when it has been shown
    undone: bool


def png_parts(file: bytes | memoryview) -> Iterator[Part]:
    """Every frame, each as it is asked for. ValueError for one that leads out of the canvas or that is out of order."""
    chunks = _png_chunks(file)
    head, number = dict[bytes, bytes](), 0
    control, data = b"", list[bytes]()
    for kind, body in chunks:
        if kind in (b"IHDR", b"PLTE", b"tRNS"):
            head[kind] = body
        if kind in (b"fcTL", b"fdAT"):
            if int.from_bytes(body[:4], "big") != number:
                raise ValueError("the parts of its frames are not in order")
            number += 1
        if kind in (b"fcTL", b"IEND"):
            if control:
                yield _part(head, control, data)
            control, data = body, []
        if kind in (b"IDAT", b"fdAT"):
            data.append(body[4:] if kind == b"fdAT" else body)


def png_plays(file: bytes | memoryview) -> int:
    """How many times it is shown, 0 for ever."""
    return next(int.from_bytes(body[4:8], "big") for kind, body in _png_chunks(file) if kind == b"acTL")


def _part(head: dict[bytes, bytes], control: bytes, data: list[bytes]) -> Part:
    _, width, height, left, top, delay, unit, disposal, blend = struct.unpack(">IIIIIHHBB", control)
    if left + width > int.from_bytes(head[b"IHDR"][:4], "big") or top + height > int.from_bytes(head[b"IHDR"][4:8], "big"):
        raise ValueError("a frame leads out of the canvas")
    own = head | {b"IHDR": struct.pack(">II", width, height) + head[b"IHDR"][8:], b"IDAT": b"".join(data), b"IEND": b""}
    still = PNG_HEAD + b"".join(png_chunk(kind, body) for kind, body in own.items())
    return Part(still, left, top, round(1000 * delay / (unit or 100)), blend == 1, disposal == 1, disposal == 2)


def _png_chunks(still: bytes | memoryview) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(still):
        length, kind = struct.unpack_from(">I4s", still, at)
        yield kind, bytes(still[at + 8 : at + 8 + length])
        at += 12 + length


class WebP:
    """Source: WebP Container Specification (RFC 9649)."""

    def __init__(self, file: BinaryIO, width: int, height: int, count: int, loop: int | None) -> None:
        self._file, self._size = file, (width, height)
        self._plays, self._begun = 1 if loop is None else min(loop, 65_535), False
        self._behind: list[tuple[bytes, bytes]] = []

    def add(self, still: bytes, milliseconds: int) -> None:
        chunks = list(_riff_chunks(still))
        width, height = self._size
        if not self._begun:
            self._begun = True
            said = dict(chunks)
            flags = 0x12 | sum(bit for kind, bit in ((b"ICCP", 0x20), (b"EXIF", 0x08), (b"XMP ", 0x04)) if kind in said)
            self._file.write(b"RIFF\0\0\0\0WEBP")
            self._chunk(b"VP8X", struct.pack("<I", flags) + _three(width - 1) + _three(height - 1))
            if b"ICCP" in said:
                self._chunk(b"ICCP", said[b"ICCP"])
            self._chunk(b"ANIM", struct.pack("<IH", 0, self._plays))
            self._behind = [(kind, said[kind]) for kind in (b"EXIF", b"XMP ") if kind in said]
        frame = b"".join(_riff(kind, body) for kind, body in chunks if kind in (b"ALPH", b"VP8 ", b"VP8L"))
        head = _three(0) + _three(0) + _three(width - 1) + _three(height - 1) + _three(min(milliseconds, 0xFFFFFF)) + b"\x02"  # no blending
        self._chunk(b"ANMF", head + frame)

    def end(self) -> None:
        for kind, body in self._behind:
            self._chunk(kind, body)
        size = self._file.tell()
        self._file.seek(4)
        self._file.write(struct.pack("<I", size - 8))
        self._file.seek(size)

    def _chunk(self, kind: bytes, body: bytes) -> None:
        self._file.write(_riff(kind, body))


def _riff(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _riff_chunks(still: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= len(still):
        kind, length = struct.unpack_from("<4sI", still, at)
        yield kind, still[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _three(number: int) -> bytes:
    return number.to_bytes(3, "little")
