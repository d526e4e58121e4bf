"""A picture put together from cells is, to other readers, the very cells side by side, and says all that it said."""

import io
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

from core import avif, images
from core.avif import AvifError, Cells, Still
from core.images import Picture
from core.metadata import Metadata
from core.vips import pyvips

pytestmark = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/></x:xmpmeta>'
LIBHEIF = "VipsForeignLoadHeif"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells as small as may be, in small pictures."""
    monkeypatch.setattr(avif, "MAX_STILL_PIXELS", 64 * 64)
    monkeypatch.setattr(avif, "CELL_SIDE", 64)


@pytest.fixture
def libheif() -> Iterator[None]:
    pyvips.operation_block_set(LIBHEIF, False)
    yield
    pyvips.operation_block_set(LIBHEIF, True)


def photograph(mode: str, width: int = 150, height: int = 131) -> Image.Image:
    """Smooth, with some noise, and a little of it transparent."""
    across, down = np.meshgrid(np.linspace(0, 5, width), np.linspace(0, 4, height))
    waves = np.stack([np.sin(across + down), np.cos(across - down), np.sin(across * down)], axis=-1) * 90 + 128
    noisy = Image.fromarray((waves + np.random.default_rng(0).normal(0, 4, waves.shape)).clip(0, 255).astype(np.uint8))
    image = noisy.convert(mode)
    if mode.endswith("A"):
        clear = np.full((height, width), 255, np.uint8)
        clear[20:50, 30:60] = np.arange(30) * 8
        image.putalpha(Image.fromarray(clear))
    return image


def array(image: Image.Image) -> NDArray[np.uint8]:
    samples = np.asarray(image)
    return samples if samples.ndim == 3 else samples[..., None]


def encoded(image: Image.Image, metadata: Metadata | None = None, quality: int | None = None) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    picture = images.read(file.getvalue())
    return images.write(Picture(picture.samples, picture.alpha, picture.grey, metadata=metadata or Metadata()), "avif", quality)


def alone(image: Image.Image, cells: Cells, number: int, **options: object) -> bytes:
    file = io.BytesIO()
    cell = cells.cut(array(image), number)
    options = {"quality": 95, "speed": 9, "subsampling": "4:0:0" if image.mode == "L" else "4:4:4"} | options
    Image.frombytes(image.mode, (cells.cell_width, cells.cell_height), cell.tobytes()).save(file, "avif", **options)
    return file.getvalue()


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    return array(Image.open(io.BytesIO(data)))


def by_libheif(data: bytes) -> NDArray[np.uint8]:
    samples = pyvips.Image.heifload_buffer(data).numpy()
    return samples if samples.ndim == 3 else samples[..., None]


@pytest.mark.usefixtures("small", "libheif")
@pytest.mark.parametrize("reader", [by_pillow, by_libheif])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(150, 131), (65, 64), (192, 128), (1000, 5)])
def test_every_reader_sees_the_cells_as_they_are_alone(reader, mode: str, size: tuple[int, int]) -> None:
    source = photograph(mode, *size)
    seen, cells = reader(encoded(source)), avif.cells(*size)
    assert seen.shape[:2] == size[::-1]
    assert len(cells) > 1
    whole = np.zeros((cells.rows * cells.cell_height, cells.columns * cells.cell_width, seen.shape[2]), np.uint8)
    for number in range(len(cells)):
        top, left = number // cells.columns * cells.cell_height, number % cells.columns * cells.cell_width
        whole[top : top + cells.cell_height, left : left + cells.cell_width] = reader(alone(source, cells, number))
    assert np.array_equal(seen, whole[: size[1], : size[0]])


@pytest.mark.usefixtures("small", "libheif")
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_exact_and_colours_are_those_of_the_opaque_picture(mode: str) -> None:
    source = photograph(mode)
    data, opaque = encoded(source), encoded(source.convert(mode.removesuffix("A")))
    for reader in (by_pillow, by_libheif):
        seen, colours = reader(data), reader(opaque)
        assert np.array_equal(seen[..., -1], array(source)[..., -1]), reader
        assert np.array_equal(seen[..., :-1], np.broadcast_to(colours, (*colours.shape[:2], 3))), reader
    back = images.read(data)
    assert back.alpha is not None
    assert np.array_equal(back.alpha.numpy(), array(source)[..., -1])


@pytest.mark.usefixtures("small")
def test_what_is_wholly_opaque_has_no_grid_of_transparency() -> None:
    source = photograph("RGB")
    veiled = source.copy()
    veiled.putalpha(255)
    assert encoded(veiled) == encoded(source)


@pytest.mark.usefixtures("small", "libheif")
def test_metadata_is_kept_to_the_byte() -> None:
    tags = Image.Exif()
    tags[0x010F], tags[0x0112] = "Maker", 1
    said = Metadata(icc=SRGB, exif=b"Exif\0\0" + tags.tobytes().removeprefix(b"Exif\0\0"), xmp=XMP)
    data = encoded(photograph("RGBA"), said)
    assert images.read(data).metadata == said
    seen = pyvips.Image.heifload_buffer(data)
    assert seen.get("icc-profile-data") == SRGB
    assert seen.get("exif-data").endswith(tags.tobytes().removeprefix(b"Exif\0\0"))
    assert seen.get("xmp-data") == XMP


@pytest.mark.usefixtures("small")
def test_no_seam_shows_where_cells_meet() -> None:
    source = photograph("RGB", 640, 512)
    error = np.abs(by_pillow(encoded(source)).astype(float) - array(source)).mean(axis=-1)
    cells = avif.cells(640, 512)
    across = [error[:, left - 1 : left + 1] for left in range(cells.cell_width, 640, cells.cell_width)]
    down = [error[top - 1 : top + 1] for top in range(cells.cell_height, 512, cells.cell_height)]
    beside = np.concatenate([part.ravel() for part in across + down]).mean()
    assert beside <= 1.1 * error.mean(), (beside, error.mean())


def test_a_picture_of_one_cell_is_no_grid() -> None:
    small = photograph("RGB")
    assert b"grid" not in encoded(small)
    assert b"av01" in encoded(small)


@given(st.integers(1, 65_536), st.integers(1, 65_536))
def test_cells_are_equal_even_large_enough_and_each_holds_some_of_the_picture(width: int, height: int) -> None:
    cells = avif.cells(width, height)
    for whole, count, side in ((width, cells.columns, cells.cell_width), (height, cells.rows, cells.cell_height)):
        assert (count - 1) * side < whole <= count * side
        assert side % 2 == 0
        assert 64 <= side <= avif.CELL_SIDE
        assert count <= 256


def test_a_side_too_long_for_sixteen_bits_is_told_in_thirty_two() -> None:
    cells = Cells(70_000, 100, 2, 1, 35_000, 100)
    data = b"".join(avif.grid(cells, [Still(b"", ())] * 2, [], None, None))
    assert b"\0\1\0\1" + (70_000).to_bytes(4, "big") + (100).to_bytes(4, "big") in data


@pytest.mark.parametrize(
    ("colours", "told"),
    [
        ([Still(b"", ())], "1 cells came for a grid of 2 x 1"),
        ([Still(b"", ()), Still(b"", (b"\0\0\0\x08free",))], "the cells are of different kinds"),
    ],
)
def test_cells_that_do_not_fit_are_refused(colours: list[Still], told: str) -> None:
    with pytest.raises(AvifError, match=told):
        avif.grid(avif.cells(2000, 1000), colours, [], None, None)


def test_what_no_encoder_of_ours_writes_is_refused() -> None:
    source = photograph("RGB", 64, 64)
    plain = alone(source, avif.cells(64, 64), 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for broken, told in (
        (alone(source, avif.cells(64, 64), 0, exif=exif), "turned or cut"),
        (plain[:-5], "leads out of the file"),
        (plain.replace(b"iloc\0", b"iloc\1"), "of a rare kind"),
        (plain.replace(b"pitm\0\0\0\0\0\1", b"pitm\0\0\0\0\0\2"), "in pieces"),
    ):
        with pytest.raises(AvifError, match=told):
            avif.still(broken)


def test_boxes_are_counted_by_their_sizes() -> None:
    data = encoded(photograph("RGB"))
    sizes = [len(body) + 8 for _, body in avif._boxes(data)]
    assert sum(sizes) == len(data)
    assert all(size >= 8 for size in sizes)
    assert list(pairwise(kind for kind, _ in avif._boxes(data))) == [(b"ftyp", b"meta"), (b"meta", b"mdat")]


@pytest.mark.parametrize(("first", "shown", "grey", "eight_bits"), [
    (0x1C, 0x0C, False, True), (0x0C, 0x1C, True, True), (0x1C, 0x4C, False, False), (0x4C, 0x0C, False, True),
])  # fmt: skip
@pytest.mark.parametrize("cells", [0, 2])
def test_how_the_shown_picture_is_coded_is_told_whatever_else_is_in_the_file(
    first: int, shown: int, grey: bool, eight_bits: bool, cells: int
) -> None:
    file, told = avif.File(), [avif._box(b"av1C", bytes([0x81, 0, each, 0])) for each in (first, shown)]
    file._properties[told[0]] = 1  # of transparency, or of a thumbnail
    if cells:
        whole = file.add(avif.Item(b"grid", b""))
        file.refer(b"auxl", file.add(avif.Item(b"av01", b"", told[:1])), [whole])
        file.refer(b"dimg", whole, [file.add(avif.Item(b"av01", b"", told[1:])) for _ in range(cells)])
    else:
        file.add(avif.Item(b"av01", b"", told[1:]))
        file.refer(b"thmb", file.add(avif.Item(b"av01", b"", told[:1])), [1])
    data = b"".join(file.laid())
    assert avif.coding(memoryview(data)) == (grey, eight_bits)
    without = data.replace(b"pitm", b"free")
    assert avif.coding(memoryview(without)) == (bool(first & 0x10), not first & 0x40)
    if not eight_bits:
        with pytest.raises(images.ImageError, match="the avif picture has more than 8 bits a sample"):
            images.open(data)


def test_a_file_that_tells_nothing_of_its_coding_is_taken_for_eight_bits_of_colour() -> None:
    assert avif.coding(memoryview(b"\0\0\0\x08ftyp")) == (False, True)


def test_boxes_may_be_wide_and_the_last_endless() -> None:
    data = b"\0\0\0\1mdat" + (20).to_bytes(8, "big") + b"wide" + b"\0\0\0\0free" + b"to the end"
    assert list(avif._boxes(data)) == [(b"mdat", b"wide"), (b"free", b"to the end")]
    with pytest.raises(AvifError, match="a box of 8 bytes leads out of the file"):
        list(avif._boxes(b"\0\0\0\1mdat" + (8).to_bytes(8, "big")))
