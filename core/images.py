"""Bytes of a picture file in, pixels out, and back: one table, `FORMATS`, drives sniffing, reading and writing.

Refuses whatever it could only read by silently losing something (a file cut short, 16-bit colour, CMYK, floats, further
frames), and knows nothing of noise. Every refusal is an `ImageError`, its text fit for the person who sent the file.

What does not come back as it came: a palette or 1-bit picture returns as RGB or 8-bit grey (but GIF stays indexed);
transparency is laid on white in JPEG and BMP, and is all or nothing in GIF; BMP and GIF take no EXIF and no profile;
text chunks are dropped; of a JPEG with more pictures behind the first (MPO, motion photos) only the first is taken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin, features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

MAX_PIXELS = 40_000_000
MAX_SIDE = 32_768
MAX_SCANS = 64  # of a progressive JPEG: each one is a pass over the whole picture, for a few bytes of file

GREY_MODES = ("L", "LA", "La", "1")
COLOUR_MODES = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr")
DEEP_MODES = ("I;16", "I;16B", "I;16L")
SEGMENT = re.compile(rb"\xff[^\0\x01\xff\xd0-\xd8]")  # a JPEG marker that a length follows, or the last one
TURNS = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """The picture cannot be read or written; the text says to its sender what is wrong and what to do."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright. H, W: height and width."""

    pixels: Tensor  # (H, W, 3) float32 in [0, 1]; of a grey picture the three channels are equal
    alpha: Tensor | None = None  # (H, W) float32 in [0, 1], 1 is opaque; never mixed into the pixels
    grey: bool = False
    depth: int = 8  # bits a sample it came in with: 8, or 16 for grey pictures only
    format: str = "png"
    icc: bytes | None = None
    exif: bytes | None = None  # from b"Exif\0\0" on; its orientation is already applied and reset to 1

    def with_pixels(self, pixels: Tensor) -> Picture:
        return dataclasses.replace(self, pixels=pixels)


@dataclass(frozen=True)
class Format:
    """One row of the table: all that is particular to a file format."""

    name: str
    media_type: str
    suffixes: tuple[str, ...]  # the first is the one to write
    magic: re.Pattern[bytes]  # matched at the first byte
    screen: Callable[[bytes], bytes]  # refuses by the raw bytes, and gives those that the decoder shall see
    decoder: Callable[[io.BytesIO], ImageFile.ImageFile]
    options: Callable[[int, bool], dict[str, Any]]  # the encoder's, for a quality of 1 to 100, and whether grey
    exif: Callable[[bytes], dict[str, Any]] | None  # the encoder's options to carry EXIF; None: it holds no metadata
    max_side: int  # of the encoder
    alpha: bool = True
    deep: bool = False  # holds 16-bit grey


def sniff(data: bytes) -> str | None:
    """The name of the format that the first bytes tell, whatever the file is called."""
    return next((form.name for form in FORMATS.values() if form.magic.match(data)), None)


