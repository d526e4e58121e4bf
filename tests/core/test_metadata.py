"""Every block of metadata goes from one file to another whole, and what tells the place can be left out."""

import base64
import dataclasses
import io
import struct
import zlib

import pytest
import torch
from PIL import ExifTags, Image, ImageCms, IptcImagePlugin, TiffImagePlugin

from core import images, metadata, tiff
from core.images import Picture
from core.metadata import Metadata

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = (
    b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22'
    b'-rdf-syntax-ns#"><rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="image/png"/></rdf:RDF></x:xmpmeta>'
    b'<?xpacket end="w"?>'
)
PLACED = XMP.replace(b'dc:format="image/png"', b'exif:GPSLatitude="59,54N" photoshop:City="Oslo" dc:format="image/png"')


def iptc(*datasets: tuple[int, bytes]) -> bytes:
    return b"".join(struct.pack(">BBBH", 0x1C, 2, number, len(value)) + value for number, value in datasets)


def exif(gps: bool = True) -> bytes:
    tags = Image.Exif()
    tags[0x010F] = "Maker"
    tags[0x8298] = "Somebody"
    tags.get_ifd(0x8769).update({0x829A: TiffImagePlugin.IFDRational(1, 250), 0x927C: b"maker's own secret", 0x9003: "2026:01:02 03:04:05"})
    if gps:
        tags.get_ifd(0x8825).update({1: "N", 2: (59.0, 54.0, 30.0), 3: "E", 4: (10.0, 45.0, 0.0)})
    return tags.tobytes()


ALL = Metadata(icc=ICC, exif=exif(), xmp=XMP, iptc=iptc((5, b"Title"), (90, b"Oslo"), (120, b"A caption")), dpi=(300.0, 200.0))


def picture(said: Metadata, grey: bool = False) -> Picture:
    return Picture(torch.rand(6, 9, 1 if grey else 3, generator=torch.Generator().manual_seed(0)), grey=grey, metadata=said)


def tags(block: bytes | None) -> dict[str, dict[int, object]]:
    """What Pillow reads in an EXIF block."""
    assert block is not None
    read = Image.Exif()
    read.load(block)
    return {
        "first": {tag: read[tag] for tag in (0x010F, 0x8298) if tag in read},
        "exif": dict(read.get_ifd(0x8769)),
        "gps": dict(read.get_ifd(0x8825)),
    }


@pytest.mark.parametrize("name", ["png", "jpeg", "tiff"])
def test_all_of_it_comes_back_from_a_file_that_holds_all_of_it(name: str) -> None:
    back = images.read(images.write(picture(ALL), name)).metadata
    assert (back.icc, back.xmp, back.iptc, back.broken) == (ALL.icc, ALL.xmp, ALL.iptc, ())
    assert back.dpi == pytest.approx(ALL.dpi, abs=0.02)
    assert tags(back.exif) == tags(ALL.exif)
    if name != "tiff":
        assert back.exif == ALL.exif


@pytest.mark.parametrize("name", ["webp", "avif"])
def test_what_a_format_cannot_hold_is_named(name: str) -> None:
    back = images.read(images.write(picture(ALL), name)).metadata
    assert (back.icc, back.exif, back.xmp, back.iptc) == (ALL.icc, ALL.exif, ALL.xmp, None)
    assert images.lost(picture(ALL), name) == [f"iptc ({name} holds none)", f"dpi ({name} holds none)"]
    assert images.lost(picture(ALL), "png") == []


@pytest.mark.parametrize("first", ["png", "jpeg", "tiff"])
@pytest.mark.parametrize("second", ["png", "jpeg", "tiff"])
def test_it_goes_from_any_of_these_formats_to_any_other(first: str, second: str) -> None:
    once = images.read(images.write(picture(ALL), first))
    twice = images.read(images.write(once, second)).metadata
    assert (twice.icc, twice.xmp, twice.iptc) == (ALL.icc, ALL.xmp, ALL.iptc)
    assert tags(twice.exif) == tags(ALL.exif)


