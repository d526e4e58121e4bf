"""Puts still pictures, each encoded by itself, together into one animated file, GIF, PNG or WebP, and takes such a GIF or PNG apart.

Every frame that is put there covers the whole canvas and stands by itself, so that one after the other can be written and forgotten.
Decodes no pixel.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, Protocol

from core.metadata import png_chunk

Bytes = bytes | mmap.mmap

PNG_HEAD = b"\x89PNG\r\n\x1a\n"
MAX_DELAY = 65_535  # of what a format counts in
GIF_PICTURE, GIF_EXTENSION, GIF_END, GIF_BLOCK = ord(","), ord("!"), ord(";"), re.compile(rb"[,!;]")  # how its blocks begin
GIF_CONTROL, GIF_APPLICATION = 0xF9, 0xFF  # how an extension goes on


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
        at = 13 + _gif_table_bytes(still[10])
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


CLEAR = (0, 0, 0, 0)


class Part(NamedTuple):
    """A frame as an animated file has it: a picture of its own, where it lies on the canvas, and how."""

    still: bytes
    left: int
    top: int
    width: int
    height: int
    milliseconds: int
    over: bool  # what is seen through it, rather than in its place
    cleared: tuple[int, int, int, int] | None  # to that colour and alpha, when it has been shown
    undone: bool


def gif_count(file: Bytes) -> int:
    """Of its pictures, by their blocks, which is much less work than to decode them."""
    return sum(file[begin] == GIF_PICTURE for begin, _ in _gif_blocks(file))


def gif_parts(file: Bytes) -> Iterator[Part]:
    """Every frame, each as it is asked for. ValueError for a block between them that is cut short. Source: GIF89a specification.

    What is cleared becomes the background's colour, or, by the custom of readers, nothing where the frame has a transparent colour.
    """
    table_flags, table = file[10] & 0x87, file[13 : 13 + _gif_table_bytes(file[10])]
    background = 3 * file[11] if 3 * file[11] < len(table) else 0
    backdrop = (*table[background : background + 3], 255) if table else CLEAR
    control = b"\0\0\0\0"
    for begin, end in _gif_blocks(file):
        if file[begin] == GIF_PICTURE:
            left, top, width, height, flags = struct.unpack_from("<4HB", file, begin + 1)
            data = begin + 10 + _gif_table_bytes(flags)
            chosen_flags, chosen = (flags & 0x87, file[begin + 10 : data]) if flags & 0x80 else (table_flags, table)
            how, delay, clear = struct.unpack("<BHB", control)
            still = (
                b"GIF89a" + struct.pack("<HHBBB", width, height, chosen_flags, 0, 0) + chosen
                + b"\x21\xf9\x04" + struct.pack("<BHBB", how & 1, 0, clear, 0)
                + b"\x2c" + struct.pack("<4HB", 0, 0, width, height, flags & 0x40) + file[data:end]
            )  # fmt: skip
            disposal = how >> 2 & 7
            cleared = None if disposal != 2 else CLEAR if how & 1 else backdrop
            yield Part(still, left, top, width, height, 10 * delay, True, cleared, disposal in (3, 4))  # 4: what some wrote for 3
            control = b"\0\0\0\0"
        elif end > len(file):
            raise ValueError("an extension is cut short")
        elif file[begin + 1] == GIF_CONTROL and file[begin + 2] >= 4:
            control = file[begin + 3 : begin + 7]


def gif_plays(file: Bytes) -> int | None:
    """How many times it is shown, 0 for ever; None: not told before the first frame."""
    told = None
    for begin, end in _gif_blocks(file):
        if file[begin] == GIF_PICTURE:
            break
        block = file[begin:end]
        if block[1] == GIF_APPLICATION and block[2:14] == b"\x0bNETSCAPE2.0" and block[14] >= 3 and block[15] == 1:
            again = int.from_bytes(block[16:18], "little")  # after the first time
            told = again and again + 1
    return told


def _gif_blocks(file: Bytes) -> Iterator[tuple[int, int]]:
    """Where each begins and ends, up to the last; that may be behind the file, where it is cut short. What is no block is passed over."""
    at = 13 + _gif_table_bytes(file[10])
    while at < len(file) and file[at] != GIF_END:
        begin = at
        if file[at] not in (GIF_PICTURE, GIF_EXTENSION):
            found = GIF_BLOCK.search(file, at)  # a loop takes seconds where there are many
            at = found.start() if found else len(file)
            continue
        at += 11 + _gif_table_bytes(file[at + 9]) if file[at] == GIF_PICTURE else 2
        while at < len(file) and file[at]:
            at += file[at] + 1
        at += 1
        yield begin, at


def _gif_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


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
    milliseconds, cleared = round(1000 * delay / (unit or 100)), CLEAR if disposal == 1 else None
    return Part(still, left, top, width, height, milliseconds, blend == 1, cleared, disposal == 2)


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
