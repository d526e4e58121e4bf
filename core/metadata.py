"""What a picture file says beside its pixels: colour profile, EXIF, XMP, IPTC, resolution. Taken out of one format, put into another.

Decodes no pixel. A block that is broken or too large is named in `Metadata.broken` and is None: it never fails the picture.
"""

from __future__ import annotations

import dataclasses
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from core import tiff
from core.tiff import Directory, Entry, TiffError

MAX_BLOCK_BYTES = 8 << 20
"""A larger profile or packet is dropped, and nothing is inflated beyond it."""

MAX_SEARCHED_BYTES, MAX_PLACE_ENTRIES = 1 << 15, 64
"""A longer packet of XMP, or a GPS directory of more entries, is not searched for what tells the place: it is dropped if it may."""

EXIF_HEAD, XMP_HEAD, XMP_MORE_HEAD = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
ICC_HEAD, PHOTOSHOP_HEAD, JFIF_HEAD = b"ICC_PROFILE\0", b"Photoshop 3.0\0", b"JFIF\0"
PNG_XMP = b"XML:com.adobe.xmp"
PNG_IPTC = b"Raw profile type iptc"
PNG_COLOUR = (b"gAMA", b"cHRM", b"sRGB", b"cICP")
IPTC_RESOURCE = 0x0404
THUMBNAIL_PLACES = ((513, 514), (273, 279))  # tags of where EXIF's lies, a JPEG or strips, and of how long it is there
MAX_THUMBNAIL_STRIPS = 256
PLACES = (273, 279, 330, 513, 514)  # of pixels and directories elsewhere
PICTURE_HEAD = re.compile(rb"\xff\xd8\xff|\x89PNG|/9j/|iVBORw")  # a JPEG or PNG, as it is or in base64
SIDES = (
    (256, 257),
    (282, 283),
    (0xA002, 0xA003),
    (0xA20E, 0xA20F),
)  # across and down: sizes and resolutions
IPTC_PREVIEWS, IPTC_OBJECT = ((2, 200), (2, 201), (2, 202)), 7  # of records from this one on the object itself is made
IPTC_PLACES = (26, 27, 90, 92, 95, 100, 101)  # content location code and name, city, sublocation, state, country code and name
XMP_PLACES = rb"exif:GPS\w+|Iptc4xmpCore:(?:Location|CountryCode)|Iptc4xmpExt:Location\w+|photoshop:(?:City|State|Country)"
XMP_PLACE = re.compile(rb'\s(?:%b)="[^"]*"|<(%b)\b[^>]*?/>|<(%b)\b[^>]*>.*?</\2>' % (XMP_PLACES, XMP_PLACES, XMP_PLACES), re.DOTALL)
XMP_DOUBT = re.compile(rb"GPS|:City|:Location|latitude|longitude", re.IGNORECASE)
XMP_TURNED = re.compile(rb"""(tiff:Orientation(?:\s*=\s*["']|>)\s*)[2-8](?=\s*["'<])""")
XMP_SIDE = re.compile(rb"((?:tiff|exif):(?:FocalPlane|Pixel|Image)?)(XResolution|YResolution|XDimension|YDimension|Width|Length)\b")
OTHER_SIDE = {b"XResolution": b"YResolution", b"XDimension": b"YDimension", b"Width": b"Length"}
OTHER_SIDE |= {down: across for across, down in OTHER_SIDE.items()}
XMP_PICTURE = re.compile(rb"(?<![a-z0-9+/])(?:[a-z0-9+/]{40,}+(?:[\s=]|&#(?:x[9AD]|9|10|13);)*+)+[a-z0-9+/]*=*", re.IGNORECASE)
"""What may be base64, in lines."""
MIN_PICTURE_CHARACTERS = 256

TURNED = range(2, 9)
"""The orientations of EXIF that are not upright."""

