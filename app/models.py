"""The models that are served, by name, and the two folders that they live in. Decides nothing about who may change them.

Shipped models lie in `models_dir` and are never written. Those that were trained or uploaded lie in `train_dir/models`, each file put
there in one move, and beside them the name of the chosen default: several services may share that folder, and each looks for changes
every second.
"""

import contextlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
from torch import Tensor

from app import folders
from app.errors import ModelExists, ModelInUse, NotReady, UnknownModel, WeightsRefused
from app.settings import Settings
from core import AUTO, Auto, Card, Denoiser, WeightsError

SUFFIX = ".safetensors"
RESERVED = "default"
NO_NAMES = (RESERVED, AUTO, "scratch")
"""No model's names: they have a meaning of their own."""
LOOK_SECONDS = 1.0
MAX_CARD_BYTES = 1_000_000
_log = logging.getLogger("clearfold")
Taker = Callable[[Tensor], tuple[Denoiser, str]]
_Stamp = tuple[int, int, int]


class Models:
    """Loaded denoisers. The default is the one chosen here, or else the one that the settings name, or else the first."""

    def __init__(self, settings: Settings, *denoisers: Denoiser) -> None:
        self._settings = settings
        self._shelf = {denoiser.name: denoiser for denoiser in denoisers}
        self._stamps: dict[str, _Stamp] = {}
        self._chosen: str | None = None
        self._changing = threading.Lock()

    @classmethod
    def load(cls, settings: Settings) -> "Models":
        """Every model in `models_dir`, then those made or uploaded. A file that cannot be loaded is an error."""
        models = cls(settings)
        models.refresh(strict=True)
        if settings.default_model is not None:
            models[settings.default_model]  # a default that is not there stops the start, not the first request
        return models

    def refresh(self, strict: bool = False) -> None:
        """Looks for models that came or went, and for another default. Requests meanwhile see all as before, and then all as after."""
        with self._changing:
            shelf, stamps = dict(self._shelf), dict(self._stamps)
            there = {path.stem: path for folder in (self._settings.models_dir, kept_dir(self._settings)) for path in _weights_in(folder)}
            for name in stamps.keys() - there.keys():
                del shelf[name], stamps[name]
            for name, path in there.items():
                try:
                    stamp = _stamp(path)
                    if stamps.get(name) != stamp:
                        shelf[name], stamps[name] = Denoiser.load(path, self._settings.device), stamp
                except (OSError, WeightsError) as broken:
                    if strict:
                        raise
                    _log.warning("model %s is not served: %s", name, broken)
            self._shelf, self._stamps, self._chosen = shelf, stamps, _chosen(self._settings)

    async def watch(self) -> None:
        """Looks every second, for what other processes change."""
        while True:
            await anyio.sleep(LOOK_SECONDS)
            if self._changed():
                await anyio.to_thread.run_sync(self.refresh)

    def _changed(self) -> bool:
        there = {}
        for folder in (self._settings.models_dir, kept_dir(self._settings)):
            for path in _weights_in(folder):
                with contextlib.suppress(OSError):
                    there[path.stem] = _stamp(path)
        return there != self._stamps or _chosen(self._settings) != self._chosen

    def __iter__(self) -> Iterator[Denoiser]:
        return iter(list(self._shelf.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._shelf

    @property
    def chosen(self) -> str:
        """The name of the model that was chosen as the default, here or by the settings; `auto` if none was."""
        chosen = self._chosen
        return chosen if chosen is not None and chosen in self._shelf else self._settings.default_model or AUTO

    @property
    def default(self) -> str | None:
        """The default, or, where the picture decides, the model for one that decides nothing."""
        chosen = self.chosen
        return next(iter(self._shelf), None) if chosen == AUTO else chosen

    def __getitem__(self, name: str | None) -> Denoiser:
        """The model called `name`; None: the default."""
        shelf = self._shelf
        name = name or self.default
        if name is None:
            raise NotReady(f"models_dir = '{self._settings.models_dir}' holds no weights: put a model there, or set CLEARFOLD_MODELS_DIR.")
        if name not in shelf:
            there = ", ".join(map(repr, shelf)) or "none"
            raise UnknownModel(f"model = {name!r}: there is no such model. There are: {there}.", models=[*shelf])
        return shelf[name]

    def taker(self, name: str | None) -> "Taker":
        """What gives the denoiser for a picture, and why it is that one. Raises for a name that is not there, before there is a picture.

        With the name `auto`, and with none where nobody chose a default, the picture decides.
        """
        shelf, chosen = self._shelf, name or self.chosen
        if chosen == AUTO:
            return Auto(shelf, self[None].name).take
        denoiser, reason = self[chosen], "asked for" if name else "the default"
        return lambda pixels: (denoiser, reason)

    def weights(self, name: str) -> Path:
        """The file that the model called `name` was loaded from."""
        made = kept_dir(self._settings) / (name + SUFFIX)
        return made if made.exists() else self._settings.models_dir / made.name

    def shipped(self, name: str) -> bool:
        return not (kept_dir(self._settings) / (name + SUFFIX)).exists()

    def sample(self, name: str) -> Path:
        """The small picture of what the model does; it may not be there."""
        return self.weights(name).with_suffix(".png")

    def choose(self, name: str) -> None:
        """Makes a model the default, for this and later runs; `auto` undoes that."""
        if name == AUTO:
            (kept_dir(self._settings) / RESERVED).unlink(missing_ok=True)
            self._chosen = None
            return
        self[name]
        choose(self._settings, name)
        self._chosen = name

    def remove(self, name: str) -> None:
        """Takes away a model that was made or uploaded. Raises ModelInUse."""
        self[name]
        if self.shipped(name):
            raise ModelInUse(f"model = {name!r}: it lies in models_dir = '{self._settings.models_dir}', where the service changes nothing.")
        if name == self.default:
            raise ModelInUse(f"model = {name!r}: it is the default model: choose another default first.")
        weights = self.weights(name)
        for file in (weights, weights.with_suffix(".md"), weights.with_suffix(".png")):  # with its weights gone it is no model
            file.unlink(missing_ok=True)
        self.refresh()

    def take(self, uploaded: Path, name: str) -> Denoiser:
        """Serves an uploaded weights file, once it was proved to be one. Raises WeightsRefused or ModelExists."""
        if name in self or name in NO_NAMES:
            raise ModelExists(f"model = {name!r}: a model with this name is there, and none is overwritten: choose another name.")
        from core import weights

        try:
            values, metadata = weights.read(uploaded)
            weights.load(uploaded)
        except WeightsError as error:
            raise WeightsRefused(str(error).replace(str(uploaded), "The file")) from None
        card = json.loads(metadata["card"])
        if not isinstance(card, dict) or len(metadata["card"]) > MAX_CARD_BYTES or not all(v.is_floating_point() for v in values.values()):
            raise WeightsRefused("The file's card or numbers are none of this program's: use a file that `clearfold train` wrote.")
        card.pop("job", None)  # it was made elsewhere
        _place(self._settings, name, lambda path: weights.save(path, values, card))
        self.refresh()
        return self[name]


def kept_dir(settings: Settings) -> Path:
    return settings.train_dir / "models"


def keep(settings: Settings, made: Path, sample: Path, job: str, parent: str | None) -> None:
    """Puts a job's model among the others, once. Raises OSError, WeightsError or ModelExists."""
    from core import weights

    values, metadata = weights.read(made)
    card: Card = {**json.loads(metadata["card"]), "job": job, "parent": parent}
    target = kept_dir(settings) / made.name
    if target.exists():
        if weights.load(target)[1].get("job") == job:
            return  # the job's worker died just after it had done this
        raise ModelExists(f"model = {made.stem!r}: a model with this name is there, and none is overwritten")
    if sample.exists():
        kept_dir(settings).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sample, target.with_suffix(".png"))
    _place(settings, made.stem, lambda path: weights.save(path, values, card))


def choose(settings: Settings, name: str) -> None:
    with folders.workshop(kept_dir(settings)) as folder:
        (folder / RESERVED).write_text(name)
        os.replace(folder / RESERVED, kept_dir(settings) / RESERVED)


def _chosen(settings: Settings) -> str | None:
    try:
        return (kept_dir(settings) / RESERVED).read_text().strip() or None
    except OSError:
        return None


def _place(settings: Settings, name: str, save: Callable[[Path], None]) -> None:
    """Saves a model elsewhere, then moves the weights, which make it a model, never over another, then the card for people."""
    with folders.workshop(kept_dir(settings)) as folder:
        weights, target = folder / (name + SUFFIX), kept_dir(settings) / (name + SUFFIX)
        save(weights)
        try:
            os.link(weights, target)
        except FileExistsError:
            raise ModelExists(f"model = {name!r}: a model with this name is there, and none is overwritten: choose another name.") from None
        os.replace(weights.with_suffix(".md"), target.with_suffix(".md"))


def _weights_in(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []


def _stamp(path: Path) -> _Stamp:
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns
