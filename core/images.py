"""Bytes of a picture file in, pixels out, and back: one table, `FORMATS`, drives sniffing, reading and writing.

Refuses whatever it could only read by silently losing something (a file cut short, a broken stretch of JPEG, samples of a rare depth), and
knows nothing of noise. Every refusal is an `ImageError`, its text fit for the person who sent the file.

libvips decodes what it reads at full depth and strictly (PNG, JPEG, TIFF), Pillow the rest; no pixel is decoded before size, depth and
frames are found within the limits. What is not as it came is named in `Picture.changed` and by `lost`: CMYK becomes sRGB, a palette or
1-bit picture returns as RGB or 8-bit grey (but GIF stays indexed), transparency is laid on white in JPEG and BMP, and is all or nothing in
GIF. Of a JPEG with more pictures behind the first (MPO, motion photos) only the first is taken.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import re
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

from core import animation, tiff
from core import metadata as blocks
from core.animation import Animation
from core.denoiser import Cancelled
from core.metadata import Metadata

Samples = NDArray[Any]
"""(H, W, C) uint8, uint16 or float32; C: grey or RGB, alpha behind it."""
KeepGoing = Callable[[], bool]

SEGMENT = re.compile(rb"\xff[^\0\x01\xff\xd0-\xd8]")  # a JPEG marker that a length follows, or the last one
HARMLESS = ("extraneous bytes before marker", "unknown JFIF revision")  # what libjpeg warns of, and has lost nothing by
TURNS: dict[int, Callable[[Samples], Samples]] = {  # EXIF orientation -> what makes (H, W, C) upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}
STEPS = {torch.uint8: 255, torch.uint16: 65535}
MAX_PARTS = 1 << 16  # chunks of a PNG, segments of a JPEG: each is looked at, and may be next to nothing
STRIP_ROWS = 256  # converted at a time, so that no float copy of a whole picture is made

pillow_heif: Any = import_module("pillow_heif") if find_spec("pillow_heif") else None  # the extra `heic`

os.environ.setdefault("VIPS_WARNING", "0")  # libvips looks as it loads: no line of its own among the log's
import pyvips  # noqa: E402

# pyvips hands libvips's warnings to Python's logging, from threads that libvips starts: Python's collector may then run there, where it
# drops libvips's own objects and aborts the process. The errors that count come back to the caller in any case.
if pyvips._log_handler_id is not None:
    pyvips._remove_handler(b"VIPS", pyvips._log_handler_id)
    pyvips._log_handler_id = None  # not once more at the end

# libvips decodes in one thread, keeps nothing of what it did, and has no other loader than these.
pyvips.concurrency_set(1)
pyvips.cache_set_max(0)
pyvips.operation_block_set("VipsForeignLoad", True)
for _loader in ("VipsForeignLoadPng", "VipsForeignLoadJpeg", "VipsForeignLoadTiff"):
    pyvips.operation_block_set(_loader, False)


class ImageError(ValueError):
    """The picture cannot be read or written; the text says to its sender what is wrong and what to do."""


NO_METADATA = Metadata()


@dataclass(frozen=True)
class Limits:
    """What is read at most. Size, frames and scans are known before any pixel is decoded."""

    max_pixels: int = 40_000_000  # of a frame
    max_total_pixels: int = 200_000_000  # of all frames together
    max_side_pixels: int = 32_768
    max_frames: int = 200
    max_scans: int = 64  # of a progressive JPEG: each one is a pass over the whole picture, for a few bytes of file
    max_decode_seconds: float = 30.0  # for a frame


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright. H, W: height and width."""

    samples: Tensor  # (H, W, 1 | 3) uint8, uint16 or floats, the floats in `span`
    alpha: Tensor | None = None  # (H, W) of the samples' type, its greatest value is opaque; never mixed into the samples
    grey: bool = False
    depth: int = 8  # bits a sample it came in with: 8, 16 or, floats, 32
    format: str = "png"
    metadata: Metadata = NO_METADATA
    span: tuple[float, float] = (0.0, 1.0)  # the values of float samples that are 0 and 1 to the denoiser
    changed: tuple[str, ...] = ()  # what is not as it came
    milliseconds: int = 0  # that an animation shows it

    @property
    def pixels(self) -> Tensor:
        """(H, W, 3) float32 in [0, 1]; of a grey picture the three channels are equal."""
        return _unit(self.samples, self.span).expand(-1, -1, 3).contiguous()

    def with_pixels(self, pixels: Tensor) -> Picture:
        """Floats in [0, 1], or integers as `visible` gives them, in place of the samples."""
        low, high = self.span
        if pixels.is_floating_point() and self.span != (0.0, 1.0):
            half = pixels * (high / 2 - low / 2)
            pixels = half + low + half
        return dataclasses.replace(self, samples=pixels)

    def visible(self) -> Tensor:
        """(H, W, 1 | 3) uint8, uint16 or float32 in [0, 1], for the denoiser: what is wholly transparent shows the colours beside it.

        So hidden colours do not bleed into those that are seen.
        """
        samples = self.samples if self.samples.dtype in STEPS else _unit(self.samples, self.span)
        if self.alpha is None or self.alpha.ne(0).all() or not self.alpha.ne(0).any():
            return samples
        return torch.from_numpy(_covered(samples.numpy(), self.alpha.numpy() != 0))

    def opaque(self, visible: Tensor) -> Tensor:
        """The part of `visible` around all that is not wholly transparent, to measure noise in."""
        if self.alpha is None:
            return visible
        seen = self.alpha.ne(0)
        rows, columns = (seen.any(axis).nonzero().flatten() for axis in (1, 0))
        if not len(rows):
            return visible
        return visible[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]

    def denoised(self, visible: Tensor) -> Picture:
        """With what became of `visible`, and under full transparency what was there."""
        clean = self.with_pixels(visible)
        if self.alpha is None:
            return clean
        hidden = self.alpha.eq(0).unsqueeze(-1)
        kept = self.samples.to(clean.samples.dtype)
        return dataclasses.replace(clean, samples=torch.where(hidden, kept, clean.samples))

    def cut(self, rows: slice, columns: slice) -> Picture:
        """A part of it, with all that is said of the whole."""
        alpha = None if self.alpha is None else self.alpha[rows, columns]
        return dataclasses.replace(self, samples=self.samples[rows, columns], alpha=alpha)

    def with_metadata(self, keep: str) -> Picture:
        """`keep`: all of it; `strip`: the colour profile only; `safe`: all but what tells the place."""
        chosen = {"keep": lambda it: it, "strip": Metadata.stripped, "safe": Metadata.safe}[keep]
        return dataclasses.replace(self, metadata=chosen(self.metadata))


