"""Bytes of a picture file in, pixels out, and back: one table, `FORMATS`, drives sniffing, reading and writing.

Knows nothing of noise. Every refusal is an `ImageError`, its text fit for the person who sent the file. `core.decoding` decodes, here or,
asked by `core.decoders`, in a process apart.

What is not as it came is named in `Picture.changed` and by `lost`: CMYK becomes sRGB, a palette or 1-bit picture returns as RGB or 8-bit
grey (but GIF stays indexed), transparency is laid on white in JPEG and BMP, and is all or nothing in GIF, the frames of an animation have
8 bits a sample. Of a JPEG with more pictures behind the first (MPO, motion photos) only the first is taken.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import re
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, features
from torch import Tensor

from core import animation, avif, decoding, tiff
from core import metadata as blocks
from core.animation import Animation
from core.decoding import DEFAULT_LIMITS, Data, Fill, Frame, GoOn, ImageError, Limits, Opener, Samples, pillow_heif, told
from core.denoiser import Cancelled
from core.metadata import Metadata
from core.vips import pyvips

KeepGoing = Callable[[], bool]

STEPS = {torch.uint8: 255, torch.uint16: 65535}
__all__ = [
    "DEFAULT_LIMITS",
    "FORMATS",
    "Format",
    "ImageError",
    "KeepGoing",
    "Limits",
    "Picture",
    "Stack",
    "assembled",
    "bytes_of",
    "known",
    "lost",
    "only",
    "open",
    "read",
    "sniff",
    "write",
    "write_all",
]

STRIP_ROWS = 256  # converted at a time, so that no float copy of a whole picture is made
WEBP_FAST_PIXELS = 16 << 20  # more, and what WebP keeps of each block at its fastest might not fit: it failed from 40 megapixels on
SPILLED_BYTES = 64 << 20  # of samples, whose PNG is put together on disk

NO_METADATA = Metadata()


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
        """Floats in [0, 1], or integers as `visible` gives them, in place of the samples; what did not change is as it was, to the bit."""
        low, high = self.span
        if not pixels.is_floating_point() or self.span == (0.0, 1.0):
            return dataclasses.replace(self, samples=pixels)
        half = pixels * (high / 2 - low / 2)
        samples = half + low + half
        if samples.shape[:2] == self.samples.shape[:2]:
            for rows in _strips(len(samples)):
                same = pixels[rows] == _unit(self.samples[rows], self.span)
                samples[rows] = torch.where(same, self.samples[rows].to(samples.dtype), samples[rows])
        return dataclasses.replace(self, samples=samples)

    def visible(self) -> Tensor:
        """(H, W, 1 | 3) uint8, uint16 or float32 in [0, 1], for the denoiser: what is wholly transparent shows the colours beside it.

        So hidden colours do not bleed into those that are seen. Where nothing is hidden and nothing to be scaled these are the picture's
        own samples, and no copy: whoever writes over them writes over the picture.
        """
        samples = self.samples if self.samples.dtype in STEPS else _unit(self.samples, self.span)
        if self.alpha is None or self.alpha.ne(0).all():
            return samples
        if not self.alpha.any():
            return samples.clone()
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
        """With what became of `visible`, which is taken over, and under full transparency what was there."""
        clean = self.with_pixels(visible)
        if self.alpha is None or clean.samples is self.samples:
            return clean
        for rows in _strips(len(self.samples)):
            hidden = self.alpha[rows].eq(0).unsqueeze(-1)
            clean.samples[rows] = torch.where(hidden, self.samples[rows].to(clean.samples.dtype), clean.samples[rows])
        return clean

    def cut(self, rows: slice, columns: slice) -> Picture:
        """A part of it, with all that is said of the whole but what may show it, such as thumbnails."""
        alpha, metadata = None if self.alpha is None else self.alpha[rows, columns], self.metadata.of_a_part()
        gone = [name for name in ("exif", "xmp", "iptc") if getattr(metadata, name) != getattr(self.metadata, name)]
        changed = (*self.changed, *(f"part of {name} (it may show the whole picture)" for name in gone))
        return dataclasses.replace(self, samples=self.samples[rows, columns], alpha=alpha, metadata=metadata, changed=changed)

    def with_metadata(self, keep: str) -> Picture:
        """`keep`: all of it; `strip`: the colour profile only; `safe`: all but what tells the place."""
        chosen = {"keep": lambda it: it, "strip": Metadata.stripped, "safe": Metadata.safe}[keep]
        return dataclasses.replace(self, metadata=chosen(self.metadata))


class Arriving:
    """A picture of which all is known but its samples: those come from elsewhere, from the top."""

    def __init__(self, coming: Generator[tuple[Picture, int], None, None]) -> None:
        """coming: the picture, and how many rows of it are there, again and again, at last all."""
        self._coming = coming
        self.picture, self._there = next(coming)
        self.waited = 0.0
        """Seconds."""

    def until(self, rows: int) -> None:
        """Waits until the first so many are there. Raises Cancelled, and ImageError if they don't come."""
        began = time.perf_counter()
        while self._there < rows:
            _, self._there = next(self._coming)
        self.waited += time.perf_counter() - began

    def close(self) -> None:
        """For who has no use for the rest."""
        self._coming.close()


