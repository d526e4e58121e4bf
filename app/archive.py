"""Many pictures into a folder, by whatever engine: what is to be done, what an earlier run did, and the engine of one machine.

Whoever does the work writes a picture's answer under a temporary name; the one process that runs the archive gives it its own and notes
it in the ledger. So an answer is there whole or not at all, however anything ends, and the next run does only what is missing. Prints
nothing.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from app import folders

if TYPE_CHECKING:
    from core import Auto, Denoiser, Picture, images

HIDDEN = ".clearfold"
"""The folder for the ledger, in the one that answers go to."""
LEDGER = "ledger.sqlite"
COMMIT_SECONDS = 1.0
"""What was noted in so long is done again when the machine loses its power."""
PIXELS_IN_FLIGHT = 200_000_000
"""Of all pictures that are being worked on in one process, unless it is a single one: some ten bytes each."""
MAX_PIXELS = 200_000_000
"""Of a picture, unless told otherwise: one's own may be larger than what a service takes from anyone."""
HEAD_BYTES = 512
"""Enough to tell a file's format."""


@dataclass(frozen=True)
class How:
    """All that an answer hangs on beside its picture. `weights`: a model's file, or those to choose from; `level` in [0, 1] image units."""

    weights: tuple[Path, ...]
    device: str = "auto"
    dtype: str = "auto"
    level: float | None = None
    strength: float = 1.0
    format: str | None = None
    quality: int | None = None
    max_pixels: int = MAX_PIXELS
    ensemble: bool = False

    def digest(self) -> str:
        """The same for the same answers, wherever the weights lie."""
        plain = dataclasses.asdict(self) | {
            "weights": [(path.stem, hashlib.sha256(path.read_bytes()).hexdigest()) for path in self.weights]
        }
        del plain["device"], plain["max_pixels"]
        if not self.ensemble:
            del plain["ensemble"]  # as ledgers have it of a time without
        return hashlib.sha256(repr(sorted(plain.items())).encode()).hexdigest()[:32]

    def load(self) -> "Denoiser | Auto":
        from core import Auto, Denoiser

        denoisers = {path.stem: Denoiser.load(path, self.device, self.dtype) for path in self.weights}
        first = next(iter(denoisers))
        return denoisers[first] if len(denoisers) == 1 else Auto(denoisers, first)


