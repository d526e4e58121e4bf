"""Bytes of a picture file in, samples out, by libvips and Pillow. Holds no tensor and loads no torch, so that a small process can do it.

Refuses whatever it could only read by silently losing something (a file cut short, a broken stretch of JPEG, samples of a rare depth).
Every refusal is an `ImageError`, its text fit for the person who sent the file.

libvips decodes what it reads at full depth and strictly (PNG, JPEG, TIFF), Pillow the rest; no pixel is decoded before size, depth and
frames are found within the limits. Pixels go, a strip at a time, to their upright place in memory that the caller gives.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import mmap
import os
import re
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.WebPImagePlugin import WebPImageFile

from core import animation, avif, tiff
from core import metadata as blocks
from core.metadata import Metadata
from core.vips import pyvips

Data = bytes | mmap.mmap
"""A file's bytes. Those that can be written to belong to whoever opens the file: it may change them, and makes no copy."""
Samples = NDArray[Any]
"""(H, W, C) uint8, uint16 or float32; C: grey or RGB, alpha behind it."""
GoOn = Callable[[], None]
"""Asked between strips and frames; whatever it raises ends the decoding."""

SEGMENT = re.compile(rb"\xff[^\0\x01\xff\xd0-\xd8]")  # a JPEG marker that a length follows, or the last one
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a JPEG's frame, by how it is coded
HARMLESS = re.compile(r"unable to .*\n(\s*VipsJpeg: Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9\n)+")
"""What libjpeg warns of behind the last scan, and has lost nothing by: the whole text, for it may be said with worse."""
JFIF_REVISED = re.compile(rb"JFIF\0[^\1].{8}", re.DOTALL)  # of a revision that there is not
TURNS: dict[int, Callable[[Samples], Samples]] = {  # EXIF orientation -> what makes (H, W, ...) upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
BACK = {6: 8, 8: 6}
"""The orientation that undoes one; each of the others undoes itself."""
KINDS = {"uchar": "uint8", "ushort": "uint16", "float": "float32"}
MAX_PARTS = 1 << 16  # chunks of a PNG, segments of a JPEG: each is looked at, and may be next to nothing
PART_BYTES = 4096  # a larger part does not count: there are no more of them than the file has room for
STRIP_BYTES = 1 << 18  # decoded at a time
LARGE_BYTES = 1 << 24  # a smaller file is copied where that is simpler

pillow_heif: Any = import_module("pillow_heif") if find_spec("pillow_heif") else None  # the extra `heic`


class ImageError(ValueError):
    """The picture cannot be read or written; the text says to its sender what is wrong and what to do."""


@dataclass(frozen=True)
class Limits:
    """What is read at most. Size, frames and scans are known before any pixel is decoded."""

    max_pixels: int = 40_000_000  # of a frame
    max_total_pixels: int = 200_000_000  # of all frames together
    max_side_pixels: int = 32_768
    max_frames: int = 200
    max_scans: int = 64  # of a progressive JPEG: each one is a pass over the whole picture, for a few bytes of file
    max_decode_seconds: float = 30.0  # for a frame
    max_decode_seconds_per_megapixel: float = 0.5  # of a processor, beside one second; where a process of its own decodes
    max_decode_bytes: int = 256 << 20  # beside 32 a pixel of a frame and 1 a byte of the file; where a process of its own decodes


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Frame:
    """What is known of one picture of a file before its pixels are. H, W: height and width, upright."""

    height: int
    width: int
    channels: int  # 1, grey, or 3
    alpha: bool
    kind: str  # numpy's name of the samples' type
    metadata: Metadata  # checked
    changed: tuple[str, ...] = ()  # what is not as it came
    milliseconds: int = 0  # that an animation shows it


Passed = Callable[[int], None]
"""Is told now and then how many rows, from the top, are there; may raise, to end it."""

Fill = Callable[[Samples, Samples | None, Passed], None]
"""Decodes a frame's pixels into (H, W, channels) and, if there is alpha, (H, W)."""


@dataclass(frozen=True)
class Opened:
    """A file whose header was read and found within the limits."""

    format: str
    count: int  # of frames
    width: int  # of the first frame
    height: int
    pixels: int  # of all frames together
    frames: Callable[[GoOn], Iterator[tuple[Frame, Fill]]]  # each as it is asked for, to be filled before the next
    loop: int | None = None  # times that an animation is shown, 0 for ever, None: not told


Opener = Callable[[Data, Limits], Opened]


@contextmanager
def told(name: str, *through: type[Exception]) -> Iterator[None]:
    """Turns whatever a decoder raises on hostile bytes, from SyntaxError to MemoryError, into an ImageError; `through` passes."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError("the picture is too large: shrink it") from None
    except Exception as error:
        if isinstance(error, through):
            raise
        raise ImageError(f"the {name} picture is broken, cut short or of a rare kind: save it anew as plain PNG or JPEG") from error


# --- limits ----------------------------------------------------------------------------------------------------------


def _check_size(width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"the picture is {width} x {height}; each side must be at least 1: send one with pixels")
    if max(width, height) > limits.max_side_pixels:
        raise ImageError(f"the picture is {width} x {height}; a side may be at most max_side_pixels = {limits.max_side_pixels}: shrink it")
    if width * height > limits.max_pixels:
        raise ImageError(
            f"the picture has {width * height} pixels; at most max_pixels = {limits.max_pixels} are accepted: shrink it or raise the limit"
        )


def _check_frames(count: int, pixels: int, limits: Limits) -> None:
    if count > limits.max_frames:
        raise ImageError(f"the file holds {count} frames; at most max_frames = {limits.max_frames} are accepted: send fewer at a time")
    if pixels > limits.max_total_pixels:
        raise ImageError(
            f"the file's frames have {pixels} pixels together; at most max_total_pixels = {limits.max_total_pixels} are accepted: "
            "send fewer frames at a time"
        )


def late(limits: Limits) -> ImageError:
    return ImageError(f"decoding took longer than max_decode_seconds = {limits.max_decode_seconds:g}: send a smaller picture")


def _timed(limits: Limits, passed: Passed) -> Passed:
    """Raises, too, once the time for a frame is over."""
    deadline = time.monotonic() + limits.max_decode_seconds

    def look(rows: int) -> None:
        passed(rows)
        if time.monotonic() > deadline:
            raise late(limits)

    return look


# --- strips ----------------------------------------------------------------------------------------------------------


def _fill(strips: Iterator[tuple[int, Samples]], orientation: int, colours: Samples, alpha: Samples | None, passed: Passed) -> None:
    """Puts strips, each with its first row as the file counts, to their upright places."""
    turn = BACK.get(orientation, orientation)
    back: Callable[[Samples], Samples] = TURNS.get(turn, lambda a: a)
    lying, lying_alpha = back(colours), None if alpha is None else back(alpha)  # views, in the file's own order
    passed(0)
    for top, strip in strips:
        rows = slice(top, top + len(strip))
        if lying_alpha is None:
            lying[rows] = strip
        else:
            lying[rows] = strip[..., :-1]
            lying_alpha[rows] = strip[..., -1]
        passed(0 if orientation in TURNS else rows.stop)


def _frame(
    size: tuple[int, int], bands: int, kind: str, orientation: int, metadata: Metadata,
    strips: Callable[[], Iterator[tuple[int, Samples]]], limits: Limits, **more: Any,
) -> tuple[Frame, Fill]:  # fmt: skip
    """`size`: width and height as the file has them."""
    width, height = size if orientation < 5 or orientation not in TURNS else size[::-1]

    def fill(colours: Samples, alpha: Samples | None, passed: Passed) -> None:
        _fill(strips(), orientation, colours, alpha, _timed(limits, passed))

    grey = bands < 3
    return Frame(height, width, 1 if grey else 3, bands in (2, 4), kind, metadata.checked(grey), **more), fill


def _rows(width: int, bands: int, itemsize: int) -> int:
    return max(16, STRIP_BYTES // (width * bands * itemsize))


# --- libvips ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> Data:
    """A file's bytes; a large one's may be written to."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < LARGE_BYTES:
            return file.read()
        data = mmap.mmap(-1, size)  # memory of its own: a file that is cut short meanwhile does no harm
        data.resize(file.readinto(data))
        return data


class _Reader(io.RawIOBase):
    """A file's bytes as a file, of which no copy is made."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        piece = self._data[self._at : self._at + len(into)]
        into[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._data)}[whence])
        return self._at


def _loaded(load: Callable[..., pyvips.Image], data: Data | memoryview, **options: Any) -> pyvips.Image:
    """An image that is decoded from `data` as it is asked for. libvips knows the address alone: who holds the image must hold `data`."""
    return load(pyvips.Source.new_from_memory(data), access="sequential", **options)


def _by_vips(
    image: pyvips.Image, data: object, orientation: int, metadata: Metadata, limits: Limits,
    again: Callable[[pyvips.Error], pyvips.Image] | None = None, changed: tuple[str, ...] = (),
) -> tuple[Frame, Fill]:  # fmt: skip
    """`data`: what the image is decoded from. `again`: what to decode instead after an error, or that raises it."""
    if image.format not in KINDS or image.bands > 4:
        raise ImageError(f"the picture has {image.bands} channels of {image.format}; it must be grey or RGB of 8 or 16 bits: save it so")
    size, bands, kind = (image.width, image.height), image.bands, KINDS[image.format]

    def strips(held: object = data) -> Iterator[tuple[int, Samples]]:
        try:
            yield from _vips_strips(image, kind)
        except pyvips.Error as error:
            if again is None:
                raise
            other = again(error)
            if (other.width, other.height, other.bands, other.format) != (*size, bands, image.format):
                raise
            yield from _vips_strips(other, kind)

    return _frame(size, bands, kind, orientation, metadata, strips, limits, changed=changed)


def _vips_strips(image: pyvips.Image, kind: str) -> Iterator[tuple[int, Samples]]:
    W, H, C = image.width, image.height, image.bands
    region, rows = pyvips.Region.new(image), _rows(W, C, np.dtype(kind).itemsize)
    for top in range(0, H, rows):
        height = min(rows, H - top)
        yield top, np.frombuffer(region.fetch(0, top, W, height), kind).reshape(height, W, C)


def _converted(image: pyvips.Image) -> tuple[pyvips.Image, tuple[str, ...]]:
    """CMYK as sRGB, by its own profile or else libvips' of a common press."""
    if image.interpretation != "cmyk":
        return image, ()
    if image.bands != 4:
        raise ImageError("the picture is CMYK with transparency; it must be grey or RGB: convert it to RGB first")
    depth = 16 if image.format == "ushort" else 8
    return image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=depth), ("CMYK became sRGB",)


