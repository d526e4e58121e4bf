"""What was uploaded for training: taken apart, checked, laid under names of ours."""

import io
import zipfile
from pathlib import Path

import pytest
from toys import encoded, noise

from app import zips
from app.errors import PicturesRefused
from app.settings import Settings
from app.uploads import lay_pictures

PNG = encoded(noise(100, 96))


def zipped(*entries: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return file.getvalue()


def lay(folder: Path, *uploads: tuple[str, bytes], **limits: int) -> list[str]:
    lay_pictures([(name, io.BytesIO(data)) for name, data in uploads], folder / "in", Settings(**limits))
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_pictures_and_zips_of_them_lie_in_one_folder_under_names_of_ours(tmp_path):
    jpeg = encoded(noise(100, 96), "jpeg")
    laid = lay(tmp_path, ("a.png", PNG), ("b.zip", zipped(("x/y/q.png", PNG), ("liar.png", jpeg))))
    assert laid == ["in/00001.png", "in/00002.png", "in/00003.jpg"]
    assert (tmp_path / "in/00003.jpg").read_bytes() == jpeg


def test_what_file_managers_leave_in_a_zip_is_passed_over(tmp_path):
    archive = zipped(("a.png", PNG), ("b.png", PNG), ("__MACOSX/._a.png", b"?"), (".DS_Store", b"?"), ("folder/", b""))
    assert lay(tmp_path, ("a.zip", archive)) == ["in/00001.png", "in/00002.png"]


@pytest.mark.parametrize("name", ["../../evil.png", "/etc/evil.png", "..\\evil.png", "fine/../../evil.png"])
def test_a_path_out_of_the_folder_is_refused_and_nothing_lies_outside(tmp_path, name):
    with pytest.raises(PicturesRefused, match="a path out of its folder"):
        lay(tmp_path, ("a.zip", zipped(("a.png", PNG), (name, PNG))))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["00001.png"]


def test_a_bomb_is_stopped_by_the_bytes_that_come_out_of_it(tmp_path):
    bomb = zipped(("big.png", bytes(1_000_000)))
    with pytest.raises(PicturesRefused, match=r"'big\.png' is larger than max_upload_bytes = 999999"):
        lay(tmp_path, ("a.zip", bomb), max_upload_bytes=999_999)


def test_a_size_that_lies_does_not_get_a_bomb_through(tmp_path):
    bomb = bytearray(zipped(("big.png", bytes(1_000_000))))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = bomb.index(signature) + offset
        bomb[at : at + 4] = (10).to_bytes(4, "little")
    with pytest.raises(PicturesRefused):
        lay(tmp_path, ("a.zip", bytes(bomb)))


def test_all_pictures_together_have_a_limit(tmp_path):
    with pytest.raises(PicturesRefused, match="larger than max_train_unpacked_bytes = "):
        lay(tmp_path, ("a.zip", zipped(("a.png", PNG), ("b.png", PNG))), max_train_unpacked_bytes=len(PNG) + 1)
    with pytest.raises(PicturesRefused, match="more pictures than max_train_pictures = 1: send fewer"):
        lay(tmp_path / "again", ("a.png", PNG), ("b.png", PNG), max_train_pictures=1)


@pytest.mark.parametrize(
    ("upload", "words"),
    [
        (("notes.txt", b"words"), r"^'notes\.txt' is not a picture that can be read: leave it out\.$"),
        (("a.zip", zipped(("inner.zip", zipped(("a.png", PNG))))), r"^'inner\.zip' is not a picture"),
        (("a.png", PNG[:-50]), r"^'a\.png': .*cut short"),
        (("a.png", encoded(noise(200, 95))), r"^'a\.png' is 200 by 95 pixels, and each side must be at least 96"),
        (("a.zip", zipped(("a.png", PNG))[:-30]), r"^'a\.zip' cannot be unzipped"),
        (("a.zip", zipped(("a.png", PNG)).replace(b"IDAT", b"IDAX")), r"^'a\.zip' cannot be unzipped|IDA"),
        (("a.zip", zipped()), r"^files holds 0 pictures, and 2 are needed at least"),
        (("n" * 500, b"words"), r"^'n{99}…' is not"),
    ],
)
def test_what_cannot_be_trained_on_is_named(tmp_path, upload, words):
    with pytest.raises(PicturesRefused, match=words):
        lay(tmp_path, upload)


def test_too_many_entries_are_refused_by_the_list_of_contents(tmp_path):
    archive = zipped(*((f"{i}.png", PNG if i < 3 else b"") for i in range(1200)))
    with pytest.raises(PicturesRefused, match="more pictures than max_train_pictures = 100: send fewer"):
        lay(tmp_path, ("a.zip", archive), max_train_pictures=100)
    assert list((tmp_path / "in").iterdir()) == []


def test_a_list_of_contents_that_is_far_too_long_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(zips, "LEAST_BYTES", 0)
    monkeypatch.setattr(zips, "ENTRY_BYTES", 1)
    with pytest.raises(PicturesRefused, match="There are more pictures than max_train_pictures = 3: send fewer"):
        lay(tmp_path / "x", ("a.zip", zipped(*((f"folder {number}/", b"") for number in range(40)))), max_train_pictures=3)


def test_a_zip_with_a_name_that_is_none_is_refused(tmp_path):
    data = zipped(("\u00e9.png", b"?")).replace("\u00e9.png".encode(), b"\xff\xff.png")
    with pytest.raises(PicturesRefused, match=r"'a\.zip' cannot be unzipped"):
        lay(tmp_path / "x", ("a.zip", data))


def pairs(folder: Path, *names: str) -> list[str]:
    pictures = [(name, io.BytesIO(encoded(noise(100, 96, seed)))) for seed, name in enumerate(names)]
    lay_pictures(pictures, folder / "in", Settings(), "pairs")
    return sorted(str(path.relative_to(folder / "in")) for path in folder.rglob("*") if path.is_file())


def test_pairs_lie_in_two_folders_under_equal_names(tmp_path):
    laid = pairs(tmp_path / "two", "b_1.png", "b_2.png", "a_2.png", "a_1.png")
    assert laid == ["other/00001.png", "other/00002.png", "shot/00001.png", "shot/00002.png"]
    assert (tmp_path / "two/in/shot/00002.png").read_bytes() == encoded(noise(100, 96, 3))
    laid = pairs(tmp_path / "truth", "clean/x.png", "noisy/x.png", "noisy/y.png", "clean/y.png")
    assert laid == ["clean/00001.png", "clean/00002.png", "shot/00001.png", "shot/00002.png"]
    assert (tmp_path / "truth/in/clean/00001.png").read_bytes() == encoded(noise(100, 96, 0))


def test_pairs_that_do_not_match_are_named(tmp_path):
    with pytest.raises(PicturesRefused, match=r"^'b_1\.png' has no other half: add it, or leave this one out\.$"):
        pairs(tmp_path / "half", "a_1.png", "a_2.png", "b_1.png", "c_2.png")
    with pytest.raises(PicturesRefused, match=r"^files holds 2 pictures, and 4 are needed at least, one pair to train on and one"):
        pairs(tmp_path / "one", "a_1.png", "a_2.png")
    pictures = [(f"{name}.png", io.BytesIO(encoded(noise(100 + 4 * (name == "b_2"), 96)))) for name in ("a_1", "a_2", "b_1", "b_2")]
    with pytest.raises(PicturesRefused, match=r"^'b_1\.png' is 100 by 96 pixels and 'b_2\.png' 104 by 96: both of a pair"):
        lay_pictures(pictures, tmp_path / "in", Settings(), "pairs")