def test_pillow_reads_what_was_written() -> None:
    for name in ("png", "jpeg", "tiff", "webp"):
        image = Image.open(io.BytesIO(images.write(picture(ALL), name)))
        assert image.info["icc_profile"] == ICC, name
        assert image.getexif()[0x010F] == "Maker", name
        assert image.getexif().get_ifd(0x8769)[0x829A] == pytest.approx(1 / 250), name
        assert image.getexif().get_ifd(0x8825)[2] == (59.0, 54.0, 30.0), name
        packet = image.info.get("xmp") or image.tag_v2[700]  # type: ignore[attr-defined]
        assert (packet.encode() if isinstance(packet, str) else packet) == XMP, name
        if name in ("png", "jpeg", "tiff"):
            assert image.info["dpi"] == pytest.approx((300, 200), abs=0.1), name
        if name in ("jpeg", "tiff"):
            read = IptcImagePlugin.getiptcinfo(image)
            assert read is not None
            assert (read[2, 5], read[2, 90]) == (b"Title", b"Oslo")


def test_safe_leaves_out_the_place_and_keeps_the_rest() -> None:
    safe = Metadata(icc=ICC, exif=exif(), xmp=PLACED, iptc=ALL.iptc, dpi=(72.0, 72.0)).safe()
    assert safe.exif is not None
    assert len(safe.exif) == len(exif())  # in place: every offset stays true
    left, before = tags(safe.exif), tags(exif())
    assert left["gps"] == {}
    assert left["first"] == before["first"]
    assert left["exif"] == {tag: value for tag, value in before["exif"].items() if tag != 0x927C}
    assert b"secret" not in safe.exif
    assert struct.pack(">II", 59, 1) not in safe.exif
    assert struct.pack("<II", 59, 1) not in safe.exif
    assert safe.xmp is not None
    assert b"GPS" not in safe.xmp
    assert b"Oslo" not in safe.xmp
    assert b"dc:format" in safe.xmp
    assert safe.iptc == iptc((5, b"Title"), (120, b"A caption"))
    assert (safe.icc, safe.dpi) == (ICC, (72.0, 72.0))


def test_safe_drops_a_packet_that_may_still_tell_the_place() -> None:
    assert Metadata(xmp=XMP.replace(b"dc:format", b"my:latitude")).safe().xmp is None


def test_safe_changes_nothing_where_no_place_is_told() -> None:
    plain = Image.Exif()
    plain[0x010F] = "Maker"
    said = Metadata(exif=plain.tobytes(), xmp=XMP, iptc=iptc((5, b"Title")))
    assert said.safe() == said


def test_strip_keeps_what_the_colours_need() -> None:
    said = Metadata(icc=ICC, exif=exif(), xmp=XMP, iptc=b"x", dpi=(1.0, 1.0), colour=((b"gAMA", b"\0\0\xb1\x8f"),))
    assert said.stripped() == Metadata(icc=ICC, colour=said.colour)


def test_a_broken_block_is_dropped_and_named() -> None:
    said = Metadata(icc=b"x" * 200, exif=b"Exif\0\0junk", xmp=b"no packet", iptc=b"\x1c\x02\x05\xff\xff")
    assert said.checked(grey=False) == Metadata(broken=("icc", "exif", "xmp", "iptc"))
    assert ALL.checked(grey=False) == ALL


def test_a_profile_whose_tags_lead_out_of_it_is_broken() -> None:
    assert metadata.profile_fits(ICC, grey=False)
    assert not metadata.profile_fits(ICC[:136] + struct.pack(">I", len(ICC)) + ICC[140:], grey=False)


@pytest.mark.parametrize(("name", "size"), [("exif", 70_000), ("xmp", 70_000), ("iptc", 66_000)])
def test_a_block_that_a_jpeg_segment_cannot_hold_is_left_out_and_named(name: str, size: int) -> None:
    long = {
        "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0" + bytes(size),
        "xmp": XMP + b" " * size,
        "iptc": iptc((120, b"a" * 30_000), (120, b"b" * 30_000), (5, b"c" * 6_000)),
    }[name]
    large = picture(Metadata(**{name: long}))  # type: ignore[arg-type]
    assert getattr(images.read(images.write(large, "png")).metadata, name) == long
    assert getattr(images.read(images.write(large, "jpeg")).metadata, name) is None
    assert images.lost(large, "jpeg") == [f"{name} (jpeg holds none so large)"]