@dataclass(frozen=True)
class Task:
    """A picture to denoise, and the file to write. `attempt`: how often it was tried before."""

    number: int
    source: Path
    part: Path
    attempt: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a task: an error in words, or the size of what was written, and which model was taken why if there was a choice."""

    task: Task
    error: str | None = None
    size: int = 0
    reason: str = ""


class Engine(Protocol):
    """Who does the work."""

    def run(self, tasks: Iterator[Task], stop: Callable[[], bool]) -> Iterator[Outcome]:
        """All outcomes, each as it is there; takes a task when there is somebody for it. Ends early when `stop` says so."""
        ...


class Gate:
    """Lets pictures in until they have `most` pixels together; a larger one comes in alone."""

    def __init__(self, most: int = PIXELS_IN_FLIGHT) -> None:
        self._most, self._inside = most, 0
        self._changed = threading.Condition()

    @contextmanager
    def passing(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._inside or self._inside + pixels <= self._most)
            self._inside += pixels
        try:
            yield
        finally:
            with self._changed:
                self._inside -= pixels
                self._changed.notify_all()


def denoise(task: Task, how: How, denoiser: "Denoiser | Auto", gate: Gate, keep_going: Callable[[], bool] = lambda: True) -> Outcome:
    """Does one task. Raises Cancelled when `keep_going` says no."""
    from core import ImageError, images

    reasons: list[str] = []
    limits = images.Limits(max_pixels=how.max_pixels, max_total_pixels=max(how.max_pixels, MAX_PIXELS))
    try:
        stack = images.open(images.bytes_of(task.source), limits)
        with gate.passing(stack.pixels):
            format, count, loop = how.format or stack.format, stack.count, stack.loop
            frames = _denoised(stack, denoiser, how, keep_going, reasons)
            del stack  # it holds the file's bytes
            task.part.parent.mkdir(parents=True, exist_ok=True)
            try:
                with task.part.open("w+b") as file:
                    images.write_all(frames, file, format, count, how.quality, loop)
                    size = file.seek(0, os.SEEK_END)
                    file.flush()
                    os.fsync(file.fileno())
            except BaseException:
                task.part.unlink(missing_ok=True)
                raise
        return Outcome(task, size=size, reason="".join(reasons[:1]))
    except (ImageError, OSError) as error:
        return Outcome(task, error=str(error))


def _denoised(
    stack: "images.Stack", denoiser: "Denoiser | Auto", how: How, keep_going: Callable[[], bool], reasons: list[str]
) -> "Iterator[Picture]":
    """Every frame, as it is asked for, and nothing else is held meanwhile.

    All of an animation have the model and the level of the first with noise, or it would flicker: it may begin in black.
    """
    from core import Auto, Ensemble

    chosen: Denoiser | None = None
    used: float | None = 0.0
    frames, count, format = stack.frames(keep_going), stack.count, stack.format
    del stack
    for number in range(count):
        noisy = next(frames)
        if number == count - 1:
            frames.close()  # type: ignore[attr-defined]  # and lets go of the file
        seen = noisy.visible()
        part = noisy.opaque(seen)
        if chosen is None or format == "tiff" or used == 0:
            chosen, reason = denoiser.take(part) if isinstance(denoiser, Auto) else (denoiser, "")
            used = chosen.estimate(part) if how.level is None and not chosen.blind else how.level
            if reason:
                reasons.append(f"{chosen.name}, {reason}")
        if used != 0 and how.strength != 0:
            (Ensemble(chosen) if how.ensemble else chosen).over(seen, used, how.strength, keep_going)
            noisy = noisy.denoised(seen)
        done = [noisy]
        del noisy, seen, part
        yield done.pop()


class Plain:
    """This machine: a thread for each core, each with a picture of its own; a single picture has all cores."""

    def __init__(self, how: How, denoiser: "Denoiser | Auto", pictures: int) -> None:
        from core import hardware

        self.how, self.denoiser = how, denoiser
        cores = hardware.threads()
        self.workers = max(1, min(cores if denoiser.device.type == "cpu" else 2, pictures))
        self.threads = max(1, cores // self.workers)

    def run(self, tasks: Iterator[Task], stop: Callable[[], bool]) -> Iterator[Outcome]:
        from core import Cancelled, hardware

        gate = Gate()
        given_up = threading.Event()

        def work(task: Task) -> Outcome | None:
            hardware.compute_on(self.threads)
            try:
                return denoise(task, self.how, self.denoiser, gate, lambda: not given_up.is_set())
            except Cancelled:
                return None

        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            running: set[concurrent.futures.Future[Outcome | None]] = set()
            try:
                while True:
                    while len(running) < self.workers + 1 and not stop() and (task := next(tasks, None)) is not None:
                        running.add(pool.submit(work, task))
                    if not running:
                        return
                    done, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                    yield from (outcome for future in done if (outcome := future.result()) is not None)
                    if stop():
                        given_up.set()
            finally:
                given_up.set()
                pool.shutdown(cancel_futures=True)


class Ledger:
    """What was written to a folder, by which settings, from which file of what size and time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = sqlite3.connect(folder / HIDDEN / LEDGER, isolation_level=None)
        columns = "source TEXT PRIMARY KEY, size INTEGER, mtime INTEGER, settings TEXT, target TEXT, written INTEGER"
        self._file.execute(f"CREATE TABLE IF NOT EXISTS done ({columns})")
        self._begun: float | None = None

    @classmethod
    @contextmanager
    def of(cls, folder: Path) -> "Iterator[Ledger]":
        """The folder's ledger, for one run at a time. Raises OSError."""
        (folder / HIDDEN).mkdir(parents=True, exist_ok=True)
        with folders.locked(folder / HIDDEN) as lock:
            if lock is None:
                raise OSError(f"another run writes to {folder}: wait for its end, or choose another folder")
            try:
                ledger = cls(folder)
            except sqlite3.DatabaseError as broken:
                told = f"{folder / HIDDEN / LEDGER} can't be used ({broken})"
                raise OSError(f"{told}: remove it, and every picture is made anew") from None
            try:
                yield ledger
            finally:
                ledger.close()

    def target(self, source: str, size: int, mtime: int, settings: str) -> Path | None:
        """Where the answer is that these made, if it is there."""
        row = self._file.execute(
            "SELECT target, written FROM done WHERE source = ? AND size = ? AND mtime = ? AND settings = ?", (source, size, mtime, settings)
        ).fetchone()
        if row is None:
            return None
        with contextlib.suppress(OSError):
            if (self.folder / row[0]).stat().st_size == row[1]:
                return self.folder / str(row[0])
        return None

    def note(self, source: str, size: int, mtime: int, settings: str, target: Path, written: int) -> None:
        if self._begun is None:
            self._file.execute("BEGIN")
            self._begun = time.monotonic()
        row = (source, size, mtime, settings, target.relative_to(self.folder).as_posix(), written)
        self._file.execute("INSERT OR REPLACE INTO done VALUES (?, ?, ?, ?, ?, ?)", row)
        if time.monotonic() - self._begun > COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        if self._begun is not None:
            self._file.execute("COMMIT")
            self._begun = None

    def close(self) -> None:
        self._commit()
        self._file.close()