def read(data: bytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a whole picture, or raise ImageError; limits are checked on the header, before any pixel is decoded."""
    name = sniff(data)
    if name is None:
        raise ImageError(f"the file is no picture of a known format: send one of {', '.join(FORMATS)}")
    form = FORMATS[name]
    try:
        # The decoder's class rather than Image.open: no other format is ever tried, and the size limit is ours alone.
        with form.decoder(io.BytesIO(form.screen(data))) as image:
            _check_header(image, max_pixels)
            image.load()
            return _picture(image, name)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        limit = f"{max_pixels / 1e6:.6g}"
        raise ImageError(f"the picture is too large; at most {limit} megapixels are accepted: shrink it") from None
    except Exception as error:  # on hostile bytes Pillow raises nearly everything, from SyntaxError to MemoryError
        raise ImageError(f"the {name} picture is broken, cut short or of a rare kind: save it anew as plain PNG or JPEG") from error


def write(picture: Picture, format: str | None = None, quality: int | None = None) -> bytes:
    """Encode in `format` (None: the one it came in), at `quality` 1 to 100 where the format is lossy (None: 95).

    WebP at quality 100 is lossless. Samples are rounded to the file's depth; 16-bit grey stays so in PNG and TIFF.
    """
    name = picture.format if format is None else format
    if name not in FORMATS:
        raise ImageError(f"format = {name!r}; it must be one of {', '.join(FORMATS)}: choose one of them")
    if quality is not None and not 1 <= quality <= 100:
        raise ImageError(f"quality = {quality}; it must lie between 1 and 100: choose such a number, or leave it out")
    form = FORMATS[name]
    height, width = picture.pixels.shape[:2]
    if max(height, width) > form.max_side:
        raise ImageError(f"the picture is {width} x {height}; {name} holds at most {form.max_side} a side: shrink it or choose png")
    image, options = _image(picture, form), form.options(95 if quality is None else quality, picture.grey)
    if name == "gif":
        image, options = _indexed(image)
    if form.exif and picture.icc:
        options["icc_profile"] = picture.icc
    attempts = [options]
    if form.exif and picture.exif:
        with contextlib.suppress(Exception):  # a block that cannot be carried over never fails the picture
            attempts.insert(0, options | form.exif(picture.exif))
    for attempt in attempts:
        file = io.BytesIO()
        try:
            image.save(file, format=name, **attempt)
            return file.getvalue()
        except Exception as error:
            failure = error
    raise ImageError(f"the picture could not be written as {name}: choose another format, such as png") from failure


def _check_header(image: ImageFile.ImageFile, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"the picture is {width} x {height}; each side must be at least 1: send one with pixels")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"the picture is {width} x {height}; a side may be at most {MAX_SIDE}: shrink it")
    if width * height > max_pixels:
        raise ImageError(
            f"the picture has {width * height / 1e6:.6g} megapixels; at most {max_pixels / 1e6:.6g} are accepted: "
            "shrink it or raise max_pixels"
        )
    _refuse_frames(getattr(image, "n_frames", 1))
    if image.mode not in GREY_MODES + COLOUR_MODES + DEEP_MODES:
        raise ImageError(f"the picture's samples are {image.mode}; they must be grey or RGB: convert it to RGB first")
    if image.mode in DEEP_MODES and image.has_transparency_data:
        raise ImageError("the picture has 16 bits and transparency; only opaque 16-bit grey is read: save it opaque")


def _refuse_frames(count: int) -> None:
    if count > 1:
        raise ImageError(f"the file holds {count} frames; it must hold 1: save the one you want as its own file")


def _picture(image: ImageFile.ImageFile, name: str) -> Picture:
    """A loaded image as a Picture."""
    # Pillow turns a TIFF upright by itself, and keeps its EXIF in tags among those that describe the file.
    block = _exif_from_tiff(image) if name == "tiff" else image.info.get("exif")
    orientation, exif = _upright(block)
    upright = image.transpose(TURNS[orientation]) if orientation in TURNS else image
    deep = image.mode in DEEP_MODES
    grey = deep or image.mode in GREY_MODES
    mode = "I" if deep else ("L" if grey else "RGB") + ("A" if image.has_transparency_data else "")
    plain = upright if upright.mode == mode else upright.convert(mode)
    samples = torch.frombuffer(bytearray(plain.tobytes()), dtype=torch.int32 if deep else torch.uint8)
    values = samples.float().div_(65535 if deep else 255).view(plain.height, plain.width, -1)  # (H, W, 1 | 2 | 3 | 4)
    if deep and isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(262) == 0:
        values = 1 - values  # WhiteIsZero, which Pillow minds in 8-bit pictures only
    alpha = values[..., -1].contiguous() if mode.endswith("A") else None
    pixels = values[..., :1].expand(-1, -1, 3) if grey else values[..., :3]  # (H, W, 3)
    icc = _profile(image.info.get("icc_profile"), grey)
    return Picture(pixels.contiguous(), alpha, grey, 16 if deep else 8, name, icc, exif)


def _image(picture: Picture, form: Format) -> Image.Image:
    """The picture as one of Pillow's, in the deepest mode that the format holds; NaN stops here."""
    pixels = picture.pixels.detach().float().cpu()
    alpha = None if picture.alpha is None else picture.alpha.detach().float().cpu().unsqueeze(-1)  # (H, W, 1)
    for values in (pixels, alpha):
        if values is not None and not torch.stack(torch.aminmax(values)).isfinite().all():
            raise ImageError("the picture holds NaN or infinity; every sample must be a number: mend it before writing")
    if picture.grey:
        pixels = pixels.mean(dim=-1, keepdim=True)
    if alpha is not None:
        pixels = torch.cat((pixels, alpha), dim=-1) if form.alpha else pixels * alpha + (1 - alpha)
    deep = form.deep and picture.depth == 16 and pixels.shape[-1] == 1
    mode = "I;16" if deep else ("L", "LA", "RGB", "RGBA")[pixels.shape[-1] - 1]
    buffer = bytearray(pixels.numel() * (2 if deep else 1))
    samples = torch.frombuffer(buffer, dtype=torch.uint16 if deep else torch.uint8).view(pixels.shape)
    # by strips of rows, so that no further float copy of the whole picture is made
    for rows, into in zip(torch.split(pixels, 256), torch.split(samples, 256), strict=True):
        into.copy_(rows.clamp(0, 1).mul_(65535 if deep else 255).round_())
    return Image.frombytes(mode, (pixels.shape[1], pixels.shape[0]), buffer)


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


def _screen_png(data: bytes) -> bytes:
    """The chunks that matter, each sum checked: text and what trails is dropped, as are a broken profile or EXIF."""
    kept, position, kind = [data[:8]], 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        chunk = data[position : position + length + 12]
        position += length + 12
        body = chunk[8:-4]
        sound = len(chunk) == length + 12 and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS") and not sound:
            raise ImageError(f"the png picture's {kind.decode()} part is damaged or cut short: send an unharmed copy")
        if kind == b"IHDR" and body[8] == 16 and body[9] != 0:
            raise ImageError("the picture has 16-bit colour; only 8-bit colour is read: save it with 8 bits")
        if kind == b"acTL" and sound:
            _refuse_frames(int.from_bytes(body[:4], "big"))
        useful = kind in (b"tRNS", b"eXIf") or (kind == b"iCCP" and _inflates(body))
        if kind[0] < ord("a") or (sound and useful):  # a capital begins the name of a chunk that no decoder may skip
            kept.append(chunk)
    return b"".join(kept)


def _inflates(profile: bytes) -> bool:
    """Whether an iCCP chunk unpacks to something Pillow takes: it fails the whole picture otherwise."""
    stream = zlib.decompressobj()
    try:
        stream.decompress(profile.partition(b"\0")[2][1:], PngImagePlugin.MAX_TEXT_CHUNK)
    except zlib.error:
        return False
    return stream.eof


def _screen_jpeg(data: bytes) -> bytes:
    """Counts scans, as the decoder will meet them: segment by segment, then on to the next marker."""
    position = scans = 0
    while marker := SEGMENT.search(data, position):
        if marker[0] == b"\xff\xd9":
            break
        scans += marker[0] == b"\xff\xda"
        if scans > MAX_SCANS:
            raise ImageError(f"the jpeg picture has more than {MAX_SCANS} scans: save it anew, not progressive")
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return data


def _screen_tiff(data: bytes) -> bytes:
    directory = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2:3] == b"+" else 8])
    file = io.BytesIO(data)
    file.seek(directory.next)
    directory.load(file)
    bits, kinds = set(directory.get(258, (1,))), set(directory.get(339, (1,)))  # BitsPerSample, SampleFormat
    if kinds != {1}:
        raise ImageError("the picture's samples are floats or signed; they must be unsigned: save it with 8 bits")
    if bits == {16} and directory.get(277, 1) > 1:
        raise ImageError("the picture has 16-bit colour; only 8-bit colour is read: save it with 8 bits")
    if not (bits <= {1, 2, 4, 8} or bits == {16}):
        raise ImageError(f"the picture has {max(bits)} bits a sample; it must have 1, 2, 4, 8 or, grey, 16: save it so")
    return data


def _screen_avif(data: bytes) -> bytes:
    box = data.find(b"av1C")  # the decoder's configuration; 0x40 in its third byte is high_bitdepth
    if box >= 0 and data[box + 6 : box + 7] and data[box + 6] & 0x40:
        raise ImageError("the avif picture has more than 8 bits a sample; only 8 are read: save it with 8 bits")
    return data


def _open_avif(file: io.BytesIO) -> AvifImageFile:
    """Opens again without EXIF what does not open with it: the decoder fails the whole picture for a broken block."""
    try:
        return AvifImageFile(file)
    except Exception:
        return AvifImageFile(io.BytesIO(file.getvalue().replace(b"Exif", b"none")))


def _upright(exif: Any) -> tuple[int, bytes | None]:
    """The orientation that EXIF tells, and the block with it reset in place, so that every other byte stays."""
    if not isinstance(exif, bytes):
        return 1, None
    block, orientation = bytearray(b"Exif\0\0" + exif.removeprefix(b"Exif\0\0")), 1
    try:
        order = {b"II*\0": "<", b"MM\0*": ">"}[bytes(block[6:10])]
        directory = 6 + struct.unpack_from(order + "I", block, 10)[0]
        for index in range(struct.unpack_from(order + "H", block, directory)[0]):
            entry = directory + 2 + 12 * index
            tag, kind, _, value = struct.unpack_from(order + "HHIH", block, entry)
            if tag == 0x0112:
                orientation = value if kind == 3 else 1  # SHORT, as the standard has it
                struct.pack_into(order + "HHIHH", block, entry, tag, 3, 1, 1, 0)
    except (KeyError, struct.error):
        return 1, None
    return orientation, bytes(block)