@pytest.mark.parametrize("kind", [b"iCCP", b"iTXt"])
def test_what_inflates_without_end_is_dropped(kind: bytes) -> None:
    bomb = zlib.compress(bytes(metadata.MAX_BLOCK_BYTES + 1))
    gathered = metadata.Png()
    gathered.chunk(kind, (b"icc\0\0" if kind == b"iCCP" else b"XML:com.adobe.xmp\0\1\0\0\0") + bomb, True)
    assert gathered.metadata() == Metadata(broken=("icc" if kind == b"iCCP" else "xmp",))


def test_colour_chunks_and_resolution_of_a_png_come_back() -> None:
    colour = ((b"gAMA", struct.pack(">I", 45455)), (b"cHRM", struct.pack(">8I", *range(31270, 31278))))
    back = images.read(images.write(picture(Metadata(colour=colour, dpi=(118.0, 118.0))), "png")).metadata
    assert back.colour == colour
    assert back.dpi == pytest.approx((118, 118), abs=0.02)


def test_resolution_of_a_bmp_comes_back_and_none_is_made_up() -> None:
    assert images.read(images.write(picture(Metadata(dpi=(300.0, 204.0))), "bmp")).metadata.dpi == pytest.approx((300, 204), abs=0.02)
    unknown = images.write(picture(Metadata()), "bmp")
    assert unknown[38:46] == bytes(8)
    assert images.read(unknown).metadata.dpi is None
    assert images.lost(picture(Metadata(dpi=(300.0, 300.0))), "bmp") == []


@pytest.mark.parametrize(("name", "least", "most"), [
    ("jpeg", 0.6, 65_535.4), ("png", 0.013, 5.45e7), ("tiff", 0.0006, 4.29e9), ("bmp", 0.013, 5.45e7),
])  # fmt: skip
def test_a_resolution_that_a_format_cannot_hold_is_left_out_and_named(name: str, least: float, most: float) -> None:
    without = images.write(picture(Metadata()), name)
    for value in (least, most):
        held = picture(Metadata(dpi=(300.0, value)))
        across, down = Image.open(io.BytesIO(images.write(held, name))).info["dpi"]
        assert (across, down) == (pytest.approx(300, abs=0.02), pytest.approx(value, rel=1e-3 if value == most else 1))
        assert images.lost(held, name) == []
    for value, word in ((least / 2, "small"), (most * 1.01, "large"), (float("inf"), "large"), (float("nan"), "large")):
        for dpi in ((300.0, value), (value, 300.0)):
            assert images.write(picture(Metadata(dpi=dpi)), name) == without
            assert images.lost(picture(Metadata(dpi=dpi)), name) == [f"dpi ({name} holds none so {word})"]
            file = io.BytesIO()
            if name == "tiff":
                assert images.write_all(iter([picture(Metadata(dpi=dpi))] * 2), file, name, 2) == [f"dpi (tiff holds none so {word})"]


def test_text_of_a_png_is_dropped_and_named() -> None:
    plain = images.write(picture(Metadata()), "png")
    data = plain[:33] + metadata.png_chunk(b"tEXt", b"Title\0<script>alert(1)</script>") + plain[33:]
    assert images.read(data).metadata.broken == ("text",)


def test_a_profile_in_many_segments_is_joined_in_order_and_one_with_a_gap_is_dropped() -> None:
    parts = [(n + 1, 3, bytes([n]) * 200) for n in range(3)]

    def gathered(*chosen: tuple[int, int, bytes]) -> Metadata:
        jpeg = metadata.Jpeg()
        for number, of, body in chosen:
            jpeg.segment(0xE2, b"ICC_PROFILE\0" + bytes([number, of]) + body)
        return jpeg.metadata()

    assert gathered(parts[2], parts[0], parts[1]).icc == b"\0" * 200 + b"\1" * 200 + b"\2" * 200
    for wrong in (parts[:2], [*parts, parts[0]], [(0, 3, b""), *parts[1:]], [(1, 2, b""), *parts[1:]]):
        assert gathered(*wrong).checked(grey=False).broken == ("icc",)


