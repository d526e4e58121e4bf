"""The models that were made or brought here, beside those that are shipped: which there are, their files, and which is the default.

On one machine all of that is a folder. Where several share a database it is rows there, each of which names where the files are in the
store: a row comes last and goes first, so a model that is told has its files, and none is ever written over.
"""

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from app import folders, store
from app.errors import ModelExists, StoreAway, UnknownModel
from app.ledger import Ledger, told_when_away
from app.settings import Settings
from core import WeightsError, weights

SUFFIX = ".safetensors"
BESIDE = (".md", ".png")
"""Beside the weights: the card for people, and the small picture of what the model does."""
RESERVED = "default"
_log = logging.getLogger("clearfold")
Stamp = tuple[int, ...] | str
"""Another one for other weights under the same name."""


class Catalogue(Protocol):
    shared: bool
    """Whether other processes may change it, so that what is not known here may be known there."""

    def look(self) -> tuple[dict[str, Stamp], str | None]:
        """What there is, and what was chosen as the default. Raises what `AWAY` names."""

    def weights(self, name: str, stamp: Stamp) -> Path:
        """The file on this machine; what lies beside it is `BESIDE`."""

    def add(self, name: str, job: str | None, fill: Callable[[Path], None]) -> None:
        """A new model, whose weights and what goes beside them `fill` writes into a folder. Raises ModelExists, unless the job made it."""

    def remove(self, name: str) -> None:
        """Raises UnknownModel or ModelInUse."""

    def choose(self, name: str | None, shipped: bool) -> None:
        """Makes a model the default; None: none. Raises UnknownModel."""

    def close(self) -> None: ...


def of(settings: Settings, ledger: Ledger | None = None) -> Catalogue:
    """`ledger`: that of the settings, where it is open already."""
    if settings.jobs_url is None:
        return InFolder(kept_dir(settings))
    return InTable(ledger or Ledger(settings.jobs_url), store.of(settings), kept_dir(settings))


def kept_dir(settings: Settings) -> Path:
    return settings.train_dir / store.MODELS


class InFolder:
    """`train_dir/models`, with each weights file put there in one move, and beside them the name of the default."""

    shared = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def look(self) -> tuple[dict[str, Stamp], str | None]:
        found: dict[str, Stamp] = {}
        for path in files(self._folder):
            with contextlib.suppress(OSError):  # it was taken away just now
                found[path.stem] = stamp(path)
        try:
            return found, (self._folder / RESERVED).read_text().strip() or None
        except OSError:
            return found, None

    def weights(self, name: str, stamp: Stamp) -> Path:
        return self._folder / (name + SUFFIX)

    def add(self, name: str, job: str | None, fill: Callable[[Path], None]) -> None:
        """Everything is written elsewhere; then the weights, which make it a model, are moved, never over another."""
        target = self._folder / (name + SUFFIX)
        if job is not None and target.exists() and job_of(target) == job:
            return
        with folders.workshop(self._folder) as aside:
            fill(aside)
            sample = aside / f"{name}.png"
            if sample.exists() and not target.exists():
                os.replace(sample, target.with_suffix(".png"))
            try:
                os.link(aside / (name + SUFFIX), target)
            except FileExistsError:
                raise _exists(name) from None
            os.replace(aside / f"{name}.md", target.with_suffix(".md"))

    def remove(self, name: str) -> None:
        path = self._folder / (name + SUFFIX)
        for file in (path, *(path.with_suffix(suffix) for suffix in BESIDE)):  # with its weights gone it is no model
            file.unlink(missing_ok=True)

    def choose(self, name: str | None, shipped: bool) -> None:
        if name is None:
            (self._folder / RESERVED).unlink(missing_ok=True)
            return
        with folders.workshop(self._folder) as aside:
            (aside / RESERVED).write_text(name)
            os.replace(aside / RESERVED, self._folder / RESERVED)

    def close(self) -> None:
        pass


class InTable:
    """Rows in the jobs' database; the files, in the store, under keys that are never used twice."""

    shared = True

    def __init__(self, ledger: Ledger, store: store.Store, folder: Path) -> None:
        self._ledger, self._store, self._folder = ledger, store, folder

    def look(self) -> tuple[dict[str, Stamp], str | None]:
        keys, chosen = self._ledger.models()
        return dict(keys), chosen

    def weights(self, name: str, stamp: Stamp) -> Path:
        return self._store.model(str(stamp)) / (name + SUFFIX)

    def add(self, name: str, job: str | None, fill: Callable[[Path], None]) -> None:
        key = secrets.token_hex(8)
        with folders.workshop(self._folder) as aside, told_when_away():
            fill(aside)
            try:
                self._store.put_model(key, aside)
                if self._ledger.add_model(name, key, job):
                    return
            except ModelExists:
                self._store.drop_model(key)
                raise
            self._store.drop_model(key)

    def remove(self, name: str) -> None:
        with told_when_away():
            key = self._ledger.remove_model(name)
        try:
            self._store.drop_model(key)
        except StoreAway:
            _log.warning("the files of model %s, which was deleted, stay in the store under %s", name, key)

    def choose(self, name: str | None, shipped: bool) -> None:
        with told_when_away():
            self._ledger.choose(name, shipped)

    def close(self) -> None:
        self._ledger.close()

    def adopt(self) -> None:
        """Takes over what lies in the folder from when it was one machine's alone."""
        single = InFolder(self._folder)
        found, chosen = single.look()
        for name in found:
            weights = single.weights(name, found[name])

            def copy(aside: Path, path: Path = weights) -> None:
                for file in (path, *(path.with_suffix(suffix) for suffix in BESIDE)):
                    if file.exists():
                        shutil.copyfile(file, aside / file.name)

            try:
                self.add(name, job_of(weights), copy)
            except (ModelExists, WeightsError, OSError) as error:
                _log.warning("model %s stays in %s and is not served: %s", name, self._folder, error)
            else:
                single.remove(name)
        if chosen is not None:
            with contextlib.suppress(UnknownModel):
                self._ledger.choose(chosen, shipped=chosen not in found)
            single.choose(None, shipped=False)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stem) if os.path.isdir(folder) else []  # nor in one that is shut


def stamp(path: Path) -> Stamp:
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns


def job_of(path: Path) -> str | None:
    """The job that made the weights, as their card says."""
    job = weights.load(path)[1].get("job")
    return job if isinstance(job, str) else None


def _exists(name: str) -> ModelExists:
    return ModelExists(f"model = {name!r}: a model with this name is there, and none is overwritten: choose another name.")
