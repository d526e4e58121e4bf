"""The engine of a Ray cluster: by a stand-in that is as fickle as machines are, and by Ray itself where the extra is installed."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toys import noise

from app import archive
from app.archive import How, Ledger, Source, Told
from app.cluster import Cluster, Worker
from core import networks, weights
from tests.core.made import refused


@pytest.fixture(scope="module")
def how(tmp_path_factory: pytest.TempPathFactory) -> How:
    path = tmp_path_factory.mktemp("models") / "lively.safetensors"
    values = {p.name: (1.5 * p.value).half() for p in networks.unet(torch.Generator().manual_seed(1)).param()}
    weights.save(path, values, {"title": "Lively", "architecture": "unet"})
    return How((path,), "cpu", "float32", 0.1)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for seed in range(5):
        noise(20, 12, seed=seed).save(tmp_path / "in" / f"{seed}.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return tmp_path / "in"


def run(folder: Path, out: Path, how: How, engine: Cluster) -> Told:
    sources = [Source(path, folder) for path in sorted(folder.glob("*.png"))]
    with Ledger.of(out) as ledger:
        return archive.run(sources, how, engine, lambda source, _: out / source.name, ledger)


class Fickle:
    """What the engine uses of Ray. The first calls of some pictures end with their actor, at a half-written answer."""

    class RayError(Exception):
        pass

    def __init__(self, deaths: dict[str, int]) -> None:
        self.exceptions = SimpleNamespace(RayError=self.RayError)
        self.deaths, self.calls, self.up = dict(deaths), 0, False
        self.options: dict[str, Any] = {}

    def init(self, **_: Any) -> None:
        self.up = True

    def shutdown(self) -> None:
        self.up = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 3.0}

    def nodes(self) -> list[dict[str, bool]]:
        return [{"Alive": True}, {"Alive": True}, {"Alive": False}]

    def put(self, value: Any) -> Any:
        return value

    def remote(self, kind: type[Worker]) -> Any:
        def options(**given: Any) -> Any:
            self.options = given
            return SimpleNamespace(remote=start)

        def start(how: How) -> Any:
            actor = kind(how)
            return SimpleNamespace(denoise=SimpleNamespace(remote=lambda task, data: Call(actor, task, data)))

        return SimpleNamespace(options=options)

    def wait(self, references: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        assert num_returns == 1
        return references[-1:], references[:-1]

    def get(self, call: Any) -> Any:
        if not isinstance(call, Call):
            return call
        self.calls += 1
        if self.deaths.get(call.task.source.name, 0):
            self.deaths[call.task.source.name] -= 1
            call.task.part.write_bytes(b"half an ans")
            raise self.RayError("The actor died.\nIts machine burns.")
        return call.actor.denoise(call.task, call.data)


class Call:
    def __init__(self, actor: Worker, task: archive.Task, data: Any) -> None:
        self.actor, self.task, self.data = actor, task, data


@pytest.fixture
def fickle(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fickle]:
    def make(**deaths: int) -> Fickle:
        ray = Fickle({f"{name.removeprefix('p')}.png": count for name, count in deaths.items()})
        monkeypatch.setitem(sys.modules, "ray", ray)
        return ray

    return make


def left(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.iterdir() if path.name != archive.HIDDEN)


def test_a_dead_workers_picture_is_given_to_another(pictures: Path, tmp_path: Path, how: How, fickle: Callable[..., Fickle]) -> None:
    ray = fickle(p1=1, p3=2)
    said: list[str] = []
    told = run(pictures, tmp_path / "out", how, Cluster(how, 6, said.append))
    assert (told.done, list(told.failed)) == (5, [5])
    assert told.failed[5].startswith(f"{pictures / 'bad.png'}: ")
    assert left(tmp_path / "out") == [f"{i}.png" for i in range(5)]  # and no half answer
    assert ray.calls == 6 + 3
    assert not ray.up
    assert said == ["lively in 3 Ray workers on 2 machines"]
    assert (ray.options["max_restarts"], ray.options["num_gpus"]) == (-1, 0)
    assert run(pictures, tmp_path / "out", how, Cluster(how, 6)).already == 5


def test_a_picture_at_which_workers_die_again_and_again_is_named(
    pictures: Path, tmp_path: Path, how: How, fickle: Callable[..., Fickle]
) -> None:
    fickle(p2=99)
    told = run(pictures, tmp_path / "out", how, Cluster(how, 6))
    assert told.done == 4
    assert left(tmp_path / "out") == ["0.png", "1.png", "3.png", "4.png"]
    assert told.failed[2] == f"{pictures / '2.png'}: 3 workers ended while they were at it (The actor died.)"


def test_the_answers_are_those_of_one_machine(pictures: Path, tmp_path: Path, how: How, fickle: Callable[..., Fickle]) -> None:
    fickle()
    run(pictures, tmp_path / "ray", how, Cluster(how, 6))
    with Ledger.of(tmp_path / "plain") as ledger:
        sources = [Source(path, pictures) for path in sorted(pictures.glob("*.png"))]
        archive.run(sources, how, archive.Plain(how, how.load(), 6), lambda source, _: tmp_path / "plain" / source.name, ledger)
    for name in left(tmp_path / "plain"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_where_nothing_is_left_to_do_no_cluster_is_joined(pictures: Path, tmp_path: Path, how: How, fickle: Callable[..., Fickle]) -> None:
    fickle()
    (pictures / "bad.png").unlink()
    run(pictures, tmp_path / "out", how, Cluster(how, 5))
    ray = fickle()
    ray.init = lambda **_: pytest.fail("joined")  # type: ignore[method-assign]
    assert run(pictures, tmp_path / "out", how, Cluster(how, 5)).already == 5


def test_without_ray_it_is_told_how_to_have_it(how: How, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with refused(OSError, "engine = ray needs Ray: pip install 'clearfold[cluster]'"):
        Cluster(how, 1)


def test_by_ray_itself(pictures: Path, tmp_path: Path, how: How) -> None:
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    import subprocess

    root = Path(archive.__file__).parents[1]
    command = [sys.executable, "-W", "ignore", "-m", "app.cli", "denoise", str(pictures), str(tmp_path / "out"), "--engine", "ray"]
    command += ["--model", str(how.weights[0]), "--sigma", "25.5", "--dtype", "float32", "--device", "cpu"]
    for _ in range(2):
        said = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
        assert said.returncode == 1, said.stderr
        assert f"clearfold: {pictures / 'bad.png'}: " in said.stderr
    assert "5 of 6 were there already" in said.stderr
    assert left(tmp_path / "out") == [f"{i}.png" for i in range(5)]