def test_directories_that_form_a_circle_are_refused() -> None:
    page = b"II*\0\x08\0\0\0" + tiff.laid(tiff.Directory({256: tiff.shorts(1)}), 8)
    circle = page[:-4] + struct.pack("<I", 8)
    with pytest.raises(tiff.TiffError, match="circle"):
        list(tiff.Structure(circle).pages())


def test_a_big_endian_block_is_read_as_its_little_endian_twin() -> None:
    block = struct.pack(">2sHIHHHIHHHHII", b"MM", 42, 8, 2, 0x0112, 3, 1, 6, 0, 0x011A, 5, 1, 38) + struct.pack(">III", 0, 300, 7)
    (page,) = tiff.Structure(block).pages()
    assert page.number(0x0112, 0) == 6
    assert page.bytes(0x011A) == struct.pack("<II", 300, 7)


def test_a_block_that_failed_is_not_inflated_again() -> None:
    gathered = metadata.Png()
    gathered.chunk(b"iCCP", b"icc\0\0" + b"broken", True)
    gathered.chunk(b"iCCP", b"icc\0\0" + zlib.compress(ICC), True)
    assert gathered.metadata() == Metadata(broken=("icc",))


def test_values_that_are_larger_than_the_file_together_are_refused() -> None:
    entries = b"".join(struct.pack("<HHII", 700, 1, 1 << 20, 0) for _ in range(1000))
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", 1000) + entries + bytes(4 + (1 << 20))
    with pytest.raises(tiff.TiffError, match="its values are larger than the file"):
        list(tiff.Structure(data).pages())


def thumbnailed(order: str, orientation: int = 1, strips: bool = False) -> tuple[bytes, bytes]:
    """A block with values of its own before, between and behind; and the same where the second directory and its picture are zeros."""
    parts = [b"one", b"two"] if strips else [b"onetwo"]
    at, second = 8 + 6 + 2 * 12, 8 + 6 + 2 * 12 + 8
    end = second + 2 + 2 * 12 + 4
    head = struct.pack(order + "2sHIHHHIHHHHII", b"II" if order == "<" else b"MM", 42, 8, 2, 0x0112, 3, 1, orientation, 0, 0x010F, 2, 8, at)
    arrays = struct.pack(order + "4I", end + 16, end + 20, 3, 3) if strips else bytes(16)
    entries = struct.pack(order + "HHII" * 2, 273, 4, 2, end, 279, 4, 2, end + 8) if strips else struct.pack(
        order + "HHII" * 2, 513, 4, 1, end + 16, 514, 4, 1, 6)  # fmt: skip
    behind = arrays + b"?".join(parts) + b"maker's own"
    link, count, last = (struct.pack(order + letter, value) for letter, value in (("I", second), ("H", 2), ("I", 0)))
    clean = arrays + b"?".join(bytes(len(part)) for part in parts) + b"maker's own"
    return (
        b"Exif\0\0" + head + link + b"Maker 1\0" + count + entries + last + behind,
        b"Exif\0\0" + head + bytes(4) + b"Maker 1\0" + count + bytes(24) + last + clean,
    )


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("strips", [False, True])
def test_a_thumbnail_becomes_zeros_and_every_other_byte_stays(order: str, strips: bool) -> None:
    block, clean = thumbnailed(order, strips=strips)
    assert Metadata(exif=block).of_a_part().exif == clean
    assert Metadata(exif=clean).of_a_part().exif == clean
    assert metadata.upright(block) == (1, block)
    assert metadata.upright(thumbnailed(order, 6, strips)[0]) == (6, clean)
    assert metadata.upright(thumbnailed(order, 9, strips)[0]) == (9, block)
    if not strips:
        read = Image.Exif()
        read.load(block)
        assert read.get_ifd(ExifTags.IFD.IFD1)[513] > 0
        read.load(clean)
        assert read.get_ifd(ExifTags.IFD.IFD1) == {}


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_thumbnail_that_is_said_to_be_anywhere_harms_nothing(order: str) -> None:
    block, _ = thumbnailed(order)
    link, place = 6 + 8 + 2 + 24, 6 + 8 + 6 + 24 + 8 + 2 + 8
    for number in (0, 1, 8, 20, 34, len(block) - 6, 2**31, 2**32 - 1):
        for at in (link, place, place + 12):
            for cut in (len(block), len(block) - 11, link + 4, link + 2, link):
                hostile = bytearray(block)
                struct.pack_into(order + "I", hostile, at, number)
                part = Metadata(exif=bytes(hostile[:cut])).of_a_part()
                assert part.checked(grey=False) == part
                assert part.exif is not None
                zeros = bytes(max(0, min(cut - link, 4)))
                assert (len(part.exif), part.exif[:link], part.exif[link : link + 4]) == (cut, block[:link], zeros)