@dataclass(frozen=True)
class Stack:
    """A file whose header was read and found within the limits. Nothing is decoded before its frames are asked for."""

    format: str
    count: int
    width: int  # of the first frame
    height: int
    pixels: int  # of all frames together
    frames: Callable[[KeepGoing], Iterator[Picture]]  # each as it is asked for
    loop: int | None = None  # times that an animation is shown, 0 for ever, None: not told
    arriving: Callable[[KeepGoing], Arriving] | None = None  # its only frame, while it is still decoded elsewhere

    def with_frames(self, frames: Callable[[KeepGoing], Iterator[Picture]]) -> Stack:
        """All that the header says, and these in place of what the file holds."""
        return dataclasses.replace(self, frames=frames, arriving=None)


@dataclass(frozen=True)
class Format:
    """One row of the table: all that is particular to a file format."""

    name: str
    media_type: str
    suffixes: tuple[str, ...]  # the first is the one to write
    magic: re.Pattern[bytes]  # matched at the first byte
    open: Opener
    encode: Callable[[Samples, Picture, int, BinaryIO], None]  # at most `depth` bits, metadata that fits; quality 1 to 100; a file
    max_side: int  # of the encoder
    alpha: bool = True
    depth: int = 8  # bits a sample it holds at most
    animation: type[Animation] | None = None  # what puts frames together; TIFF has pages instead

    @property
    def many(self) -> bool:
        """Whether a file of it holds more than one picture."""
        return self.animation is not None or self.name == "tiff"


def bytes_of(path: Path) -> Data:
    """A file's bytes, to be opened once. OSError if it cannot be read."""
    return decoding.read(path)


def sniff(data: Data) -> str | None:
    """The name of the format that the first bytes tell, whatever the file is called."""
    return next((form.name for form in FORMATS.values() if form.magic.match(data)), None)


def known(data: Data) -> Format:
    """The row that the first bytes tell, or ImageError."""
    name = sniff(data)
    if name is None:
        raise ImageError(f"the file is no picture of a known format: send one of {', '.join(FORMATS)}")
    return FORMATS[name]


def open(data: Data, limits: Limits = DEFAULT_LIMITS) -> Stack:
    """Looks at the header, or raises ImageError. Frames that are broken are found when they are decoded."""
    form = known(data)
    with told(form.name):
        opened = form.open(data, limits)

    def frames(keep_going: KeepGoing) -> Iterator[Picture]:
        def go_on() -> None:
            if not keep_going():
                raise Cancelled("the picture was given up while it was decoded")

        with told(form.name, Cancelled):
            decoding: Iterator[tuple[Frame, Fill]] | None = opened.frames(go_on)
            for number in range(opened.count):
                taken = [_decoded(form.name, *next(decoding), go_on)]  # type: ignore[arg-type]
                if number == opened.count - 1:
                    decoding = None  # which still holds what the last frame was made of
                yield taken.pop()  # and nothing of a frame is held here

    return Stack(form.name, opened.count, opened.width, opened.height, opened.pixels, frames, opened.loop)


def _decoded(format: str, frame: Frame, fill: Fill, go_on: GoOn) -> Picture:
    kind = getattr(torch, frame.kind)
    samples = torch.empty(frame.height, frame.width, frame.channels, dtype=kind)
    alpha = torch.empty(frame.height, frame.width, dtype=kind) if frame.alpha else None
    fill(samples.numpy(), None if alpha is None else alpha.numpy(), lambda _: go_on())
    return assembled(format, frame, samples, alpha)


def assembled(format: str, frame: Frame, samples: Tensor, alpha: Tensor | None) -> Picture:
    """A frame with what was decoded of it; a float that is no number is found here."""
    span = (0.0, 1.0)
    if samples.is_floating_point():
        low, high = (value.item() for value in torch.aminmax(samples))
        if not (np.isfinite(low) and np.isfinite(high)) or (alpha is not None and not alpha.isfinite().all()):
            raise ImageError("the picture holds NaN or infinity; every sample must be a number: mend it first")
        if low < 0 or high > 1:
            span = (low, high if high > low else low + max(1.0, abs(low)))
    depth = 8 * samples.element_size()
    return Picture(samples, alpha, frame.channels == 1, depth, format, frame.metadata, span, frame.changed, frame.milliseconds)


def read(data: Data, limits: Limits = DEFAULT_LIMITS, keep_going: KeepGoing = lambda: True) -> Picture:
    """Decode a whole picture of one frame, or raise ImageError."""
    return only(open(data, limits), keep_going)


def only(stack: Stack, keep_going: KeepGoing = lambda: True) -> Picture:
    """The frame of a file of one, or ImageError."""
    if stack.count > 1:
        raise ImageError(f"the file holds {stack.count} frames; it must hold 1: save the one you want as its own file")
    return next(stack.frames(keep_going))


def write(picture: Picture, format: str | None = None, quality: int | None = None) -> bytes:
    """Encode in `format` (None: the one it came in), at `quality` 1 to 100 where the format is lossy (None: 95).

    WebP at quality 100 is lossless. Samples are rounded to the file's depth, as many bits as the format holds.
    """
    return _encoded(picture, _form(picture.format if format is None else format), _quality(quality))


def write_all(
    frames: Iterator[Picture], file: BinaryIO, format: str, count: int, quality: int | None = None, loop: int | None = None
) -> list[str]:
    """Writes `count` frames, each as it comes, as the pages of a TIFF or an animation; gives what was lost of any of them.

    An animation has the size and the metadata of its first frame, and 8 bits a sample.
    """
    form, quality = _form(format), _quality(quality)
    if not form.many and count > 1:
        able = ", ".join(name for name, each in FORMATS.items() if each.many)
        raise ImageError(f"the file holds {count} frames, and {format} holds one: choose one of {able}")
    told: dict[str, None] = {}  # in order
    first = next(frames)
    if count == 1:
        told |= dict.fromkeys((*first.changed, *_lost(first, form)))
        _encode(first, form, quality, file)
    elif form.animation is None:
        writer = tiff.Writer(file)
        for picture in itertools.chain((first,), frames):
            told |= dict.fromkeys((*picture.changed, *_lost(picture, form)))
            _page(writer, picture, form)
    else:
        height, width = first.samples.shape[:2]
        moving = form.animation(file, width, height, count, loop)
        form = dataclasses.replace(form, depth=8)  # as all frames of an animation are, to be of one kind
        for picture in itertools.chain((first,), frames):
            if picture.samples.shape[:2] != (height, width):
                raise ImageError(f"the pages are of different sizes, and the frames of {format} are of one: choose tiff")
            told |= dict.fromkeys((*picture.changed, *_lost(picture, form, apart=True)))
            moving.add(_encoded(picture, form, quality, apart=True), picture.milliseconds)
        moving.end()
    return list(told)


def _quality(quality: int | None) -> int:
    if quality is not None and not 1 <= quality <= 100:
        raise ImageError(f"quality = {quality}; it must lie between 1 and 100: choose such a number, or leave it out")
    return 95 if quality is None else quality


def _encoded(picture: Picture, form: Format, quality: int, apart: bool = False) -> bytes:
    file = io.BytesIO()
    _encode(picture, form, quality, file, apart)
    return file.getvalue()


def _encode(picture: Picture, form: Format, quality: int, file: BinaryIO, apart: bool = False) -> None:
    """`apart`: a frame to be put together with others, which must be of its kind."""
    height, width = picture.samples.shape[:2]
    if max(height, width) > form.max_side:
        raise ImageError(f"the picture is {width} x {height}; {form.name} holds at most {form.max_side} a side: shrink it or choose png")
    samples = _array(picture, form)
    if apart and form.name == "png" and samples.shape[-1] < 4:
        samples = _rgba(samples)
    metadata, _ = blocks.fitting(picture.metadata, form.name, apart)
    try:
        form.encode(samples, dataclasses.replace(picture, metadata=metadata), quality, file)
    except Exception as error:
        raise ImageError(f"the picture could not be written as {form.name}: choose another format, such as png") from error


def _page(writer: tiff.Writer, picture: Picture, form: Format) -> None:
    samples = _array(picture, form)
    metadata, _ = blocks.fitting(picture.metadata, form.name)
    try:
        writer.page(samples, samples.shape[-1] in (2, 4), blocks.to_tiff(metadata))
    except tiff.TiffError as error:
        raise ImageError(f"the picture could not be written as tiff: {error}") from error


def _rgba(samples: Samples) -> Samples:
    colours, alpha = (samples[..., :-1], samples[..., -1:]) if samples.shape[-1] == 2 else (samples, None)
    opaque = np.full((*samples.shape[:2], 1), np.iinfo(samples.dtype).max, samples.dtype) if alpha is None else alpha
    return np.concatenate((np.broadcast_to(colours, (*samples.shape[:2], 3)), opaque), axis=-1)


def lost(picture: Picture, format: str | None = None) -> list[str]:
    """What `write` in `format` will leave out, in a few words each."""
    return _lost(picture, _form(picture.format if format is None else format))


def _lost(picture: Picture, form: Format, apart: bool = False) -> list[str]:
    _, left_out = blocks.fitting(picture.metadata, form.name, apart)
    told = [f"{name} ({reason})" for name, reason in left_out.items()]
    if picture.depth > form.depth:
        told.append(f"depth ({picture.depth} bits became {form.depth})")
    if picture.alpha is not None and not form.alpha:
        told.append("transparency (laid on white)")
    return told


def _form(name: str) -> Format:
    if name not in FORMATS:
        raise ImageError(f"format = {name!r}; it must be one of {', '.join(FORMATS)}: choose one of them")
    return FORMATS[name]


# --- samples ---------------------------------------------------------------------------------------------------------


def _strips(height: int) -> Iterator[slice]:
    return (slice(top, top + STRIP_ROWS) for top in range(0, height, STRIP_ROWS))


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


# --- encoders --------------------------------------------------------------------------------------------------------

MODES = ("L", "LA", "RGB", "RGBA")


def _image(samples: Samples) -> Image.Image:
    H, W, C = samples.shape
    return Image.frombuffer(MODES[C - 1], (W, H), samples, "raw", MODES[C - 1], 0, 1)


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def _encode_png(samples: Samples, picture: Picture, quality: int, file: BinaryIO) -> None:
    H, W, C = samples.shape
    kind, space = ("uchar", ("b-w", "srgb")) if samples.itemsize == 1 else ("ushort", ("grey16", "rgb16"))
    image = pyvips.Image.new_from_memory(samples, W, H, C, kind).copy(interpretation=space[C > 2])
    options = {"compression": 2, "filter": "up", "keep": "none"}
    with ExitStack() as held:
        made: BinaryIO
        if samples.nbytes < SPILLED_BYTES:
            made = io.BytesIO(image.pngsave_buffer(**options))
        else:
            made = held.enter_context(tempfile.TemporaryFile())
            image.pngsave_target(pyvips.Target.new_to_descriptor(made.fileno()), **options)
            made.seek(0)
        file.write(made.read(33))
        file.write(blocks.png_chunks(picture.metadata))
        while head := made.read(8):  # libvips adds a resolution of its own
            length = int.from_bytes(head[:4], "big") + 4
            if head[4:] in (b"IDAT", b"IEND"):
                file.write(head)
                file.write(made.read(length))
            else:
                made.seek(length, os.SEEK_CUR)


def _encode_jpeg(samples: Samples, picture: Picture, quality: int, file: BinaryIO) -> None:
    file.write(_saved(_image(samples), "jpeg", quality=quality, subsampling=0, **blocks.jpeg_options(picture.metadata)))


def _encode_webp(samples: Samples, picture: Picture, quality: int, file: BinaryIO) -> None:
    image, options = _image(samples), blocks.riff_options(picture.metadata) | {"format": "webp", "exact": True}
    if quality < 100:
        try:
            file.write(_saved(image, **options, quality=quality, method=0 if image.width * image.height <= WEBP_FAST_PIXELS else 2))
            return
        except ValueError:  # the modes of all blocks must fit into 512 KiB, and those of a large picture full of detail may not
            pass
    file.write(_saved(image, **options, quality=0, lossless=True, method=0))  # here the encoder's own quality means effort instead


