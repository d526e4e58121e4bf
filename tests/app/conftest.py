"""The service as its tests need it: with toy models behind its doors, or with a small weights file."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from starlette.testclient import TestClient
from toys import Toy

from app.main import create_app
from app.models import Models
from app.settings import Settings
from core import Denoiser, networks, weights


@pytest.fixture(autouse=True)
def one_thread_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for one another are slow at low priority on a busy machine; these trainings are tiny."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


Serve = Callable[..., AbstractContextManager[TestClient]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """`with serve(Toy(), workers=2) as client`: the service with these models and settings."""

    @contextmanager
    def serving(*toys: Toy, **settings: Any) -> Iterator[TestClient]:
        chosen = {"models_dir": tmp_path / "models", "train_dir": tmp_path / "train", "device": "cpu", **settings}
        app = create_app(Settings(**chosen), lambda settings: Models(settings, *cast(list[Denoiser], toys)))
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client

    return serving


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model, `same`, whose weights are all 0: it corrects nothing."""
    folder = tmp_path_factory.mktemp("models")
    values = {name: torch.zeros_like(value, dtype=torch.float16) for name, value, _ in networks.unet().param()}
    weights.save(folder / "same.safetensors", values, {"title": "Same", "architecture": "unet"})
    return folder


@pytest.fixture
def live(models_dir: Path, tmp_path: Path) -> Iterator[TestClient]:
    """The service with the model `same`, loaded from its file."""
    app = create_app(Settings(models_dir=models_dir, train_dir=tmp_path / "train", device="cpu"))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