@dataclass(frozen=True)
class Stack:
    """A file whose header was read and found within the limits. Nothing is decoded before its frames are asked for."""

    format: str
    count: int
    width: int  # of the first frame
    height: int
    pixels: int  # of all frames together
    frames: Callable[[KeepGoing], Iterator[Picture]]  # each as it is asked for
    loop: int | None = None  # times that an animation is shown, 0 for ever


@dataclass(frozen=True)
class Format:
    """One row of the table: all that is particular to a file format."""

    name: str
    media_type: str
    suffixes: tuple[str, ...]  # the first is the one to write
    magic: re.Pattern[bytes]  # matched at the first byte
    open: Callable[[bytes, Limits], Stack]
    encode: Callable[[Samples, Picture, int], bytes]  # samples of at most `depth` bits, whose metadata fits; quality 1 to 100
    max_side: int  # of the encoder
    alpha: bool = True
    depth: int = 8  # bits a sample it holds at most
    animation: type[Animation] | None = None  # what puts frames together; TIFF has pages instead

    @property
    def many(self) -> bool:
        """Whether a file of it holds more than one picture."""
        return self.animation is not None or self.name == "tiff"


def sniff(data: bytes) -> str | None:
    """The name of the format that the first bytes tell, whatever the file is called."""
    return next((form.name for form in FORMATS.values() if form.magic.match(data)), None)


