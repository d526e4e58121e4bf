"""The models that are served, by name. Loads weights files; never writes one."""

from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from app.errors import NotReady, UnknownModel
from app.settings import Settings
from core import AUTO, Auto, Denoiser

SUFFIX = ".safetensors"
Taker = Callable[[Tensor], tuple[Denoiser, str]]


class Models:
    """Loaded denoisers. The one named, or else the first, is the default."""

    def __init__(self, settings: Settings, *denoisers: Denoiser) -> None:
        self._settings = settings
        self._shelf = {denoiser.name: denoiser for denoiser in denoisers}

    @classmethod
    def load(cls, settings: Settings) -> "Models":
        """Every model in `models_dir`, then those that training made. A file that cannot be loaded is an error."""
        paths = [*_weights_in(settings.models_dir), *_weights_in(trained_dir(settings))]
        models = cls(settings, *(Denoiser.load(path, settings.device) for path in paths))
        if settings.default_model is not None:
            models[None]  # a default that is not there stops the start, not the first request
        return models

    def __iter__(self) -> Iterator[Denoiser]:
        return iter(list(self._shelf.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._shelf

    @property
    def default(self) -> str | None:
        return self._settings.default_model or next(iter(self._shelf), None)

    def __getitem__(self, name: str | None) -> Denoiser:
        """The model called `name`; None: the default."""
        name = name or self.default
        if name is None:
            raise NotReady(f"models_dir = '{self._settings.models_dir}' holds no weights: put a model there, or set CLEARFOLD_MODELS_DIR.")
        if name not in self._shelf:
            there = ", ".join(map(repr, self._shelf)) or "none"
            raise UnknownModel(f"model = {name!r}: there is no such model. There are: {there}.", models=[*self._shelf])
        return self._shelf[name]

    def taker(self, name: str | None) -> "Taker":
        """What gives the denoiser for a picture, and why it is that one. Raises for a name that is not there, before there is a picture.

        With the name `auto`, and with none where nobody chose a default, the picture decides.
        """
        if name == AUTO or (name is None and self._settings.default_model is None):
            default = self[None]
            return Auto(dict(self._shelf), default.name).take
        denoiser, reason = self[name], "asked for" if name else "the default"
        return lambda pixels: (denoiser, reason)

    def add(self, denoiser: Denoiser) -> None:
        self._shelf[denoiser.name] = denoiser

    def weights(self, name: str) -> Path:
        """The file that the model called `name` was loaded from."""
        made = trained_dir(self._settings) / (name + SUFFIX)
        return made if made.exists() else self._settings.models_dir / made.name


def trained_dir(settings: Settings) -> Path:
    return settings.train_dir / "models"


def _weights_in(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