def _profile(icc: Any, grey: bool) -> bytes | None:
    """An ICC profile that is whole and speaks of these pixels, or none."""
    if not isinstance(icc, bytes) or len(icc) < 128 or icc[36:40] != b"acsp":
        return None
    fits = int.from_bytes(icc[:4], "big") <= len(icc) and icc[16:20] in ((b"RGB ", b"GRAY") if grey else (b"RGB ",))
    return icc if fits else None


def _tags(exif: Image.Exif) -> Image.Exif:
    """The tags that tell of the photograph, none of those that lay out a TIFF file."""
    described = Image.Exif()
    # description, make, model, resolution, software, date, artist, copyright; then the EXIF and GPS directories
    for tag in (270, 271, 272, 282, 283, 296, 305, 306, 315, 33432):
        if tag in exif:
            described[tag] = exif[tag]
    for tag in (34665, 34853):
        if directory := {key: value for key, value in exif.get_ifd(tag).items() if key != 0xA005}:  # a bare offset
            described.get_ifd(tag).update(directory)
            described[tag] = directory
    return described


def _exif_from_tiff(image: Image.Image) -> bytes | None:
    try:
        tags = _tags(image.getexif())
        return tags.tobytes() if len(tags) else None
    except Exception:  # a broken block is dropped, whatever Pillow says of it
        return None


def _exif_to_tiff(block: bytes) -> dict[str, Any]:
    exif = Image.Exif()
    exif.load(block)
    return {"tiffinfo": _tags(exif), "compression": "raw"}  # libtiff, which compresses, loses the EXIF directory


def _exif_block(block: bytes) -> dict[str, Any]:
    return {"exif": block}


def _webp_options(quality: int, grey: bool) -> dict[str, Any]:
    lossless = quality == 100  # for which the encoder's own quality means effort instead
    return {"quality": 0 if lossless else quality, "lossless": lossless, "method": 0, "exact": True}


# Options chosen by time on photographs, two cores, seconds a megapixel: png level 1 0.065 (6: 0.20), tiff lzw with
# predictor 0.03 (deflate: 0.15), webp method 0 0.03 (4: 0.10), avif speed 9 0.04 (6: 0.31), jpeg 0.004.
# fmt: off
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("png", "image/png", (".png",), re.compile(rb"\x89PNG\r\n\x1a\n"),
               _screen_png, PngImagePlugin.PngImageFile,
               lambda quality, grey: {"compress_level": 1}, _exif_block, max_side=2**31 - 1, deep=True),
        Format("jpeg", "image/jpeg", (".jpg", ".jpeg", ".jpe"), re.compile(rb"\xff\xd8\xff"),
               _screen_jpeg, JpegImageFile,
               lambda quality, grey: {"quality": quality, "subsampling": 0}, _exif_block, max_side=65_500, alpha=False),
        Format("webp", "image/webp", (".webp",), re.compile(rb"RIFF....WEBP", re.DOTALL),
               bytes, WebPImageFile,
               _webp_options, _exif_block, max_side=16_383),
        Format("tiff", "image/tiff", (".tif", ".tiff"), re.compile(rb"II[*+]\0|MM\0\*"),
               _screen_tiff, TiffImagePlugin.TiffImageFile,
               lambda quality, grey: {"compression": "tiff_lzw", "tiffinfo": {317: 2}}, _exif_to_tiff,  # 317: Predictor
               max_side=2**31 - 1, deep=True),
        Format("bmp", "image/bmp", (".bmp",), re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL),
               bytes, BmpImageFile,
               lambda quality, grey: {}, None, max_side=2**31 - 1, alpha=False),
        Format("gif", "image/gif", (".gif",), re.compile(rb"GIF8[79]a"),
               bytes, GifImageFile,
               lambda quality, grey: {}, None, max_side=65_535),
        Format("avif", "image/avif", (".avif",), re.compile(rb"....ftyp(?:.{4}){0,32}?avi[fs]", re.DOTALL),
               _screen_avif, _open_avif,
               lambda quality, grey: {"quality": quality, "speed": 9, "subsampling": "4:0:0" if grey else "4:4:4"},
               _exif_block, max_side=65_536),
    )
    if form.name != "avif" or features.check("avif")
}
# fmt: on
