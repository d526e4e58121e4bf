"""Puts AVIF stills, each encoded by itself, together as the cells of one picture, a grid, and tells how one is coded. Decodes no pixel.

So an encoder that takes 29 bytes of memory a pixel holds a cell at a time, whatever the picture's size. Refuses what no encoder of ours
writes: `AvifError`. Sources: ISO base media file format (ISO/IEC 14496-12) 8.11, the boxes of items; HEIF (ISO/IEC 23008-12) 6.6.2.3,
grids, and annex A, metadata; MIAF (ISO/IEC 23000-22) 7.3.11.4, how cells must be; AV1 Image File Format 1.1, alpha.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[Any]
"""(H, W, C) uint8."""

MAX_STILL_PIXELS = 4 << 20
"""A larger picture is better a grid."""
CELL_SIDE = 1024
MIN_CELL_SIDE = 64

ALPHA = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"
CONFIGURATION = re.compile(rb"av1C..(.)", re.DOTALL)  # AV1's, among whose bits are monochrome, 0x10, and high_bitdepth, 0x40
HIDDEN = 1  # flag of an item that is not shown by itself
ESSENTIAL = 0x80  # of a property without which no reader may show the item
LIMIT_BYTES = 2**32  # offsets have 32 bits


class AvifError(ValueError):
    """The cells cannot be put together."""


class Cells(NamedTuple):
    """How a picture of `width` by `height` is cut: into equal cells, the last of each row and column padded."""

    width: int
    height: int
    columns: int
    rows: int
    cell_width: int
    cell_height: int

    def __len__(self) -> int:
        return self.columns * self.rows

    def cut(self, samples: Samples, number: int) -> Samples:
        """(H, W, C) -> (cell_height, cell_width, C), its edge repeated where the picture has ended."""
        top, left = (at * side for at, side in zip(divmod(number, self.columns), (self.cell_height, self.cell_width), strict=True))
        cell = samples[top : top + self.cell_height, left : left + self.cell_width]
        missing = [(0, self.cell_height - cell.shape[0]), (0, self.cell_width - cell.shape[1]), (0, 0)]
        return np.pad(cell, missing, mode="edge")


def cells(width: int, height: int) -> Cells:
    columns, rows = -(-width // CELL_SIDE), -(-height // CELL_SIDE)
    return Cells(width, height, columns, rows, _side(width, columns), _side(height, rows))


def _side(whole: int, parts: int) -> int:
    """Even, and so little more than a part that the last cell still holds some of the picture."""
    return max(MIN_CELL_SIDE, 2 * -(-whole // (2 * parts)))


class Still(NamedTuple):
    """What an AVIF file of one picture holds of it."""

    data: bytes  # as AV1 has it
    properties: tuple[bytes, ...]  # boxes that describe it, but for its size


def still(file: bytes) -> Still:
    """Of a file that an encoder has just written: its one item that is a picture, whole and in one stretch."""
    meta = dict(_boxes(dict(_boxes(file))[b"meta"][4:]))
    (item,) = struct.unpack_from(">H", meta[b"pitm"], 4)
    properties = [(kind, body) for kind, body in _boxes(dict(_boxes(meta[b"iprp"]))[b"ipco"])]
    if any(kind in (b"irot", b"imir", b"clap") for kind, _ in properties):
        raise AvifError("a cell is turned or cut")
    return Still(_stretch(file, meta[b"iloc"], item), tuple(_box(kind, body) for kind, body in properties if kind != b"ispe"))


class Coding(NamedTuple):
    """How the picture is coded that a file shows."""

    grey: bool  # whatever is said of its transparency
    eight_bits: bool


def coding(file: memoryview) -> Coding:
    """By what the decoder is told of the picture's item, or of a grid's cells, or else first of all."""
    told = _told(file) or [found[1][0] for found in [CONFIGURATION.search(file)] if found]
    return Coding(bool(told) and all(each & 0x10 for each in told), not any(each & 0x40 for each in told))


def _told(file: memoryview) -> list[int]:
    """The third byte of what the decoder is told, see `CONFIGURATION`; nothing of a file that tells no picture's item."""
    meta = next((body[4:] for kind, body in _boxes(file) if kind == b"meta"), memoryview(b""))
    inside = dict(_boxes(meta))
    if b"pitm" not in inside or b"iprp" not in inside:
        return []
    (item,) = struct.unpack_from(">I" if inside[b"pitm"][0] else ">H", inside[b"pitm"], 4)
    shown = {item, *_referred(inside[b"iref"], b"dimg", item)} if b"iref" in inside else {item}
    described = dict(_boxes(inside[b"iprp"]))
    properties = list(_boxes(described[b"ipco"]))
    numbers = (number for each, number in _associations(described[b"ipma"]) if each in shown and 0 < number <= len(properties))
    return [body[2] for kind, body in (properties[number - 1] for number in numbers) if kind == b"av1C"]


