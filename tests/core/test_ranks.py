"""Processes that train together: the very run that one process does, mistakes told once, and nobody left waiting for the dead.

Two processes of one thread, which talk by gloo, live as long as the module; each test gives them a function of this file to run.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.multiprocessing import get_context

from core import memory, networks, ranks, trainer
from core.nn import Adam, Conv2d, DepthToSpace, LogMSE, Module, ReLU, Residual, Sequential, SpaceToDepth, Tape, norms
from core.ranks import ALONE, Alone, Ranks
from core.trainer import Recipe, TrainingError
from tests.core.made import photo, refused, save, small

SIZE = 2
SECONDS = 120


def serve(turns: Connection, rank: int) -> None:
    """One of the processes: runs what it is told as a rank, and answers with what came of it."""
    torch.set_num_threads(1)
    networks.ARCHITECTURES["unet"] = small
    while (message := turns.recv()) is not None:
        name, meeting, arguments = message
        try:
            with Ranks.joined(torch.device("cpu"), rank, SIZE, Path(meeting)) as joined:
                turns.send(globals()[name](joined, *arguments))
        except Exception as error:
            turns.send(f"{type(error).__name__}: {error}")


class Two:
    """The two processes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.groups, self.turns = folder, 0, []
        self.processes = []
        for rank in range(SIZE):
            ours, theirs = get_context("spawn").Pipe()
            self.turns.append(ours)
            self.processes.append(get_context("spawn").Process(target=serve, args=(theirs, rank), daemon=True))
            self.processes[-1].start()
            theirs.close()

    def ask(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What each of them gives."""
        self.groups += 1
        for turns in self.turns:
            turns.send((function.__name__, str(self.folder / f"group{self.groups}"), arguments))
        said = []
        for turns in self.turns:
            assert turns.poll(SECONDS), "a process waits for ever"
            try:
                said.append(turns.recv())
            except EOFError:
                said.append("dead")
        return said


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    pair = Two(tmp_path_factory.mktemp("groups"))
    yield pair
    for process in pair.processes:
        process.kill()
        process.join()


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Recipe]:
    noise = 0.05 * torch.randn(2, 60, 60, 3, generator=torch.Generator().manual_seed(9))
    for i in range(4):
        for shot in "12":
            save(tmp_path / "photos" / f"{i}_{shot}.png", photo(56 + i, 60, seed=i) + noise[int(shot) - 1, : 56 + i])

    def make(out: str, **changed: Any) -> Recipe:
        plain: dict[str, Any] = {"data": (tmp_path / "photos",), "out": tmp_path / out / "m.safetensors", "steps": 50, "batch": 8}
        return Recipe(**{**plain, "patch": 16, "warm_up": 5, "evaluate_every": 100, "device": "cpu", "dtype": "float32", **changed})

    return make


def losses(joined: Alone, recipe: Recipe, last: int = 0, stops: int = 0, resume: bool = False) -> list[float]:
    """The losses up to step `last`, at which rank `stops` says that it is enough."""
    told: list[float] = []
    trainer.train(recipe, lambda now: told.append(now.loss), lambda: joined.rank == stops and len(told) == last - 1, resume, joined)
    return told


def worst(ours: list[float], theirs: list[float]) -> float:
    assert len(ours) == len(theirs)
    return max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As each of the processes has: several sum in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("small_unet", "one_thread")
class TestARun:
    @pytest.mark.parametrize("method", ["clean", "pairs", "noisy"])
    def test_is_the_one_of_a_single_process(self, two: Two, recipe: Callable[..., Recipe], method: str) -> None:
        steps = 50 if method == "clean" else 6
        alone = losses(ALONE, recipe("alone", method=method, steps=steps))
        first, second = two.ask(losses, recipe("two", method=method, steps=steps))
        assert first == second == alone
        assert len(set(alone)) == steps
        ours, theirs = (load_file(recipe(out).checkpoint) for out in ("two", "alone"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())

    def test_of_layers_like_the_denoisers_is_the_one_of_a_single_process(
        self, two: Two, recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(networks.ARCHITECTURES, "unet", thin)
        whole = losses(ALONE, recipe("alone", batch=16, patch=24))
        assert two.ask(losses_of_thin, recipe("two", batch=16, patch=24)) == [whole, whole]
        assert two.ask(losses_of_thin, recipe("sent", batch=16, patch=24), False) == [whole, whole]

    def test_of_shares_that_are_no_halves_is_that_one_but_for_rounding(self, two: Two, recipe: Callable[..., Recipe]) -> None:
        whole = losses(ALONE, recipe("alone", batch=6, steps=20))
        first, _ = two.ask(losses, recipe("two", batch=6, steps=20))
        assert worst(first, whole) < 1e-6

    def test_goes_on_from_its_one_checkpoint_on_any_number_of_processes(self, two: Two, recipe: Callable[..., Recipe]) -> None:
        whole = losses(ALONE, recipe("whole", steps=12))
        parts = recipe("parts", steps=12)
        told, other = two.ask(losses, parts, 4, 1)  # rank 1 alone has heard that it is to stop
        assert told == other
        told += losses(ALONE, parts, 8, 0, True)
        more, other = two.ask(losses, parts, 0, 0, True)
        assert more == other
        assert told + more == whole
        assert sorted(file.name for file in parts.out.parent.iterdir()) == ["m.checkpoint", "m.md", "m.safetensors"]

    def test_a_resumed_one_on_the_same_processes_gives_the_same_bits(self, two: Two, recipe: Callable[..., Recipe]) -> None:
        whole, parts = recipe("whole", steps=6), recipe("parts", steps=6)
        told = two.ask(losses, whole)[0]
        assert two.ask(losses, parts, 3)[0] + two.ask(losses, parts, 0, 0, True)[0] == told
        ours, theirs = (load_file(each.checkpoint) for each in (parts, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    def test_of_a_batch_that_the_processes_do_not_divide_is_refused(self, recipe: Callable[..., Recipe]) -> None:
        class Three(Alone):
            size = 3

        with refused(TrainingError, "batch (=8) must be divisible by the number of processes (=3): try 9"):
            trainer.train(recipe("m"), ranks=Three())

    def test_with_nothing_to_resume_ends_on_all_and_one_says_so(self, two: Two, recipe: Callable[..., Recipe]) -> None:
        it = recipe("none")
        message = f"{it.checkpoint} does not exist: there is nothing to resume, start anew"
        assert two.ask(losses, it, 0, 0, True) == [f"TrainingError: {message}", f"Elsewhere: {message}"]

    def test_a_mistake_of_another_process_is_told_by_the_first(self, two: Two, recipe: Callable[..., Recipe]) -> None:
        it = recipe("m")
        missing = "none does not exist: name a picture, or a folder with pictures in it"
        assert two.ask(losing_its_pictures, it) == [f"TrainingError: process 1 of 2: {missing}", f"Elsewhere: {missing}"]
        assert two.ask(with_another_rate, it)[0] == (
            "TrainingError: lr (=0.001) differs from that (=0.5) of process 1 of 2: start all with the same"
        )
        assert not it.out.parent.exists()

    def test_a_loss_that_is_no_number_anywhere_ends_all(self, two: Two, recipe: Callable[..., Recipe]) -> None:
        message = "TrainingError: the loss is nan at step 0: lower lr (=0.001) and start anew: nothing was saved yet"
        assert two.ask(with_a_broken_loss, recipe("m")) == [message, message]


def losses_of_thin(joined: Alone, recipe: Recipe, beside: bool = True) -> list[float]:
    with mock.patch.dict(networks.ARCHITECTURES, unet=thin), memory_of(beside):
        return losses(joined, recipe)


def thin(generator: torch.Generator | None = None) -> Sequential:
    """The denoiser with a third of its channels, but every kind of its layers, in weights that Muon makes orthogonal and Adam trains."""
    g = generator

    def block(channels: int) -> Residual:
        first = Conv2d(channels, channels, 3, padding=1, bias=False, generator=g)
        return Residual(first, ReLU(), Conv2d(channels, channels, 3, padding=1, bias=False, gain=0.1, generator=g))

    return Sequential(
        SpaceToDepth(2),
        Conv2d(16, 20, 3, padding=1, exact=True, generator=g),
        Residual(
            block(20),
            Conv2d(20, 40, 2, stride=2, bias=False, generator=g),
            Residual(block(40), block(40)),
            Conv2d(40, 80, 1, bias=False, generator=g),
            DepthToSpace(2),
            block(20),
        ),
        Conv2d(20, 12, 3, padding=1, gain=0.1, exact=True, generator=g),
        DepthToSpace(2),
    )


def losing_its_pictures(joined: Alone, recipe: Recipe) -> list[float]:
    return losses(joined, dataclasses.replace(recipe, data=(Path("none"),)) if joined.rank else recipe)


def with_another_rate(joined: Alone, recipe: Recipe) -> list[float]:
    return losses(joined, dataclasses.replace(recipe, lr=0.5) if joined.rank else recipe)


def with_a_broken_loss(joined: Alone, recipe: Recipe) -> list[float]:
    class Broken(LogMSE):
        def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
            return torch.tensor(math.nan)

    before = trainer.LogMSE
    trainer.LogMSE = Broken if joined.rank else LogMSE  # type: ignore[misc]
    try:
        return losses(joined, recipe)
    finally:
        trainer.LogMSE = before  # type: ignore[misc]


# What the ranks tell each other.


def memory_of(beside: bool) -> AbstractContextManager[Any]:
    """That of one machine, or what ranks on two have."""
    return nullcontext() if beside else mock.patch.object(memory, "common", return_value=None)


def derivatives(joined: Alone, bucket: int, beside: bool = True) -> tuple[dict[str, Tensor], float, Tensor]:
    """The mean of the ranks' derivatives by a rank's own weights, that of their losses, and all derivatives' norms."""
    network = network_of_two_layers()
    with mock.patch.object(ranks, "BUCKET_BYTES", bucket), memory_of(beside):
        joined.watch(network)
    tape: Tape = []
    network.forward(pictures()[joined.share(4)], tape)
    network.derive(torch.ones(4 // joined.size, 6, 6, 2), tape)
    mean = joined.mean(float(joined.rank))
    own = [p for p in network.param() if joined.owns(p.name)]
    lengths = joined.norms()
    return {p.name: p.derivative.clone() for p in own if p.derivative is not None}, mean, norms(own) if lengths is None else lengths


def network_of_two_layers() -> Module:
    g = torch.Generator().manual_seed(3)
    return Sequential(Conv2d(3, 5, 3, padding=1, generator=g), Conv2d(5, 2, 3, padding=1, generator=g))


def pictures() -> Tensor:
    return torch.rand(4, 6, 6, 3, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("bucket", [1, 600, 1 << 20], ids=["a bucket a weight", "some", "one for all"])
@pytest.mark.parametrize("beside", [True, False], ids=["in memory", "sent"])
def test_derivatives_and_loss_are_the_mean_of_all_ranks(two: Two, bucket: int, beside: bool) -> None:
    whole, _, lengths = derivatives(ALONE, bucket)
    told = two.ask(derivatives, bucket, beside)
    assert sorted(name for found, _, _ in told for name in found) == sorted(whole)
    for found, loss, theirs in told:
        assert loss == 0.5
        assert found
        for name, value in found.items():
            torch.testing.assert_close(value, whole[name] / SIZE)  # the derivative given was of a sum, not of a mean
        torch.testing.assert_close(theirs, lengths / SIZE)


def shared(joined: Alone, beside: bool = True) -> tuple[list[str], dict[str, Tensor]]:
    network = network_of_two_layers()
    with memory_of(beside):
        joined.watch(network)
    tape: Tape = []
    network.forward(pictures(), tape)
    network.derive(torch.ones(4, 6, 6, 2), tape)
    joined.mean(0.0)
    asked: list[str] = []
    adam = Adam(0.1)
    network.train(joined.sharing(lambda parameters: (asked.extend(p.name for p in parameters), adam(parameters))[1]))
    return asked, {p.name: p.value.clone() for p in network.param()}


@pytest.mark.parametrize("beside", [True, False], ids=["in memory", "sent"])
def test_each_weight_is_updated_by_one_rank_and_is_the_same_on_all(two: Two, beside: bool) -> None:
    names, values = shared(ALONE)
    (first, ours), (second, theirs) = two.ask(shared, beside)
    assert sorted(first + second) == sorted(names)
    assert first
    assert second
    for name in names:
        assert torch.equal(ours[name], theirs[name])
        torch.testing.assert_close(ours[name], values[name])


def words(joined: Alone) -> tuple[list[str], list[bool], dict[str, list[float]]]:
    said = joined.told("" if joined.rank else "größer")
    own = {f"of {joined.rank}": torch.full((2 + joined.rank,), float(joined.rank))}
    return said, [joined.any(False), joined.any(joined.rank == 1)], {name: value.tolist() for name, value in joined.gathered(own).items()}


def test_what_one_says_all_hear(two: Two) -> None:
    heard = (["größer", ""], [False, True], {"of 0": [0.0, 0.0], "of 1": [1.0, 1.0, 1.0]})
    assert two.ask(words) == [heard, heard]
    assert words(ALONE) == (["größer"], [False, False], {"of 0": [0.0, 0.0]})


def disagree(joined: Alone, who: int) -> str:
    def work() -> str:
        if joined.rank >= who:
            raise ValueError(f"wrong on {joined.rank}")
        return "right"

    return joined.agree(work)


def test_all_end_with_a_mistake_and_one_tells_it(two: Two) -> None:
    assert two.ask(disagree, 2) == ["right", "right"]
    assert two.ask(disagree, 1) == ["Failed: process 1 of 2: wrong on 1", "Elsewhere: wrong on 1"]
    assert two.ask(disagree, 0) == ["ValueError: wrong on 0", "Elsewhere: wrong on 0"]


def dying(joined: Alone, recipe: Recipe) -> list[float]:
    """Rank 1 ends in step 3, without a word."""

    def stop() -> bool:
        nonlocal step
        step += 1
        return os._exit(9) if joined.rank and step == 3 else False

    step = 0
    trainer.train(recipe, stop=stop, ranks=joined)
    return []


def test_when_a_rank_dies_the_others_end_and_say_so(two: Two, recipe: Callable[..., Recipe]) -> None:
    """The last test: it takes one of the two."""
    said, dead = two.ask(dying, recipe("m", evaluate_every=2))
    assert dead == "dead"
    assert said.startswith("TrainingError: another process is gone (")
    assert said.endswith("): see what it said, then go on from step 2 with --resume")
