"""TIFF's own structure: directories of tags read and laid out anew, and files written page by page. Decodes no pixel.

EXIF has the same structure, so its directories go from one file to another by way of a tree of entries. Refuses to follow what leads
out of the bytes or round in a circle: `TiffError`. Source of every number: TIFF 6.0 (Adobe, 1992), EXIF 2.32 (CIPA DC-008).
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value of each type."""
WORDS = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes that turn round with the byte order: a rational is two numbers."""
BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 7

EXIF, GPS, INTEROPERABILITY = 0x8769, 0x8825, 0xA005
ORIENTATION, MAKER_NOTE = 0x0112, 0x927C
SUBDIRECTORIES = (EXIF, GPS, INTEROPERABILITY)

MAX_ENTRIES = 1024
MAX_VALUE_BYTES = 16 << 20  # of one tag: a profile or a packet of XMP, not pixels

STRIP_BYTES = 1 << 20
LIMIT_BYTES = 2**32  # offsets have 32 bits


class TiffError(ValueError):
    """The structure is broken."""


class Entry(NamedTuple):
    """A tag's values, its bytes in little-endian order."""

    kind: int
    data: bytes

    def numbers(self) -> list[int]:
        """Of a BYTE, SHORT or LONG; of any other type none."""
        letter = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}.get(self.kind)
        return [] if letter is None else list(struct.unpack(f"<{len(self.data) // SIZES[self.kind]}{letter}", self.data))


def shorts(*values: int) -> Entry:
    return Entry(SHORT, struct.pack(f"<{len(values)}H", *values))


def longs(*values: int) -> Entry:
    return Entry(LONG, struct.pack(f"<{len(values)}I", *values))


class Directory(dict[int, "Entry | Directory"]):
    """Tags and their values, or the directory that a tag points to."""

    def number(self, tag: int, otherwise: int) -> int:
        return self.numbers(tag, (otherwise,))[0]

    def numbers(self, tag: int, otherwise: tuple[int, ...]) -> tuple[int, ...]:
        entry = self.get(tag)
        return tuple(entry.numbers()) or otherwise if isinstance(entry, Entry) else otherwise

    def bytes(self, tag: int) -> bytes | None:
        entry = self.get(tag)
        return entry.data if isinstance(entry, Entry) else None


