"""Offers a running service several times what it can do, over true sockets, and tells what it did with that.

python -m tests.benchmarks.load --seconds 120 --times 4 --side 512            --json for machines
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from core import images
from tests.benchmarks.service import Service, serving
from tests.benchmarks.wire import ask, part, request


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--seconds", type=float, default=120)
    asked.add_argument("--times", type=float, default=4)
    asked.add_argument("--side", type=int, default=512)
    asked.add_argument("--best-seconds", type=float, default=15, help="to find out what it can do with one, two and three clients")
    asked.add_argument("--json", action="store_true")
    chosen = asked.parse_args()
    smooth = torch.linspace(0, 1, chosen.side)[:, None, None].expand(chosen.side, chosen.side, 3)
    noisy = smooth + 0.1 * torch.randn(chosen.side, chosen.side, 3, generator=torch.Generator().manual_seed(0))
    body = images.write(images.Picture(noisy.clamp(0, 1)), "jpeg")
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder) / "log", train_dir=folder) as service:
        told = asyncio.run(_measured(service, request(body), chosen.seconds, chosen.times, chosen.best_seconds))
    print(json.dumps(told) if chosen.json else "\n".join(f"{name}: {value}" for name, value in told.items()))
    sys.exit(0 if all(told["held"].values()) else 1)  # type: ignore[union-attr, attr-defined]


async def _measured(service: Service, data: bytes, seconds: float, times: float, best_seconds: float) -> dict[str, object]:
    for _ in range(5):
        assert (await ask(service.port, data)).status == 200
    idle = [await _seconds(service, data) for _ in range(40)]
    best = max([await _closed(service, data, clients, best_seconds) for clients in (1, 2, 3)])
    rows: list[tuple[int, float]] = []
    health: list[float] = []

    async def one() -> None:
        began = time.perf_counter()
        answer = await ask(service.port, data)
        rows.append((answer.status, time.perf_counter() - began))

    async def look() -> None:
        while True:
            health.append(await _seconds(service, b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"))
            await asyncio.sleep(0.25)

    began, tasks = time.perf_counter(), set[asyncio.Task[None]]()
    looking = asyncio.create_task(look())
    while (now := time.perf_counter() - began) < seconds:
        if len(tasks) < now * best * times:  # as many as should have come by now, whatever became of those before
            tasks.add(asyncio.create_task(one()))
        else:
            await asyncio.sleep(0.001)
    looking.cancel()
    done_in_time = sum(status == 200 for status, _ in rows)
    await asyncio.gather(*tasks)
    statuses = Counter(status for status, _ in rows)
    admitted = [row[1] for row in rows if row[0] == 200]
    refused = [row[1] for row in rows if row[0] == 429]
    goodput = done_in_time / seconds
    return {
        "idle_seconds": {"p50": part(idle, 0.5), "p99": part(idle, 0.99)},
        "best_a_second": best,
        "offered_a_second": len(rows) / seconds,
        "goodput_a_second": goodput,
        "answers": {str(status): count for status, count in sorted(statuses.items())},
        "admitted_seconds": {"p50": part(admitted, 0.5), "p99": part(admitted, 0.99)},
        "refused_seconds": {"p50": part(refused, 0.5), "p99": part(refused, 0.99)},
        "health_seconds": {"p50": part(health, 0.5), "p99": part(health, 0.99)},
        "held": {
            "goodput at least 90 % of the best": goodput >= 0.9 * best,
            "every other answer a 429": set(statuses) <= {200, 429},
            "p99 of admitted at most 4 times idle's": part(admitted, 0.99) <= 4 * part(idle, 0.99),
        },
    }


async def _seconds(service: Service, data: bytes) -> float:
    began = time.perf_counter()
    assert (await ask(service.port, data)).status == 200
    return time.perf_counter() - began


async def _closed(service: Service, data: bytes, clients: int, seconds: float) -> float:
    """Answers a second when so many clients each ask again as soon as they are answered."""
    until, done = time.perf_counter() + seconds, 0

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < until:
            done += (await ask(service.port, data)).status == 200

    await asyncio.gather(*(client() for _ in range(clients)))
    return done / seconds


if __name__ == "__main__":
    main()
