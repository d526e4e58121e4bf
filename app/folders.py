"""A job's folder, and the lock by which everybody sees whether somebody is at work in it. Knows no database.

The lock is the kernel's (`flock`): it goes when the last process that holds it goes, however that ends. A child inherits it.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.settings import Settings

LOCK = "lock"
LOG = "log.txt"
SAMPLE = "sample.png"
BALLAST = "ballast"
BALLAST_BYTES = 1 << 20
STRAY_SECONDS = 24 * 3600.0
"""A folder without a job that another machine made is taken away when it is so old."""


def of(settings: Settings, id: str) -> Path:
    return (settings.train_dir / "jobs" / id).absolute()


def machine() -> str:
    """This machine, until it starts anew: processes that tell the same see each other's locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


@contextmanager
def locked(folder: Path, wait_seconds: float = 0.0) -> Iterator[int | None]:
    """Holds the folder's lock and gives its file descriptor; None when somebody else has it, or there is no such folder."""
    deadline = time.monotonic() + wait_seconds
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        yield None
        return
    try:
        while not _taken(lock):
            if time.monotonic() >= deadline:
                yield None
                return
            time.sleep(0.1)
        os.pwrite(lock, machine().encode().ljust(64), 0)
        yield lock
    finally:
        os.close(lock)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def free(folder: Path) -> bool:
    """Whether nobody on this machine works in the folder."""
    with locked(folder) as lock:
        return lock is not None


def unwritable(folder: Path, *names: str) -> str | None:
    """Why nothing can be written into the folder, which may yet have to be made, or over files in it, if they are there; None: it can be.

    Writes nothing."""
    at = folder.absolute()
    try:
        while not at.exists():
            at = at.parent
        if not at.is_dir():
            return os.strerror(errno.ENOTDIR)
        there = [at / name for name in names if (at / name).exists()]
        if os.access(at, os.W_OK | os.X_OK) and all(os.access(file, os.R_OK | os.W_OK) for file in there):
            return None
        return os.strerror(errno.EROFS if os.statvfs(at).f_flag & os.ST_RDONLY else errno.EACCES)
    except OSError as error:
        return error.strerror


def has_room(folder: Path) -> bool:
    """Whether so much as a ballast fits on the folder's disk."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    return True


def lay_ballast(folder: Path) -> None:
    """Takes room on the disk that `drop_ballast` gives back: when the disk is full, that can still be written down. Raises OSError."""
    with (folder / BALLAST).open("ab") as file:  # what is there stays
        os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)


def drop_ballast(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / BALLAST).unlink()


def clear(folder: Path, keep: tuple[str, ...] = ()) -> None:
    """Removes what is in the folder, except for some; the folder too if nothing is kept."""
    for inside in folder.iterdir() if folder.is_dir() else ():
        if inside.name not in keep:
            if inside.is_dir() and not inside.is_symlink():
                shutil.rmtree(inside, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    inside.unlink()
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def workshop(parent: Path) -> Iterator[Path]:
    """A hidden folder of one's own below `parent`, to make something in that is then moved out of it."""
    folder = parent / f".{secrets.token_hex(8)}"
    folder.mkdir(parents=True)
    try:
        with locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def strays(parent: Path, pattern: str, known: Collection[str] = ()) -> list[Path]:
    """Folders below `parent`, but for the known, that nobody works in any more: the process that made or removed them was killed."""
    found = []
    for folder in parent.glob(pattern):
        if folder.name in known or not folder.is_dir():
            continue
        try:
            made_here = (folder / LOCK).read_text().strip() == machine()
            old = time.time() - folder.stat().st_mtime > STRAY_SECONDS
        except OSError:  # made or removed just now
            continue
        if (made_here or old) and free(folder):
            found.append(folder)
    return found
