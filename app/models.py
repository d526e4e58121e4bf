"""The models that are served, by name, loaded. Decides nothing about who may change them.

Shipped models lie in `models_dir` and are never written; those that were trained or uploaded are in a catalogue. Several services may share
that, and each looks for changes every second. What is served is one value that is replaced as a whole: a request sees all as before a
change, or all as after it.
"""

import json
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import anyio
from pydantic import AfterValidator, WithJsonSchema
from torch import Tensor

from app import catalogue
from app.catalogue import RESERVED, SUFFIX, Catalogue, InTable, Stamp, kept_dir
from app.errors import ModelExists, ModelInUse, NotReady, Problem, UnknownModel, WeightsRefused
from app.ledger import AWAY
from app.settings import Settings
from app.store import FilesGone
from core import AUTO, Auto, Card, Denoiser, WeightsError, hardware, weights

__all__ = ["NO_NAMES", "RESERVED", "SUFFIX", "ModelName", "Models", "Taker", "keep", "kept_dir"]

NO_NAMES = (RESERVED, AUTO, "scratch")
"""No model's names: they have a meaning of their own."""
NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
LOOK_SECONDS = 1.0
PATIENCE_SECONDS = 3.0
"""So long at most a request waits for news of models; then it is answered by what is known."""
MAX_CARD_BYTES = 1_000_000
_log = logging.getLogger("clearfold")


def _a_name(name: str) -> str:
    if name in NO_NAMES:
        raise ValueError("must be another name: this one has a meaning of its own")
    if not re.fullmatch(NAME, name):
        raise ValueError("must be small letters, digits, '.', '_' and '-', a letter or a digit first, at most 63 of them")
    return name


ModelName = Annotated[str, AfterValidator(_a_name), WithJsonSchema({"type": "string", "pattern": NAME})]
"""What a new model may be called."""


class Taker(NamedTuple):
    """Gives the denoiser for a picture, and why it is that one."""

    take: Callable[[Tensor], tuple[Denoiser, str]]
    looks: bool = False
    """At the picture, to choose."""


@dataclass(frozen=True)
class Shelf:
    """What is served at a time: each model by its name, the file that it was loaded from, and the chosen default."""

    models: Mapping[str, Denoiser] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    stamps: Mapping[str, Stamp] = field(default_factory=dict)
    chosen: str | None = None
    known: bool = True
    """Whether the catalogue has ever answered."""


