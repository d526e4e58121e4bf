"""Where weights and jobs' files are kept, so that every machine finds them: a folder, or a bucket. Knows no table and no model.

The folder is `train_dir`, on a volume that all machines share where there are more than one: a job is worked on where it lies. Of what is
in a bucket each machine works on copies, below a `train_dir` of its own that may be lost at any time:

    jobs/ID/ordered.tar         what was sent and ordered, there before the job is in the queue
    jobs/ID/state/KEY/…         its plan, checkpoint and weights; the job's row says which KEY counts
    jobs/ID/log.txt, sample.png for whoever looks
    models/KEY/…                a model's files; its row says which KEY they are under

Nothing under a KEY is ever written again, and rows change in transactions: a worker that was given up but does not know can spoil nothing.
"""

import contextlib
import importlib
import logging
import os
import secrets
import shutil
import tarfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from app import folders
from app.errors import RETRY_SECONDS, StoreAway
from app.settings import Settings

MODELS = "models"
SHOWN = (folders.LOG, folders.SAMPLE)
PLAN = "plan.json"
MADE = "made"
ORDERED = "ordered.tar"
_log = logging.getLogger("clearfold")


class StoreError(Exception):
    """The store cannot be used as it is set up; the message is for whoever runs the service."""


class FilesGone(Exception):
    """What a job needs is not in the store."""


class Store(Protocol):
    """A job's folder on this machine is `folders.of(settings, id)`; with a lock in it only while somebody works there."""

    def machine(self) -> str:
        """Processes that tell the same see each other's locks on jobs' folders."""

    def order(self, id: str) -> None:
        """Keeps what lies in the job's folder for whoever will take the job."""

    def come(self, id: str) -> None:
        """Somebody is about to work in the job's folder."""

    def bring(self, id: str, state: str | None) -> None:
        """Lays into the job's folder all that it takes to begin, or to go on from `state`. Raises FilesGone."""

    def stamp(self, id: str) -> object:
        """Another whenever there is something new to be kept; None: there never is."""

    def keep(self, id: str) -> str | None:
        """Keeps what the job has learned; the key of its state."""

    def show(self, id: str) -> None:
        """Keeps what may be looked at while the job goes on."""

    def shown(self, id: str, name: str) -> bytes | None:
        """One of SHOWN; None: it is not there."""

    def leave(self, id: str) -> None:
        """Work in the job's folder is over for now."""

    def drop(self, id: str, state: str | None) -> None:
        """Forgets one state of a job."""

    def finish(self, id: str) -> None:
        """Forgets all of a job but what is shown."""

    def forget(self, id: str) -> None:
        """Forgets all of a job."""

    def put_model(self, key: str, folder: Path) -> None:
        """Keeps the files in a folder as a model's."""

    def model(self, key: str) -> Path:
        """A folder on this machine with a model's files."""

    def drop_model(self, key: str) -> None:
        """Forgets a model's files."""

    def tidy(self, jobs: Collection[str]) -> None:
        """Takes away what processes on this machine left behind that were killed: what belongs to none of these jobs."""


def of(settings: Settings) -> Store:
    return Folder(settings) if settings.store_url is None else Bucket(settings, settings.store_url)