def test_many_places_of_a_thumbnail_take_no_time() -> None:
    entries = struct.pack("<HHII", 273, 4, 1 << 20, 0) * 30_000
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HIH", 0, 14, 30_000) + entries + bytes(4 << 20)
    assert Metadata(exif=block).of_a_part().exif == block[:16] + bytes(4) + block[20:22] + bytes(len(block) - 22)


# --- of a part ---


SHOWN = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4 + b"\xff\xd9"
"""What a preview of the whole looks like."""


def lines(length: int, between: bytes) -> bytes:
    text = base64.b64encode(SHOWN)
    return between.join(text[at : at + length] for at in range(0, len(text), length))


@pytest.mark.parametrize("text", [
    lines(76, b"&#xA;"), lines(76, b"\r\n"), lines(64, b"\n   "), lines(72, b"&#10;"), lines(9999, b""), lines(600, b"\n"),
])  # fmt: skip
@pytest.mark.parametrize("form", [
    b"<xmp:Thumbnails><rdf:Alt><rdf:li xmpGImg:height='9'><xmpGImg:image>%b</xmpGImg:image></rdf:li></rdf:Alt></xmp:Thumbnails>",
    b'<rdf:li xmpGImg:width="9" xmpGImg:image="%b"/>', b"<my:preview> %b\n</my:preview>",
])  # fmt: skip
def test_pictures_in_xmp_go_from_a_part_and_from_what_is_turned(form: bytes, text: bytes) -> None:
    whole, empty = (XMP.replace(b"<rdf:Description", form % said + b"<rdf:Description") for said in (text, b""))
    for after in (Metadata(xmp=whole).of_a_part(), Metadata(xmp=whole).turned(3)):
        assert after.xmp is not None
        assert b"".join(after.xmp.split()) == b"".join(empty.split())
    assert Metadata(xmp=whole).turned(1).xmp == whole


def test_words_in_xmp_stay_in_a_part() -> None:
    said = b"<my:words>%b</my:words><my:sums>%b</my:sums>" % (b"many plain words " * 99, b"9f86d081884c7d659a2feaa0c55ad015" * 4)
    packet = XMP.replace(b"<rdf:Description", said + b"<rdf:Description") + b" " * 4000
    assert Metadata(xmp=packet).of_a_part().xmp == packet