def _one(format: str, image: pyvips.Image, limits: Limits, frames: Callable[[GoOn], Iterator[tuple[Frame, Fill]]]) -> Opened:
    _check_size(image.width, image.height, limits)
    return Opened(format, 1, image.width, image.height, image.width * image.height, frames)


def _upright(metadata: Metadata) -> tuple[int, Metadata]:
    orientation, exif = blocks.upright(metadata.checked(False).exif)
    return orientation, dataclasses.replace(metadata, exif=exif if exif is not None else metadata.exif).turned(orientation)


def open_png(data: Data, limits: Limits) -> Opened:
    clean, found, count = _screened_png(data)
    width, height = struct.unpack_from(">II", clean, 16)
    _check_size(width, height, limits)
    if count > 1:
        if clean[24] == 16:
            raise ImageError("the picture is animated and has 16 bits; animations are read with 8: save it so, or its frames one by one")
        return _animated_png(clean, found.metadata(), count, limits)

    def image() -> pyvips.Image:
        return _loaded(pyvips.Image.pngload_source, clean, fail_on="error")

    def frames(go_on: GoOn) -> Iterator[tuple[Frame, Fill]]:
        yield _by_vips(image(), clean, *_upright(found.metadata()), limits)

    return _one("png", image(), limits, frames)


