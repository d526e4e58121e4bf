"""Every format and kind of picture comes back as itself, and no bytes raise anything but ImageError."""

import contextlib
import dataclasses
import io
import re
import struct
import weakref
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
import tifffile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from core import Cancelled, decoding, images
from core import metadata as blocks
from core.images import FORMATS, ImageError, Limits, Picture
from core.metadata import Metadata

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(mode: str = "RGB", width: int = 7, height: int = 5) -> Image.Image:
    """Random samples, so that a swapped channel, row or column shows."""
    bands = len(Image.new(mode, (1, 1)).getbands()) * (2 if mode == "I;16" else 1)
    samples = torch.randint(0, 256, (width * height * bands,), generator=torch.Generator().manual_seed(5))
    return Image.frombytes(mode, (width, height), bytes(samples.tolist()))


def smooth(width: int = 48, height: int = 32) -> Image.Image:
    ramp = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (ramp, ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT), ImageOps.invert(ramp)))


def encoded(image: Image.Image, format: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def levels(image: Image.Image) -> torch.Tensor:
    """8-bit samples by Pillow's own way out, one pixel at a time: (H, W, C) in [0, 1]."""
    flat = torch.tensor([image.getpixel((x, y)) for y in range(image.height) for x in range(image.width)])
    return flat.view(image.height, image.width, -1).float() / 255


def picture(height: int = 5, width: int = 7, **fields: Any) -> Picture:
    return Picture(torch.rand(height, width, 3, generator=torch.Generator().manual_seed(3)), **fields)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of the given chunks, each with a right sum."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def header(width: int, height: int, bits: int = 8, colour: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)


def with_chunk(data: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    return data[:33] + png((kind, body))[8:] + data[33:]


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x010F] = "Maker"
    tags[0x0112] = orientation
    return tags.tobytes()


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        encoded(noise("RGB", 300, 129), "webp"),
        encoded(noise("RGB", 300, 129), "webp", lossless=True),
        encoded(noise("RGBA", 300, 129), "webp"),
        encoded(noise("RGB", 300, 129), "webp", icc_profile=SRGB),
        encoded(noise("RGB", 300, 129), "webp", save_all=True, append_images=[noise("RGB", 300, 129).rotate(90)]),
    ],
)
def test_a_webp_picture_is_measured_before_its_decoder_makes_a_canvas(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert decoding._webp_size(data) == (300, 129)
    assert decoding.canvas_pixels(data) == 300 * 129
    assert decoding.canvas_pixels(encoded(noise())) == 0
    monkeypatch.delattr(decoding, "WebPImageFile")
    with pytest.raises(ImageError, match="38700 pixels; at most max_pixels = 38699 are accepted"):
        images.open(data, Limits(max_pixels=38_699))


@pytest.mark.parametrize("large", [0, 1 << 24])
def test_a_pngs_pixels_are_found_between_its_other_parts(large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a large file's own memory, not in a copy."""
    monkeypatch.setattr(decoding, "LARGE_BYTES", large)
    picture, said, file = noise("RGB", 300, 200), PngInfo(), tmp_path / "a.png"
    said.add_text("word", "x" * 100)
    full = encoded(picture, pnginfo=said, icc_profile=SRGB)
    behind = full[:-12] + full[full.index(b"tEXt") - 4 :][:117] + full[-12:] + b"what trails"
    for data in (encoded(picture), full, behind):
        file.write_bytes(data)
        taken = images.bytes_of(file)
        assert isinstance(taken, bytes) == bool(large)
        clean, _, _ = decoding._screened_png(taken)
        assert bytes(clean) == encoded(picture)
        assert not clean.readonly or large
        read = images.read(images.bytes_of(file))
        assert np.array_equal(read.samples.numpy(), np.asarray(picture))
        assert (read.metadata.icc is None) == (data == encoded(picture))


@pytest.mark.parametrize("name", FORMATS)
def test_a_large_file_is_read_as_a_small_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = moving(name) if FORMATS[name].many else images.write(Picture(torch.rand(50, 70, 3)), name)
    small = [one.samples for one in images.open(data).frames(lambda: True)]
    (tmp_path / "a").write_bytes(data)
    monkeypatch.setattr(decoding, "LARGE_BYTES", 0)
    large = [one.samples for one in images.open(images.bytes_of(tmp_path / "a")).frames(lambda: True)]
    assert all(torch.equal(one, other) for one, other in zip(small, large, strict=True))


@pytest.mark.parametrize("name", FORMATS)
def test_a_written_picture_is_sniffed_and_opened_by_another_reader_as_its_format(name: str) -> None:
    data = images.write(picture(), name)
    assert images.sniff(data) == name
    if name == "heic":
        pillow_heif.register_heif_opener()
    assert Image.open(io.BytesIO(data)).get_format_mimetype() == FORMATS[name].media_type


def test_the_table_is_keyed_by_name_and_holds_the_formats_promised() -> None:
    assert {"png", "jpeg", "webp", "tiff", "bmp", "gif"} <= set(FORMATS)
    assert all(form.name == name and form.suffixes for name, form in FORMATS.items())


def test_a_picture_is_written_in_the_format_it_came_in_unless_told_otherwise() -> None:
    came = images.read(encoded(noise(), "bmp"))
    assert images.sniff(images.write(came)) == "bmp"
    assert images.sniff(images.write(came, "png")) == "png"


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode"), [(name, mode) for name in ("png", "tiff") for mode in ("L", "RGB", "LA", "RGBA")]
    + [("bmp", "L"), ("bmp", "RGB")],
)  # fmt: skip
def test_a_lossless_format_gives_the_same_samples_in_the_same_mode(name: str, mode: str) -> None:
    source = noise(mode)
    came = images.read(encoded(source, name))
    assert came.grey is mode.startswith("L")
    back = decoded(images.write(came))
    assert (back.mode, back.tobytes()) == (source.mode, source.tobytes())


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA"])
def test_pixels_are_the_files_samples_over_255(mode: str) -> None:
    source = noise(mode)
    came, samples = images.read(encoded(source)), levels(source)
    assert (came.pixels.dtype, came.pixels.shape) == (torch.float32, (5, 7, 3))
    assert torch.equal(came.pixels, samples[..., :1].expand(-1, -1, 3) if came.grey else samples[..., :3])
    if "A" in mode:
        assert came.alpha is not None
        assert torch.equal(came.alpha / 255, samples[..., -1])
    else:
        assert came.alpha is None


def test_what_webp_cannot_hold_with_loss_is_written_without(monkeypatch: pytest.MonkeyPatch) -> None:
    came, saved = images.read(encoded(noise())), images._saved

    def overflowing(image: Image.Image, format: str, **options: Any) -> bytes:
        if not options.get("lossless"):
            raise ValueError("encoding error 6")
        return saved(image, format, **options)

    monkeypatch.setattr(images, "_saved", overflowing)
    assert np.array_equal(np.asarray(decoded(images.write(came, "webp", quality=80))), came.samples)


def test_a_large_png_is_put_together_on_disk_to_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    came = images.read(encoded(noise("RGBA"), exif=exif(1), icc_profile=SRGB))
    inside = images.write(came)
    monkeypatch.setattr(images, "SPILLED_BYTES", 0)
    assert images.write(came) == inside


def test_colour_under_full_transparency_is_kept() -> None:
    source = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    came = images.read(encoded(source))
    for name in ("png", "tiff", "webp"):
        assert decoded(images.write(came, name, quality=100)).getpixel((2, 2)) == (200, 100, 50, 0), name


@pytest.mark.parametrize("name", ["png", "tiff"])
def test_sixteen_bit_grey_keeps_every_bit(name: str) -> None:
    source = noise("I;16")
    came = images.read(encoded(source, name))
    assert (came.depth, came.grey) == (16, True)
    assert came.pixels[2, 3, 0].item() == pytest.approx(source.getpixel((3, 2)) / 65535)
    back = decoded(images.write(came))
    assert (back.mode, back.tobytes()) == ("I;16", source.tobytes())
    assert decoded(images.write(came, "jpeg")).mode == "L"


def deep(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 65536, shape, dtype=np.uint16)


def by_tifffile(samples: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, samples, **options)
    return file.getvalue()


PLAIN_PNG = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> PNG's colour type


def by_hand(samples: np.ndarray) -> bytes:
    """A 16-bit PNG, its rows unfiltered: Pillow writes none."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    H, W, C = samples.shape
    return png(header(W, H, 16, PLAIN_PNG[C]), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


def whole(came: Picture) -> np.ndarray:
    """(H, W, C), alpha behind the colours."""
    parts = [came.samples] if came.alpha is None else [came.samples, came.alpha.unsqueeze(-1)]
    return torch.cat(parts, dim=-1).numpy()


@pytest.mark.parametrize("C", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["png", "tiff"])
def test_sixteen_bits_of_every_kind_keep_every_bit(name: str, C: int) -> None:
    source = deep(5, 7, C)
    options = {"photometric": "rgb" if C > 2 else "minisblack", "extrasamples": [2] if C in (2, 4) else []}
    data = by_hand(source) if name == "png" else by_tifffile(source, **options)
    came = images.read(data)
    assert (came.depth, came.grey, came.samples.dtype) == (16, C < 3, torch.uint16)
    assert np.array_equal(whole(came), source)
    written = images.write(came)
    assert np.array_equal(whole(images.read(written)), source)
    if name == "tiff":
        with tifffile.TiffFile(io.BytesIO(written)) as file:
            assert np.array_equal(file.asarray().reshape(5, 7, C), source)
            assert [int(extra) for extra in file.pages[0].extrasamples] == ([2] if C in (2, 4) else [])
    other = images.read(images.write(came, "png" if name == "tiff" else "tiff"))
    assert np.array_equal(whole(other), source)


@pytest.mark.parametrize("options", [
    {"byteorder": ">"}, {"bigtiff": True}, {"planarconfig": "separate"}, {"tile": (16, 16)}, {"compression": "zlib"},
    {"compression": "zlib", "predictor": 2}, {"rowsperstrip": 3},
], ids=str)  # fmt: skip
def test_sixteen_bit_tiff_is_read_however_it_is_laid_out(options: dict[str, Any]) -> None:
    source = deep(37, 41, 3)
    given = np.moveaxis(source, -1, 0) if "planarconfig" in options else source
    assert np.array_equal(whole(images.read(by_tifffile(given, photometric="rgb", **options))), source)


@pytest.mark.parametrize("C", [1, 3, 4])
@pytest.mark.parametrize("span", [(0.0, 1.0), (-0.5, 7.25), (0.0, 255.0), (-3e38, 3e38)])
def test_floats_stay_floats_and_the_denoiser_sees_them_between_0_and_1(C: int, span: tuple[float, float]) -> None:
    low, high = span
    unit = np.random.default_rng(3).random((5, 7, C), dtype=np.float32)
    unit[0, 0, 0], unit[0, 1, 0] = 0, 1
    source = (unit.astype(np.float64) * (high - low) + low).astype(np.float32)
    if C == 4:
        source[..., 3] = unit[..., 3]
    data = by_tifffile(source, photometric="rgb" if C > 2 else "minisblack", extrasamples=[2] if C == 4 else [])
    came = images.read(data)
    assert came.depth == 32
    assert np.array_equal(whole(came), source)
    assert np.array_equal(whole(images.read(images.write(came))), source)
    visible = came.visible()
    assert (visible.min().item(), visible.max().item()) == pytest.approx((0, 1), abs=1e-6)
    assert visible[..., :1].numpy() == pytest.approx(unit[..., :1], abs=1e-6)
    assert came.denoised(visible).samples.numpy() == pytest.approx(source[..., : min(C, 3)], rel=1e-5, abs=1e-5 * (high - low))
    assert np.array_equal(came.denoised(visible).samples, source[..., : min(C, 3)])  # what did not change
    assert np.array_equal(came.with_pixels(came.pixels).samples[..., :1], source[..., :1])
    moved = came.denoised(visible * 0.5).samples.numpy()
    assert moved == pytest.approx((source[..., : min(C, 3)].astype(float) - low) * 0.5 + low, rel=1e-5, abs=1e-5 * (high - low))
    assert images.read(images.write(came, "png")).depth == 16


def test_sixteen_bits_are_rounded_to_eight_where_a_format_holds_no_more() -> None:
    levels = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(256, 256, 1)
    back = images.read(images.write(Picture(levels, grey=True, depth=16), "bmp"))
    assert torch.equal(back.samples, (levels.double() / 257).round().to(torch.uint8))
    assert images.lost(Picture(levels, grey=True, depth=16), "bmp") == ["depth (16 bits became 8)"]


def test_cmyk_becomes_srgb_and_says_so() -> None:
    source = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for name in ("jpeg", "tiff"):
        came = images.read(encoded(source, name))
        assert came.changed == ("CMYK became sRGB",)
        red, green, blue = came.samples[4, 4].tolist()
        assert red > 180
        assert max(green, blue) < 80


def test_colours_multiplied_by_alpha_come_back_straight() -> None:
    source = np.array([[[100, 50, 0, 128], [255, 255, 255, 255], [0, 0, 0, 0]]], np.uint8)
    came = images.read(by_tifffile(source, photometric="rgb", extrasamples=[1]))
    assert whole(came).astype(int) == pytest.approx(np.array([[[199, 100, 0, 128], [255, 255, 255, 255], [0, 0, 0, 0]]]), abs=1)


def test_libvips_and_pillow_read_the_same_samples() -> None:
    for name, options in (
        ("jpeg", {"quality": 90}),
        ("jpeg", {"progressive": True}),
        ("jpeg", {"subsampling": 2}),
        ("png", {}),
        ("tiff", {}),
    ):
        data = encoded(smooth(), name, **options)
        assert torch.equal(images.read(data).pixels, levels(decoded(data))), (name, options)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_heic_comes_back_near_with_its_words(mode: str) -> None:
    source = smooth().convert(mode)
    words = Metadata(icc=SRGB, exif=exif(1), xmp=b"<rdf:RDF/>") if mode == "RGB" else Metadata()
    came = images.read(images.write(dataclasses.replace(images.read(encoded(source)), metadata=words), "heic"))
    assert (came.format, came.grey, came.depth) == ("heic", mode == "L", 8)
    assert (whole(came).astype(float) - np.asarray(source).reshape(32, 48, -1)).__abs__().mean() < 3
    assert (came.metadata.icc, came.metadata.exif, came.metadata.xmp) == (words.icc, words.exif, words.xmp)


def test_heic_of_more_than_eight_bits_keeps_them() -> None:
    ramp = torch.linspace(0, 65535, 64 * 64).to(torch.uint16).view(64, 64, 1).expand(-1, -1, 3).contiguous()
    came = images.read(images.write(Picture(ramp, depth=16), "heic", 100))
    assert came.depth == 16
    assert len(came.samples.unique()) > 512


def test_heic_is_turned_upright_by_itself_and_never_by_its_exif() -> None:
    turned = dataclasses.replace(picture(8, 16), metadata=Metadata(exif=exif(6)))
    came = images.read(images.write(turned, "heic"))
    assert came.samples.shape[:2] in ((8, 16), (16, 8))
    again = images.read(images.write(came, "heic"))
    assert again.samples.shape == came.samples.shape
    assert blocks.upright(came.metadata.exif)[0] == 1


# --- what is hidden --------------------------------------------------------------------------------------------------


def test_hidden_colours_do_not_reach_the_denoiser_and_come_back() -> None:
    samples = torch.full((9, 11, 3), 40, dtype=torch.uint8)
    alpha = torch.full((9, 11), 255, dtype=torch.uint8)
    samples[2:7, 3:8] = torch.tensor([255, 0, 255], dtype=torch.uint8)
    alpha[2:7, 3:8] = 0
    hidden = Picture(samples, alpha)
    assert (hidden.visible() == 40).all()
    back = hidden.denoised(torch.full_like(samples, 41))
    assert torch.equal(back.samples, torch.where(alpha.eq(0).unsqueeze(-1), samples, torch.tensor(41, dtype=torch.uint8)))


def test_hidden_colours_are_those_of_the_nearest_seen_in_the_row_or_else_of_the_nearest_row() -> None:
    samples = torch.arange(5 * 6).view(5, 6, 1).to(torch.uint8)
    alpha = torch.zeros(5, 6, dtype=torch.uint8)
    alpha[1, [0, 3]] = 255
    alpha[3, 5] = 1
    assert Picture(samples, alpha, grey=True).visible().squeeze(-1).tolist() == [
        [6, 6, 9, 9, 9, 9],
        [6, 6, 9, 9, 9, 9],
        [23] * 6,
        [23] * 6,
        [23] * 6,
    ]


def test_noise_is_measured_around_what_is_seen() -> None:
    alpha = torch.zeros(9, 9, dtype=torch.uint8)
    alpha[2, 3] = alpha[6, 4] = 1
    visible = torch.rand(9, 9, 3)
    assert torch.equal(Picture(visible, alpha).opaque(visible), visible[2:7, 3:5])
    assert Picture(visible, torch.zeros(9, 9)).opaque(visible).shape == (9, 9, 3)


def test_sixteen_bit_grey_tiff_is_read_in_both_byte_orders_and_both_polarities() -> None:
    source = noise("I;16")
    swapped = source.convert("I").convert("I;16B")
    white_is_zero = encoded(source, "tiff", tiffinfo={262: 0})
    came = images.read(encoded(source, "tiff"))
    assert torch.equal(images.read(encoded(swapped, "tiff")).pixels, came.pixels)
    assert torch.equal(images.read(white_is_zero).samples.int(), 65535 - came.samples.int())


def test_one_bit_pictures_become_grey() -> None:
    came = images.read(encoded(noise("L").convert("1")))
    assert came.grey
    assert set(came.pixels.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("name", ["png", "tiff", "bmp", "gif"])
def test_palette_pictures_become_the_colours_they_show(name: str) -> None:
    source = noise().quantize(16)
    came = images.read(encoded(source, name))
    assert torch.equal(came.pixels, levels(source.convert("RGB")))
    assert images.read(images.write(came)).pixels.equal(came.pixels)


def test_transparent_palette_and_colour_keys_become_alpha() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    keyed = Image.new("RGB", (2, 1), (1, 2, 3))
    keyed.putpixel((0, 0), (9, 9, 9))
    for data in (encoded(palette, transparency=0), encoded(keyed, transparency=(9, 9, 9))):
        alpha = images.read(data).alpha
        assert alpha is not None
        assert alpha.tolist() == [[0, 255]]


def test_a_gif_of_255_colours_and_transparency_comes_back_exactly() -> None:
    source = Image.new("P", (16, 16))
    source.putpalette([channel for index in range(256) for channel in (index, 255 - index, index * 7 % 256)])
    source.putdata(range(256))
    came = images.read(encoded(source, "gif", transparency=9))
    back = images.read(images.write(came))
    assert came.alpha is not None
    assert back.alpha is not None
    seen = came.alpha == 255
    assert seen.sum() == 255
    assert back.alpha.equal(came.alpha)
    assert back.pixels[seen].equal(came.pixels[seen])


@pytest.mark.parametrize(("name", "quality"), [("jpeg", None), ("webp", None), ("webp", 100), ("avif", None)])
def test_a_lossy_format_stays_near(name: str, quality: int | None) -> None:
    if name not in FORMATS:
        pytest.skip("this Pillow has no AVIF")
    came = images.read(encoded(smooth()))
    back = images.read(images.write(came, name, quality))
    assert (back.pixels - came.pixels).abs().mean().item() < (1e-9 if quality == 100 else 0.01)


@pytest.mark.parametrize("name", ["jpeg", "avif"])
def test_grey_stays_grey_in_a_lossy_format(name: str) -> None:
    if name not in FORMATS:
        pytest.skip("this Pillow has no AVIF")
    assert images.read(images.write(picture(grey=True), name)).grey


def test_chroma_is_not_halved_in_jpeg() -> None:
    data = images.write(picture(), "jpeg")
    frame = data.index(b"\xff\xc0")
    assert [data[frame + 11 + 3 * channel] for channel in range(3)] == [0x11, 0x11, 0x11]


def test_what_libvips_warns_of_runs_no_python_in_its_threads_and_is_not_printed(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """pyvips would log it from there, and a collection that begins there aborts the process."""
    caplog.set_level("DEBUG", "pyvips")
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(file, "JPEG")
    with pytest.raises(ImageError, match="cut short"):
        images.read(file.getvalue()[:3000] + b"\xff\xd9")
    assert not [record for record in caplog.records if record.name == "pyvips" and record.levelname != "DEBUG"]
    assert capfd.readouterr() == ("", "")


def test_samples_are_rounded_not_truncated_and_clamped() -> None:
    pixels = torch.tensor([-0.5, 0.6 / 255, 99.4 / 255, 99.6 / 255, 254.9 / 255, 1.5]).view(1, 6, 1).expand(1, 6, 3)
    assert [p[0] for p in decoded(images.write(Picture(pixels))).get_flattened_data()] == [0, 1, 99, 100, 255, 255]


def test_grey_is_the_mean_of_the_channels() -> None:
    pixels = torch.tensor([10.0, 20.0, 60.0]).div(255).expand(1, 1, 3)
    assert decoded(images.write(Picture(pixels, grey=True))).getpixel((0, 0)) == 30


@pytest.mark.parametrize("name", ["jpeg", "bmp"])
def test_transparency_is_laid_on_white_where_a_format_has_none(name: str) -> None:
    data = images.write(Picture(torch.zeros(8, 8, 3), alpha=torch.full((8, 8), 0.25)), name)
    assert decoded(data).getpixel((3, 3)) == (191, 191, 191)


def test_with_pixels_changes_nothing_else() -> None:
    before = picture(alpha=torch.ones(5, 7), grey=True, depth=16, format="tiff", metadata=Metadata(icc=b"i", exif=b"e"))
    after = before.with_pixels(torch.zeros(5, 7, 3))
    assert (after.alpha, after.grey, after.depth, after.format, after.metadata.icc, after.metadata.exif) == (
        before.alpha, True, 16, "tiff", b"i", b"e")  # fmt: skip


# --- orientation, profile, EXIF --------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["png", "jpeg", "webp", "tiff", "avif"])
def test_every_orientation_is_applied_once_and_reset(name: str, orientation: int) -> None:
    if name not in FORMATS:
        pytest.skip("this Pillow has no AVIF")
    options = {"lossless": True} if name == "webp" else {"quality": 95} if name in ("jpeg", "avif") else {}
    data = encoded(smooth(), name, exif=exif(orientation), **options)
    came = images.read(data)
    upright = ImageOps.exif_transpose(decoded(data))
    assert came.pixels.shape[:2] == ((48, 32) if orientation > 4 else (32, 48))
    assert torch.equal(came.pixels, levels(upright.convert("RGB")))
    again = images.read(images.write(came, "png"))
    assert torch.equal(again.pixels, came.pixels)
    assert decoded(images.write(came, "png")).getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_resetting_the_orientation_leaves_every_other_byte_of_exif(order: str) -> None:
    def block(orientation: int) -> bytes:
        start = b"II*\0" if order == "<" else b"MM\0*"
        entries = struct.pack(order + "HHHIHH", 1, 0x0112, 3, 1, orientation, 0)
        return b"Exif\0\0" + start + struct.pack(order + "I", 8) + entries + b"\0\0\0\0" + b"maker's own bytes"

    came = images.read(encoded(noise(), "jpeg", exif=block(6)))
    assert came.metadata.exif == block(1)
    assert images.read(images.write(came)).metadata.exif == block(1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["png", "jpeg", "tiff"])
def test_resolution_and_xmp_are_turned_with_the_picture(name: str, orientation: int) -> None:
    said, tags, more = b'<rdf:RDF><rdf:Description tiff:Orientation="%d"/></rdf:RDF>', Image.Exif(), PngInfo()
    tags[0x0112] = orientation
    if name == "tiff":
        tags[700] = said % orientation
    more.add_itxt("XML:com.adobe.xmp", (said % orientation).decode())
    options = {"png": {"pnginfo": more}, "jpeg": {"xmp": said % orientation}, "tiff": {}}[name]
    came = images.read(encoded(noise(), name, exif=tags, dpi=(204, 98), **options))
    assert came.metadata.dpi == pytest.approx((98, 204) if orientation > 4 else (204, 98), abs=0.02)
    assert came.metadata.xmp == said % 1


@pytest.mark.parametrize("orientation", [1, 6, 99])
def test_a_thumbnail_goes_where_it_no_longer_shows_the_picture(orientation: int) -> None:
    thumbnail = encoded(noise(), "jpeg")
    block = with_thumbnail(thumbnail, orientation)
    came = images.read(encoded(noise(), "jpeg", exif=block))
    assert came.metadata.exif is not None
    assert (thumbnail in came.metadata.exif) == (orientation != 6)
    part = came.cut(slice(1, 3), slice(2, 4))
    assert thumbnail not in images.write(part)
    assert thumbnail not in images.write(came.cut(slice(None), slice(None)).with_metadata("safe"))


def with_thumbnail(thumbnail: bytes, orientation: int) -> bytes:
    second = struct.pack("<HHHIIHHIII", 2, 513, 4, 1, 56, 514, 4, 1, len(thumbnail), 0)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 26) + second + thumbnail


@pytest.mark.parametrize("name", ["png", "jpeg", "webp", "tiff", "avif"])
def test_profile_and_exif_come_back(name: str) -> None:
    if name not in FORMATS:
        pytest.skip("this Pillow has no AVIF")
    tags = Image.Exif()
    tags[0x010F] = "Maker"
    tags.get_ifd(0x8769)[0x829A] = 0.5  # exposure time
    came = images.read(encoded(noise(), name, icc_profile=SRGB, exif=tags.tobytes()))
    back = decoded(images.write(came))
    assert (came.metadata.icc, back.info["icc_profile"]) == (SRGB, SRGB)
    assert back.getexif()[0x010F] == "Maker"
    assert back.getexif().get_ifd(0x8769)[0x829A] == 0.5


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow tells of broken blocks so
@pytest.mark.parametrize("broken", [b"", b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"junk" * 9])
def test_a_broken_exif_block_is_dropped(broken: bytes) -> None:
    for name in ("png", "jpeg", "webp"):
        came = images.read(encoded(noise(), name, exif=broken))
        assert came.metadata.exif is None
        assert images.write(came)


@pytest.mark.skipif("avif" not in FORMATS, reason="this Pillow has no AVIF")
def test_a_broken_exif_block_is_dropped_from_avif_too() -> None:
    data = encoded(noise(), "avif", exif=exif(1))
    assert images.read(data).metadata.exif is not None
    broken = data.replace(exif(1)[6:14], b"no tiff!")
    assert broken != data
    assert images.read(broken).metadata.exif is None


def test_exif_that_the_format_cannot_hold_is_left_out() -> None:
    long = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + bytes(70_000)
    came = images.read(encoded(noise(), "png", exif=long))
    assert came.metadata.exif == long
    assert images.read(images.write(came, "jpeg")).metadata.exif is None


def test_a_profile_that_is_broken_or_of_another_colour_space_is_dropped() -> None:
    of_lab = SRGB[:16] + b"Lab " + SRGB[20:]
    of_grey = SRGB[:16] + b"GRAY" + SRGB[20:]
    for profile in (b"junk", SRGB[:-200], of_lab, of_grey):
        assert images.read(encoded(noise(), "jpeg", icc_profile=profile)).metadata.icc is None
    assert images.read(encoded(noise("L"), "jpeg", icc_profile=of_grey)).metadata.icc == of_grey


@pytest.mark.parametrize("name", FORMATS)
def test_a_profile_of_grey_stays_where_a_file_is_grey_and_is_named_where_it_is_rgb(name: str) -> None:
    of_grey = SRGB[:16] + b"GRAY" + SRGB[20:]
    source = picture(grey=True, metadata=Metadata(icc=of_grey))
    data, lost = images.write(source, name), images.lost(source, name)
    held = [] if "icc" in blocks.HELD.get(name, ()) else [f"icc ({name} holds none)"]
    assert lost == (["icc (of grey; webp is RGB)"] if name == "webp" else held)
    assert (of_grey in data) == (not lost and name != "png")
    back = images.read(data).metadata
    assert (back.icc, back.broken) == (None if lost else of_grey, ())


@pytest.mark.parametrize("name", [name for name in FORMATS if name in ("png", "tiff", "avif", "heic")])
def test_a_grey_picture_with_transparency_stays_grey_and_keeps_its_profile(name: str) -> None:
    of_grey = SRGB[:16] + b"GRAY" + SRGB[20:]
    alpha = torch.linspace(0, 1, 48 * 64).view(48, 64)
    source = Picture(torch.full((48, 64, 1), 100, dtype=torch.uint8), alpha, grey=True, metadata=Metadata(icc=of_grey))
    assert images.lost(source, name) == []
    back = images.read(images.write(source, name, quality=100))
    assert (back.grey, back.samples.shape, back.metadata.icc, back.metadata.broken) == (True, (48, 64, 1), of_grey, ())
    assert (back.samples.int() - 100).abs().max() <= 2
    assert back.alpha is not None
    assert (back.alpha - alpha * 255).abs().max() <= 1


@pytest.mark.skipif("heic" not in FORMATS, reason="pillow-heif is not there")
def test_a_grey_heic_with_transparency_keeps_its_depth() -> None:
    grey = torch.arange(64 * 64).view(64, 64, 1).mul(16).to(torch.uint16)
    source = Picture(grey, torch.full((64, 64), 65535, dtype=torch.uint16), grey=True, depth=16)
    back = images.read(images.write(source, "heic", quality=100))
    assert (back.grey, back.samples.dtype, back.samples.shape) == (True, torch.uint16, (64, 64, 1))
    assert (back.samples.int() - grey.int()).abs().max() <= 64


@pytest.mark.parametrize(("into", "lost"), [
    ("png", ["icc (of grey; animated png is RGB)"]), ("webp", ["icc (of grey; animated webp is RGB)"]), ("tiff", []),
])  # fmt: skip
def test_frames_are_rgb_to_be_of_one_kind_and_have_no_profile_of_grey(into: str, lost: list[str]) -> None:
    of_grey = SRGB[:16] + b"GRAY" + SRGB[20:]
    data, told = written([picture(grey=True, metadata=Metadata(icc=of_grey))] * 2, into)
    assert told == lost
    assert {(frame.metadata.icc, frame.metadata.broken) for frame in all_frames(data)} == {(None if lost else of_grey, ())}


# --- refusals --------------------------------------------------------------------------------------------------------


def refusal(data: bytes, **limits: int) -> str:
    with pytest.raises(ImageError) as caught:
        images.read(data, Limits(**limits))
    return str(caught.value)


def test_what_is_no_picture_is_refused_with_the_formats_that_are() -> None:
    known = ", ".join(FORMATS)
    for data in (b"", b"\0", b"<svg/>", b"%PDF-1.7", b"GIF", b"BMW is no bitmap, and neither is this"):
        assert refusal(data) == f"the file is no picture of a known format: send one of {known}"


def test_a_broken_stretch_of_a_jpeg_is_refused_never_filled_with_grey() -> None:
    data = encoded(noise(width=64, height=64), "jpeg", quality=95)
    early = data[: len(data) // 2] + b"\xff\xd9"  # it ends properly, but too soon
    assert refusal(early).startswith("the jpeg picture is broken, cut short")


def test_a_jpeg_with_bytes_between_its_segments_is_read_all_the_same() -> None:
    data = encoded(noise(), "jpeg")
    odd = data[:20] + b"\0\0\0" + data[20:]
    assert torch.equal(images.read(odd).samples, images.read(data).samples)


def test_a_jpeg_with_such_bytes_whose_scan_is_cut_short_is_refused() -> None:
    data = encoded(noise(width=64, height=64), "jpeg", quality=95)
    for end in (b"", b"\xff\xd9"):
        odd = data[:20] + b"\0\0\0" + data[20 : len(data) // 2] + end
        assert refusal(odd).startswith("the jpeg picture is broken, cut short")


def test_a_jpeg_with_a_second_beginning_in_its_header_is_refused() -> None:
    data = encoded(noise(), "jpeg")
    assert refusal(data[:20] + b"\0\xff\xd8" + data[20:]).startswith("the jpeg picture is broken")


def test_bytes_before_a_jpegs_restart_marker_are_damage() -> None:
    data = encoded(noise(width=64, height=64), "jpeg", quality=95, restart_marker_blocks=2)
    fourth = data.index(b"\xff\xd3")
    assert images.read(data)
    assert refusal(data[:fourth] + b"\x55\x66\x77" + data[fourth:]).startswith("the jpeg picture is broken")


@pytest.mark.parametrize("progressive", [True, False])
def test_bytes_before_a_jpegs_end_are_harmless_unless_they_stand_where_it_should_restart(progressive: bool) -> None:
    data = encoded(noise(width=64, height=64), "jpeg", progressive=progressive)
    assert torch.equal(images.read(data[:-2] + b"\x55" * 9 + data[-2:]).samples, images.read(data).samples)
    restarting = encoded(noise(width=64, height=64), "jpeg", progressive=progressive, restart_marker_blocks=2)
    fourth = restarting.index(b"\xff\xd3", restarting.rindex(b"\xff\xda"))
    assert refusal(restarting[:fourth] + b"\x55" * 9 + b"\xff\xd9").startswith("the jpeg picture is broken")


@pytest.mark.parametrize("large", [0, 1 << 24])
def test_a_jpegs_header_is_put_right_and_copied_only_then(large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a large file's own memory."""
    monkeypatch.setattr(decoding, "LARGE_BYTES", large)
    data, file = encoded(noise(), "jpeg"), tmp_path / "a.jpg"
    revised = data[:11] + b"\2" + data[12:]
    for odd, right in (
        (data, data),
        (data[:20] + b"\xff\xff\xff" + data[20:], data[:20] + b"\xff\xff\xff" + data[20:]),
        (revised, data),
        (revised[:20] + b"\0\xff\0\xff\xd1" + revised[20:89] + b"junk" + revised[89:], data),
    ):
        file.write_bytes(odd)
        taken = images.bytes_of(file)
        clean, _, _ = decoding._screened_jpeg(taken, Limits())
        assert bytes(clean) == right
        assert (clean.obj is taken) == (odd == right or not large)
        assert torch.equal(images.read(images.bytes_of(file)).samples, images.read(data).samples)
    cut = revised[: len(revised) // 2] + b"\xff\xd9"
    assert refusal(cut).startswith("the jpeg picture is broken")


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_short_is_refused_never_filled_with_grey(name: str) -> None:
    data = images.write(picture(64, 64), name)
    for length in (len(data) // 4, len(data) // 2, len(data) * 9 // 10):
        assert refusal(data[:length]).endswith(("save it anew as plain PNG or JPEG", "send an unharmed copy"))


def test_a_png_with_one_wrong_byte_is_refused() -> None:
    data = bytearray(encoded(noise()))
    data[data.index(b"IDAT") + 9] ^= 1
    assert refusal(bytes(data)) == "the png picture's IDAT part is damaged or cut short: send an unharmed copy"


def test_damage_in_a_png_chunk_that_is_not_needed_is_dropped() -> None:
    data = bytearray(encoded(noise(), icc_profile=SRGB))
    data[data.index(b"iCCP") + 40] ^= 1
    assert images.read(bytes(data)).metadata.icc is None


def test_size_is_refused_from_the_header_before_decoding() -> None:
    assert refusal(png(header(20_000, 20_000, bits=1), (b"IDAT", b""), (b"IEND", b""))) == (
        "the picture has 400000000 pixels; at most max_pixels = 40000000 are accepted: shrink it or raise the limit"
    )
    assert refusal(png(header(2**31 - 1, 1), (b"IDAT", b""), (b"IEND", b""))) == (
        "the picture is 2147483647 x 1; a side may be at most max_side_pixels = 32768: shrink it"
    )
    assert "at most max_pixels = 34 are accepted" in refusal(encoded(noise()), max_pixels=34)
    assert images.read(encoded(noise()), Limits(max_pixels=35)).pixels.shape == (5, 7, 3)


def test_text_and_profiles_that_inflate_without_end_are_dropped() -> None:
    bomb = zlib.compress(bytes(20_000_000))
    for kind, head in ((b"iCCP", b"name\0\0"), (b"zTXt", b"name\0\0"), (b"iTXt", b"name\0\1\0\0\0")):
        assert images.read(with_chunk(encoded(noise()), kind, head + bomb)).metadata.icc is None


def test_what_trails_a_png_is_not_written_again() -> None:
    assert b"PK\3\4" not in images.write(images.read(encoded(noise()) + b"PK\3\4 an archive"))


def test_a_jpeg_of_countless_scans_is_refused() -> None:
    data = encoded(smooth(), "jpeg", progressive=True)
    scan = data.rindex(b"\xff\xda")
    assert images.read(data).pixels.shape == (32, 48, 3)
    assert refusal(data[:scan] + data[scan:-2] * 100 + data[-2:]) == (
        "the jpeg picture has more than max_scans = 64 scans: save it anew, not progressive"
    )


def ends_of_scans(data: bytes) -> list[int]:
    markers = [found.span() for found in re.finditer(rb"\xff[\xc4\xda\xd9]", data)]
    return [begin for (begin, _), (_, before) in zip(markers[1:], markers, strict=False) if data[before - 1] == 0xDA]


@pytest.mark.parametrize(("mode", "count"), [("L", 6), ("RGB", 10), ("CMYK", 18)])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_jpeg_that_lacks_scans_is_refused_though_it_ends_properly(mode: str, count: int, subsampling: int) -> None:
    data = encoded(noise(mode, 64, 48), "jpeg", progressive=True, subsampling=subsampling)
    ends = ends_of_scans(data)
    assert len(ends) == count
    for end in ends[:-1]:
        assert refusal(data[:end] + b"\xff\xd9") == "the jpeg picture lacks some of its scans: send an unharmed copy"
    assert images.read(data[: ends[-1]] + b"\xff\xd9")


def test_a_jpeg_without_the_scan_of_a_band_or_of_a_colour_is_refused() -> None:
    data = bytearray(encoded(Image.new("L", (8, 8)), "jpeg", progressive=True))
    last = data.rindex(b"\xff\xda")
    assert data[last + 7 : last + 9] == b"\1\x3f"  # the band
    data[last + 8] -= 1
    assert refusal(bytes(data)) == "the jpeg picture lacks some of its scans: send an unharmed copy"
    colour, grey = encoded(noise(), "jpeg", subsampling=0), encoded(noise("L"), "jpeg")
    head, scan = colour[: colour.index(b"\xff\xda")], grey[grey.index(b"\xff\xda") + 10 : -2]
    apart = [b"\xff\xda\0\x08\1" + bytes([component, 0, 0, 63, 0]) + scan for component in (1, 2, 3)]
    for kept in (1, 2):
        assert refusal(b"".join((head, *apart[:kept], b"\xff\xd9"))).startswith("the jpeg picture lacks some of its scans")
    assert images.read(b"".join((head, *apart, b"\xff\xd9"))).samples.shape == (5, 7, 3)


@pytest.mark.parametrize("behind", [b"\xff\xda", b"\xff\xda\0\2", b"\xff\xda\0\x08\1\x09\0\0\x3f\0", b"\xff\xc9", b"\xff\xc2\0\3\1"])
def test_what_begins_like_a_scan_behind_the_last_one_harms_nothing(behind: bytes) -> None:
    data = encoded(noise(), "jpeg")
    assert torch.equal(images.read(data[:-2] + behind).samples, images.read(data).samples)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("quality", [1, 50, 100])
def test_no_progressive_jpeg_that_an_encoder_writes_lacks_a_scan(mode: str, subsampling: int, optimize: bool, quality: int) -> None:
    for image in (noise(mode, 33, 17), Image.new(mode, (33, 17), 7 if mode == "L" else tuple(range(len(mode)))), noise(mode, 1, 1)):
        options = {"subsampling": subsampling, "optimize": optimize, "quality": quality}
        assert images.read(encoded(image, "jpeg", progressive=True, **options)).samples.shape[:2] == image.size[::-1]


FRAMES = [noise().point(lambda level, step=step: level ^ step) for step in (1, 64, 128)]


def moving(name: str, frames: list[Image.Image] = FRAMES, **options: Any) -> bytes:
    lossless = {"lossless": True} if name == "webp" else {}
    return encoded(frames[0], name, save_all=True, append_images=frames[1:], **lossless, **options)


def all_frames(data: bytes) -> list[Picture]:
    return list(images.open(data).frames(lambda: True))


@pytest.mark.parametrize("name", ["gif", "png", "webp", "tiff"])
def test_read_refuses_further_frames_with_their_count(name: str) -> None:
    assert refusal(moving(name)) == "the file holds 3 frames; it must hold 1: save the one you want as its own file"


@pytest.mark.parametrize("name", ["gif", "png", "webp", "tiff"])
@pytest.mark.parametrize("into", ["gif", "png", "webp", "tiff"])
def test_every_frame_comes_back_with_its_time_from_any_of_these_formats_in_any_other(name: str, into: str) -> None:
    timed = {} if name == "tiff" else {"duration": [100, 250, 400], "loop": 3}
    stack = images.open(moving(name, **timed))
    assert (stack.count, stack.width, stack.height, stack.pixels) == (3, 7, 5, 105)
    came = all_frames(moving(name, **timed))
    assert [frame.milliseconds for frame in came] == ([0] * 3 if name == "tiff" else [100, 250, 400])
    file = io.BytesIO()
    images.write_all(iter(came), file, into, stack.count, 100, stack.loop)
    by_pillow = Image.open(io.BytesIO(file.getvalue()))
    assert by_pillow.n_frames == 3  # type: ignore[attr-defined]
    if "tiff" not in (name, into):
        assert stack.loop == (4 if name == "gif" else 3)  # Pillow writes, and reads, GIF's own number: how often it is shown again
        assert by_pillow.info["loop"] == stack.loop - (into == "gif")
    for number, frame in enumerate(came):
        by_pillow.seek(number)
        shown = levels(by_pillow.convert("RGB"))
        assert shown == pytest.approx(frame.pixels, abs=1e-6)
        if "tiff" not in (name, into):
            assert by_pillow.info["duration"] == frame.milliseconds
    assert [images.sniff(file.getvalue()), len(all_frames(file.getvalue()))] == [into, 3]


@pytest.mark.parametrize("into", ["gif", "png", "webp"])
def test_what_is_clear_in_a_frame_stays_clear_and_shows_nothing_of_the_one_before(into: str) -> None:
    first = Picture(torch.full((4, 6, 3), 200, dtype=torch.uint8), torch.full((4, 6), 255, dtype=torch.uint8), milliseconds=50)
    alpha = torch.full((4, 6), 255, dtype=torch.uint8)
    alpha[:, 3:] = 0
    second = Picture(torch.full((4, 6, 3), 10, dtype=torch.uint8), alpha, milliseconds=50)
    file = io.BytesIO()
    images.write_all(iter((first, second)), file, into, 2, 100)
    back = all_frames(file.getvalue())[1]
    assert back.alpha is not None
    assert torch.equal(back.alpha, alpha)


def test_pages_keep_their_own_size_depth_and_words_and_thumbnails_are_passed_over() -> None:
    pages = [deep(5, 7, 3), deep(4, 9, 1), deep(6, 6, 3).astype(np.uint8)]
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for number, page in enumerate(pages):
            kind = "rgb" if page.shape[2] == 3 else "minisblack"
            page = page.squeeze()
            writer.write(page, photometric=kind, software=f"page {number}", metadata=None)
            writer.write(page[:2, :2], photometric=kind, subfiletype=1, metadata=None)
    came = all_frames(file.getvalue())
    written = io.BytesIO()
    images.write_all(iter(came), written, "tiff", 3)
    with tifffile.TiffFile(io.BytesIO(written.getvalue())) as back:
        for page, source in zip(back.pages, pages, strict=True):
            assert np.array_equal(page.asarray(), source.squeeze())
        assert [page.software for page in back.pages] == ["page 0", "page 1", "page 2"]
        assert [page.dtype for page in back.pages] == [np.uint16, np.uint16, np.uint8]
    with pytest.raises(ImageError, match="the pages are of different sizes, and the frames of webp are of one: choose tiff"):
        images.write_all(iter(came), io.BytesIO(), "webp", 3)


def written(frames: list[Picture], into: str, loop: int | None = None) -> tuple[bytes, list[str]]:
    file = io.BytesIO()
    lost = images.write_all(iter(frames), file, into, len(frames), 100, loop)
    return file.getvalue(), lost


@pytest.mark.parametrize("into", ["gif", "png", "webp"])
def test_frames_of_any_depth_are_animated_with_eight_bits(into: str) -> None:
    shallow = (torch.arange(35).view(5, 7, 1) * 7).to(torch.uint8)
    kinds = {8: shallow, 16: (shallow.int() * 257).to(torch.uint16), 32: shallow / 255}
    for depths in ((8, 16, 32), (16, 16), (32, 8)):
        frames = [Picture(kinds[depth], grey=True, depth=depth, milliseconds=50) for depth in depths]
        data, lost = written(frames, into)
        assert lost == [f"depth ({depth} bits became 8)" for depth in dict.fromkeys(depths) if depth > 8]
        assert all(torch.equal(frame.samples[..., :1], shallow) for frame in all_frames(data))
        moving = Image.open(io.BytesIO(data))
        for number in range(len(depths)):
            moving.seek(number)
            assert moving.convert("L").tobytes() == bytes(shallow.flatten().tolist())


def test_what_is_lost_of_any_frame_is_told_once_and_in_order() -> None:
    frames = [
        picture(),
        picture(depth=16, changed=("CMYK became sRGB",)),
        picture(depth=32, changed=("CMYK became sRGB",), metadata=Metadata(dpi=(72, 72))),
        picture(depth=16, metadata=Metadata(iptc=b"\x1c\2\5\0\1a", dpi=(72, 72))),
    ]
    told = ["CMYK became sRGB", "depth (16 bits became 8)", "dpi (webp holds none)", "depth (32 bits became 8)", "iptc (webp holds none)"]
    assert written(frames, "webp")[1] == told
    assert written(frames, "tiff")[1] == told[:1]


@pytest.mark.parametrize(("into", "most"), [("gif", 655_350), ("png", 655_350), ("webp", 0xFFFFFF)])
def test_a_frame_is_shown_as_long_as_the_format_can_tell(into: str, most: int) -> None:
    for milliseconds in (570, 65_530, 65_540, 100_010, 655_350, 2**24):
        data, _ = written([picture(milliseconds=milliseconds), picture(milliseconds=20)], into)
        assert [frame.milliseconds for frame in all_frames(data)] == [min(milliseconds, most), 20]


@pytest.mark.parametrize("into", ["gif", "png", "webp"])
@pytest.mark.parametrize("loop", [None, 0, 1, 2, 3, 65_535, 65_536])
def test_an_animation_is_shown_as_often_as_it_was(into: str, loop: int | None) -> None:
    data, _ = written([picture(), picture()], into, loop)
    again = images.open(data).loop
    if into == "gif":
        assert again == (None if loop == 1 else loop)  # once, where no number is told
        assert (b"NETSCAPE" in data) == (loop not in (None, 1))
    else:
        assert again == (1 if loop is None else min(loop, 65_535) if into == "webp" else loop)


def test_a_png_picture_that_is_no_frame_of_its_animation_is_passed_over() -> None:
    """The first frame begins on an empty canvas: nothing of that picture shows through it."""

    def control(number: int, left: int, blend: int) -> tuple[bytes, bytes]:
        return b"fcTL", struct.pack(">IIIIIHHBB", number, 4, 3, left, 0, 50, 1000, 0, blend)

    def rows(colour: bytes) -> bytes:
        return zlib.compress((b"\0" + colour * 4) * 3)

    red, green, clear = b"\xff\0\0\xff", b"\0\xff\0\xff", bytes(4)
    data = png(
        header(6, 3, colour=6), (b"acTL", struct.pack(">II", 2, 0)), (b"IDAT", zlib.compress((b"\0" + red * 6) * 3)),
        control(0, 1, 1), (b"fdAT", struct.pack(">I", 1) + rows(clear)),
        control(2, 0, 0), (b"fdAT", struct.pack(">I", 3) + rows(green)), (b"IEND", b""),
    )  # fmt: skip
    stack, (first, second) = images.open(data, Limits(max_frames=2)), all_frames(data)
    assert (stack.count, stack.pixels) == (2, 36)
    assert (first.milliseconds, second.milliseconds) == (50, 50)
    assert not whole(first).any()
    assert whole(second).tolist() == [[[0, 255, 0, 255]] * 4 + [[0] * 4] * 2] * 3
    still = png(header(4, 3, colour=6), (b"acTL", struct.pack(">II", 2**31, 0)), (b"IDAT", rows(red)), control(0, 0, 0), (b"IEND", b""))
    assert whole(images.read(still)).tolist() == [[[255, 0, 0, 255]] * 4] * 3  # no number of frames that there may be


def shown(frames: list[tuple[int, int, NDArray[np.uint8], int, int]], H: int, W: int) -> list[NDArray[np.float64]]:
    """What a reader shows of each, by the words of the specification: (left, top, RGBA, disposal, blend)."""
    canvas, told = np.zeros((H, W, 4)), []
    for left, top, rgba, disposal, blend in frames:
        before = canvas.copy()
        place = canvas[top : top + rgba.shape[0], left : left + rgba.shape[1]]
        for y, x in np.ndindex(rgba.shape[:2]):
            above, below = rgba[y, x, 3] / 255, place[y, x, 3] / 255
            alpha = above + below * (1 - above)
            if blend == 0:
                place[y, x] = rgba[y, x]
            elif alpha:
                place[y, x, :3] = (rgba[y, x, :3] * above + place[y, x, :3] * below * (1 - above)) / alpha
                place[y, x, 3] = 255 * alpha
        told.append(canvas.copy())
        if disposal == 1:
            place[:] = 0
        if disposal == 2:
            canvas = before
    return told


def apng(frames: list[tuple[int, int, NDArray[np.uint8], int, int]], H: int, W: int, plays: int = 0) -> bytes:
    chunks, number = [header(W, H, colour=6), (b"acTL", struct.pack(">II", len(frames), plays))], 0
    for left, top, rgba, disposal, blend in frames:
        h, w = rgba.shape[:2]
        chunks.append((b"fcTL", struct.pack(">IIIIIHHBB", number, w, h, left, top, 3, 0, disposal, blend)))
        rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rgba))
        chunks.append((b"fdAT", struct.pack(">I", number + 1) + rows) if number else (b"IDAT", rows))
        number += 2 if number else 1
    return png(*chunks, (b"IEND", b""))


@pytest.mark.parametrize("seed", range(12))
def test_frames_of_a_png_lie_over_one_another_and_are_undone_as_they_say(seed: int) -> None:
    rng, H, W = np.random.default_rng(seed), 9, 11

    def frame(left: int, top: int, width: int, height: int) -> tuple[int, int, NDArray[np.uint8], int, int]:
        rgba = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        rgba[..., 3] = rng.choice([0, 7, 128, 255], (height, width))
        return left, top, rgba, int(rng.integers(3)), int(rng.integers(2))

    places = (rng.integers((W, H)) for _ in range(4))
    frames = [frame(0, 0, W, H)] + [frame(x, y, int(rng.integers(1, W - x + 1)), int(rng.integers(1, H - y + 1))) for x, y in places]
    data = apng(frames, H, W, plays=3)
    assert images.open(data).loop == 3
    for came, expected in zip(all_frames(data), shown(frames, H, W), strict=True):
        assert came.milliseconds == 30
        assert np.abs(whole(came)[..., 3] - expected[..., 3]).max() <= 1.5
        seen = expected[..., 3] > 20
        assert np.abs(whole(came)[..., :3] - expected[..., :3])[seen].max(initial=0) <= 10


def test_an_animated_png_that_is_out_of_order_or_leads_out_of_its_canvas_is_refused() -> None:
    rgba = np.full((2, 3, 4), 255, np.uint8)
    assert len(all_frames(apng([(0, 0, rgba, 0, 0)] * 2, 2, 3))) == 2
    for wrong in ((1, 0, rgba, 0, 0), (0, 1, rgba, 0, 0), (2**31, 0, rgba, 0, 0)):
        with pytest.raises(ImageError, match="the png picture is broken"):
            all_frames(apng([(0, 0, rgba, 0, 0), wrong], 2, 3))
    data = apng([(0, 0, rgba, 0, 0)] * 3, 2, 3)
    begin = data.index(b"fdAT") - 4
    number = struct.unpack_from(">I", data, begin)[0] + 12
    missing = data[:begin] + data[begin + number :]
    with pytest.raises(ImageError, match="the png picture is broken"):
        all_frames(missing)
    with pytest.raises(ImageError, match="the png picture is broken"):
        all_frames(data[:37] + png((b"acTL", struct.pack(">II", 4, 0)))[12:] + data[53:])


@pytest.mark.parametrize("disposal", [0, 1])
def test_frames_of_a_png_without_alpha_become_clear_where_they_are_cleared(disposal: int) -> None:
    def part(number: int, left: int, width: int, level: int) -> list[tuple[bytes, bytes]]:
        data = zlib.compress(b"\0" + bytes([level] * width))
        control = b"fcTL", struct.pack(">IIIIIHHBB", number, width, 1, left, 0, 1, 10, disposal, 1)
        return [control, (b"fdAT", struct.pack(">I", number + 1) + data) if number else (b"IDAT", data)]

    data = png(header(3, 1), (b"acTL", struct.pack(">II", 2, 0)), *part(0, 0, 3, 9), *part(1, 1, 1, 200), (b"IEND", b""))
    first, second = all_frames(data)
    assert whole(first).tolist() == [[[9], [9], [9]]]
    assert whole(second).tolist() == ([[[0, 0], [200, 255], [0, 0]]] if disposal else [[[9], [200], [9]]])


@dataclasses.dataclass
class GifFrame:
    """As the specification names it: what a file says of one picture."""

    left: int
    top: int
    indexes: NDArray[np.uint8]  # (H, W)
    disposal: int = 0
    clear: int | None = None  # the transparent colour's index
    table: bytes = b""  # its own
    interlaced: bool = False
    delay: int = 3  # hundredths of a second


RAMP = bytes(level for index in range(8) for level in 3 * [index])  # a grey table to Pillow: every index is its own level


def gif_codes(indexes: bytes, bits: int = 3) -> bytes:
    """Blocks of codes of one length, each an index: the table of strings is emptied before it would need a longer one."""
    codes, clear = [1 << bits], 1 << bits
    for number, index in enumerate(indexes, 1):
        codes += [index, clear] if number % (clear - 2) == 0 else [index]
    packed = sum(code << (bits + 1) * number for number, code in enumerate([*codes, clear + 1]))
    data = packed.to_bytes((packed.bit_length() + 7) // 8, "little")
    return b"".join(bytes([len(data[at : at + 255])]) + data[at : at + 255] for at in range(0, len(data), 255)) + b"\0"


def gif_of(frames: list[GifFrame], H: int, W: int, table: bytes = b"", between: bytes = b"", again: int | None = None) -> bytes:
    """Tables have 8 colours, of which the background has number 5. `between`: what stands before each frame."""
    parts = [b"GIF89a" + struct.pack("<HHBBB", W, H, 0xF2 if table else 0x70, 5, 0) + table]
    if again is not None:
        parts.append(b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", again) + b"\0")
    for frame in frames:
        height, width = frame.indexes.shape
        how = frame.disposal << 2 | (frame.clear is not None)
        passes = [slice(0, None, 8), slice(4, None, 8), slice(2, None, 4), slice(1, None, 2)] if frame.interlaced else [slice(None)]
        parts += [
            between,
            b"\x21\xf9\x04" + struct.pack("<BHBB", how, frame.delay, frame.clear or 0, 0),
            b"\x2c" + struct.pack("<4HB", frame.left, frame.top, width, height, 0x82 * bool(frame.table) | 0x40 * frame.interlaced),
            frame.table + b"\x03" + gif_codes(b"".join(frame.indexes[rows].tobytes() for rows in passes)),
        ]
    return b"".join(parts) + b"\x3b"


def gif_shown(frames: list[GifFrame], H: int, W: int, table: bytes = b"") -> list[NDArray[np.uint8]]:
    """(H, W, 4) of each, pixel by pixel, by the words of the specification.

    But the canvas begins as nothing, and what is cleared of a frame with a transparent colour becomes that too, as libnsgif has it.
    """
    canvas, told = np.zeros((H, W, 4), np.uint8), []
    for frame in frames:
        colours, before = frame.table or table, canvas.copy()
        pixels = [(frame.top + y, frame.left + x, int(index)) for (y, x), index in np.ndenumerate(frame.indexes)]
        pixels = [(y, x, index) for y, x, index in pixels if y < H and x < W]
        for y, x, index in pixels:
            if index != frame.clear:
                canvas[y, x] = [*colours[3 * index : 3 * index + 3], 255]
        told.append(canvas.copy())
        for y, x, _ in pixels:
            if frame.disposal == 2:
                canvas[y, x] = [*table[15:18], 255] if table and frame.clear is None else 0
            elif frame.disposal == 3:
                canvas[y, x] = before[y, x]
    return told


def seen(came: Picture) -> NDArray[np.uint8]:
    """(H, W, 4), nothing where it is clear."""
    alpha = torch.full(came.samples.shape[:2], 255, dtype=torch.uint8) if came.alpha is None else came.alpha
    both = torch.cat((came.samples.expand(-1, -1, 3), alpha.unsqueeze(-1)), dim=-1)
    return np.where(both[..., 3:] > 0, both, 0)


@pytest.mark.parametrize("seed", range(80))
def test_frames_of_a_gif_lie_over_one_another_and_are_undone_as_they_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    H, W, count, whole_first = *(int(side) for side in rng.integers(1, 20, 2)), 5, rng.random() < 0.5

    def frame(number: int) -> GifFrame:
        left, top = (0, 0) if number == 0 and whole_first else (int(rng.integers(side)) for side in (W, H))
        width, height = (W, H) if number == 0 and whole_first else (int(rng.integers(1, side + 1)) for side in (W - left, H - top))
        return GifFrame(
            left, top, rng.integers(0, 8, (height, width), dtype=np.uint8), int(rng.integers(4)),
            int(rng.integers(8)) if rng.random() < 0.6 else None,
            rng.bytes(24) if rng.random() < 0.4 else RAMP if rng.random() < 0.4 else b"",
            bool(rng.integers(2)), int(rng.integers(1, 1000)),
        )  # fmt: skip

    frames, table = [frame(number) for number in range(count)], rng.bytes(24) if rng.random() < 0.6 else RAMP
    between = [b"", b"\x21\xfe\x02hi\x03all\0", b"\0\0"][seed % 3]
    data = gif_of(frames, H, W, table, between, again=4)
    stack, came = images.open(data), all_frames(data)
    assert (stack.count, stack.height, stack.width, stack.pixels, stack.loop) == (count, H, W, count * H * W, 5)
    assert [one.milliseconds for one in came] == [10 * one.delay for one in frames]
    for number, (one, expected) in enumerate(zip(came, gif_shown(frames, H, W, table), strict=True)):
        assert np.array_equal(seen(one), expected), number
        assert (one.alpha is None) == (expected[..., 3].min() == 255)
        grey = all((each.table or table) == RAMP for each in frames[: number + 1])
        painted = any(each.disposal == 2 and each.clear is None for each in frames[:number])
        assert one.grey == (grey and (table == RAMP or not painted))


@pytest.mark.parametrize(
    ("clear", "table", "left"),
    [(2, RAMP, [0, 0]), (None, RAMP, [5, 255]), (2, b"", [0, 0]), (None, b"", [0, 0])],
)
def test_what_a_frame_of_a_gif_clears_is_the_background_or_clear_though_it_was_opaque_before(
    clear: int | None, table: bytes, left: list[int]
) -> None:
    first = GifFrame(0, 0, np.full((2, 3), 1, np.uint8), table=RAMP)
    second = GifFrame(1, 0, np.full((2, 1), 2, np.uint8), disposal=2, clear=clear, table=RAMP)
    third = GifFrame(0, 0, np.full((1, 1), 3, np.uint8), table=RAMP)
    last = whole(all_frames(gif_of([first, second, third], 2, 3, table))[2])
    expected = [[[3, 255], left, [1, 255]], [[1, 255], left, [1, 255]]]
    assert last.tolist() == (expected if left[1] == 0 else [[pixel[:1] for pixel in row] for row in expected])


def test_a_gif_shows_as_much_of_a_frame_as_lies_on_the_canvas_which_is_as_large_as_the_first() -> None:
    rng = np.random.default_rng(3)
    places = [(1, 2, 6, 4), (5, 3, 9, 9), (30, 0, 2, 2), (0, 40, 3, 3)]
    frames = [GifFrame(x, y, rng.integers(0, 8, (h, w), dtype=np.uint8), disposal) for disposal, (x, y, w, h) in enumerate(places)]
    data, H, W = gif_of(frames, 5, 4, RAMP), 6, 7
    assert (images.open(data).height, images.open(data).width) == (H, W)
    for one, expected in zip(all_frames(data), gif_shown(frames, H, W, RAMP), strict=True):
        assert np.array_equal(seen(one), expected)


def test_a_gifs_frames_are_measured_before_any_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [GifFrame(0, 0, np.zeros(shape, np.uint8)) for shape in ((2, 3), (2, 3), (9, 20))]
    data = gif_of(frames, 2, 3, RAMP)
    monkeypatch.delattr(decoding, "GifImageFile")
    for limits, words in (
        (Limits(max_pixels=179), "the picture has 180 pixels; at most max_pixels = 179 are accepted"),
        (Limits(max_side_pixels=19), "the picture is 20 x 9; a side may be at most max_side_pixels = 19"),
        (Limits(max_total_pixels=191), "frames have 192 pixels together; at most max_total_pixels = 191 are accepted"),
        (Limits(max_frames=2), "the file holds 3 frames; at most max_frames = 2 are accepted"),
    ):
        with pytest.raises(ImageError, match=words):
            images.open(data, limits)
    assert images.open(data, Limits(max_pixels=180, max_side_pixels=20, max_total_pixels=192, max_frames=3)).pixels == 18


def test_an_animated_gif_that_is_cut_short_is_refused() -> None:
    rng = np.random.default_rng(4)
    frames = [GifFrame(0, 0, rng.integers(0, 8, (9, 9), dtype=np.uint8), interlaced=number == 1) for number in range(3)]
    data = gif_of(frames, 9, 9, RAMP, between=b"\x21\xfe\x05words\0")
    begin = data.rindex(b"\x21\xfe")
    control = begin + 9
    picture = control + 8
    for length in {*range(begin + 1, len(data) - 2)} - {control, picture}:  # there a block ends, and nothing tells of another
        with pytest.raises(ImageError, match="the gif picture is broken, cut short"):
            all_frames(data[:length])
    early = gif_of(frames[:2], 9, 9, RAMP).replace(gif_codes(frames[1].indexes[[0, 8, 4, 2, 6, 1, 3, 5, 7]].tobytes()), gif_codes(b"\1\2"))
    with pytest.raises(ImageError, match="the gif picture is broken, cut short"):
        all_frames(early)


def test_a_format_of_one_picture_takes_no_more() -> None:
    with pytest.raises(ImageError, match="the file holds 3 frames, and jpeg holds one: choose one of png, webp, tiff, gif"):
        images.write_all(iter(all_frames(moving("gif"))), io.BytesIO(), "jpeg", 3)


@pytest.mark.parametrize("name", ["gif", "png", "webp", "tiff"])
def test_frames_have_limits_of_their_own(name: str) -> None:
    data = moving(name)
    with pytest.raises(ImageError, match="the file holds 3 frames; at most max_frames = 2 are accepted"):
        images.open(data, Limits(max_frames=2))
    with pytest.raises(ImageError, match="frames have 105 pixels together; at most max_total_pixels = 104 are accepted"):
        images.open(data, Limits(max_total_pixels=104))


def test_nothing_holds_a_frame_but_whoever_took_it() -> None:
    for data in (encoded(noise()), encoded(noise(), "jpeg"), encoded(noise(), "webp"), moving("tiff"), moving("gif")):
        frames = images.open(data).frames(lambda: True)
        for picture in frames:
            samples = weakref.ref(picture.samples)
            del picture
            assert samples() is None


def test_frames_are_decoded_as_they_are_asked_for_and_no_longer_than_wanted() -> None:
    wanted = [True]
    frames = images.open(moving("gif")).frames(lambda: wanted[0])
    assert next(frames).samples.shape == (5, 7, 3)
    assert next(frames).samples.shape == (5, 7, 3)
    wanted[0] = False
    with pytest.raises(Cancelled):
        next(frames)


def test_parts_are_counted() -> None:
    assert refusal(with_chunk(encoded(noise()), b"teXt", b"")[:33] + png((b"teXt", b""))[8:] * 66_000) == (
        "the png picture has more than 65536 parts: save it anew"
    )
    assert refusal(b"\xff\xd8" + b"\xff\xfe\0\2" * 66_000) == "the jpeg picture has more than 65536 parts: save it anew"


def test_as_many_parts_as_a_large_picture_has_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    source = noise(width=200, height=300)
    data = images.write(images.read(encoded(source)), "png")
    assert data.count(b"IDAT") > 20
    monkeypatch.setattr(decoding, "MAX_PARTS", 4)
    assert np.array_equal(images.read(data).samples, np.asarray(source))


def test_decoding_has_a_time_limit_and_can_be_given_up() -> None:
    for name in ("png", "jpeg", "tiff"):
        data = encoded(noise(width=300, height=300), name)
        assert refusal(data, max_decode_seconds=0) == "decoding took longer than max_decode_seconds = 0: send a smaller picture"
        with pytest.raises(Cancelled):
            images.read(data, keep_going=lambda: False)


def test_depth_that_would_be_lost_is_refused() -> None:
    signed = encoded(noise(), "tiff", tiffinfo={339: 2})
    assert refusal(signed) == (
        "the picture's samples are signed, or floats of another depth than 32 bits: save it unsigned, or as 32-bit floats"
    )
    tiff = encoded(noise(), "tiff")
    bits = struct.unpack_from("<I", tiff, tiff.index(struct.pack("<HHI", 258, 3, 3)) + 8)[0]
    assert refusal(tiff[:bits] + struct.pack("<3H", 32, 32, 32) + tiff[bits + 6 :]) == (
        "the picture has 32 bits a sample; it must have 1, 2, 4, 8 or 16, or 32-bit floats: save it so"
    )
    for value in (float("nan"), float("inf")):
        assert refusal(encoded(Image.new("F", (2, 2), value), "tiff")) == (
            "the picture holds NaN or infinity; every sample must be a number: mend it first"
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_never_reach_an_encoder(value: float) -> None:
    bad = torch.full((2, 2, 3), 0.5)
    bad[1, 0, 2] = value
    message = "the picture holds NaN or infinity; every sample must be a number: mend it before writing"
    for broken in (Picture(bad), Picture(torch.zeros(2, 2, 3), alpha=bad[..., 2])):
        with pytest.raises(ImageError) as caught:
            images.write(broken)
        assert str(caught.value) == message


def test_an_unknown_format_and_a_quality_out_of_range_are_refused() -> None:
    with pytest.raises(ImageError, match=r"^format = 'psd'; it must be one of png, jpeg, .*: choose one of them$"):
        images.write(picture(), "psd")
    for quality in (0, 101):
        with pytest.raises(ImageError, match=f"^quality = {quality}; it must lie between 1 and 100: choose such"):
            images.write(picture(), "jpeg", quality)


@pytest.mark.parametrize(("name", "limit"), [("webp", 16_383), ("jpeg", 65_500)])
def test_a_picture_larger_than_its_encoder_takes_is_refused(name: str, limit: int) -> None:
    assert images.write(picture(1, limit), name)
    with pytest.raises(ImageError) as caught:
        images.write(picture(1, limit + 1), name)
    assert str(caught.value) == (f"the picture is {limit + 1} x 1; {name} holds at most {limit} a side: shrink it or choose png")


SEEDS = [images.write(picture(9, 9), name) for name in FORMATS] + [
    images.write(picture(9, 9, grey=True, depth=16), "tiff"),
    encoded(noise(), "jpeg", exif=exif(6), icc_profile=SRGB),
    encoded(noise(), "tiff", exif=exif(6), icc_profile=SRGB),
    encoded(noise().quantize(16), "png", transparency=0),
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow tells of broken blocks so
@settings(deadline=2000, max_examples=200)
@given(seed=st.sampled_from(SEEDS), keep=st.integers(0, 400), tail=st.binary(max_size=200))
@example(seed=b"\xff\xd8\xff", keep=3, tail=b"")
def test_the_head_of_a_picture_and_any_bytes_give_a_picture_or_an_image_error(seed: bytes, keep: int, tail: bytes) -> None:
    with contextlib.suppress(ImageError):
        assert images.read(seed[:keep] + tail).pixels.shape[-1] == 3


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow tells of broken blocks so
@settings(deadline=2000, max_examples=200)
@given(seed=st.sampled_from(SEEDS), changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6))
def test_a_picture_with_any_bytes_changed_gives_a_picture_that_can_be_written_or_an_image_error(
    seed: bytes, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(seed)
    for place, value in changes:
        data[place % len(data)] = value
    with contextlib.suppress(ImageError):
        came = images.read(bytes(data), Limits(max_pixels=100_000))
        assert images.sniff(images.write(came)) == came.format