def test_what_may_be_a_picture_in_xmp_takes_no_time_to_find() -> None:
    for hostile in (b"A" * 39 + b" ", b"A" * 40 + b" ", b"A" * 255 + b"<", b"&#xA;", b"A" * 40 + b"&#xA;" * 9 + b"<", b" " * 999 + b"A"):
        packet = XMP + hostile * ((4 << 20) // len(hostile))
        kept = Metadata(xmp=packet).of_a_part().xmp
        assert kept is not None
        assert kept.startswith(XMP)


def test_a_makers_notes_and_whatever_picture_lies_outside_of_them_go_from_a_part() -> None:
    part = Metadata(exif=exif()).of_a_part().exif
    before = tags(exif())
    assert part is not None
    assert len(part) == len(exif())  # in place: every offset stays true
    assert b"secret" not in part
    assert tags(part) == before | {"exif": {tag: value for tag, value in before["exif"].items() if tag != 0x927C}}
    behind = Metadata(exif=exif() + SHOWN).of_a_part().exif  # where some makers' notes point to
    assert behind is not None
    assert SHOWN not in behind
    assert tags(behind) == tags(part)


@pytest.mark.parametrize("tag", [0x02BC, 0x501B, 0x8649, 0xC634])
@pytest.mark.parametrize("shown", [SHOWN, base64.b64encode(SHOWN), b"\x89PNG\r\n\x1a\n"])
def test_an_entry_of_exif_that_holds_a_picture_goes_from_a_part(tag: int, shown: bytes) -> None:
    read = Image.Exif()
    read.load(exif())
    read[tag] = b"before " + shown
    part = Metadata(exif=read.tobytes()).of_a_part().exif
    assert part is not None
    assert shown not in part
    assert tags(part) == tags(Metadata(exif=exif()).of_a_part().exif)


def test_exif_that_cannot_be_laid_anew_goes_from_a_part_with_its_picture() -> None:
    circle = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1025) + struct.pack("<HHII", 2, 5, 0, 0) * 1025 + bytes(4)
    assert Metadata(exif=circle).of_a_part().exif == circle
    assert Metadata(exif=circle + SHOWN).of_a_part().exif is None


def test_iptcs_preview_goes_from_a_part() -> None:
    titled, preview = iptc((5, b"Title")), iptc((200, b"\0\x0b"), (201, b"\0\1"), (202, SHOWN))
    assert Metadata(iptc=titled + preview + iptc((120, b"A caption"))).of_a_part().iptc == titled + iptc((120, b"A caption"))
    assert Metadata(iptc=titled + b"\x1c\x08\x0a\0\x03abc").of_a_part().iptc == titled
    assert Metadata(iptc=titled + b"trailing").of_a_part().iptc == titled + b"trailing"
    assert Metadata(iptc=preview).of_a_part().iptc is None


@pytest.mark.parametrize("name", ["png", "jpeg", "tiff", "webp", "avif", "heic"])
def test_nothing_of_any_format_shows_the_whole_of_what_was_cut(name: str) -> None:
    with_all = dataclasses.replace(
        ALL, exif=exif().replace(b"maker's own secret", b"\xff\xd8\xff secret shown"), iptc=ALL.iptc + iptc((202, SHOWN)),
        xmp=XMP.replace(b"<rdf:Description", b"<xmpGImg:image>%b</xmpGImg:image><rdf:Description" % base64.b64encode(SHOWN)),
    )  # fmt: skip
    came = images.read(images.write(picture(with_all), name))
    part = came.cut(slice(1, 3), slice(2, 4))
    assert part.changed == tuple(
        f"part of {block} (it may show the whole picture)" for block in ("exif", "xmp", "iptc") if getattr(came.metadata, block)
    )
    data = images.write(part, "tiff")
    for shown in (SHOWN, b"secret shown", base64.b64encode(SHOWN), SHOWN.hex().encode()):
        assert shown not in data
    again = images.read(data)
    assert again.cut(slice(None), slice(None)).changed == ()


# --- turned ---