def _animated_png(clean: memoryview, said: Metadata, count: int, limits: Limits) -> Opened:
    """Laid here, for Pillow lays what is half transparent wrongly, and never undoes that."""
    width, height = struct.unpack_from(">II", clean, 16)
    _check_frames(count, count * width * height, limits)

    def strips(still: bytes) -> Iterator[tuple[int, Samples]]:
        yield from _vips_strips(_loaded(pyvips.Image.pngload_source, still, fail_on="error"), "uint8")

    frames = _laid((width, height), count, functools.partial(animation.png_parts, clean), strips, said, limits)
    return Opened("png", count, width, height, count * width * height, frames, animation.png_plays(clean))


def _laid(
    size: tuple[int, int], count: int, parts: Callable[[], Iterator[animation.Part]],
    strips: Callable[[bytes], Iterator[tuple[int, Samples]]], said: Metadata, limits: Limits, opaque: bool = False,
) -> Callable[[GoOn], Iterator[tuple[Frame, Fill]]]:  # fmt: skip
    """Frames as a reader shows them, one laid over the other. `opaque`: one through which nothing is seen comes without alpha."""
    width, height = size
    orientation, metadata = _upright(said)

    def frames(go_on: GoOn) -> Iterator[tuple[Frame, Fill]]:
        canvas, coming, grey = np.zeros((height, width, 4), np.uint8), parts(), True
        for _ in range(count):
            look = _timed(limits, lambda _: go_on())
            look(0)
            part, alpha = next(coming), False
            place = canvas[part.top : part.top + part.height, part.left : part.left + part.width]
            before = place.copy() if part.undone else None
            for top, strip in strips(part.still):
                look(top)
                rows = place[top : top + len(strip)]
                _lay(strip[: len(rows), : rows.shape[1]], rows, part.over)  # what leads out of the canvas is not seen
                grey &= strip.shape[-1] < 3
                alpha = strip.shape[-1] in (2, 4) and not opaque
            chosen = [0] if grey else [0, 1, 2]
            if alpha or canvas[..., 3].min() < 255:
                chosen.append(3)
            yield _frame(
                size, len(chosen), "uint8", orientation, metadata, functools.partial(_canvas_strips, canvas, chosen), limits,
                milliseconds=part.milliseconds,
            )  # fmt: skip
            if part.cleared is not None:
                place[:] = part.cleared
                grey &= len({*part.cleared[:3]}) == 1
            elif before is not None:
                place[:] = before

    return frames


