"""Many files in, taken out of zips where they come in them, and a zip out, written as it is sent. Denoises nothing.

A name from outside is cleaned before it becomes a name inside the zip; nothing is ever written under it here.
"""

import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

from app import zips
from app.errors import Invalid, Problem, TooLarge
from app.settings import Settings

HIDDEN = (".", "__MACOSX")  # what file managers put into zips beside the pictures
UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')
PIECE_BYTES = 1 << 18


class File:
    """One of a batch: its name, and its bytes once they are asked for, or the problem that it has."""

    def __init__(self, name: str, source: BinaryIO | zipfile.ZipFile, entry: zipfile.ZipInfo | None, most: int) -> None:
        self.name = name
        self._source, self._entry, self._most = source, entry, most

    def read(self) -> bytes:
        if isinstance(self._source, zipfile.ZipFile):
            assert self._entry is not None
            try:
                with self._source.open(self._entry) as unzipped:  # a size that the entry declares is not believed
                    data = unzipped.read(self._most + 1)
            except zips.BROKEN as error:
                raise Invalid(f"{self.name!r} cannot be unzipped ({error}): make the zip anew, without a password.") from error
        else:
            self._source.seek(0)
            data = self._source.read(self._most + 1)
        if len(data) > self._most:
            raise TooLarge(f"{self.name!r} is larger than max_upload_bytes = {self._most}: send a smaller one.")
        return data


def files(uploads: Iterable[tuple[str, BinaryIO]], settings: Settings) -> list[File]:
    """Every file, those in zips too, in order; none is unpacked yet. Raises Invalid for too many, or a zip that cannot be listed."""
    found: list[File] = []
    for name, upload in uploads:
        if upload.read(4) in (b"PK\x03\x04", b"PK\x05\x06"):  # by its first bytes: a picture with a zip behind it is a picture
            found += _inside(name, upload, settings)
        else:
            found.append(File(name, upload, None, settings.max_upload_bytes))
        if len(found) > settings.max_batch_files:
            raise _too_many(settings)
    if not found:
        raise Invalid("files is empty: send pictures, or zips of them.")
    return found


def _inside(zip_name: str, upload: BinaryIO, settings: Settings) -> list[File]:
    try:
        archive = zips.listed(upload, settings.max_batch_files)
    except zips.TooLong:
        raise _too_many(settings) from None
    except zips.BROKEN as error:
        raise Invalid(f"{zip_name[:100]!r} cannot be unzipped ({error}): make it anew.") from error
    entries = (entry for entry in archive.infolist() if not entry.is_dir())
    shown = [entry for entry in entries if not any(part.startswith(HIDDEN) for part in _parts(entry.filename))]
    return [File(entry.filename, archive, entry, settings.max_upload_bytes) for entry in shown]


def _too_many(settings: Settings) -> Invalid:
    return Invalid(f"There are more files than max_batch_files = {settings.max_batch_files}: send fewer at a time.")


def _parts(name: str) -> list[str]:
    """A path's parts, none of which leads up or out."""
    parts = [UNSAFE.sub("_", part).strip() for part in PurePosixPath(name.replace("\\", "/")).parts]
    return [part for part in parts if part not in ("", "/", ".", "..")]


class Names:
    """Names inside the zip: clean, none twice."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, name: str, ending: str) -> str:
        """`name` with `ending` in place of its suffix."""
        path = PurePosixPath(*_parts(name)[-8:] or ["picture"])
        stem = str(path.with_name((path.stem if path.stem.strip(". ") else "picture")[:100]))
        number, free = 1, stem + ending
        while free.lower() in self._taken:
            number += 1
            free = f"{stem}-{number}{ending}"
        self._taken.add(free.lower())
        return free


class Zip:
    """A zip that is sent while it grows: `add` gives the bytes that are ready."""

    def __init__(self) -> None:
        self._ready = bytearray()
        self._zip = zipfile.ZipFile(self, "w", zipfile.ZIP_STORED)

    def write(self, data: bytes) -> int:
        self._ready += data
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def add(self, name: str, parts: Iterable[bytes]) -> Iterator[bytes]:
        info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # pictures are compressed already
        with self._zip.open(info, "w", force_zip64=True) as entry:
            for part in parts:
                entry.write(part)
                yield self._taken()
        yield self._taken()

    def end(self) -> bytes:
        self._zip.close()
        return self._taken()

    def _taken(self) -> bytes:
        ready = bytes(self._ready)
        self._ready.clear()
        return ready


def told(problem: Problem, name: str) -> bytes:
    """A problem as the file inside the zip that tells it."""
    body = {"type": problem.type(), "title": problem.title, "status": problem.status, "detail": problem.detail, "instance": name}
    return json.dumps(body | problem.members, indent=2).encode()
