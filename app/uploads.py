"""Takes apart what was uploaded for training: checks every picture and lays it in a folder under a name of ours.

A name from outside is only ever shown, never used as a path.
"""

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from app.errors import PicturesRefused
from app.settings import Settings
from core import ImageError, images

MIN_SIDE_PIXELS = 96  # a training patch
MIN_PICTURES = 2  # one to train on, one to measure with
_HIDDEN = (".", "__MACOSX")  # what file managers put into zips beside the pictures


def lay_pictures(uploads: Iterable[tuple[str, BinaryIO]], folder: Path, settings: Settings) -> int:
    """How many pictures now lie in `folder`. Raises PicturesRefused at the first that cannot be trained on."""
    folder.mkdir(parents=True)
    count = unpacked_bytes = 0
    for name, data in _each(uploads, settings):
        count += 1
        unpacked_bytes += len(data)
        if count > settings.max_train_pictures:
            raise PicturesRefused(f"There are more pictures than max_train_pictures = {settings.max_train_pictures}: send fewer.")
        if unpacked_bytes > settings.max_train_unpacked_bytes:
            raise _too_much(settings)
        (folder / f"{count:05}{_suffix(name, data, settings)}").write_bytes(data)
    if count < MIN_PICTURES:
        raise PicturesRefused(
            f"files holds {count} pictures, and {MIN_PICTURES} are needed at least, one to train on and one to "
            "measure with: send more, or a zip of them."
        )
    return count


def _suffix(name: str, data: bytes, settings: Settings) -> str:
    """The file suffix of the picture's true format, once the picture was read whole and is large enough."""
    found = images.sniff(data)
    if found is None:
        raise PicturesRefused(f"{_shown(name)} is not a picture that can be read: leave it out.")
    try:
        height, width, _ = images.read(data, settings.limits()).samples.shape
    except ImageError as error:
        raise PicturesRefused(f"{_shown(name)}: {error}") from error
    if min(height, width) < MIN_SIDE_PIXELS:
        raise PicturesRefused(
            f"{_shown(name)} is {width} by {height} pixels, and each side must be at least {MIN_SIDE_PIXELS}: leave it out."
        )
    return images.FORMATS[found].suffixes[0]


def _each(uploads: Iterable[tuple[str, BinaryIO]], settings: Settings) -> Iterator[tuple[str, bytes]]:
    for name, file in uploads:
        if file.read(2) == b"PK":  # by its first bytes: a picture with a zip behind it is a picture
            yield from _unzipped(name, file, settings)
        else:
            file.seek(0)
            yield name, file.read()


def _unzipped(zip_name: str, file: BinaryIO, settings: Settings) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                path = PurePosixPath(entry.filename.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts:
                    raise PicturesRefused(
                        f"{_shown(zip_name)} holds {_shown(entry.filename)}, a path out of its folder: make the zip anew."
                    )
                if entry.is_dir() or any(part.startswith(_HIDDEN) for part in path.parts):
                    continue
                with archive.open(entry) as unzipped:  # a size that the entry declares is not believed
                    data = unzipped.read(settings.max_upload_bytes + 1)
                if len(data) > settings.max_upload_bytes:
                    raise PicturesRefused(
                        f"{_shown(entry.filename)} is larger than max_upload_bytes = {settings.max_upload_bytes}: leave it out."
                    )
                yield entry.filename, data
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise PicturesRefused(f"{_shown(zip_name)} cannot be unzipped ({error}): make it anew, without a password.") from error


def _too_much(settings: Settings) -> PicturesRefused:
    return PicturesRefused(f"The pictures are larger than max_train_unpacked_bytes = {settings.max_train_unpacked_bytes}: send fewer.")


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:99] + "…")