class Folder:
    """`train_dir` itself: all that is written there is kept there."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def machine(self) -> str:
        return folders.machine()

    def order(self, id: str) -> None:
        pass

    def come(self, id: str) -> None:
        pass

    def bring(self, id: str, state: str | None) -> None:
        pass

    def stamp(self, id: str) -> object:
        return None

    def keep(self, id: str) -> str | None:
        return None

    def show(self, id: str) -> None:
        pass

    def shown(self, id: str, name: str) -> bytes | None:
        try:
            return (folders.of(self._settings, id) / name).read_bytes()
        except FileNotFoundError:
            return None

    def leave(self, id: str) -> None:
        pass

    def drop(self, id: str, state: str | None) -> None:
        pass

    def finish(self, id: str) -> None:
        folders.clear(folders.of(self._settings, id), keep=(folders.LOCK, *SHOWN))

    def forget(self, id: str) -> None:
        folders.clear(folders.of(self._settings, id))

    def put_model(self, key: str, folder: Path) -> None:
        shutil.copytree(folder, self.model(key), ignore=shutil.ignore_patterns(folders.LOCK))

    def model(self, key: str) -> Path:
        return (self._settings.train_dir / MODELS / key).absolute()

    def drop_model(self, key: str) -> None:
        folders.clear(self.model(key))

    def tidy(self, jobs: Collection[str]) -> None:
        here = self._settings.train_dir
        for stray in folders.strays(here / "jobs", "*", jobs) + folders.strays(here / MODELS, ".*"):
            folders.clear(stray)


class Bucket:
    """A bucket of objects, by obstore: S3 and what speaks like it, and by the same address Google's and Azure's."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._settings = settings
        try:
            store = importlib.import_module("obstore.store")
            self._errors = importlib.import_module("obstore.exceptions")
        except ImportError:
            raise StoreError(f"store_url = {url!r} needs the library for it: pip install 'clearfold[s3]'") from None
        options: dict[str, Any] = {
            "retry_config": {"max_retries": 3, "retry_timeout": timedelta(seconds=20)},
            "client_options": {"connect_timeout": "5s", "timeout": "120s", "allow_http": True},  # what the endpoint's address says
        }
        try:
            self._objects: Any = store.from_url(url, **(options if "://" in url and not url.startswith(("file:", "memory:")) else {}))
        except (self._errors.BaseError, ValueError, TypeError) as wrong:
            raise StoreError(f"store_url = {url!r}: {_first_line(wrong)}") from None

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Whatever is wrong with the bucket, it may be mended, and then the same is tried again."""
        try:
            yield
        except (self._errors.BaseError, FileNotFoundError) as away:  # a bucket that is not there is the latter
            _log.warning("the store does not answer: %s", _first_line(away))
            raise StoreAway(StoreAway.example, headers={"Retry-After": str(RETRY_SECONDS)}) from None

    def _got(self, name: str) -> Any:
        """An object's pieces to come. Raises FilesGone."""
        with self._answering():
            try:
                return self._objects.get(name)
            except (self._errors.NotFoundError, FileNotFoundError) as gone:
                raise FilesGone(_first_line(gone)) from None

    # Objects.

    def _put(self, file: Path, name: str) -> None:
        with self._answering():
            self._objects.put(name, file)

    def _get(self, name: str, file: Path) -> None:
        found = self._got(name)
        with self._answering():
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as written:
                for piece in found.stream():
                    written.write(piece)

    def _list(self, prefix: str) -> list[str]:
        with self._answering():
            return [each["path"] for chunk in self._objects.list(prefix) for each in chunk]

    def _delete(self, *names: str) -> None:
        with self._answering(), contextlib.suppress(self._errors.NotFoundError, FileNotFoundError):
            if names:
                self._objects.delete([*names])

    # Jobs.

    def machine(self) -> str:
        """Containers of one machine may have a folder each: it tells which."""
        name = self._settings.train_dir / ".machine"
        if not name.exists():
            self._settings.train_dir.mkdir(parents=True, exist_ok=True)
            fresh = self._settings.train_dir / f".machine-{secrets.token_hex(4)}"
            fresh.write_text(secrets.token_hex(8))
            with contextlib.suppress(FileExistsError):
                os.link(fresh, name)
            fresh.unlink()
        return f"{folders.machine()} {name.read_text()}"

    def order(self, id: str) -> None:
        folder = folders.of(self._settings, id)
        with folders.workshop(folder.parent) as aside:
            with tarfile.open(aside / ORDERED, "w") as archive:
                for inside in sorted(folder.iterdir()):
                    if inside.name != folders.LOCK:
                        archive.add(inside, inside.name)
            self._put(aside / ORDERED, f"jobs/{id}/{ORDERED}")

    def come(self, id: str) -> None:
        folders.of(self._settings, id).mkdir(parents=True, exist_ok=True)

    def bring(self, id: str, state: str | None) -> None:
        folder = folders.of(self._settings, id)
        folders.clear(folder, keep=(folders.LOCK,))  # what an earlier attempt left here may be behind what another learned since
        with folders.workshop(folder.parent) as aside:
            self._get(f"jobs/{id}/{ORDERED}", aside / ORDERED)
            with tarfile.open(aside / ORDERED) as archive:
                archive.extractall(folder, filter="data")
        for name in SHOWN:
            with contextlib.suppress(FilesGone):
                self._get(f"jobs/{id}/{name}", folder / name)
        if state is not None:
            prefix = f"jobs/{id}/state/{state}/"
            for name in self._list(prefix):
                self._get(name, folder / name.removeprefix(prefix))

    def stamp(self, id: str) -> object:
        with contextlib.suppress(FileNotFoundError):
            return max((checkpoint.stat().st_mtime_ns for checkpoint in self._made(id, "*.checkpoint")), default=0)
        return 0

    def keep(self, id: str) -> str | None:
        folder, key = folders.of(self._settings, id), secrets.token_hex(8)
        plan = [folder / PLAN] if (folder / PLAN).exists() else []
        # The weights are written before the checkpoint, so those that are read after it are no older.
        for file in [*plan, *self._made(id, "*.checkpoint"), *self._made(id, "*.safetensors"), *self._made(id, "*.md")]:
            self._put(file, f"jobs/{id}/state/{key}/{file.relative_to(folder).as_posix()}")
        return key

    def _made(self, id: str, pattern: str) -> list[Path]:
        return [file for file in sorted((folders.of(self._settings, id) / MADE).glob(pattern)) if not file.name.startswith((".", "trial."))]

    def show(self, id: str) -> None:
        for name in SHOWN:
            file = folders.of(self._settings, id) / name
            if file.exists():
                self._put(file, f"jobs/{id}/{name}")

    def shown(self, id: str, name: str) -> bytes | None:
        try:
            found = self._got(f"jobs/{id}/{name}")
        except FilesGone:
            return None
        with self._answering():
            return bytes(found.bytes())

    def leave(self, id: str) -> None:
        folders.clear(folders.of(self._settings, id))

    def drop(self, id: str, state: str | None) -> None:
        if state is not None:
            self._delete(*self._list(f"jobs/{id}/state/{state}/"))

    def finish(self, id: str) -> None:
        self._delete(*self._list(f"jobs/{id}/state/"), f"jobs/{id}/{ORDERED}")

    def forget(self, id: str) -> None:
        self._delete(*self._list(f"jobs/{id}/"))

    # Models.

    def put_model(self, key: str, folder: Path) -> None:
        for file in sorted(folder.iterdir()):
            if file.name != folders.LOCK:
                self._put(file, f"{MODELS}/{key}/{file.name}")

    def model(self, key: str) -> Path:
        target = (self._settings.train_dir / MODELS / key).absolute()
        if not target.is_dir():
            with folders.workshop(target.parent) as aside:
                prefix = f"{MODELS}/{key}/"
                for name in self._list(prefix):
                    self._get(name, aside / "files" / name.removeprefix(prefix))
                if not (aside / "files").is_dir():
                    raise FilesGone(f"nothing lies below {prefix}")
                with contextlib.suppress(OSError):  # another process was quicker
                    os.rename(aside / "files", target)
        return target

    def drop_model(self, key: str) -> None:
        self._delete(*self._list(f"{MODELS}/{key}/"))

    def tidy(self, jobs: Collection[str]) -> None:
        """What is in the bucket stays: another service's may lie there too."""
        here = self._settings.train_dir
        for stray in folders.strays(here / "jobs", "*") + folders.strays(here / MODELS, ".*"):
            folders.clear(stray)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