def open(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Stack:
    """Looks at the header, or raises ImageError. Frames that are broken are found when they are decoded."""
    name = sniff(data)
    if name is None:
        raise ImageError(f"the file is no picture of a known format: send one of {', '.join(FORMATS)}")
    with _told(name):
        stack = FORMATS[name].open(data, limits)

    def frames(keep_going: KeepGoing) -> Iterator[Picture]:
        with _told(name):
            decoding: Iterator[Picture] | None = stack.frames(keep_going)
            for number in range(stack.count):
                taken = [next(decoding)]  # type: ignore[arg-type]
                if number == stack.count - 1:
                    decoding = None  # which still holds what the last frame was made of
                yield taken.pop()  # and nothing of a frame is held here

    return dataclasses.replace(stack, frames=frames)


def read(data: bytes, limits: Limits = DEFAULT_LIMITS, keep_going: KeepGoing = lambda: True) -> Picture:
    """Decode a whole picture of one frame, or raise ImageError."""
    stack = open(data, limits)
    if stack.count > 1:
        raise ImageError(f"the file holds {stack.count} frames; it must hold 1: save the one you want as its own file")
    return next(stack.frames(keep_going))


def write(picture: Picture, format: str | None = None, quality: int | None = None) -> bytes:
    """Encode in `format` (None: the one it came in), at `quality` 1 to 100 where the format is lossy (None: 95).

    WebP at quality 100 is lossless. Samples are rounded to the file's depth, as many bits as the format holds.
    """
    form = _form(picture.format if format is None else format)
    return _encoded(picture, form, _quality(quality))


def write_all(
    frames: Iterator[Picture], file: BinaryIO, format: str, count: int, quality: int | None = None, loop: int | None = None
) -> list[str]:
    """Writes `count` frames, each as it comes, as the pages of a TIFF or an animation; gives what was lost of them.

    An animation has the size and the metadata of its first frame.
    """
    form, quality = _form(format), _quality(quality)
    if not form.many and count > 1:
        able = ", ".join(name for name, each in FORMATS.items() if each.many)
        raise ImageError(f"the file holds {count} frames, and {format} holds one: choose one of {able}")
    first = next(frames)
    told = [*first.changed, *lost(first, format)]
    if count == 1:
        file.write(_encoded(first, form, quality))
    elif form.animation is None:
        writer = tiff.Writer(file)
        for picture in itertools.chain((first,), frames):
            _page(writer, picture, form)
    else:
        height, width = first.samples.shape[:2]
        moving = form.animation(file, width, height, count, loop)
        for picture in itertools.chain((first,), frames):
            if picture.samples.shape[:2] != (height, width):
                raise ImageError(f"the pages are of different sizes, and the frames of {format} are of one: choose tiff")
            moving.add(_encoded(picture, form, quality, apart=True), picture.milliseconds)
        moving.end()
    return told


def _quality(quality: int | None) -> int:
    if quality is not None and not 1 <= quality <= 100:
        raise ImageError(f"quality = {quality}; it must lie between 1 and 100: choose such a number, or leave it out")
    return 95 if quality is None else quality


def _encoded(picture: Picture, form: Format, quality: int, apart: bool = False) -> bytes:
    """`apart`: a frame to be put together with others, which must be of its kind."""
    height, width = picture.samples.shape[:2]
    if max(height, width) > form.max_side:
        raise ImageError(f"the picture is {width} x {height}; {form.name} holds at most {form.max_side} a side: shrink it or choose png")
    samples = _array(picture, form)
    if apart and form.name == "png" and samples.shape[-1] < 4:
        samples = _rgba(samples)
    metadata, _ = blocks.fitting(picture.metadata, form.name)
    try:
        return form.encode(samples, dataclasses.replace(picture, metadata=metadata), quality)
    except Exception as error:
        raise ImageError(f"the picture could not be written as {form.name}: choose another format, such as png") from error


def _page(writer: tiff.Writer, picture: Picture, form: Format) -> None:
    samples = _array(picture, form)
    try:
        writer.page(samples, samples.shape[-1] in (2, 4), blocks.to_tiff(picture.metadata))
    except tiff.TiffError as error:
        raise ImageError(f"the picture could not be written as tiff: {error}") from error


def _rgba(samples: Samples) -> Samples:
    colours, alpha = (samples[..., :-1], samples[..., -1:]) if samples.shape[-1] == 2 else (samples, None)
    opaque = np.full((*samples.shape[:2], 1), np.iinfo(samples.dtype).max, samples.dtype) if alpha is None else alpha
    return np.concatenate((np.broadcast_to(colours, (*samples.shape[:2], 3)), opaque), axis=-1)


def lost(picture: Picture, format: str | None = None) -> list[str]:
    """What `write` in `format` will leave out, in a few words each."""
    form = _form(picture.format if format is None else format)
    _, left_out = blocks.fitting(picture.metadata, form.name)
    told = [f"{name} ({form.name} holds none so large)" if name in blocks.HELD.get(form.name, ()) else f"{name} ({form.name} holds none)"
            for name in left_out]  # fmt: skip
    if picture.depth > form.depth:
        told.append(f"depth ({picture.depth} bits became {form.depth})")
    if picture.alpha is not None and not form.alpha:
        told.append("transparency (laid on white)")
    return told


def _form(name: str) -> Format:
    if name not in FORMATS:
        raise ImageError(f"format = {name!r}; it must be one of {', '.join(FORMATS)}: choose one of them")
    return FORMATS[name]


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turns whatever a decoder raises on hostile bytes, from SyntaxError to MemoryError, into an ImageError."""
    try:
        yield
    except (ImageError, Cancelled):
        raise
    except Image.DecompressionBombError:
        raise ImageError("the picture is too large: shrink it") from None
    except Exception as error:
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


def _late(limits: Limits) -> ImageError:
    return ImageError(f"decoding took longer than max_decode_seconds = {limits.max_decode_seconds:g}: send a smaller picture")


# --- samples ---------------------------------------------------------------------------------------------------------


def _unit(samples: Tensor, span: tuple[float, float]) -> Tensor:
    """Floats in [0, 1]."""
    if samples.dtype in STEPS:
        return samples.float().div_(STEPS[samples.dtype])
    low, high = span
    if span == (0.0, 1.0):
        return samples.float()
    half = high / 2 - low / 2  # the whole may be more than float32 holds
    return samples.float().mul(0.5).sub_(low / 2).div_(half).clamp_(0, 1)


def _covered(samples: Samples, seen: NDArray[np.bool_]) -> Samples:
    """Every sample that is not seen becomes that of the nearest one seen in its row; in a row of none, that of the nearest row with one."""
    H, W, _ = samples.shape
    out = np.empty_like(samples)
    columns = np.arange(W, dtype=np.int32)
    for top in range(0, H, STRIP_ROWS):
        rows = seen[top : top + STRIP_ROWS]
        left = np.maximum.accumulate(np.where(rows, columns, np.int32(-W)), axis=1)
        right = np.minimum.accumulate(np.where(rows, columns, np.int32(2 * W))[:, ::-1], axis=1)[:, ::-1]
        nearest = np.where(right - columns < columns - left, right, left).clip(0, W - 1)
        out[top : top + STRIP_ROWS] = np.take_along_axis(samples[top : top + STRIP_ROWS], nearest[..., None], axis=1)
    full = np.flatnonzero(seen.any(axis=1))
    after = np.searchsorted(full, np.arange(H)).clip(0, len(full) - 1)
    before = (after - 1).clip(0)
    nearer = np.where(abs(full[after] - np.arange(H)) <= abs(full[before] - np.arange(H)), full[after], full[before])
    for row in np.setdiff1d(np.arange(H), full):
        out[row] = out[nearer[row]]
    return out


def _array(picture: Picture, form: Format) -> Samples:
    """(H, W, C) in the depth that the file will have; NaN stops here."""
    samples = picture.samples.detach().cpu()
    alpha = None if picture.alpha is None else picture.alpha.detach().cpu().unsqueeze(-1)  # (H, W, 1)
    for values in (samples, alpha):
        if values is not None and values.is_floating_point() and not torch.stack(torch.aminmax(values)).isfinite().all():
            raise ImageError("the picture holds NaN or infinity; every sample must be a number: mend it before writing")
    depth = min(picture.depth, form.depth)
    kind = torch.uint8 if depth == 8 else torch.uint16 if depth == 16 else torch.float32
    grey = picture.grey or samples.shape[-1] == 1
    C = (1 if grey else 3) + (alpha is not None and form.alpha)
    if alpha is None and samples.dtype == kind and samples.shape[-1] == C:
        return samples.contiguous().numpy()
    out = torch.empty(*samples.shape[:2], C, dtype=kind)
    for top in range(0, samples.shape[0], STRIP_ROWS):
        strip, into = samples[top : top + STRIP_ROWS], out[top : top + STRIP_ROWS]
        if grey and strip.shape[-1] == 3:
            strip = strip.float().mean(-1, keepdim=True) if strip.is_floating_point() else _unit(strip, (0.0, 1.0)).mean(-1, keepdim=True)
        if alpha is not None and not form.alpha:
            clear = _unit(alpha[top : top + STRIP_ROWS], (0.0, 1.0)).clamp(0, 1)
            strip = _unit(strip, picture.span) * clear + (1 - clear)
            into.copy_(_stepped(strip, kind, (0.0, 1.0)))
            continue
        into[..., : 1 if grey else 3] = _stepped(strip, kind, picture.span)
        if alpha is not None:
            into[..., -1:] = _stepped(alpha[top : top + STRIP_ROWS], kind, (0.0, 1.0))
    return out.numpy()


def _stepped(strip: Tensor, kind: torch.dtype, span: tuple[float, float]) -> Tensor:
    """Samples as another type holds them, rounded and not cut."""
    if strip.dtype == kind:
        return strip
    if kind == torch.float32:
        return strip.float() if strip.is_floating_point() else _unit(strip, span)
    return _unit(strip, span).clamp(0, 1).mul(STEPS[kind]).round_().to(kind)


def _taken(samples: Samples, format: str, metadata: Metadata, orientation: int = 1, **more: Any) -> Picture:
    """What a decoder gave, as a Picture: upright, alpha apart, floats checked, the sound blocks of its metadata."""
    samples = np.ascontiguousarray(TURNS[orientation](samples)) if orientation in TURNS else samples
    C = samples.shape[-1]
    alpha = torch.from_numpy(np.ascontiguousarray(samples[..., -1])) if C in (2, 4) else None
    pixels = torch.from_numpy(np.ascontiguousarray(samples[..., :-1]) if alpha is not None else samples)
    grey, span = C < 3, (0.0, 1.0)
    if pixels.is_floating_point():
        low, high = (value.item() for value in torch.aminmax(pixels))
        if not (np.isfinite(low) and np.isfinite(high)) or (alpha is not None and not alpha.isfinite().all()):
            raise ImageError("the picture holds NaN or infinity; every sample must be a number: mend it first")
        if low < 0 or high > 1:
            span = (low, high if high > low else low + max(1.0, abs(low)))
    return Picture(pixels, alpha, grey, 8 * samples.itemsize, format, metadata.checked(grey), span, **more)


# --- libvips ---------------------------------------------------------------------------------------------------------


def _decoded(image: pyvips.Image, limits: Limits, keep_going: KeepGoing) -> Samples:
    """Every sample, or an ImageError once it takes too long."""
    if image.format not in ("uchar", "ushort", "float") or image.bands > 4:
        raise ImageError(f"the picture has {image.bands} channels of {image.format}; it must be grey or RGB of 8 or 16 bits: save it so")
    deadline = time.monotonic() + limits.max_decode_seconds
    late = threading.Event()

    def look(*_: Any) -> None:
        if time.monotonic() > deadline:
            late.set()
        if late.is_set() or not keep_going():
            image.set_kill(True)

    image.set_progress(True)
    for moment in ("preeval", "eval"):
        image.signal_connect(moment, look)
    try:
        raw = image.write_to_memory()
    except pyvips.Error:
        if late.is_set():
            raise _late(limits) from None
        if not keep_going():
            raise Cancelled("the picture was given up while it was decoded") from None
        raise
    kind = {"uchar": np.uint8, "ushort": np.uint16, "float": np.float32}[image.format]
    return np.frombuffer(raw, kind).reshape(image.height, image.width, image.bands)


def _converted(image: pyvips.Image) -> tuple[pyvips.Image, tuple[str, ...]]:
    """CMYK as sRGB, by its own profile or else libvips' of a common press."""
    if image.interpretation != "cmyk":
        return image, ()
    if image.bands != 4:
        raise ImageError("the picture is CMYK with transparency; it must be grey or RGB: convert it to RGB first")
    depth = 16 if image.format == "ushort" else 8
    return image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=depth), ("CMYK became sRGB",)