def _encode_avif(samples: Samples, picture: Picture, quality: int, file: BinaryIO) -> None:
    H, W, C = samples.shape
    if H * W <= avif.MAX_STILL_PIXELS:
        file.write(_still(samples, quality, **blocks.riff_options(picture.metadata)))
        return
    layout, icc = avif.cells(W, H), picture.metadata.icc

    def colour(number: int) -> avif.Still:
        return avif.still(_still(layout.cut(samples[..., : 1 if C < 3 else 3], number), quality, icc_profile=icc))

    def alpha(number: int) -> avif.Still:
        return avif.still(_still(layout.cut(samples[..., -1:], number), 100))  # without loss

    numbers, seen_through = range(len(layout)), C in (2, 4) and samples[..., -1].min() < 255
    with ThreadPoolExecutor(2) as threads:  # the encoder lets go of the interpreter's lock
        colours = list(threads.map(colour, numbers))
        alphas = list(threads.map(alpha, numbers)) if seen_through else []
    file.writelines(avif.grid(layout, colours, alphas, picture.metadata.exif, picture.metadata.xmp))


def _still(samples: Samples, quality: int, **said: Any) -> bytes:
    sampling = "4:0:0" if samples.shape[-1] < 3 else "4:4:4"
    return _saved(_image(samples), "avif", quality=quality, speed=9, subsampling=sampling, **said)


def _encode_tiff(samples: Samples, picture: Picture, quality: int, file: BinaryIO) -> None:
    tiff.Writer(file).page(samples, samples.shape[-1] in (2, 4), blocks.to_tiff(picture.metadata))


def _encode_bmp(samples: Samples, picture: Picture, quality: int, file: BinaryIO) -> None:
    file.write(_saved(_image(samples), "bmp", **blocks.bmp_options(picture.metadata)))


def _encode_gif(samples: Samples, picture: Picture, quality: int, file: BinaryIO) -> None:
    image, options = _indexed(_image(samples))
    file.write(_saved(image, "gif", **options))


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


def _encode_heic(samples: Samples, picture: Picture, quality: int, file: BinaryIO) -> None:
    H, W, C = samples.shape
    mode = MODES[C - 1] + (";16" if samples.itemsize == 2 else "")
    made, out = pillow_heif.from_bytes(mode, (W, H), samples.tobytes()), io.BytesIO()
    made.save(out, quality=-1 if quality == 100 else quality, chroma=444, **blocks.riff_options(picture.metadata))  # -1: lossless
    file.write(out.getvalue())


# Options chosen by time on photographs, seconds a megapixel: png by libvips at level 2 with filter `up` 0.022 (Pillow's level 1: 0.064),
# tiff deflate level 1 with differences 0.04, webp method 0 0.03 (4: 0.10), avif speed 9 0.04 (6: 0.31), jpeg 0.004.
# fmt: off
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("png", "image/png", (".png",), re.compile(rb"\x89PNG\r\n\x1a\n"),
               decoding.open_png, _encode_png, max_side=2**31 - 1, depth=16, animation=animation.Png),
        Format("jpeg", "image/jpeg", (".jpg", ".jpeg", ".jpe"), re.compile(rb"\xff\xd8\xff"),
               decoding.open_jpeg, _encode_jpeg, max_side=65_500, alpha=False),
        Format("webp", "image/webp", (".webp",), re.compile(rb"RIFF....WEBP", re.DOTALL),
               decoding.open_webp, _encode_webp,
               max_side=16_383, animation=animation.WebP),
        Format("tiff", "image/tiff", (".tif", ".tiff"), re.compile(rb"II[*+]\0|MM\0[*+]"),
               decoding.open_tiff, _encode_tiff, max_side=2**31 - 1, depth=32),
        Format("bmp", "image/bmp", (".bmp",), re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL),
               decoding.open_bmp, _encode_bmp, max_side=2**31 - 1, alpha=False),
        Format("gif", "image/gif", (".gif",), re.compile(rb"GIF8[79]a"),
               decoding.open_gif, _encode_gif, max_side=65_535, animation=animation.Gif),
        Format("avif", "image/avif", (".avif",), re.compile(rb"....ftyp(?:.{4}){0,32}?avi[fs]", re.DOTALL),
               decoding.open_avif, _encode_avif, max_side=65_536),
        Format("heic", "image/heic", (".heic", ".heif", ".hif"), re.compile(rb"....ftyp(?:.{4}){0,32}?he[iv][cxms]", re.DOTALL),
               decoding.open_heic, _encode_heic, max_side=16_384, depth=16),
    )
    if {"avif": features.check("avif"), "heic": pillow_heif is not None}.get(form.name, True)
}
# fmt: on
