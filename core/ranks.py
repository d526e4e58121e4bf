"""The processes that train one network together, and what they tell each other. Knows no layer's mathematics, no recipe and no file.

Each process is a rank with the same network, its share of every batch, and an equal part in all else. Each weight has an owner, who gets
its derivatives from all ranks, in flat buckets that are sent as soon as `backward` has filled them, while `backward` goes on. He sums them
in an order of our own (`core.nn.sums`), so that two processes, or four, do to the bit what one does. Then each rank updates its own part of
the weights and sends them to the others: the update's work is shared as well, and all ranks hold the same bits, whatever processors they
run on. `torch.distributed` carries the bytes, by gloo on processors and NCCL on GPUs; none of its wrappers around models is used. On one
machine's processor nothing is sent: buckets lie in memory that all ranks see, and messages say only when they may be read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from core import memory
from core.nn import Module, Parameter, Rule, by_halves, norms

T = TypeVar("T")

BUCKET_BYTES = 4 << 20
"""So large that a message's own cost is nothing, so small that the last one, which nothing hides, is short."""
PATIENCE_SECONDS = 600.0
"""How long a rank waits for one that is silent: reading pictures, or measuring, or gone without a word with its machine."""


class Lost(RuntimeError):
    """Another rank ended or can't be reached: this one can't go on alone."""


class Failed(RuntimeError):
    """Another rank met a mistake; the message says which and what."""


class Elsewhere(RuntimeError):
    """A mistake that rank 0 tells of: the others end without a word."""