TIFF_XMP, TIFF_IPTC, TIFF_ICC = 700, 33723, 34675
DESCRIBED = (270, 271, 272, 305, 306, 315, 33432)
"""IFD0's description, make, model, software, date, artist and copyright; resolution goes by `dpi`."""


@dataclass(frozen=True)
class Metadata:
    """The blocks, each whole and sound, or None."""

    icc: bytes | None = None
    exif: bytes | None = None  # from b"Exif\0\0" on; once the pixels are upright, its orientation is 1, and no thumbnail lies on its side
    xmp: bytes | None = None
    iptc: bytes | None = None  # IIM datasets, without the wrapping of Photoshop or PNG
    dpi: tuple[float, float] | None = None  # across, down; like XMP's orientation, of the upright pixels once they are so
    colour: tuple[tuple[bytes, bytes], ...] = ()  # PNG's own chunks on colour, which only PNG can hold
    broken: tuple[str, ...] = ()  # names of the blocks that were dropped

    def turned(self, orientation: int) -> Metadata:
        """Of pixels that had this orientation and are upright now; what EXIF says of it was reset before, by `upright`."""
        if orientation not in TURNED:
            return self
        dpi, exif, xmp = self.dpi, self.exif, self.xmp
        if xmp and _xmp_is_sound(xmp):
            xmp = XMP_TURNED.sub(rb"\g<1>1", _without_pictures(xmp))
        if orientation > 4:
            dpi = dpi and dpi[::-1]
            exif = _sides_exchanged(exif) if exif and _exif_is_sound(exif) else exif
            xmp = xmp and XMP_SIDE.sub(lambda found: found[1] + OTHER_SIDE[found[2]], xmp)
        return dataclasses.replace(self, dpi=dpi, exif=exif, xmp=xmp)

    def of_a_part(self) -> Metadata:
        """Of a part of the picture: without thumbnails and previews, which show the whole, and maker notes, which may hold some."""
        return dataclasses.replace(
            self,
            exif=self.exif and _of_a_part(self.exif),
            xmp=self.xmp and _without_pictures(self.xmp),
            iptc=self.iptc and _without_previews(self.iptc),
        )

    def stripped(self) -> Metadata:
        """What the pixels' colours need, and nothing else."""
        return Metadata(icc=self.icc, colour=self.colour, broken=self.broken)

    def safe(self) -> Metadata:
        """Without what tells the place: EXIF's GPS and maker notes, XMP's and IPTC's places."""
        xmp = self.xmp
        if xmp and XMP_DOUBT.search(xmp) and len(xmp) <= MAX_SEARCHED_BYTES:
            xmp = XMP_PLACE.sub(b"", xmp)
        return dataclasses.replace(
            self,
            exif=_without_place(self.exif) if self.exif else None,
            xmp=None if xmp is None or XMP_DOUBT.search(xmp) else xmp,
            iptc=_iim(each for each in _datasets(self.iptc) if each[1] not in IPTC_PLACES) if self.iptc else None,
        )

    def checked(self, grey: bool) -> Metadata:
        """The sound blocks; the names of the others are added to `broken`."""
        found = {
            "icc": (self.icc, profile_fits(self.icc, grey)),
            "exif": (self.exif, _exif_is_sound(self.exif)),
            "xmp": (self.xmp, _xmp_is_sound(self.xmp)),
            "iptc": (self.iptc, bool(self.iptc) and bool(_datasets(self.iptc))),
        }
        broken = [name for name, (block, sound) in found.items() if block is not None and not sound]
        kept = {name: block if sound else None for name, (block, sound) in found.items()}
        return dataclasses.replace(self, **kept, broken=(*self.broken, *(name for name in broken if name not in self.broken)))  # type: ignore[arg-type]