def _lay(strip: Samples, place: Samples, over: bool) -> None:
    """(H, W, 1 to 4) uint8 onto (H, W, 4): instead of what is there, or `over` it. Source: Porter and Duff, Compositing Digital Images."""
    C = strip.shape[-1]
    colours, alpha = strip[..., : 1 if C < 3 else 3], strip[..., -1:] if C in (2, 4) else np.full_like(strip[..., -1:], 255)
    if not over:
        place[..., :3], place[..., 3:] = colours, alpha
        return
    seen = alpha > 0
    if (alpha[seen] == 255).all():
        np.copyto(place[..., :3], colours, where=seen)
        np.copyto(place[..., 3:], alpha, where=seen)
        return
    above = alpha / np.float32(255)
    below = place[..., 3:] / np.float32(255) * (1 - above)
    both = above + below
    mixed = (colours * above + place[..., :3] * below) / np.where(both > 0, both, 1)
    place[..., :3] = np.where(alpha > 0, np.rint(mixed), place[..., :3])
    place[..., 3:] = np.rint(both * 255)


def _canvas_strips(canvas: Samples, chosen: list[int]) -> Iterator[tuple[int, Samples]]:
    rows = _rows(canvas.shape[1], len(chosen), 1)
    for top in range(0, len(canvas), rows):
        yield top, canvas[top : top + rows][..., chosen]