class Alone:
    """One process that trains by itself."""

    rank, size = 0, 1
    device: torch.device | None = None

    def share(self, batch: int) -> slice:
        """Which pictures of a batch are this rank's."""
        return slice(0, batch)

    def watch(self, network: Module) -> None:
        """Prepares for the derivatives of this network, and lets all ranks start from rank 0's weights."""

    def mean(self, loss: float) -> float:
        """All ranks' mean of the loss; behind it, the derivatives by the weights that this rank owns are all ranks' mean too."""
        return loss

    def norms(self) -> Tensor | None:
        """Behind `mean`, the norms of all derivatives, by weight; None where they are all here."""
        return None

    def sharing(self, rule: Rule) -> Rule:
        """The rule, each rank doing a part of its work."""
        return rule

    def owns(self, name: str) -> bool:
        """Whether this rank updates the weight of that name."""
        return True

    def gathered(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What all ranks have of something, each its own part, on every rank."""
        return dict(own)

    def any(self, flag: bool) -> bool:
        """Whether it holds on some rank."""
        return flag

    def agree(self, work: Callable[[], T]) -> T:
        """What `work` gives here; a mistake that any rank meets ends all of them."""
        return work()

    def told(self, words: str) -> list[str]:
        """What every rank says."""
        return [words]


@dataclass
class _Bucket:
    """Derivatives that are sent together, one behind the other in `flat`, by owner; `parts`: how many numbers each owner has of them.

    received: room for what every rank sends of this rank's own, or None where nothing is sent. rows: where it then lies, by rank.
    """

    flat: Tensor
    parts: list[int]
    received: Tensor | None
    rows: Sequence[Tensor]
    count: int
    missing: int = 0


@dataclass(frozen=True)
class _Place:
    """Where a layer's derivative by one of its weights lies in its bucket; `own`: and in each of its rows, if this rank owns it."""

    name: str
    bucket: _Bucket
    view: Tensor
    own: slice | None


class Ranks(Alone):
    """The ranks of this process's group."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    @classmethod
    @contextmanager
    def joined(cls, device: torch.device, rank: int, size: int, meeting: Path | None = None) -> Iterator[Ranks]:
        """The group, for as long as the block runs. Raises Lost if the ranks don't come together.

        meeting: a file, not there yet, by which those of one machine find each other; None: they do at MASTER_ADDR and MASTER_PORT, which
        launchers such as `torchrun` set.
        """
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        with _reached():
            where = "env://" if meeting is None else f"file://{meeting.absolute()}"
            patience = timedelta(seconds=PATIENCE_SECONDS)
            dist.init_process_group(backend, where, rank=rank, world_size=size, timeout=patience)
        try:
            yield cls(device)
        finally:
            dist.destroy_process_group()

    def share(self, batch: int) -> slice:
        each = batch // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def watch(self, network: Module) -> None:
        self._buckets: list[_Bucket] = []
        self._places: dict[Module, list[_Place]] = {}
        self._works: list[dist.Work] = []
        self._deal(network.param())
        self._network = network
        learned = [(layer, name) for layer in _learning(network) for name in layer.weights]
        together: list[list[tuple[Module, str, Parameter]]] = []
        room = 0
        for (layer, name), p in reversed(list(zip(learned, network.param(), strict=True))):  # backward has the last layer's first
            if p.value.numel() > room:
                together.append([])
                room = BUCKET_BYTES // 4
            room -= p.value.numel()
            together[-1].append((layer, name, p))
        total = sum(self._numbers)
        here = self.device is not None and self.device.type == "cpu"
        self._common = memory.common(total + self._numbers[self.rank], self.told) if here else None  # the buckets, and this rank's weights
        at = 0
        for those in together:
            those.sort(key=lambda one: self._owners[one[2].name])
            parts = [sum(p.value.numel() for _, _, p in those if self._owners[p.name] == rank) for rank in range(self.size)]
            first, before = 0, sum(parts[: self.rank])
            if self._common is not None:
                rows = [piece[at + before : at + before + parts[self.rank]] for piece in self._common]
                bucket = _Bucket(self._common[self.rank][at : at + sum(parts)], parts, None, rows, len(those))
            else:
                received = torch.zeros(self.size, parts[self.rank], device=self.device)
                bucket = _Bucket(torch.zeros(sum(parts), device=self.device), parts, received, list(received), len(those))
            at += sum(parts)
            for layer, name, p in those:
                last = first + p.value.numel()
                own = slice(first - before, last - before) if self.owns(p.name) else None
                self._places.setdefault(layer, []).append(_Place(name, bucket, bucket.flat[first:last].view_as(p.value), own))
                first = last
            self._buckets.append(bucket)
        self._begin()
        network.watch(self._derived)
        with _reached():
            dist.barrier()
            self._send({p.name: p.value for p in network.param()}, dict.fromkeys(self._owners, 0))

    def _begin(self) -> None:
        for bucket in self._buckets:
            bucket.missing = bucket.count
        self._works = []

    def _derived(self, layer: Module) -> None:
        """Puts a layer's derivatives into their buckets, and sends those that are full: the same ones in the same order on every rank."""
        for place in self._places[layer]:
            place.view.copy_(getattr(layer, "d" + place.name))
            setattr(layer, "d" + place.name, place.view)
            place.bucket.missing -= 1
        while self._common is None and len(self._works) < len(self._buckets) and not self._buckets[len(self._works)].missing:
            self._start(self._buckets[len(self._works)])

    def _start(self, bucket: _Bucket) -> None:
        assert bucket.received is not None
        mine = [bucket.parts[self.rank]] * self.size
        with _reached():
            work = dist.all_to_all_single(bucket.received.view(-1), bucket.flat, mine, bucket.parts, async_op=True)
        assert work is not None
        self._works.append(work)

    def mean(self, loss: float) -> float:
        with _reached():
            if self._common is not None:
                dist.barrier()
            for work in self._works:
                work.wait()
        for bucket in self._buckets:
            self._sum(bucket.rows).div_(self.size)
        for layer, places in self._places.items():
            for place in places:
                if place.own is not None:
                    setattr(layer, "d" + place.name, place.bucket.rows[0][place.own].view_as(place.view))
        self._begin()
        return self._told(loss)

    def _sum(self, rows: Sequence[Tensor]) -> Tensor:
        """All ranks' numbers, in place of the first's."""

        def part(ranks: slice) -> Tensor:
            first: Tensor = rows[ranks.start]
            for other in rows[ranks.start + 1 : ranks.stop]:
                first += other
            return first

        return by_halves(part, 0, self.size, 1)

    def _told(self, loss: float) -> float:
        """The mean of the ranks' losses, and how long all derivatives are: each is added to zeros, so that nothing is rounded."""
        parameters = self._network.param()
        own = [i for i, p in enumerate(parameters) if self.owns(p.name)]
        told = torch.zeros(len(parameters) + self.size, dtype=torch.float64, device=self.device)
        if own:
            told[own] = norms([parameters[i] for i in own]).double()
        told[len(parameters) + self.rank] = loss
        with _reached():
            dist.all_reduce(told)
        self._norms = told[: len(parameters)].float()
        return told[len(parameters) :].mean().item()

    def norms(self) -> Tensor | None:
        return self._norms

    def _deal(self, parameters: Sequence[Parameter]) -> None:
        """Whose each weight is: the largest first, each to who has least."""
        loads = [0.0] * self.size
        self._owners: dict[str, int] = {}
        self._numbers = [0] * self.size
        for p in sorted(parameters, key=lambda p: -p.value.numel()):
            owner = loads.index(min(loads))
            self._owners[p.name] = owner
            self._numbers[owner] += p.value.numel()
            loads[owner] += p.value.numel() * min(p.value.shape)

    def owns(self, name: str) -> bool:
        return self._owners[name] == self.rank

    def sharing(self, rule: Rule) -> Rule:
        def shared(parameters: Sequence[Parameter]) -> None:
            rule([p for p in parameters if self.owns(p.name)])
            with _reached():
                if self._common is None:
                    self._send({p.name: p.value for p in parameters}, self._owners)
                else:
                    self._show(self._common, parameters)

        return shared

    def _show(self, common: Sequence[Tensor], parameters: Sequence[Parameter]) -> None:
        """Each rank's own weights to all others. They are read before the next time: behind `mean` nobody reads these any more."""
        total = sum(self._numbers)
        own = common[self.rank][total:]
        for to, p in zip(self._split(own, self.rank, parameters), self._of(self.rank, parameters), strict=True):
            to.copy_(p.value)
        dist.barrier()
        for rank in range(self.size):
            if rank != self.rank:
                for new, p in zip(self._split(common[rank][total:], rank, parameters), self._of(rank, parameters), strict=True):
                    p.value.copy_(new)

    def _of(self, rank: int, parameters: Sequence[Parameter]) -> list[Parameter]:
        return [p for p in parameters if self._owners[p.name] == rank]

    def _split(self, flat: Tensor, rank: int, parameters: Sequence[Parameter]) -> list[Tensor]:
        those = self._of(rank, parameters)
        return [part.view_as(p.value) for part, p in zip(torch.split(flat, [p.value.numel() for p in those]), those, strict=True)]

    def _send(self, values: Mapping[str, Tensor], owners: Mapping[str, int]) -> None:
        """Every value from who owns it to all others, in place."""
        works: list[tuple[int, Tensor, list[Tensor], dist.Work | None]] = []
        for owner in sorted({owners[name] for name in values}):
            those = [value for name, value in values.items() if owners[name] == owner]
            flat = torch.cat([value.flatten() for value in those])
            works.append((owner, flat, those, dist.broadcast(flat, owner, async_op=True)))
        for owner, flat, those, work in works:
            assert work is not None
            work.wait()
            if owner == self.rank:
                continue
            for value, new in zip(those, torch.split(flat, [value.numel() for value in those]), strict=True):
                value.copy_(new.view_as(value))

    def gathered(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        lists = [json.loads(words) for words in self.told(json.dumps([[name, list(value.shape)] for name, value in own.items()]))]
        values: dict[str, Tensor] = {}
        owners: dict[str, int] = {}
        for owner, listed in enumerate(lists):
            for name, shape in listed:
                values[name] = own[name].clone() if owner == self.rank else torch.empty(shape, device=self.device)
                owners[name] = owner
        with _reached():
            self._send(values, owners)
        return values

    def any(self, flag: bool) -> bool:
        told = torch.tensor(float(flag), device=self.device)
        with _reached():
            dist.all_reduce(told, dist.ReduceOp.MAX)
        return told.item() > 0

    def told(self, words: str) -> list[str]:
        mine = torch.tensor(list(words.encode()) or [0], dtype=torch.uint8, device=self.device)
        length = torch.tensor([len(words.encode())], device=self.device)
        with _reached():
            lengths = [torch.zeros_like(length) for _ in range(self.size)]
            dist.all_gather(lengths, length)
            longest = max(1, *(int(n) for n in lengths))
            said = [torch.zeros(longest, dtype=torch.uint8, device=self.device) for _ in range(self.size)]
            dist.all_gather(said, torch.cat((mine, mine.new_zeros(longest)))[:longest])
        return [bytes(each[: int(n)].tolist()).decode() for each, n in zip(said, lengths, strict=True)]

    def agree(self, work: Callable[[], T]) -> T:
        mistake: Exception | None = None
        try:
            made = work()
        except Lost:
            raise
        except Exception as error:
            mistake = error
        said = self.told("" if mistake is None else f"{mistake}" or repr(mistake))
        for rank, words in enumerate(said):
            if words and self.rank:
                raise Elsewhere(words) from mistake
            if words:
                raise mistake or Failed(f"process {rank} of {self.size}: {words}")
        return made


ALONE = Alone()


def _learning(module: Module) -> Iterator[Module]:
    """The layers that have weights, in `param`'s order."""
    if module.weights:
        yield module
    for _, inner in module.modules():
        yield from _learning(inner)


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except RuntimeError as gone:
        said = re.sub(r"^\[.*?\] ", "", str(gone)).split(". ")[0].splitlines()[0]  # without the library's own line, and its advice
        raise Lost(f"another process is gone ({said})") from gone