class Models:
    """Loaded denoisers. The default is the one chosen here, or else the one that the settings name, or else the first."""

    def __init__(self, settings: Settings, *denoisers: Denoiser) -> None:
        self._settings = settings
        self._catalogue = catalogue.of(settings)
        self._shelf = Shelf({denoiser.name: denoiser for denoiser in denoisers}, known=not self._catalogue.shared)
        self._given = [denoiser.name for denoiser in denoisers]
        self._changing = threading.Lock()
        self._threads = anyio.CapacityLimiter(4)  # of its own: a database that hangs takes none from pictures
        self._told = ""
        self._left_out: set[str] = set()

    @classmethod
    def load(cls, settings: Settings) -> "Models":
        """Every model in `models_dir`, then those made or uploaded. A file that cannot be loaded is an error."""
        models = cls(settings)
        models.refresh(strict=True)
        if settings.default_model is not None and models._shelf.known:
            models[settings.default_model]  # a default that is not there stops the start, not the first request
        return models

    def refresh(self, strict: bool = False) -> None:
        """Looks for models that came or went, and for another default. Nothing changes while the catalogue does not answer."""
        with self._changing:
            before = self._shelf
            try:
                if isinstance(self._catalogue, InTable) and not before.known:
                    self._catalogue.adopt()
                kept, chosen = self._catalogue.look()
            except (*AWAY, Problem) as away:
                self._tell(f"the models' database does not answer, what is served stays as it is: {away}")
                if before.known:
                    return
                kept, chosen, known = {}, None, False
            else:
                known = True
            shipped = {path.stem: path for path in catalogue.files(self._settings.models_dir)}
            stamps: dict[str, Stamp] = {name: catalogue.stamp(path) for name, path in shipped.items()}
            stamps = self._named(stamps | kept)
            if (stamps, chosen, known) == (before.stamps, before.chosen, before.known):
                self._told = ""
                return
            models, files, served = {name: before.models[name] for name in self._given}, dict[str, Path](), dict[str, Stamp]()
            with ThreadPoolExecutor(hardware.threads()) as pool:  # a core for each: the service is ready sooner
                fresh = {
                    name: pool.submit(self._load, name, stamp, None if name in kept else shipped[name])
                    for name, stamp in stamps.items()
                    if before.stamps.get(name) != stamp
                }
            for name, stamp in stamps.items():
                try:
                    if name in fresh:
                        (models[name], files[name]), served[name] = fresh[name].result(), stamp
                        continue
                except (OSError, WeightsError, FilesGone, Problem) as broken:
                    if strict and not (self._catalogue.shared and name in kept):
                        raise
                    self._tell(f"model {name} is not served: {broken}")
                if name in before.stamps:
                    models[name], files[name], served[name] = before.models[name], before.files[name], before.stamps[name]
            if chosen in stamps and chosen not in served:  # it cannot be loaded: go on with the one before, if there was one
                chosen, known = before.chosen, before.known
            self._shelf = Shelf(models, files, served, chosen, known)

    def _named(self, stamps: dict[str, Stamp]) -> dict[str, Stamp]:
        """Those but for what is no model's name: what lies under one could not be asked for by it."""
        left_out = stamps.keys() & set(NO_NAMES)
        for name in sorted(left_out - self._left_out):
            _log.warning("%s is not served: this name has a meaning of its own: give the file another", name + SUFFIX)
        self._left_out = left_out
        return {name: stamp for name, stamp in stamps.items() if name not in left_out}

    def _load(self, name: str, stamp: Stamp, shipped: Path | None) -> tuple[Denoiser, Path]:
        path = shipped or self._catalogue.weights(name, stamp)
        with hardware.on_one_thread():
            return Denoiser.load(path, self._settings.device), path

    def _tell(self, what: str) -> None:
        """In the log, once and not every second."""
        if what != self._told:
            _log.warning("%s", what)
        self._told = what

    def close(self) -> None:
        self._catalogue.close()

    async def watch(self) -> None:
        """Looks every second, for what other processes change."""
        while True:
            await anyio.sleep(LOOK_SECONDS)
            await self._look()

    async def news(self) -> None:
        """What other processes have changed up to now is seen afterwards, unless their database is slow to answer."""
        if self._catalogue.shared and not self._told:
            with anyio.move_on_after(PATIENCE_SECONDS):
                await self._look()

    async def seek(self, name: str | None) -> None:
        """A model that is not here may have come a moment ago."""
        if name not in (None, AUTO) and name not in self:
            await self.news()

    async def _look(self) -> None:
        try:
            await anyio.to_thread.run_sync(self.refresh, limiter=self._threads, abandon_on_cancel=True)
        except Exception:
            _log.exception("the models could not be looked through")

    def __iter__(self) -> Iterator[Denoiser]:
        return iter(list(self._shelf.models.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._shelf.models

    @property
    def chosen(self) -> str:
        """The name of the model that was chosen as the default, here or by the settings; `auto` if none was."""
        return self._chosen(self._shelf)

    def _chosen(self, shelf: Shelf) -> str:
        return shelf.chosen if shelf.chosen in shelf.models and shelf.chosen is not None else self._settings.default_model or AUTO

    @property
    def default(self) -> str | None:
        """The default, or, where the picture decides, the model for one that decides nothing."""
        return self._default(self._shelf)

    def _default(self, shelf: Shelf) -> str | None:
        chosen = self._chosen(shelf)
        return next(iter(shelf.models), None) if chosen == AUTO else chosen

    def __getitem__(self, name: str | None) -> Denoiser:
        """The model called `name`; None: the default."""
        return self._model(self._shelf, name)

    def _model(self, shelf: Shelf, name: str | None) -> Denoiser:
        if name is None and not shelf.known:
            raise NotReady("jobs_url: its database has not answered yet, and so nobody knows which model is the default: name one.")
        name = name or self._default(shelf)
        if name is None:
            raise NotReady(f"models_dir = '{self._settings.models_dir}' holds no weights: put a model there, or set CLEARFOLD_MODELS_DIR.")
        if name not in shelf.models:
            there = ", ".join(map(repr, shelf.models)) or "none"
            raise UnknownModel(f"model = {name!r}: there is no such model. There are: {there}.", models=[*shelf.models])
        return shelf.models[name]

    def taker(self, name: str | None) -> Taker:
        """What gives the denoiser for a picture, and why it is that one. Raises for a name that is not there, before there is a picture.

        With the name `auto`, and with none where nobody chose a default, the picture decides.
        """
        shelf = self._shelf
        chosen = name or self._chosen(shelf)
        if chosen == AUTO:
            return Taker(Auto(shelf.models, self._model(shelf, None).name).take, looks=True)
        denoiser, reason = self._model(shelf, name), "asked for" if name else "the default"
        return Taker(lambda pixels: (denoiser, reason))

    def weights(self, name: str) -> Path:
        """The file that the model called `name` was loaded from."""
        return self._shelf.files.get(name, self._settings.models_dir / (name + SUFFIX))

    def shipped(self, name: str) -> bool:
        return self.weights(name).parent == self._settings.models_dir

    def sample(self, name: str) -> Path:
        """The small picture of what the model does; it may not be there."""
        return self.weights(name).with_suffix(".png")

    def choose(self, name: str) -> None:
        """Makes a model the default, for this and later runs; `auto` undoes that."""
        if name != AUTO:
            self[name]
        self._catalogue.choose(None if name == AUTO else name, name != AUTO and self.shipped(name))
        self.refresh()

    def remove(self, name: str) -> None:
        """Takes away a model that was made or uploaded. Raises ModelInUse."""
        self[name]
        if self.shipped(name):
            raise ModelInUse(f"model = {name!r}: it lies in models_dir = '{self._settings.models_dir}', where the service changes nothing.")
        if name == self.default:
            raise ModelInUse(f"model = {name!r}: it is the default model: choose another default first.")
        self._catalogue.remove(name)
        self.refresh()

    def take(self, uploaded: Path, name: str) -> Denoiser:
        """Serves an uploaded weights file, once it was proved to be one. Raises WeightsRefused or ModelExists."""
        if name in self:
            raise ModelExists(f"model = {name!r}: a model with this name is there, and none is overwritten: choose another name.")
        try:
            values, metadata = weights.read(uploaded)
            _, card = weights.load(uploaded)
        except WeightsError as error:
            raise WeightsRefused(str(error).replace(str(uploaded), "The file")) from None
        if (length := len(metadata["card"])) > MAX_CARD_BYTES:
            raise WeightsRefused(f"The file's card has {length} characters, and {MAX_CARD_BYTES} at most are taken: shorten it.")
        card.pop("job", None)  # it was made elsewhere
        if not isinstance(card.get("parent"), str):
            card.pop("parent", None)
        self._catalogue.add(name, None, lambda folder: weights.save(folder / (name + SUFFIX), values, card))
        self.refresh()
        return self[name]


def keep(shelf: Catalogue, made: Path, sample: Path, job: str, parent: str | None) -> None:
    """Puts a job's model among the others, once. Raises OSError, WeightsError or a Problem."""

    def fill(folder: Path) -> None:
        values, metadata = weights.read(made)
        card: Card = {**json.loads(metadata["card"]), "job": job, "parent": parent}
        weights.save(folder / made.name, values, card)
        if sample.exists():
            shutil.copyfile(sample, folder / f"{made.stem}.png")

    shelf.add(made.stem, job, fill)
