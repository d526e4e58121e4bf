"""Fixtures of core's tests: one thread for tiny tensors, and a network that is the denoiser's small sister."""

from collections.abc import Iterator

import pytest
import torch

from core import networks, trainer
from tests.core.made import small


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other over a hundred numbers take a hundred times longer than one, on a machine that is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.fixture
def small_unet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer and the weights files know a small network under the denoiser's name."""
    monkeypatch.setattr(trainer, "unet", small)
    monkeypatch.setitem(networks.ARCHITECTURES, "unet", small)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