def _screened_png(data: Data) -> tuple[memoryview, blocks.Png, int]:
    """The chunks that make pixels, each sum checked; what the others say; how many frames there are. What trails is dropped."""
    whole_file = memoryview(data)
    kept, position, kind, found, count = [(0, 8, b"")], 8, b"", blocks.Png(), 1
    parts = 0
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        begin, position = position, position + length + 12
        chunk = whole_file[begin:position]
        parts += length < PART_BYTES
        if parts > MAX_PARTS:
            raise ImageError(f"the png picture has more than {MAX_PARTS} parts: save it anew")
        body = chunk[8:-4]
        whole = len(chunk) == length + 12 and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        frame = kind in (b"acTL", b"fcTL", b"fdAT")
        if (kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS") or frame) and not whole:
            raise ImageError(f"the png picture's {kind.decode()} part is damaged or cut short: send an unharmed copy")
        if kind == b"acTL":
            count = int.from_bytes(body[:4], "big")
        if kind[0] < ord("a") or kind == b"tRNS" or frame:  # a capital begins the name of a chunk that no decoder may skip
            kept.append((begin, position, kind))
        else:
            found.chunk(kind, bytes(body), whole)
    if not 1 < count < 1 << 31:  # a still picture to every reader
        count = 1
        kept = [chunk for chunk in kept if chunk[2] not in (b"acTL", b"fcTL", b"fdAT")]
    first = next((begin for begin, _, kind in kept if kind == b"fcTL"), 0)
    kept = [chunk for chunk in kept if chunk[2] != b"IDAT" or chunk[0] > first]  # before that it is no frame: other readers show it instead
    stretches: list[list[int]] = []
    for begin, end, _ in kept:
        if stretches and stretches[-1][1] == begin:
            stretches[-1][1] = end
        else:
            stretches.append([begin, end])
    return _together(whole_file, stretches), found, count


def _together(data: memoryview, stretches: Sequence[Sequence[int]]) -> memoryview:
    """Stretches of a file without what lies between them: in place where it can be written to, the others moved up to the largest."""
    if len(stretches) > 1 and data.readonly:
        return memoryview(b"".join(data[begin:end] for begin, end in stretches))
    largest = max(range(len(stretches)), key=lambda number: stretches[number][1] - stretches[number][0])
    first, last = stretches[largest]
    for begin, end in reversed(stretches[:largest]):
        data[first - (end - begin) : first] = bytes(data[begin:end])
        first -= end - begin
    for begin, end in stretches[largest + 1 :]:
        data[last : last + end - begin] = bytes(data[begin:end])
        last += end - begin
    return data[first:last]


def open_jpeg(data: Data, limits: Limits) -> Opened:
    clean, found, restarts = _screened_jpeg(data, limits)

    def image(fail_on: str) -> pyvips.Image:
        return _loaded(pyvips.Image.jpegload_source, clean, fail_on=fail_on)

    def leniently(error: pyvips.Error) -> pyvips.Image:
        if restarts or not HARMLESS.fullmatch(str(error)):  # before a restart it says so too, and of all that it warns of only the first
            raise error
        return _converted(image("error"))[0]

    def frames(go_on: GoOn) -> Iterator[tuple[Frame, Fill]]:
        orientation, metadata = _upright(found.metadata())
        source, changed = _converted(image("warning"))  # libjpeg fills what is missing with grey, and no more than warns of it
        if changed:  # its profile was used up
            metadata = dataclasses.replace(metadata, icc=None)
        yield _by_vips(source, clean, orientation, metadata, limits, leniently, changed)

    return _one("jpeg", image("error"), limits, frames)


def _screened_jpeg(data: Data, limits: Limits) -> tuple[memoryview, blocks.Jpeg, bool]:
    """The file without what libjpeg only warns of in a header; what the segments there say; whether the scans may have restart markers.

    Counts scans, as the decoder will meet them: segment by segment, then on to the next marker. What goes is what lies between two
    segments, and with them before the first scan; a JFIF revision that is none becomes 1. No copy is made where nothing is wrong.
    """
    position, scans, parts, found, sent = 2, 0, 0, blocks.Jpeg(), _Sent()
    restarts, revisions, stretches = False, list[int](), [[0, len(data)]]
    while marker := SEGMENT.search(data, position):
        kind = marker[0][1]
        parts += 1
        if parts > MAX_PARTS:
            raise ImageError(f"the jpeg picture has more than {MAX_PARTS} parts: save it anew")
        between = b"" if scans else data[position : marker.start()].rstrip(b"\xff")  # those fill up
        if between and b"\xff\xd8" not in between:  # of a second beginning libjpeg does more than warn
            stretches[-1][1] = position
            stretches.append([position + len(between), len(data)])
        restarts |= kind == 0xDD
        if kind == 0xD9:
            break
        scans += kind == 0xDA
        if scans > limits.max_scans:
            raise ImageError(f"the jpeg picture has more than max_scans = {limits.max_scans} scans: save it anew, not progressive")
        begin = marker.end() + 2
        end = max(begin, marker.end() + int.from_bytes(data[marker.end() : begin], "big"))
        if kind == 0xDA:
            sent.scan(data[begin:end])
        if not scans and kind in FRAMES:
            sent.frame(kind, data[begin:end])
        if not scans and 0xE0 <= kind <= 0xEF:
            found.segment(kind, data[begin:end])
        if not scans and kind == 0xE0 and JFIF_REVISED.match(data, begin, min(end, len(data))):
            revisions.append(begin + len(blocks.JFIF_HEAD))
        position = end
    if scans and not sent.all:
        raise ImageError("the jpeg picture lacks some of its scans: send an unharmed copy")
    whole_file = memoryview(data)
    if revisions and whole_file.readonly:
        whole_file = memoryview(bytearray(data))
    for place in revisions:
        whole_file[place] = 1
    return _together(whole_file, stretches), found, restarts


class _Sent:
    """How many low bits of each component's 64 coefficients a JPEG's scans have not sent so far: the decoder takes them for zeros.

    The standard does not ask for all of them, but every encoder sends them. Source: ITU-T T.81, B.2.2, B.2.3 and G.1.1.
    """

    def __init__(self) -> None:
        self._missing: dict[int, list[int]] = {}
        self._progressive = False

    def frame(self, kind: int, body: bytes) -> None:
        """Its header, from behind the length."""
        self._progressive = kind & 3 == 2
        self._missing = {component: [16] * 64 for component in body[6 : 6 + 3 * body[5] : 3]}

    def scan(self, body: bytes) -> None:
        """As `frame`; what makes no sense is the decoder's to refuse, if it comes that far."""
        if len(body) != 4 + 2 * int.from_bytes(body[:1], "big"):
            return
        first, last, low = body[-3:] if self._progressive else (0, 63, 0)
        for component in body[1:-3:2]:
            if component in self._missing:
                self._missing[component][first : last + 1] = [low & 15] * (last + 1 - first)

    @property
    def all(self) -> bool:
        return not any(map(any, self._missing.values()))


def open_tiff(data: Data, limits: Limits) -> Opened:
    pages: list[tuple[int, tiff.Directory]] = []
    pixels = 0
    for number, page in enumerate(tiff.Structure(data).pages()):
        if number >= 2 * limits.max_frames:
            _check_frames(number, pixels, limits)
        if number and page.number(254, 0) & 1:  # a smaller version of another page
            continue
        width, height = page.number(256, 0), page.number(257, 0)
        _check_size(width, height, limits)
        pixels += width * height
        pages.append((number, page))
        _check_frames(len(pages), pixels, limits)
        _check_tiff(page)

    def frames(go_on: GoOn) -> Iterator[tuple[Frame, Fill]]:
        for number, page in pages:
            orientation, metadata = blocks.from_tiff(page)
            metadata = metadata.turned(orientation)
            image = _loaded(pyvips.Image.tiffload_source, data, page=number, fail_on="error")
            if (image.width, image.height) != (page.number(256, 0), page.number(257, 0)):
                raise ImageError("the tiff picture's directories contradict each other: save it anew")
            source, changed = _converted(image)
            if changed:
                metadata = dataclasses.replace(metadata, icc=None)
            yield _by_vips(source, data, orientation, metadata, limits, changed=changed)

    if not pages:
        raise ImageError("the tiff file holds no picture: send one that does")
    first = pages[0][1]
    return Opened("tiff", len(pages), first.number(256, 0), first.number(257, 0), pixels, frames)


def _check_tiff(page: tiff.Directory) -> None:
    bits, kinds, channels = set(page.numbers(258, (1,))), set(page.numbers(339, (1,))), page.number(277, 1)
    photometric = page.number(262, 1)
    if kinds == {3} and bits == {32}:
        fine = photometric in (1, 2)
    else:
        if not kinds <= {1, 4}:  # 4: undefined, as good as unsigned
            raise ImageError(
                "the picture's samples are signed, or floats of another depth than 32 bits: save it unsigned, or as 32-bit floats"
            )
        if len(bits) > 1 or not bits <= {1, 2, 4, 8, 16}:
            raise ImageError(f"the picture has {max(bits)} bits a sample; it must have 1, 2, 4, 8 or 16, or 32-bit floats: save it so")
        fine = photometric in (0, 1, 2, 3, 5, 6)
    if not fine or channels > (5 if photometric == 5 else 4 if photometric in (2, 6) else 2):
        raise ImageError("the picture's samples are of a rare kind; they must be grey, RGB or CMYK: convert it to RGB first")


# --- Pillow ----------------------------------------------------------------------------------------------------------

GREY_MODES = ("L", "LA", "La", "1")
COLOUR_MODES = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr")


def _files(data: Data | memoryview) -> Callable[[], IO[bytes]]:
    """What opens the bytes as a file."""
    return lambda: io.BytesIO(data) if len(data) < LARGE_BYTES else io.BufferedReader(_Reader(memoryview(data)))


def _by_pillow(
    name: str, files: Callable[[], Any], decoder: Callable[[Any], ImageFile.ImageFile], limits: Limits, grey: bool = False
) -> Opened:
    """`grey`: what the decoder gives is, be it as colours."""
    # The decoder's class rather than Image.open: no other format is ever tried, and the size limit is ours alone.
    image = decoder(files())
    width, height = image.size
    _check_size(width, height, limits)
    count = getattr(image, "n_frames", 1)
    _check_frames(count, count * width * height, limits)
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise ImageError(f"the picture's samples are {image.mode}; they must be grey or RGB: convert it to RGB first")
    orientation, said = _upright(_said(image))
    image.close()

    def frames(go_on: GoOn) -> Iterator[tuple[Frame, Fill]]:
        with decoder(files()) as image:
            for number in range(count):
                look = _timed(limits, lambda _: go_on())
                look(0)
                image.seek(number)
                image.load()
                if count == 1 and image.fp is not None:
                    image.fp.close()  # a decoder's own output, whole, which Pillow has taken its pixels from
                look(0)
                shown = round(image.info.get("duration") or 0)
                mode = _mode(image, grey)
                strips = functools.partial(_pillow_strips, image, mode)
                yield _frame(image.size, len(mode), "uint8", orientation, said, strips, limits, milliseconds=shown)

    loop = image.info.get("loop") if count > 1 else None
    return Opened(name, count, width, height, count * width * height, frames, loop)


def _mode(image: Image.Image, grey: bool = False) -> str:
    return ("L" if grey or image.mode in GREY_MODES else "RGB") + ("A" if image.has_transparency_data else "")


def _pillow_strips(image: Image.Image, mode: str) -> Iterator[tuple[int, Samples]]:
    rows = _rows(image.width, len(mode), 1)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        strip = strip if strip.mode == mode else strip.convert(mode)
        yield top, np.frombuffer(strip.tobytes(), np.uint8).reshape(strip.height, strip.width, len(mode))


def _said(image: ImageFile.ImageFile) -> Metadata:
    def block(name: str) -> bytes | None:
        found = image.info.get(name)
        return found if isinstance(found, bytes) and found else None

    exif, dpi = block("exif"), image.info.get("dpi", (0, 0))  # BMP's
    return Metadata(
        icc=block("icc_profile"),
        exif=None if exif is None else blocks.EXIF_HEAD + exif.removeprefix(blocks.EXIF_HEAD),
        xmp=block("xmp"),
        dpi=dpi if min(dpi) > 0 else None,
    )


def canvas_pixels(data: Data) -> int:
    """Of a WebP picture, by its header: its decoder makes a canvas, twice, as soon as it opens one. 0 of any other file."""
    width, height = _webp_size(data) if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else (0, 0)
    return width * height


def _webp_size(data: Data) -> tuple[int, int]:
    """Width and height, by the header of any of the three kinds. Source: RFC 9649, RFC 6386."""
    kind, head = data[12:16], data[20:30]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF


def open_webp(data: Data, limits: Limits) -> Opened:
    _check_size(*_webp_size(data), limits)
    return _by_pillow("webp", _files(data), WebPImageFile, limits)


def open_bmp(data: Data, limits: Limits) -> Opened:
    return _by_pillow("bmp", _files(data), BmpImageFile, limits)


def open_gif(data: Data, limits: Limits) -> Opened:
    count = animation.gif_count(data)
    _check_frames(count, 0, limits)  # before Pillow, which counts them by way of their pixels
    return _animated_gif(data, count, limits) if count > 1 else _by_pillow("gif", _files(data), GifImageFile, limits)


def _animated_gif(data: Data, count: int, limits: Limits) -> Opened:
    """Laid here, for Pillow clears and undoes some frames wrongly. The first frame widens a screen that it leads out of."""
    width, height = struct.unpack_from("<HH", data, 6)
    pixels = 0
    for number, part in enumerate(animation.gif_parts(data)):
        if number == 0:
            width, height = max(width, part.left + part.width), max(height, part.top + part.height)
            _check_size(width, height, limits)
        _check_size(part.left + part.width, part.top + part.height, limits)
        pixels += max(width * height, part.width * part.height)
    _check_frames(count, pixels, limits)
    frames = _laid((width, height), count, functools.partial(animation.gif_parts, data), _gif_strips, Metadata(), limits, opaque=True)
    return Opened("gif", count, width, height, count * width * height, frames, animation.gif_plays(data))


def _gif_strips(still: bytes) -> Iterator[tuple[int, Samples]]:
    with GifImageFile(io.BytesIO(still)) as image:
        image.load()
        yield from _pillow_strips(image, _mode(image))


def open_avif(data: Data, limits: Limits) -> Opened:
    coding = avif.coding(memoryview(data))
    if not coding.eight_bits:
        raise ImageError("the avif picture has more than 8 bits a sample; only 8 are read: save it with 8 bits")
    opened = _by_pillow("avif", _files(data), _avif, limits, grey=coding.grey)
    if opened.count > 1:
        raise ImageError(f"the file holds {opened.count} frames; an avif picture must hold 1: save it as an animated webp")
    return opened


def _avif(file: IO[bytes]) -> AvifImageFile:
    """Opens again without EXIF what does not open with it: the decoder fails the whole picture for a broken block."""
    try:
        return AvifImageFile(file)
    except Exception:
        file.seek(0)
        return AvifImageFile(io.BytesIO(file.read().replace(b"Exif", b"none")))


# --- HEIC, where its extra is installed ---


def open_heic(data: Data, limits: Limits) -> Opened:
    """The primary picture. HEIC turns it upright itself, whatever its EXIF says."""
    file = pillow_heif.open_heif(_files(data)(), convert_hdr_to_8bit=False)
    width, height = file.size
    _check_size(width, height, limits)

    def block(name: str) -> bytes | None:
        found = file.info.get(name)
        return found if isinstance(found, bytes) and found else None

    def frames(go_on: GoOn) -> Iterator[tuple[Frame, Fill]]:
        _, metadata = _upright(Metadata(icc=block("icc_profile"), exif=block("exif"), xmp=block("xmp")))
        samples = np.asarray(file)
        samples = samples if samples.ndim == 3 else samples[..., None]
        if "chroma" not in file.info and samples.shape[2] == 4 and (samples[..., :2] == samples[..., 1:3]).all():
            samples = samples[..., ::3]  # grey and alpha, which the decoder gives as colours
        size = samples.shape[1], samples.shape[0]
        yield _frame(size, samples.shape[2], samples.dtype.name, 1, metadata, lambda: iter([(0, samples)]), limits)

    return Opened("heic", 1, width, height, width * height, frames)


OPENERS: dict[str, Opener] = {
    each.__name__: each for each in (open_png, open_jpeg, open_webp, open_tiff, open_bmp, open_gif, open_avif, open_heic)
}
"""By name, for another process to ask for."""