def profile_fits(icc: Any, grey: bool) -> bool:
    """Whether an ICC profile is whole and speaks of these pixels."""
    if not isinstance(icc, bytes) or not 132 <= len(icc) <= MAX_BLOCK_BYTES or icc[36:40] != b"acsp":
        return False
    size, tags = int.from_bytes(icc[:4], "big"), int.from_bytes(icc[128:132], "big")
    if size > len(icc) or 132 + 12 * tags > size:
        return False
    spans = (struct.unpack_from(">II", icc, 136 + 12 * tag) for tag in range(tags))
    spaces = (b"RGB ", b"GRAY") if grey else (b"RGB ",)
    return icc[16:20] in spaces and all(begin + length <= size for begin, length in spans)


def upright(exif: bytes | None) -> tuple[int, bytes | None]:
    """The orientation that EXIF tells, and the block with it reset in place, so that every other byte stays.

    Where it was not upright the thumbnail goes: it would lie on its side.
    """
    if exif is None:
        return 1, None
    block, orientation = bytearray(exif), 1
    order = "<" if block[6:8] == b"II" else ">"
    for tag, entry in _entries(block, _first(block)):
        if tag == tiff.ORIENTATION:
            kind, _, value = struct.unpack_from(order + "HIH", block, entry + 2)
            orientation = value if kind == tiff.SHORT else 1  # as the standard has it
            struct.pack_into(order + "HHIHH", block, entry, tag, tiff.SHORT, 1, 1, 0)
    return orientation, _without_thumbnail(bytes(block)) if orientation in TURNED else bytes(block)


# EXIF: a block is b"Exif\0\0" and a TIFF structure, whose offsets count from its own beginning.


def _order(block: bytes | bytearray) -> str:
    return "<" if block[6:8] == b"II" else ">"


def _first(block: bytes | bytearray) -> int:
    return 6 + int(struct.unpack_from(_order(block) + "I", block, 10)[0])


def _entries(block: bytes | bytearray, directory: int) -> list[tuple[int, int]]:
    """(tag, where its entry begins) of the directory there; none if it leads out of the block."""
    order = _order(block)
    try:
        count = struct.unpack_from(order + "H", block, directory)[0]
        places = range(directory + 2, directory + 2 + 12 * count, 12)
        return [(struct.unpack_from(order + "HHII", block, place)[0], place) for place in places]
    except struct.error:
        return []


def _exif_is_sound(exif: bytes | None) -> bool:
    if exif is None or not exif.startswith(EXIF_HEAD) or len(exif) > MAX_BLOCK_BYTES:
        return False
    if exif[6:10] not in (b"II*\0", b"MM\0*") or len(exif) < 14:
        return False
    first = _first(exif)
    return first + 2 <= len(exif) and first + 2 + 12 * struct.unpack_from(_order(exif) + "H", exif, first)[0] <= len(exif)


def _numbers(block: bytes | bytearray, entry: int) -> list[int]:
    """The few values of an entry of SHORT or LONG; none of another type, nor of what leads out of the block."""
    order = _order(block)
    kind, count, offset = struct.unpack_from(order + "HII", block, entry + 2)
    letter = {tiff.SHORT: "H", tiff.LONG: "I"}.get(kind, "")
    size = tiff.SIZES.get(kind, 1) * count
    begin = entry + 8 if size <= 4 else 6 + offset
    if not letter or count > MAX_THUMBNAIL_STRIPS or begin + size > len(block):
        return []
    return list(struct.unpack_from(f"{order}{count}{letter}", block, begin))


def _without_thumbnail(exif: bytes) -> bytes:
    """In place, so that every offset stays true: the second directory goes, and its entries and the picture they tell of are zeros."""
    block, order, first = bytearray(exif), _order(exif), _first(exif)
    link = first + 2 + 12 * len(_entries(exif, first))
    if not (following := int.from_bytes(exif[link : link + 4], "little" if order == "<" else "big")):
        return exif
    second = _entries(exif, 6 + following)
    entry_of = dict(second)
    for places, lengths in THUMBNAIL_PLACES:
        if places in entry_of and lengths in entry_of:
            for place, length in zip(_numbers(exif, entry_of[places]), _numbers(exif, entry_of[lengths]), strict=False):
                begin = min(6 + place, len(block))
                end = min(begin + length, len(block))
                block[begin:end] = bytes(end - begin)
    for _, entry in second:
        block[entry : entry + 12] = bytes(12)
    block[:14], block[first:link] = exif[:14], exif[first:link]  # where a hostile offset leads
    block[link : link + 4] = bytes(len(block[link : link + 4]))
    return bytes(block)