def _one(format: str, image: pyvips.Image, limits: Limits, frames: Callable[[KeepGoing], Iterator[Picture]]) -> Stack:
    _check_size(image.width, image.height, limits)
    return Stack(format, 1, image.width, image.height, image.width * image.height, frames)


def _open_png(data: bytes, limits: Limits) -> Stack:
    clean, found, count = _screened_png(data)
    width, height = struct.unpack_from(">II", clean, 16)
    _check_size(width, height, limits)
    if count > 1:
        if clean[24] == 16:
            raise ImageError("the picture is animated and has 16 bits; animations are read with 8: save it so, or its frames one by one")
        return _pillow("png", clean, PngImageFile, limits, found.metadata())

    def image() -> pyvips.Image:
        return pyvips.Image.pngload_buffer(clean, access="sequential", fail_on="error")

    def frames(keep_going: KeepGoing) -> Iterator[Picture]:
        metadata = found.metadata()
        orientation, exif = blocks.upright(metadata.checked(False).exif)
        metadata = dataclasses.replace(metadata, exif=exif if exif is not None else metadata.exif)
        yield _taken(_decoded(image(), limits, keep_going), "png", metadata, orientation)

    return _one("png", image(), limits, frames)


def _screened_png(data: bytes) -> tuple[bytes, blocks.Png, int]:
    """The chunks that make pixels, each sum checked; what the others say; how many frames there are. What trails is dropped."""
    kept, position, kind, found, count = [data[:8]], 8, b"", blocks.Png(), 1
    for _ in range(MAX_PARTS):
        if kind == b"IEND":
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        chunk = data[position : position + length + 12]
        position += length + 12
        body = chunk[8:-4]
        whole = len(chunk) == length + 12 and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        frame = kind in (b"acTL", b"fcTL", b"fdAT")
        if (kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS") or frame) and not whole:
            raise ImageError(f"the png picture's {kind.decode()} part is damaged or cut short: send an unharmed copy")
        if kind == b"acTL":
            count = int.from_bytes(body[:4], "big")
        if kind[0] < ord("a") or kind == b"tRNS" or frame:  # a capital begins the name of a chunk that no decoder may skip
            kept.append(chunk)
        else:
            found.chunk(kind, body, whole)
    if kind != b"IEND":
        raise ImageError(f"the png picture has more than {MAX_PARTS} parts: save it anew")
    if count < 2:  # a still picture to every reader
        kept = [chunk for chunk in kept if chunk[4:8] not in (b"acTL", b"fcTL", b"fdAT")]
    return b"".join(kept), found, count


def _open_jpeg(data: bytes, limits: Limits) -> Stack:
    found = _screened_jpeg(data, limits)

    def image(fail_on: str) -> pyvips.Image:
        return pyvips.Image.jpegload_buffer(data, access="sequential", fail_on=fail_on)

    def frames(keep_going: KeepGoing) -> Iterator[Picture]:
        metadata = found.metadata()
        orientation, exif = blocks.upright(metadata.checked(False).exif)
        metadata = dataclasses.replace(metadata, exif=exif if exif is not None else metadata.exif)
        try:  # libjpeg fills what is missing with grey, and no more than warns of it
            source, changed = _converted(image("warning"))
            samples = _decoded(source, limits, keep_going)
        except pyvips.Error as error:
            if not any(words in str(error) for words in HARMLESS):
                raise
            source, changed = _converted(image("error"))
            samples = _decoded(source, limits, keep_going)
        if changed:  # its profile was used up
            metadata = dataclasses.replace(metadata, icc=None)
        yield _taken(samples, "jpeg", metadata, orientation, changed=changed)

    return _one("jpeg", image("error"), limits, frames)


def _screened_jpeg(data: bytes, limits: Limits) -> blocks.Jpeg:
    """Counts scans, as the decoder will meet them: segment by segment, then on to the next marker."""
    position, scans, parts, found = 2, 0, 0, blocks.Jpeg()
    while marker := SEGMENT.search(data, position):
        kind = marker[0][1]
        parts += 1
        if parts > MAX_PARTS:
            raise ImageError(f"the jpeg picture has more than {MAX_PARTS} parts: save it anew")
        if kind == 0xD9:
            break
        scans += kind == 0xDA
        if scans > limits.max_scans:
            raise ImageError(f"the jpeg picture has more than max_scans = {limits.max_scans} scans: save it anew, not progressive")
        end = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        if not scans and 0xE0 <= kind <= 0xEF:
            found.segment(kind, data[marker.end() + 2 : end])
        position = end
    return found


def _open_tiff(data: bytes, limits: Limits) -> Stack:
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

    def frames(keep_going: KeepGoing) -> Iterator[Picture]:
        for number, page in pages:
            orientation, metadata = blocks.from_tiff(page)
            image = pyvips.Image.tiffload_buffer(data, page=number, access="sequential", fail_on="error")
            if (image.width, image.height) != (page.number(256, 0), page.number(257, 0)):
                raise ImageError("the tiff picture's directories contradict each other: save it anew")
            source, changed = _converted(image)
            samples = _decoded(source, limits, keep_going)
            if changed:
                metadata = dataclasses.replace(metadata, icc=None)
            yield _taken(samples, "tiff", metadata, orientation, changed=changed)

    if not pages:
        raise ImageError("the tiff file holds no picture: send one that does")
    first = pages[0][1]
    return Stack("tiff", len(pages), first.number(256, 0), first.number(257, 0), pixels, frames)


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


def _pillow(
    name: str, data: bytes, decoder: Callable[[io.BytesIO], ImageFile.ImageFile], limits: Limits, metadata: Metadata | None = None
) -> Stack:
    # The decoder's class rather than Image.open: no other format is ever tried, and the size limit is ours alone.
    image = decoder(io.BytesIO(data))
    width, height = image.size
    _check_size(width, height, limits)
    count = getattr(image, "n_frames", 1)
    _check_frames(count, count * width * height, limits)
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise ImageError(f"the picture's samples are {image.mode}; they must be grey or RGB: convert it to RGB first")
    said = metadata if metadata is not None else _said(image)
    orientation, exif = blocks.upright(said.checked(False).exif)
    said = dataclasses.replace(said, exif=exif if exif is not None else said.exif)
    image.close()

    def frames(keep_going: KeepGoing) -> Iterator[Picture]:
        with decoder(io.BytesIO(data)) as image:
            deadline = time.monotonic() + limits.max_decode_seconds
            for number in range(count):
                if not keep_going():
                    raise Cancelled("the picture was given up between two frames")
                if time.monotonic() > deadline:
                    raise _late(limits)
                image.seek(number)
                image.load()
                shown = int(image.info.get("duration") or 0)
                yield _taken(_plain(image), name, said, orientation, milliseconds=shown)
                deadline = time.monotonic() + limits.max_decode_seconds

    loop = image.info.get("loop") if count > 1 else None
    return Stack(name, count, width, height, count * width * height, frames, loop)


def _plain(image: ImageFile.ImageFile) -> Samples:
    mode = ("L" if image.mode in GREY_MODES else "RGB") + ("A" if image.has_transparency_data else "")
    plain = image if image.mode == mode else image.convert(mode)
    return np.frombuffer(bytearray(plain.tobytes()), np.uint8).reshape(plain.height, plain.width, -1)


def _said(image: ImageFile.ImageFile) -> Metadata:
    def block(name: str) -> bytes | None:
        found = image.info.get(name)
        return found if isinstance(found, bytes) and found else None

    exif = block("exif")
    return Metadata(
        icc=block("icc_profile"),
        exif=None if exif is None else blocks.EXIF_HEAD + exif.removeprefix(blocks.EXIF_HEAD),
        xmp=block("xmp"),
    )


def _open_gif(data: bytes, limits: Limits) -> Stack:
    _check_frames(_gif_frames(data), 0, limits)  # before Pillow, which counts them by way of their pixels
    return _pillow("gif", data, GifImageFile, limits)


def _gif_frames(data: bytes) -> int:
    """Counts pictures by their blocks, which is much less work than to decode them. Source: GIF89a specification."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    count = 0
    while at < len(data) and data[at] != 0x3B:
        if data[at] == 0x2C:
            count += 1
            at += 11 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 0x80 else 0)
        else:
            at += 2
        while at < len(data) and data[at]:
            at += data[at] + 1
        at += 1
    return count


def _open_avif(data: bytes, limits: Limits) -> Stack:
    box = data.find(b"av1C")  # the decoder's configuration; 0x40 in its third byte is high_bitdepth
    if box >= 0 and data[box + 6 : box + 7] and data[box + 6] & 0x40:
        raise ImageError("the avif picture has more than 8 bits a sample; only 8 are read: save it with 8 bits")
    stack = _pillow("avif", data, _avif, limits)
    if stack.count > 1:
        raise ImageError(f"the file holds {stack.count} frames; an avif picture must hold 1: save it as an animated webp")
    return stack


def _avif(file: io.BytesIO) -> AvifImageFile:
    """Opens again without EXIF what does not open with it: the decoder fails the whole picture for a broken block."""
    try:
        return AvifImageFile(file)
    except Exception:
        return AvifImageFile(io.BytesIO(file.getvalue().replace(b"Exif", b"none")))


# --- HEIC, where its extra is installed ---


def _open_heic(data: bytes, limits: Limits) -> Stack:
    """The primary picture. HEIC turns it upright itself, whatever its EXIF says."""
    file = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    width, height = file.size
    _check_size(width, height, limits)

    def block(name: str) -> bytes | None:
        found = file.info.get(name)
        return found if isinstance(found, bytes) and found else None

    def frames(keep_going: KeepGoing) -> Iterator[Picture]:
        said = Metadata(icc=block("icc_profile"), exif=block("exif"), xmp=block("xmp"))
        _, exif = blocks.upright(said.checked(False).exif)
        samples = np.asarray(file)
        samples = np.array(samples if samples.ndim == 3 else samples[..., None])
        yield _taken(samples, "heic", dataclasses.replace(said, exif=exif if exif is not None else said.exif))

    return Stack("heic", 1, width, height, width * height, frames)


def _encode_heic(samples: Samples, picture: Picture, quality: int) -> bytes:
    H, W, C = samples.shape
    mode = MODES[C - 1] + (";16" if samples.itemsize == 2 else "")
    file, out = pillow_heif.from_bytes(mode, (W, H), samples.tobytes()), io.BytesIO()
    file.save(out, quality=-1 if quality == 100 else quality, chroma=444, **blocks.riff_options(picture.metadata))  # -1: lossless
    return out.getvalue()


# --- encoders --------------------------------------------------------------------------------------------------------

MODES = ("L", "LA", "RGB", "RGBA")


def _image(samples: Samples) -> Image.Image:
    H, W, C = samples.shape
    return Image.frombuffer(MODES[C - 1], (W, H), samples, "raw", MODES[C - 1], 0, 1)


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def _encode_png(samples: Samples, picture: Picture, quality: int) -> bytes:
    H, W, C = samples.shape
    kind, space = ("uchar", ("b-w", "srgb")) if samples.itemsize == 1 else ("ushort", ("grey16", "rgb16"))
    image = pyvips.Image.new_from_memory(samples, W, H, C, kind).copy(interpretation=space[C > 2])
    data = image.pngsave_buffer(compression=2, filter="up", keep="none")
    parts, position = [data[:33], blocks.png_chunks(picture.metadata)], 33
    while position < len(data):  # libvips adds a resolution of its own
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] in (b"IDAT", b"IEND"):
            parts.append(data[position:end])
        position = end
    return b"".join(parts)


def _encode_jpeg(samples: Samples, picture: Picture, quality: int) -> bytes:
    return _saved(_image(samples), "jpeg", quality=quality, subsampling=0, **blocks.jpeg_options(picture.metadata))


def _encode_webp(samples: Samples, picture: Picture, quality: int) -> bytes:
    lossless = quality == 100  # for which the encoder's own quality means effort instead
    return _saved(_image(samples), "webp", quality=0 if lossless else quality, lossless=lossless, method=0, exact=True,
                  **blocks.riff_options(picture.metadata))  # fmt: skip


def _encode_avif(samples: Samples, picture: Picture, quality: int) -> bytes:
    sampling = "4:0:0" if samples.shape[-1] < 3 else "4:4:4"
    return _saved(_image(samples), "avif", quality=quality, speed=9, subsampling=sampling, **blocks.riff_options(picture.metadata))


def _encode_tiff(samples: Samples, picture: Picture, quality: int) -> bytes:
    file = io.BytesIO()
    tiff.Writer(file).page(samples, samples.shape[-1] in (2, 4), blocks.to_tiff(picture.metadata))
    return file.getvalue()


def _encode_bmp(samples: Samples, picture: Picture, quality: int) -> bytes:
    return _saved(_image(samples), "bmp")


def _encode_gif(samples: Samples, picture: Picture, quality: int) -> bytes:
    image, options = _indexed(_image(samples))
    return _saved(image, "gif", **options)


def _indexed(image: Image.Image) -> tuple[Image.Image, dict[str, Any]]:
    """An image as GIF holds it: at most 256 colours, undithered (dither is noise), transparent or opaque."""
    if image.mode == "L":
        return image, {}
    if image.mode == "RGB":
        return image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE), {}
    clear = image.getchannel("A").point(lambda level: 255 * (level < 128))
    colours = image.convert("RGB")
    row, column = divmod(max(clear.tobytes().find(0), 0), image.width)
    colours.paste(colours.getpixel((column, row)) or 0, mask=clear)  # what is not seen takes no place in the palette
    indexed = colours.quantize(255, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    indexed.paste(255, mask=clear)
    return indexed, {"transparency": 255}


# Options chosen by time on photographs, seconds a megapixel: png by libvips at level 2 with filter `up` 0.022 (Pillow's level 1: 0.064),
# tiff deflate level 1 with differences 0.04, webp method 0 0.03 (4: 0.10), avif speed 9 0.04 (6: 0.31), jpeg 0.004.
# fmt: off
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("png", "image/png", (".png",), re.compile(rb"\x89PNG\r\n\x1a\n"),
               _open_png, _encode_png, max_side=2**31 - 1, depth=16, animation=animation.Png),
        Format("jpeg", "image/jpeg", (".jpg", ".jpeg", ".jpe"), re.compile(rb"\xff\xd8\xff"),
               _open_jpeg, _encode_jpeg, max_side=65_500, alpha=False),
        Format("webp", "image/webp", (".webp",), re.compile(rb"RIFF....WEBP", re.DOTALL),
               lambda data, limits: _pillow("webp", data, WebPImageFile, limits), _encode_webp,
               max_side=16_383, animation=animation.WebP),
        Format("tiff", "image/tiff", (".tif", ".tiff"), re.compile(rb"II[*+]\0|MM\0[*+]"),
               _open_tiff, _encode_tiff, max_side=2**31 - 1, depth=32),
        Format("bmp", "image/bmp", (".bmp",), re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL),
               lambda data, limits: _pillow("bmp", data, BmpImageFile, limits), _encode_bmp, max_side=2**31 - 1, alpha=False),
        Format("gif", "image/gif", (".gif",), re.compile(rb"GIF8[79]a"),
               _open_gif, _encode_gif, max_side=65_535, animation=animation.Gif),
        Format("avif", "image/avif", (".avif",), re.compile(rb"....ftyp(?:.{4}){0,32}?avi[fs]", re.DOTALL),
               _open_avif, _encode_avif, max_side=65_536),
        Format("heic", "image/heic", (".heic", ".heif", ".hif"), re.compile(rb"....ftyp(?:.{4}){0,32}?he[iv][cxms]", re.DOTALL),
               _open_heic, _encode_heic, max_side=16_384, depth=16),
    )
    if {"avif": features.check("avif"), "heic": pillow_heif is not None}.get(form.name, True)
}
# fmt: on
