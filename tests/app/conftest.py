"""The service as its tests need it: with toy models behind its doors, or with a small weights file."""

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pytest
import torch
import uvicorn
from starlette.testclient import TestClient
from toys import DEADLINE_SECONDS, Toy, wait_for

from app.main import create_app
from app.models import Models
from app.server import protocol
from app.settings import Settings
from core import Decoders, Denoiser, networks, weights
from tests.benchmarks import cluster

os.environ.setdefault("CLEARFOLD_ALLOWED_HOSTS", "*")  # the tests' client calls every service `testserver`

if TYPE_CHECKING:
    from browsing import Tabs  # which needs a browser's tools, and the tests of everything else do not
    from playwright.sync_api import Browser


@pytest.fixture(autouse=True)
def one_thread_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for one another are slow at low priority on a busy machine; these trainings are tiny."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


Serve = Callable[..., AbstractContextManager[TestClient]]


@pytest.fixture(scope="session")
def decoders() -> Iterator[Decoders]:
    """Processes that decode, for every service: each would start its own."""
    with Decoders(4) as shared:
        yield shared


@pytest.fixture
def serve(tmp_path: Path, decoders: Decoders) -> Serve:
    """`with serve(Toy(), workers=2) as client`: the service with these models and settings."""

    @contextmanager
    def serving(*toys: Toy, **settings: Any) -> Iterator[TestClient]:
        chosen = {"models_dir": tmp_path / "models", "train_dir": tmp_path / "train", "device": "cpu", **settings}
        app = create_app(Settings(**chosen), lambda settings: Models(settings, *cast(list[Denoiser], toys)), decoders)
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client

    return serving


class Address(NamedTuple):
    port: tuple[str, int]
    server: uvicorn.Server


@pytest.fixture
def listening(tmp_path: Path, decoders: Decoders) -> Callable[..., AbstractContextManager[Address]]:
    """`with listening(max_connections=2) as address`: a toy model behind a true socket; ends when every connection has."""

    @contextmanager
    def serving(**limits: Any) -> Iterator[Address]:
        settings = Settings(models_dir=tmp_path, train_dir=tmp_path, device="cpu", **limits)
        app = create_app(settings, lambda settings: Models(settings, cast(Denoiser, Toy())), decoders)
        with socket.socket(proto=socket.IPPROTO_TCP) as port:  # or asyncio would not send what is small at once
            port.bind(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(app, http=protocol(settings), log_level="critical"))
            thread = threading.Thread(target=server.run, args=([port],))
            thread.start()
            wait_for(lambda: server.started, "the service")
            yield Address(port.getsockname(), server)
            wait_for(lambda: not server.server_state.connections, "the connections' end")
            server.should_exit = True
            thread.join(DEADLINE_SECONDS)

    return serving


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """For a module, not the session: as long as it is there, no test can run an event loop."""
    from browsing import launched

    with launched() as browser:
        yield browser


@pytest.fixture
def open_tab(browser: "Browser", address: str) -> "Iterator[Tabs]":
    """Opens tabs for the service at the module's own `address`."""
    from browsing import tabs

    with tabs(browser, address) as open_tab:
        yield open_tab


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model, `same`, whose weights are all 0: it corrects nothing."""
    folder = tmp_path_factory.mktemp("models")
    values = {name: torch.zeros_like(value, dtype=torch.float16) for name, value, _ in networks.unet().param()}
    weights.save(folder / "same.safetensors", values, {"title": "Same", "architecture": "unet"})
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[cluster.Postgres]:
    """A PostgreSQL for this run of the tests; those that need it are skipped where there is none, but for CI."""
    if not cluster.Postgres.there() and "CI" not in os.environ:
        pytest.skip("there is no PostgreSQL here: apt install postgresql")
    with cluster.postgres() as server:
        yield server


@pytest.fixture
def database(postgres: cluster.Postgres) -> str:
    """The address of an empty database."""
    return postgres.create(f"test{secrets.token_hex(4)}")


@pytest.fixture
def live(models_dir: Path, tmp_path: Path, decoders: Decoders) -> Iterator[TestClient]:
    """The service with the model `same`, loaded from its file."""
    app = create_app(Settings(models_dir=models_dir, train_dir=tmp_path / "train", device="cpu"), decoders=decoders)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