def _of_a_part(exif: bytes) -> bytes | None:
    """In place, unless a picture is left that no entry tells of as a thumbnail: then only what entries tell, and is none, stays."""
    block = bytearray(_without_thumbnail(exif))
    first = _first(block)
    head, entries = slice(first, first + 2 + 12 * len(_entries(block, first))), bytes(block)
    _cut(block, _exif_directory(block), tiff.MAKER_NOTE)
    block[:14], block[head] = entries[:14], entries[head]  # where a hostile offset leads
    if not PICTURE_HEAD.search(block):
        return bytes(block)
    try:
        page = next(tiff.Structure(bytes(block[6:])).pages())
    except (TiffError, StopIteration):
        return None
    return EXIF_HEAD + b"II*\0\x08\0\0\0" + tiff.laid(_pictureless(page), 8)


def _pictureless(directory: Directory) -> Directory:
    kept = Directory()
    for tag, value in directory.items():
        if isinstance(value, Directory):
            kept[tag] = _pictureless(value)
        elif tag not in PLACES and not PICTURE_HEAD.search(value.data):
            kept[tag] = value
    return kept


def _exif_directory(block: bytearray) -> int:
    """Where the camera's own directory begins; the block's end if there is none."""
    pointers = (entry for tag, entry in _entries(block, _first(block)) if tag == tiff.EXIF)
    return next((6 + struct.unpack_from(_order(block) + "I", block, entry + 8)[0] for entry in pointers), len(block))


def _sides_exchanged(exif: bytes) -> bytes:
    """In place: what was said of across is said of down."""
    block = bytearray(exif)
    for directory in (_first(block), _exif_directory(block)):
        entry_of = dict(_entries(block, directory))
        for across, down in SIDES:
            if across in entry_of and down in entry_of:
                one, other = (slice(entry_of[tag] + 2, entry_of[tag] + 12) for tag in (across, down))
                block[one], block[other] = block[other], block[one]
    return bytes(block)


def _without_place(exif: bytes) -> bytes | None:
    """In place, so that every offset stays true: the entries go, and their bytes are zeros."""
    block, order = bytearray(exif), _order(exif)
    first = _entries(block, _first(block))
    if sum(tag in (tiff.EXIF, tiff.GPS) for tag, _ in first) > 2:
        return None
    for tag, entry in first:
        below = 6 + struct.unpack_from(order + "I", block, entry + 8)[0]
        if tag == tiff.EXIF:
            _cut(block, below, tiff.MAKER_NOTE)
        if tag == tiff.GPS:
            told = _entries(block, below)
            if len(told) > MAX_PLACE_ENTRIES:
                return None
            for _, place in told:
                _blank(block, place)
    _cut(block, _first(block), tiff.GPS)
    return bytes(block)


def _cut(block: bytearray, directory: int, tag: int) -> None:
    entries = _entries(block, directory)
    for found, entry in entries:
        if found == tag:
            _blank(block, entry, keep_offset=tag == tiff.GPS)
            end = directory + 2 + 12 * len(entries) + 4  # behind the offset of the next directory
            block[entry : end - 12] = block[entry + 12 : end]
            block[end - 12 : end] = bytes(12)
            struct.pack_into(_order(block) + "H", block, directory, len(entries) - 1)
            return


def _blank(block: bytearray, entry: int, keep_offset: bool = False) -> None:
    """Zeros for an entry's values, wherever they lie."""
    kind, count, offset = struct.unpack_from(_order(block) + "HII", block, entry + 2)
    size = tiff.SIZES.get(kind, 1) * count
    begin = min(len(block), 6 + offset)
    if size > 4 and not keep_offset:
        end = min(len(block), begin + size)
        block[begin:end] = bytes(end - begin)
    block[entry + 8 : entry + 12] = bytes(4)


