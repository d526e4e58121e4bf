"""Takes apart what was uploaded for training: checks every picture and lays it in a folder under a name of ours.

A name from outside is only ever shown, never used as a path.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from app import zips
from app.errors import PicturesRefused
from app.orders import Method
from app.settings import Settings
from core import DataError, ImageError, Picture, images

MIN_SIDE_PIXELS = 96  # a training patch
MIN_PICTURES = 2  # one to train on, one to measure with
_HIDDEN_ENTRIES = 1000
_HIDDEN = (".", "__MACOSX")  # what file managers put into zips beside the pictures


Read = Callable[[bytes, images.Limits], Picture]


def lay_pictures(
    uploads: Iterable[tuple[str, BinaryIO]], folder: Path, settings: Settings, method: Method = "clean", read: Read = images.read
) -> int:
    """How many pictures now lie in `folder`, each looked at by `read`. Raises PicturesRefused at the first that cannot be trained on.

    Pairs lie in its folders `shot` and `other` under equal names, or in `shot` and `clean` where the second are truths.
    """
    folder.mkdir(parents=True)
    names: list[str] = []
    laid: list[Path] = []
    sizes: list[tuple[int, int]] = []
    unpacked_bytes = 0
    for name, data in _each(uploads, settings):
        names.append(name)
        unpacked_bytes += len(data)
        if len(names) > settings.max_train_pictures:
            raise _too_many(settings)
        if unpacked_bytes > settings.max_train_unpacked_bytes:
            raise _too_much(settings)
        suffix, size = _checked(name, data, settings, read)
        sizes.append(size)
        laid.append(folder / f"{len(names):05}{suffix}")
        laid[-1].write_bytes(data)
    least = MIN_PICTURES * (2 if method == "pairs" else 1)
    if len(names) < least:
        raise PicturesRefused(
            f"files holds {len(names)} pictures, and {least} are needed at least, one {'pair ' * (method == 'pairs')}to train on and one "
            "to measure with: send more, or a zip of them."
        )
    if method == "pairs":
        _lay_pairs(folder, names, laid, sizes)
    return len(names)


def _lay_pairs(folder: Path, names: Sequence[str], laid: Sequence[Path], sizes: Sequence[tuple[int, int]]) -> None:
    from core import methods

    try:
        pairing = methods.pair(names)
    except DataError as error:
        raise PicturesRefused(f"{error}.") from None
    sides = [folder / "shot", folder / ("clean" if pairing.clean else "other")]
    for side in sides:
        side.mkdir()
    for number, pair in enumerate(pairing.pairs, 1):
        first, second = pair
        if sizes[first] != sizes[second]:
            (h, w), (k, v) = sizes[first], sizes[second]
            raise PicturesRefused(
                f"{_shown(names[first])} is {w} by {h} pixels and {_shown(names[second])} {v} by {k}: both of a pair must show the same, "
                "pixel by pixel."
            )
        for index, side in zip(pair, sides, strict=True):
            laid[index].rename(side / f"{number:05}{laid[index].suffix}")


def _checked(name: str, data: bytes, settings: Settings, read: Read) -> tuple[str, tuple[int, int]]:
    """The file suffix of the picture's true format, and its height and width, once it was read whole and is large enough."""
    found = images.sniff(data)
    if found is None:
        raise PicturesRefused(f"{_shown(name)} is not a picture that can be read: leave it out.")
    try:
        height, width, _ = read(data, settings.limits()).samples.shape
    except ImageError as error:
        raise PicturesRefused(f"{_shown(name)}: {error}") from error
    if min(height, width) < MIN_SIDE_PIXELS:
        raise PicturesRefused(
            f"{_shown(name)} is {width} by {height} pixels, and each side must be at least {MIN_SIDE_PIXELS}: leave it out."
        )
    return images.FORMATS[found].suffixes[0], (height, width)


def _each(uploads: Iterable[tuple[str, BinaryIO]], settings: Settings) -> Iterator[tuple[str, bytes]]:
    for name, file in uploads:
        if file.read(2) == b"PK":  # by its first bytes: a picture with a zip behind it is a picture
            yield from _unzipped(name, file, settings)
        else:
            file.seek(0)
            yield name, file.read()


def _unzipped(zip_name: str, file: BinaryIO, settings: Settings) -> Iterator[tuple[str, bytes]]:
    try:
        with zips.listed(file, settings.max_train_pictures + _HIDDEN_ENTRIES) as archive:
            if sum(not entry.is_dir() for entry in archive.infolist()) > settings.max_train_pictures + _HIDDEN_ENTRIES:
                raise _too_many(settings)  # by the list of contents, before any is unzipped
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
    except zips.TooLong:
        raise _too_many(settings) from None
    except zips.BROKEN as error:
        raise PicturesRefused(f"{_shown(zip_name)} cannot be unzipped ({error}): make it anew, without a password.") from error


def _too_many(settings: Settings) -> PicturesRefused:
    return PicturesRefused(f"There are more pictures than max_train_pictures = {settings.max_train_pictures}: send fewer.")


def _too_much(settings: Settings) -> PicturesRefused:
    return PicturesRefused(f"The pictures are larger than max_train_unpacked_bytes = {settings.max_train_unpacked_bytes}: send fewer.")


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:99] + "…")