class Structure:
    """The directories of a TIFF file, or of an EXIF block without its first six bytes."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data
        self._order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
        version = self._read("H", 2)[0] if self._order else 0
        if version not in (42, 43):
            raise TiffError("it does not begin as TIFF does")
        self._big = version == 43  # BigTIFF: every number of the structure is twice as wide
        (self._first,) = self._read("Q", 8) if self._big else self._read("I", 4)
        self._left = 2 * len(data) + MAX_VALUE_BYTES  # of values to copy: many entries may point to the same bytes

    def pages(self) -> Iterator[Directory]:
        """The chain of directories, each as it is reached."""
        at, seen = self._first, set[int]()
        while at:
            if at in seen:
                raise TiffError("its directories form a circle")
            seen.add(at)
            page, at = self._directory(at, (EXIF, GPS))
            yield page

    def place(self, tag: int) -> int | None:
        """Where the first directory's entry of `tag` begins."""
        return next((at for found, at in self._entries(self._first)[0] if found == tag), None)

    def _entries(self, at: int) -> tuple[list[tuple[int, int]], int]:
        """(tag, offset of its entry) for every entry of the directory at `at`, and where the next directory is."""
        (count,) = self._read("Q" if self._big else "H", at)
        if count > MAX_ENTRIES:
            raise TiffError(f"a directory has {count} entries")
        start, size = (at + 8, 20) if self._big else (at + 2, 12)
        entries = [(self._read("H", place)[0], place) for place in range(start, start + count * size, size)]
        end = start + count * size
        try:
            (following,) = self._read("Q" if self._big else "I", end)
        except TiffError:  # many writers of EXIF leave it out
            following = 0
        return entries, following

    def _directory(self, at: int, below: tuple[int, ...]) -> tuple[Directory, int]:
        directory = Directory()
        entries, following = self._entries(at)
        for tag, place in entries:
            kind, count = self._read("HQ" if self._big else "HI", place + 2)
            size = SIZES.get(kind, 0) * count
            inside = 8 if self._big else 4
            begin = place + (12 if self._big else 8)
            if size > inside:
                (begin,) = self._read("Q" if self._big else "I", begin)
            if tag in below:
                try:
                    directory[tag] = self._directory(self._read("I", begin)[0], (INTEROPERABILITY,) if tag == EXIF else ())[0]
                except TiffError:
                    continue
            elif 0 < size <= MAX_VALUE_BYTES and begin + size <= len(self._data):  # what is broken is as if it were not there
                self._left -= size
                if self._left < 0:
                    raise TiffError("its values are larger than the file")
                directory[tag] = Entry(kind, self._little(kind, self._data[begin : begin + size]))
        return directory, following

    def _little(self, kind: int, data: bytes) -> bytes:
        word = WORDS.get(kind, 1)
        if self._order == "<" or word == 1:
            return data
        return np.frombuffer(data, f">u{word}").astype(f"<u{word}").tobytes()

    def _read(self, letters: str, at: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(self._order + letters, self._data, at)
        except struct.error:
            raise TiffError("it leads out of the file") from None


def laid(directory: Directory, at: int) -> bytes:
    """The bytes of a directory that shall lie at offset `at`, what it points to behind it. Little-endian, no directory follows."""
    head = 2 + 12 * len(directory) + 4
    entries, behind = b"", b""
    for tag in sorted(directory):
        value = directory[tag]
        where = at + head + len(behind)
        if isinstance(value, Directory):
            behind += laid(value, where)
            entries += struct.pack("<HHII", tag, LONG, 1, where)
        else:
            count = len(value.data) // SIZES[value.kind]
            entries += struct.pack("<HHI", tag, value.kind, count)
            entries += value.data.ljust(4, b"\0") if len(value.data) <= 4 else struct.pack("<I", where)
            behind += value.data if len(value.data) > 4 else b""
        behind += b"\0" * (len(behind) % 2)  # offsets are even
    return struct.pack("<H", len(directory)) + entries + bytes(4) + behind


class Writer:
    """Appends pages to a file: deflated strips with horizontal differences, every sample at its full depth."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._file.write(b"II*\0" + bytes(4))
        self._link = 4  # where the offset of the next directory goes

    def page(self, samples: NDArray[Any], alpha: bool, described: Directory) -> None:
        """(H, W, C) uint8, uint16 or float32: grey or RGB, and straight alpha behind it. `described` holds what is said of the picture."""
        H, W, C = samples.shape
        rows = max(1, STRIP_BYTES // (W * C * samples.itemsize))
        places, counts = [], []
        with ThreadPoolExecutor(2) as threads:  # zlib lets go of the interpreter's lock
            for strip in threads.map(_deflated, (samples[top : top + rows] for top in range(0, H, rows))):
                places.append(self._file.tell())
                counts.append(len(strip))
                self._file.write(strip)
        self._file.write(b"\0" * (self._file.tell() % 2))
        bits = 8 * samples.itemsize
        integer = samples.dtype.kind == "u"
        page = Directory(described)
        page |= {
            256: longs(W),
            257: longs(H),
            258: shorts(*(bits for _ in range(C))),
            259: shorts(8),  # Compression: deflate
            262: shorts(2 if C > 2 else 1),  # PhotometricInterpretation: RGB or BlackIsZero
            273: longs(*places),
            277: shorts(C),
            278: longs(rows),
            279: longs(*counts),
            284: shorts(1),  # PlanarConfiguration: a pixel's samples side by side
            339: shorts(*((1 if integer else 3) for _ in range(C))),  # SampleFormat
        }
        if integer:
            page[317] = shorts(2)  # Predictor: differences
        if alpha:
            page[338] = shorts(2)  # ExtraSamples: straight alpha
        at = self._file.tell()
        self._file.write(laid(page, at))
        end = self._file.tell()
        if end > LIMIT_BYTES:
            raise TiffError("it would be larger than 4 GiB")
        self._file.seek(self._link)
        self._file.write(struct.pack("<I", at))
        self._file.seek(end)
        self._link = at + 2 + 12 * len(page)


def _deflated(strip: NDArray[Any]) -> bytes:
    if strip.dtype.kind == "u":
        differences = strip.copy()
        differences[:, 1:] -= strip[:, :-1]
        strip = differences
    return zlib.compress(strip.astype(strip.dtype.newbyteorder("<"), copy=False).tobytes(), 1)