# XMP and IPTC


def _without_pictures(xmp: bytes) -> bytes:
    """With empty values in place of encoded pictures: thumbnails, whatever they are called."""
    return XMP_PICTURE.sub(lambda found: b"" if len(found[0]) >= MIN_PICTURE_CHARACTERS else found[0], xmp)


def _xmp_is_sound(xmp: bytes | None) -> bool:
    if xmp is None or len(xmp) > MAX_BLOCK_BYTES or b"rdf:RDF" not in xmp:
        return False
    try:
        xmp.decode()
    except UnicodeDecodeError:
        return False
    return True


def _datasets(iim: bytes | None) -> list[tuple[int, int, bytes]]:
    """(record, dataset, value) of IPTC's IIM; none where it is broken. Source: IPTC-NAA IIM 4.2."""
    found, at = [], 0
    while iim and at + 5 <= len(iim) and iim[at] == 0x1C:
        record, dataset, length = struct.unpack_from(">BBH", iim, at + 1)
        at += 5
        if length & 0x8000:  # the length of the length
            wide = length & 0x7FFF
            length, at = int.from_bytes(iim[at : at + wide], "big"), at + wide
        if at + length > len(iim):
            return []
        found.append((record, dataset, iim[at : at + length]))
        at += length
    return found


def _without_previews(iptc: bytes) -> bytes | None:
    datasets = _datasets(iptc)
    kept = [each for each in datasets if each[:2] not in IPTC_PREVIEWS and each[0] < IPTC_OBJECT]
    return iptc if len(kept) == len(datasets) else _iim(kept)


def _iim(datasets: Iterable[tuple[int, int, bytes]]) -> bytes | None:
    parts = [
        struct.pack(">BBBH", 0x1C, record, dataset, len(value)) + value
        if len(value) < 0x8000
        else struct.pack(">BBBHI", 0x1C, record, dataset, 0x8004, len(value)) + value
        for record, dataset, value in datasets
    ]
    return b"".join(parts) or None


def _from_photoshop(resources: bytes) -> bytes | None:
    """IPTC's block among Photoshop's image resources. Source: Adobe Photoshop File Formats Specification, "Image Resource Blocks"."""
    at = 0
    while resources[at : at + 4] == b"8BIM" and at + 12 <= len(resources):
        (kind,) = struct.unpack_from(">H", resources, at + 4)
        at += 6 + (resources[at + 6] + 2) // 2 * 2  # a name, its length with it, padded to an even size
        length = int.from_bytes(resources[at : at + 4], "big")
        if kind == IPTC_RESOURCE:
            return resources[at + 4 : at + 4 + length]
        at += 4 + (length + 1) // 2 * 2
    return None


def _photoshop(iptc: bytes) -> bytes:
    return b"8BIM" + struct.pack(">HHI", IPTC_RESOURCE, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)


# JPEG. Source: ITU-T T.81, Annex B; ICC.1, Annex B.4; XMP Specification Part 3.

MAX_SEGMENT_BYTES = 65_533


