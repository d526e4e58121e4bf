"""Fixtures of core's tests: one thread for tiny tensors, and a network that is the denoiser's small sister."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from core import kernels, networks
from tests.core.made import small, small_gated


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
    monkeypatch.setitem(networks.ARCHITECTURES, "unet", small)


@pytest.fixture
def small_denoisers(small_unet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks under the names of all architectures."""
    monkeypatch.setitem(networks.ARCHITECTURES, "gated", small_gated)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def emulated_amx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of the kernels for AMX, and of those they are compared with, on an emulated processor that has it."""
    vectors = [] if "avx512_bf16" in kernels.available() else VECTORS
    return _built(tmp_path_factory.mktemp("emulated"), ("amx", "avx512_bf16", "processor", "team"), vectors)


@pytest.fixture(scope="session")
def emulated_float16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of the kernels for float16, and of those of float32 beside them, on an emulated processor that has both."""
    return _built(tmp_path_factory.mktemp("emulated"), ("avx512_fp16", "avx512", "processor", "team"), VECTORS)


@pytest.fixture
def float16_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are kernels for float16, and all of them: this processor's, or emulated ones."""
    if "avx512_fp16" not in kernels.available():
        library = borrowing(request.getfixturevalue("emulated_float16"))
        emulated = {name: kernels.Kernels(library, name) for name in ("avx512_fp16", "avx512")}
        monkeypatch.setattr(kernels, "available", lambda: emulated)


def borrowing(library: Path) -> ctypes.CDLL:
    """As the door loads it: with torch's workers."""
    loaded = ctypes.CDLL(str(library))
    loaded.clearfold_borrow(ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p))
    return loaded


VECTORS = ["-DCLEARFOLD_EMULATED", "-D__builtin_cpu_supports(set)=1"]


def _built(folder: Path, sources: tuple[str, ...], vectors: list[str]) -> Path:
    if not shutil.which("cc"):
        pytest.skip("no C compiler is here to build emulated kernels with, nor the kernels themselves")
    root, library = Path(__file__).parents[2], folder / "_kernels.so"
    files = [str(root / "core/kernels" / f"{name}.c") for name in sources]
    flags = ["-O1", "-std=gnu11", "-Wno-psabi", "-fPIC", "-shared", f"-I{root}/tests/core/emulated", *vectors]
    absent = [] if "amx" in sources else ["-DCLEARFOLD_WITHOUT_AMX"]
    subprocess.run(["cc", *flags, *absent, *files, "-o", str(library), "-lpthread"], check=True)
    return library