@dataclass(frozen=True)
class Source:
    """A picture, and the folder that its path is told from in the ledger and in the output."""

    path: Path
    root: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(self.root).as_posix()


@dataclass
class Told:
    """How far a run is. `failed`: by the picture's number, so that they can be told in order."""

    total: int
    done: int = 0
    already: int = 0
    failed: dict[int, str] = dataclasses.field(default_factory=dict)


def run(
    sources: Sequence[Source],
    how: How,
    engine: Engine,
    target: Callable[[Source, str], Path],
    ledger: Ledger | None = None,
    report: Callable[[Told, Source, str], None] = lambda told, source, reason: None,
    stop: Callable[[], bool] = lambda: False,
) -> Told:
    """Denoises whatever of `sources` the ledger has not, each to its `target`, told the format.

    No file is written over another of this run, nor over one of the sources.
    """
    from core import ImageError, images

    told = Told(len(sources))
    settings = how.digest() if ledger else ""
    taken = {source.path.resolve() for source in sources}
    under_way: dict[int, tuple[Path, os.stat_result]] = {}

    def claim(wanted: Path) -> None:
        if wanted.resolve() in taken:
            raise OSError(f"not written over {wanted}: choose another --output, or rename one")
        taken.add(wanted.resolve())

    def tasks() -> Iterator[Task]:
        for number, source in enumerate(sources):
            try:
                seen = source.path.stat()
                there = ledger and ledger.target(source.name, seen.st_size, seen.st_mtime_ns, settings)
                if there:
                    claim(there)
                    told.already += 1
                    report(told, source, "")
                    continue
                with source.path.open("rb") as file:
                    head = file.read(HEAD_BYTES)
                wanted = target(source, how.format or images.sniff(head) or images.open(head).format)
                claim(wanted)
            except (ImageError, OSError) as error:
                told.failed[number] = f"{source.path}: {error}"
                report(told, source, "")
                continue
            under_way[number] = wanted, seen
            yield Task(number, source.path, wanted.with_name(f".{wanted.name}.0.part"))

    for outcome in engine.run(tasks(), stop):
        number = outcome.task.number
        source = sources[number]
        wanted, seen = under_way.pop(number)
        error = outcome.error
        if error is None:
            try:
                os.replace(outcome.task.part, wanted)
                if ledger:
                    ledger.note(source.name, seen.st_size, seen.st_mtime_ns, settings, wanted, outcome.size)
                told.done += 1
            except OSError as failed:
                error = str(failed)
        if error is not None:
            told.failed[number] = f"{source.path}: {error}"
        report(told, source, outcome.reason)
    return told