class Jpeg:
    """Gathers the blocks of a JPEG's segments, given one by one as (the marker's second byte, what follows its length)."""

    def __init__(self) -> None:
        self._icc: dict[int, bytes] = {}
        self._icc_parts, self._icc_broken = 0, False
        self._photoshop = bytearray()
        self._found: dict[str, Any] = {}

    def segment(self, marker: int, body: bytes) -> None:
        if marker == 0xE0 and body.startswith(JFIF_HEAD) and len(body) >= 12:
            unit, across, down = struct.unpack_from(">BHH", body, 7)
            if unit and across and down:
                self._found["dpi"] = (across, down) if unit == 1 else (across * 2.54, down * 2.54)
        elif marker == 0xE1 and body.startswith(EXIF_HEAD):
            self._found.setdefault("exif", body)
        elif marker == 0xE1 and body.startswith(XMP_HEAD):
            self._found.setdefault("xmp", body.removeprefix(XMP_HEAD))
        elif marker == 0xE1 and body.startswith(XMP_MORE_HEAD):
            self._found["broken"] = ("extended xmp",)
        elif marker == 0xE2 and body.startswith(ICC_HEAD) and len(body) >= 14:
            number, parts = body[12:14]
            self._icc_broken |= number in self._icc or not 1 <= number <= parts or (self._icc_parts or parts) != parts
            self._icc_parts, self._icc[number] = parts, body[14:]
        elif marker == 0xED and body.startswith(PHOTOSHOP_HEAD) and len(self._photoshop) < MAX_BLOCK_BYTES:
            self._photoshop += body.removeprefix(PHOTOSHOP_HEAD)

    def metadata(self) -> Metadata:
        icc = None
        if self._icc:
            whole = not self._icc_broken and len(self._icc) == self._icc_parts
            icc = b"".join(self._icc[number] for number in sorted(self._icc)) if whole else b""
        return Metadata(icc=icc, iptc=_from_photoshop(bytes(self._photoshop)), **self._found)


def jpeg_options(metadata: Metadata) -> dict[str, Any]:
    """Of Pillow's encoder. A block that a segment cannot hold was left out by `fitting`."""
    options = _options(metadata, exif=metadata.exif, icc_profile=metadata.icc, xmp=metadata.xmp)
    if metadata.dpi:
        options["dpi"] = tuple(round(value) for value in metadata.dpi)
    if metadata.iptc:
        body = PHOTOSHOP_HEAD + _photoshop(metadata.iptc)
        options["extra"] = b"\xff\xed" + struct.pack(">H", len(body) + 2) + body
    return options


def riff_options(metadata: Metadata) -> dict[str, Any]:
    """Of Pillow's encoders of WebP, AVIF and HEIC."""
    return _options(metadata, exif=metadata.exif, icc_profile=metadata.icc, xmp=metadata.xmp)


def _options(metadata: Metadata, **blocks: bytes | None) -> dict[str, Any]:
    return {name: block for name, block in blocks.items() if block is not None}


# PNG. Source: Portable Network Graphics Specification, third edition.


def inflated(data: bytes) -> bytes | None:
    """What it unpacks to, if that is whole and not too large."""
    stream = zlib.decompressobj()
    try:
        block = stream.decompress(data, MAX_BLOCK_BYTES)
    except zlib.error:
        return None
    return block if stream.eof else None