@pytest.mark.parametrize("order", ["<", ">"])
def test_what_exif_says_of_its_sides_is_exchanged_where_the_picture_lay_on_one(order: str) -> None:
    def block(orientation: int, across: int, down: int) -> bytes:
        entries = [(256, 4, 1, across), (257, 4, 1, down), (282, 5, 1, 92), (283, 5, 1, 100), (0x8769, 4, 1, 108)]
        first = b"".join(struct.pack(order + "HHII", *entry) for entry in entries)
        first = first[:24] + struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0) + first[24:]
        sizes = struct.pack(order + "HHIHHHHIHH", 0xA002, 3, 1, across, 0, 0xA003, 3, 1, down, 0) + bytes(4)
        rationals = struct.pack(order + "4I", 300, 1, 72, 1)
        start = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8)
        return (
            b"Exif\0\0"
            + start
            + struct.pack(order + "H", 6)
            + first
            + bytes(4)
            + b"??" * 3
            + rationals
            + struct.pack(order + "H", 2)
            + sizes
        )

    def sides(exif: bytes | None) -> list[object]:
        assert exif is not None
        read = Image.Exif()
        read.load(exif)
        return [read[256], read[257], read[282], read[283], *(read.get_ifd(0x8769)[tag] for tag in (0xA002, 0xA003)), read[0x0112]]

    for orientation in range(1, 9):
        file = io.BytesIO()
        Image.new("L", (4, 3)).save(file, "jpeg", exif=block(orientation, 4, 3), dpi=(300, 72))
        came = images.read(file.getvalue()).metadata
        lay = orientation > 4
        assert sides(came.exif) == ([3, 4, 72, 300, 3, 4, 1] if lay else [4, 3, 300, 72, 4, 3, 1])
        assert came.dpi == ((72, 300) if lay else (300, 72))


def test_what_xmp_says_of_its_sides_is_exchanged_where_the_picture_lay_on_one() -> None:
    def packet(*sides: bytes) -> bytes:
        said = b"<tiff:%b>300/1</tiff:%b><rdf:Description tiff:%b='72/1' exif:%b='4' exif:%b='3' tiff:%b='4' tiff:%b='3'"
        return XMP.replace(b"<rdf:Description", said % (sides[0], *sides))

    lying = packet(b"XResolution", b"YResolution", b"PixelXDimension", b"PixelYDimension", b"ImageWidth", b"ImageLength")
    upright = packet(b"YResolution", b"XResolution", b"PixelYDimension", b"PixelXDimension", b"ImageLength", b"ImageWidth")
    for orientation in range(1, 9):
        assert Metadata(xmp=lying).turned(orientation).xmp == (upright if orientation > 4 else lying)


def test_hostile_sides_harm_nothing() -> None:
    entries = struct.pack("<HHIIHHII", 282, 5, 1, 0, 283, 5, 1, 0)
    for offset in (0, 1, 4, 8, 10, 26, 2**31, 2**32 - 1):
        block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 3) + entries + struct.pack("<HHII", 0x8769, 4, 1, offset) + bytes(4)
        turned = Metadata(exif=block).turned(6).checked(False)
        assert turned.exif is None or len(turned.exif) == len(block)
        part = Metadata(exif=block).of_a_part()
        assert part.checked(grey=False) == part


@pytest.mark.parametrize("form", [
    b'tiff:Orientation="%d"', b"tiff:Orientation = '%d'",
    b"<tiff:Orientation>%d</tiff:Orientation>", b"<tiff:Orientation> %d\n</tiff:Orientation>",
])  # fmt: skip
def test_xmp_says_upright_once_the_picture_is(form: bytes) -> None:
    def packet(orientation: int) -> bytes:
        return XMP.replace(b'dc:format="image/png"', form % orientation)

    for orientation in range(2, 9):
        assert Metadata(xmp=packet(8)).turned(orientation).xmp == packet(1)
    for said, orientation in ((packet(6), 1), (packet(6), 9), (packet(1), 6), (packet(66), 6), (packet(9), 6), (XMP, 6)):
        assert Metadata(xmp=said).turned(orientation).xmp == said


def test_what_would_take_long_to_search_for_a_place_is_dropped() -> None:
    assert Metadata(xmp=XMP + b" " * 40_000).safe().xmp is not None
    assert Metadata(xmp=PLACED + b" " * 40_000).safe().xmp is None
    many = struct.pack("<H", 65) + struct.pack("<HHII", 2, 5, 3, 0) * 65 + bytes(4)
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x8825, 4, 1, 26) + bytes(4) + many
    assert Metadata(exif=block).safe().exif is None
