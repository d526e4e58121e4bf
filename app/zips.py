"""Zips from outside: listed within bounds, and what reading them may raise. Unpacks nothing."""

import io
import lzma
import os
import zipfile
import zlib
from typing import BinaryIO

BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)
"""What a zip raises that is not whole, or of a rare kind; ValueError: a name that is not what it says it is."""
ENTRY_BYTES = 512
"""Of a list of contents for each file that is allowed: 46, its name, and what packers add, with folders and hidden files on top."""
LEAST_BYTES = 1 << 20
"""That a list may have in any case."""


class TooLong(Exception):
    """The list of contents is longer than that of so many files."""


class _Bounded(io.RawIOBase):
    """A file of which no piece is read that is larger than `most`, until that is None."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self.file = file
        self.most: int | None = most

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        if self.most is not None and size is not None and size > self.most:
            raise TooLong
        return self.file.read(-1 if size is None else size)


def listed(file: BinaryIO, files: int) -> zipfile.ZipFile:
    """The zip with its list of contents read, where that is no longer than of `files` of them. Raises TooLong, or what is in BROKEN.

    zipfile reads the whole list, as long as the zip says that it is, and makes some 300 bytes of each entry.
    """
    bounded = _Bounded(file, max(LEAST_BYTES, ENTRY_BYTES * files))
    archive = zipfile.ZipFile(bounded)
    bounded.most = None
    return archive