class Png:
    """Gathers the blocks of a PNG's chunks, given one by one; `whole` says whether the chunk's sum was right."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}
        self._colour: dict[bytes, bytes] = {}
        self._broken: list[str] = []
        self._tried: set[str] = set()  # each block once: it may inflate to much more than it is

    def chunk(self, kind: bytes, body: bytes, whole: bool) -> None:
        readers: dict[bytes, tuple[str, Callable[[], bytes | None]]] = {
            b"iCCP": ("icc", lambda: inflated(body.partition(b"\0")[2][1:])),
            b"eXIf": ("exif", lambda: EXIF_HEAD + body.removeprefix(EXIF_HEAD)),
            b"iTXt": ("xmp", lambda: _png_xmp(body)),
            b"zTXt": ("iptc", lambda: _png_iptc(inflated(body[len(PNG_IPTC) + 2 :]))),
            b"tEXt": ("iptc", lambda: _png_iptc(body[len(PNG_IPTC) + 1 :])),
        }
        keyword = {b"iTXt": PNG_XMP, b"zTXt": PNG_IPTC, b"tEXt": PNG_IPTC}.get(kind)
        if kind in readers and (keyword is None or body.startswith(keyword + b"\0")):
            name, read = readers[kind]
            block = read() if whole and name not in self._tried else None
            if block is not None:
                self._found[name] = block
            elif name not in self._tried:
                self._broken.append(name)
            self._tried.add(name)
        elif kind == b"pHYs" and whole and len(body) == 9 and body[8] == 1:
            across, down = (value * 0.0254 for value in struct.unpack(">II", body[:8]))
            if across and down:
                self._found["dpi"] = (across, down)
        elif kind in PNG_COLOUR and whole:
            self._colour.setdefault(kind, body)
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and "text" not in self._broken:
            self._broken.append("text")

    def metadata(self) -> Metadata:
        return Metadata(**self._found, colour=tuple(self._colour.items()), broken=tuple(dict.fromkeys(self._broken)))


def _png_xmp(body: bytes) -> bytes | None:
    packed = body[len(PNG_XMP) + 1 : len(PNG_XMP) + 2] == b"\1"
    text = body[len(PNG_XMP) + 3 :].partition(b"\0")[2].partition(b"\0")[2]
    return inflated(text) if packed else text


def _png_iptc(text: bytes | None) -> bytes | None:
    """As ImageMagick and ExifTool write it: a name, the size, and hexadecimal digits, each on lines of its own."""
    if text is None or len(text) > MAX_BLOCK_BYTES:
        return None
    try:
        raw = bytes.fromhex(text.split(b"\n", 3)[3].decode("ascii"))
    except (IndexError, ValueError):
        return None
    return _from_photoshop(raw) if raw.startswith(b"8BIM") else raw


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_chunks(metadata: Metadata) -> bytes:
    """What goes behind the header."""
    chunks = []
    if metadata.icc:
        chunks.append((b"iCCP", b"icc\0\0" + zlib.compress(metadata.icc, 1)))
    chunks += [(kind, body) for kind, body in metadata.colour if not (metadata.icc and kind == b"sRGB")]  # PNG allows one of the two
    if metadata.dpi:
        chunks.append((b"pHYs", struct.pack(">IIB", *(round(value / 0.0254) for value in metadata.dpi), 1)))
    if metadata.exif:
        chunks.append((b"eXIf", metadata.exif.removeprefix(EXIF_HEAD)))
    if metadata.xmp:
        chunks.append((b"iTXt", PNG_XMP + b"\0\0\0\0\0" + metadata.xmp))
    if metadata.iptc:
        digits = re.sub(rb"(.{72})", rb"\1\n", metadata.iptc.hex().encode())
        chunks.append((b"zTXt", PNG_IPTC + b"\0\0" + zlib.compress(b"\niptc\n%8d\n%b\n" % (len(metadata.iptc), digits), 1)))
    return b"".join(png_chunk(kind, body) for kind, body in chunks)


# TIFF


def from_tiff(page: Directory) -> tuple[int, Metadata]:
    """The orientation and the blocks of one page."""
    described = Directory({tag: page[tag] for tag in (*DESCRIBED, tiff.EXIF, tiff.GPS) if tag in page})
    exif = EXIF_HEAD + b"II*\0\x08\0\0\0" + tiff.laid(described, 8) if described else None
    iptc = page.bytes(TIFF_IPTC)
    metadata = Metadata(
        icc=page.bytes(TIFF_ICC),
        exif=exif,
        xmp=page.bytes(TIFF_XMP),
        iptc=iptc.rstrip(b"\0") if iptc else None,  # it is padded to whole words
        dpi=_tiff_dpi(page),
    )
    return page.number(tiff.ORIENTATION, 1), metadata


def to_tiff(metadata: Metadata) -> Directory:
    """The tags that say it."""
    page = Directory()
    if metadata.exif:
        try:
            first = next(tiff.Structure(metadata.exif.removeprefix(EXIF_HEAD)).pages())
            page |= {tag: first[tag] for tag in (*DESCRIBED, tiff.EXIF, tiff.GPS) if tag in first}
        except (TiffError, StopIteration):
            pass
    for tag, kind, block in (
        (TIFF_XMP, tiff.BYTE, metadata.xmp),
        (TIFF_IPTC, tiff.UNDEFINED, metadata.iptc),
        (TIFF_ICC, tiff.UNDEFINED, metadata.icc),
    ):
        if block:
            page[tag] = Entry(kind, block)
    if metadata.dpi:
        for tag, value in zip((282, 283), metadata.dpi, strict=True):
            under = 1000 if round(value * 1000) < 2**32 else 1
            page[tag] = Entry(tiff.RATIONAL, struct.pack("<II", round(value * under), under))
        page[296] = tiff.shorts(2)  # ResolutionUnit: inch
    return page


def _tiff_dpi(page: Directory) -> tuple[float, float] | None:
    unit = {2: 1.0, 3: 2.54}.get(page.number(296, 2))
    values = []
    for tag in (282, 283):
        data = page.bytes(tag)
        if unit is None or data is None or len(data) < 8:
            return None
        over, under = struct.unpack("<II", data[:8])
        if not over or not under or over / under > 1e6:
            return None
        values.append(over / under * unit)
    return values[0], values[1]


# BMP

PIXELS_AN_INCH = 39.3701
"""Of a resolution in pixels a metre, as Pillow has it."""


def bmp_options(metadata: Metadata) -> dict[str, Any]:
    """Of Pillow's encoder, which would tell 96 dots an inch where none are known."""
    return {"dpi": metadata.dpi or (0, 0)}


