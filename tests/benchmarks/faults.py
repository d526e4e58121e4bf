"""Thousands of requests of mixed sizes and faults to a running service, and what was left over: memory, threads, open files.

python -m tests.benchmarks.faults --requests 5000            --json for machines
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import torch

from core import images
from tests.benchmarks.service import Service, serving
from tests.benchmarks.wire import ask, request

SETTLED = 500
AT_ONCE = 6
WARM_UP = 10
FEW_SECONDS = 1.0
REST_SECONDS = 15.0
"""A thread that has lain idle for 10 s is let go of when another is asked for."""


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--requests", type=int, default=5000)
    asked.add_argument("--json", action="store_true")
    chosen = asked.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "log", train_dir=folder, max_silence_seconds=FEW_SECONDS, max_queued_pictures=AT_ONCE) as service,
    ):
        told = asyncio.run(_measured(service, chosen.requests))
    print(json.dumps(told) if chosen.json else "\n".join(f"{name}: {value}" for name, value in told.items()))
    sys.exit(0 if all(told["held"].values()) else 1)  # type: ignore[attr-defined]


async def _measured(service: Service, requests: int) -> dict[str, object]:
    chance, statuses, kinds = random.Random(0), Counter[int](), Counter[str]()
    pictures = _pictures()
    # As many at once as will come later, small ones and large ones: what is kept for the next, such as threads and processes that decode,
    # is there before it is counted.
    for picture in (pictures[0], pictures[-1]) * WARM_UP:
        for answer in await asyncio.gather(*(ask(service.port, request(picture)) for _ in range(AT_ONCE))):
            assert answer.status == 200, answer
    threads, files = await _at_rest(service, pictures[0])
    memory: list[int] = []
    numbers = itertools.count()

    async def client() -> None:
        while (number := next(numbers)) < requests:
            kind, fault = chance.choice(FAULTS)
            kinds[kind] += 1
            statuses[await fault(service.port, chance.choice(pictures), chance)] += 1
            if number >= SETTLED and number % 100 == 0:
                memory.append(service.resident_bytes())

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    tenth = max(1, len(memory) // 10)
    first, last = (sorted(part)[len(part) // 2] for part in (memory[:tenth], memory[-tenth:]))
    threads_left, files_left = await _at_rest(service, pictures[0])
    left = {"threads": threads_left - threads, "files": files_left - files}
    return {
        "requests": dict(kinds),
        "answers": {str(status): count for status, count in sorted(statuses.items())},
        "megabytes": {"after_settling": round(first / 1e6, 1), "at_the_end": round(last / 1e6, 1), "most": round(max(memory) / 1e6, 1)},
        "left_over": left,
        "held": {
            "memory grew at most 5 %": last <= 1.05 * first,
            "no file left": left["files"] <= 0,
            "no thread left": left["threads"] <= 0,
            "no 5xx": not any(status >= 500 for status in statuses),
            "alive": (await ask(service.port, request(pictures[0]))).status == 200,
        },
    }


async def _at_rest(service: Service, picture: bytes) -> tuple[int, int]:
    """Threads and open files, the fewest seen while one small picture after the other is asked for.

    The line to a child that decodes counts as none: so many children are kept as were ever busy at once, up to a limit.
    """
    seen, until = [], time.monotonic() + REST_SECONDS
    while time.monotonic() < until:
        await ask(service.port, request(picture))
        await asyncio.sleep(0.2)
        seen.append((service.threads(), service.files() - len(service.family()) + 1))
    return min(threads for threads, _ in seen), min(files for _, files in seen)


def _pictures() -> list[bytes]:
    random_numbers = torch.Generator().manual_seed(0)
    made = []
    for side in (1, 16, 64, 100, 200, 333):
        for name in images.FORMATS:
            pixels = torch.rand(side, side + 5, 3, generator=random_numbers)
            made.append(images.write(images.Picture(pixels), name))
    return made


async def _good(port: int, picture: bytes, chance: random.Random) -> int:
    return (await ask(port, request(picture))).status


async def _bad(port: int, picture: bytes, chance: random.Random) -> int:
    broken = bytearray(picture)
    for _ in range(chance.randint(1, 20)):
        broken[chance.randrange(len(broken))] = chance.randrange(256)
    return (await ask(port, request(bytes(broken)))).status


async def _cut(port: int, picture: bytes, chance: random.Random) -> int:
    return (await ask(port, request(picture[: chance.randrange(len(picture))]))).status


async def _half_sent(port: int, picture: bytes, chance: random.Random) -> int:
    """A head or a body that stops, on a connection that stays open."""
    whole = request(picture)
    return (await ask(port, whole[: chance.randrange(1, len(whole))])).status


async def _dropped(port: int, picture: bytes, chance: random.Random) -> int:
    """The client leaves in the middle, or while its picture is being denoised."""
    whole = request(picture)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(whole[: chance.choice((len(whole), chance.randrange(1, len(whole))))])
    await asyncio.sleep(chance.random() * 0.05)
    writer.transport.abort()
    return 0


async def _slow(port: int, picture: bytes, chance: random.Random) -> int:
    """In pieces with pauses, but in time."""
    whole = request(picture)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    step = max(1, len(whole) // 5)
    try:
        for at in range(0, len(whole), step):
            writer.write(whole[at : at + step])
            await asyncio.sleep(0.02)
        head = await reader.read(64)
        await reader.read()
        return int(head.split(b" ", 2)[1]) if head else 0
    except OSError:
        return 0
    finally:
        writer.close()


FAULTS: list[tuple[str, Callable[[int, bytes, random.Random], Awaitable[int]]]] = [
    ("good", _good), ("good", _good), ("good", _good), ("bad", _bad), ("bad", _bad), ("cut", _cut), ("dropped", _dropped),
    ("dropped", _dropped), ("slow", _slow), ("half-sent", _half_sent),
]  # fmt: skip


if __name__ == "__main__":
    main()