def _referred(references: memoryview, kind: bytes, item: int) -> list[int]:
    """The items that one refers to."""
    letter = "I" if references[0] else "H"
    for found, body in _boxes(references[4:]):
        number, count = struct.unpack_from(f">{letter}H", body)
        if (found, number) == (kind, item):
            return list(struct.unpack_from(f">{count}{letter}", body, struct.calcsize(f">{letter}H")))
    return []


def _associations(box: memoryview) -> Iterator[tuple[int, int]]:
    """(item, number of a property, counted from 1)."""
    letter, wide = "I" if box[0] else "H", box[3] & 1
    at = 8
    for _ in range(int.from_bytes(box[4:8], "big")):
        item, count = struct.unpack_from(f">{letter}B", box, at)
        at += struct.calcsize(f">{letter}B")
        for number in struct.unpack_from(f">{count}{'H' if wide else 'B'}", box, at):
            yield item, number & (0x7FFF if wide else 0x7F)  # above it is whether it is essential
        at += count << wide


def _boxes(file: bytes | memoryview) -> Iterator[tuple[bytes, memoryview]]:
    data, at = memoryview(file), 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            head, size = 16, int.from_bytes(data[at + 8 : at + 16], "big")
        size = size or len(data) - at  # the last one may not tell
        if not head <= size <= len(data) - at:
            raise AvifError(f"a box of {size} bytes leads out of the file")
        yield kind, data[at + head : at + size]
        at += size


def _stretch(file: bytes, places: memoryview, item: int) -> bytes:
    """The bytes of an item, by the box `iloc`."""
    if bytes(places[:6]) != b"\0\0\0\0\x44\0":  # version 0, offsets and lengths of 4 bytes, none of them from a base
        raise AvifError("a cell's places are of a rare kind")
    (count,) = struct.unpack_from(">H", places, 6)
    at = 8
    for _ in range(count):
        number, _, stretches = struct.unpack_from(">3H", places, at)
        if number == item and stretches == 1:
            begin, length = struct.unpack_from(">II", places, at + 6)
            return file[begin : begin + length]
        at += 6 + 8 * stretches
    raise AvifError("a cell lies in pieces")


class Item(NamedTuple):
    kind: bytes
    data: bytes
    properties: Sequence[bytes] = ()
    flags: int = 0
    said: bytes = b""  # behind its empty name