# What a format cannot hold

HELD: dict[str, tuple[str, ...]] = {
    "png": ("icc", "exif", "xmp", "iptc", "dpi", "colour"),
    "jpeg": ("icc", "exif", "xmp", "iptc", "dpi"),
    "tiff": ("icc", "exif", "xmp", "iptc", "dpi"),
    "webp": ("icc", "exif", "xmp"),
    "avif": ("icc", "exif", "xmp"),
    "heic": ("icc", "exif", "xmp"),
    "bmp": ("dpi",),
}
DOTS: dict[str, tuple[float, int]] = {  # what one of them is in dots an inch, and how many of them a format holds at most
    "png": (0.0254, 2**31 - 1),
    "jpeg": (1, 65_535),
    "tiff": (0.001, 1000 * (2**32 - 1)),
    "bmp": (1 / PIXELS_AN_INCH, 2**31 - 1),
}
SEGMENT_HEADS = {"exif": b"", "xmp": XMP_HEAD, "iptc": PHOTOSHOP_HEAD + _photoshop(b"")}  # with the block in one segment of a JPEG
NOTHING: dict[str, Any] = {"icc": None, "exif": None, "xmp": None, "iptc": None, "dpi": None, "colour": ()}


def fitting(metadata: Metadata, format: str, moving: bool = False) -> tuple[Metadata, dict[str, str]]:
    """What of it `format` holds, and why not the rest: a block's name, and the reason in a few words. `moving`: in an animation."""
    reasons = {name: _unfit(name, getattr(metadata, name), format, moving) for name in NOTHING}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    return dataclasses.replace(metadata, **{name: NOTHING[name] for name in left_out}), left_out


def _unfit(name: str, block: Any, format: str, moving: bool) -> str | None:
    if block in (None, ()):
        return None
    if name not in HELD.get(format, ()):
        return f"{format} holds none"
    if name == "icc" and block[16:20] == b"GRAY" and (format == "webp" or moving):  # frames of a PNG are RGB too, to be of one kind
        return f"of grey; {'animated ' * moving}{format} is RGB"
    if name == "dpi":
        unit, most = DOTS[format]
        if not all(value / unit < most + 0.5 for value in block):
            return f"{format} holds none so large"
        if not all(value / unit > 0.5 for value in block):
            return f"{format} holds none so small"
    if format == "jpeg" and name in SEGMENT_HEADS and len(SEGMENT_HEADS[name]) + len(block) > MAX_SEGMENT_BYTES:
        return f"{format} holds none so large"
    return None