class File:
    """Items, the properties that they share, and what refers to what. The first item is what is shown."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._properties: dict[bytes, int] = {}  # each with its number, counted from 1
        self._references: list[bytes] = []

    def add(self, item: Item) -> int:
        """Gives its number."""
        for each in item.properties:
            self._properties.setdefault(each, len(self._properties) + 1)
        self._items.append(item)
        return len(self._items)

    def refer(self, kind: bytes, item: int, others: Sequence[int]) -> None:
        self._references.append(_box(kind, struct.pack(f">HH{len(others)}H", item, len(others), *others)))

    def laid(self) -> list[bytes]:
        """The file, in pieces."""
        if len(self._items) >= 1 << 16:
            raise AvifError(f"it would have {len(self._items)} parts")
        head = _box(b"ftyp", b"avif" + bytes(4) + b"avifmif1miaf")
        begin = len(head) + len(self._meta(0)) + 8
        length = sum(len(item.data) for item in self._items)
        if begin + length >= LIMIT_BYTES:
            raise AvifError("it would be larger than 4 GiB")
        data = struct.pack(">I4s", 8 + length, b"mdat")
        return [head, self._meta(begin), data, *(item.data for item in self._items)]

    def _meta(self, begin: int) -> bytes:
        """`begin`: where the first item's data will lie, the others' behind it."""
        places, kinds, described = [], [], []
        for number, item in enumerate(self._items, start=1):
            places.append(struct.pack(">3HII", number, 0, 1, begin, len(item.data)))
            begin += len(item.data)
            kinds.append(_full(b"infe", struct.pack(">HH4s", number, 0, item.kind) + b"\0" + item.said, version=2, flags=item.flags))
            if item.properties:
                told = (self._properties[each] | ESSENTIAL * (each[4:8] == b"av1C") for each in item.properties)
                described.append(struct.pack(">HB", number, len(item.properties)) + bytes(told))
        return _full(
            b"meta",
            _full(b"hdlr", bytes(4) + b"pict" + bytes(13)),
            _full(b"pitm", struct.pack(">H", 1)),
            _full(b"iloc", struct.pack(">HH", 0x4400, len(places)), *places),
            _full(b"iinf", struct.pack(">H", len(kinds)), *kinds),
            _full(b"iref", *self._references),
            _box(
                b"iprp",
                _box(b"ipco", *self._properties),
                _full(b"ipma", struct.pack(">I", len(described)), *described),
            ),
        )


def grid(layout: Cells, colours: Sequence[Still], alphas: Sequence[Still], exif: bytes | None, xmp: bytes | None) -> list[bytes]:
    """The file, in pieces.

    `colours` and `alphas`: a still for each cell, row by row, the latter grey, or none at all; `exif`: from b"Exif\\0\\0" on.
    """
    file = File()
    shown = _grid(file, layout, colours)
    if alphas:
        # What is said of colours is not said of alpha; that it is alpha is said of each cell too, as readers expect.
        of_alpha = [Still(each.data, (*(box for box in each.properties if box[4:8] != b"colr"), _full(b"auxC", ALPHA))) for each in alphas]
        file.refer(b"auxl", _grid(file, layout, of_alpha), [shown])
    if exif is not None:
        block = exif.removeprefix(b"Exif\0\0")
        file.refer(b"cdsc", file.add(Item(b"Exif", bytes(4) + block)), [shown])  # 0: nothing lies before TIFF's own head
    if xmp is not None:
        file.refer(b"cdsc", file.add(Item(b"mime", xmp, said=b"application/rdf+xml\0")), [shown])
    return file.laid()


def _grid(file: File, layout: Cells, stills: Sequence[Still]) -> int:
    if len(stills) != len(layout):
        raise AvifError(f"{len(stills)} cells came for a grid of {layout.columns} x {layout.rows}")
    common = stills[0].properties
    if any(each.properties != common for each in stills):
        raise AvifError("the cells are of different kinds")
    wide = max(layout.width, layout.height) >= 1 << 16
    data = struct.pack(">4B", 0, wide, layout.rows - 1, layout.columns - 1)
    data += struct.pack(">II" if wide else ">HH", layout.width, layout.height)
    whole = file.add(Item(b"grid", data, (_size(layout.width, layout.height), *(box for box in common if box[4:8] != b"av1C"))))
    properties = (_size(layout.cell_width, layout.cell_height), *common)
    file.refer(b"dimg", whole, [file.add(Item(b"av01", each.data, properties, HIDDEN)) for each in stills])
    return whole


def _size(width: int, height: int) -> bytes:
    return _full(b"ispe", struct.pack(">II", width, height))


def _box(kind: bytes, *parts: bytes | memoryview) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, parts)), kind) + b"".join(parts)


def _full(kind: bytes, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", version << 24 | flags), *parts)
