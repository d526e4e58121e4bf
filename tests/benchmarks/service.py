"""`python -m tests.benchmarks.service`: how soon the service is ready, what it adds to the network's own time, how much it takes.

For the drivers beside this file it is the service as a process of its own: started on a free port, its memory, threads and files read.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
from torch import Tensor

from core import Picture, images
from tests.benchmarks.wire import ask, request

ROOT = Path(__file__).parents[2]
PICTURES = 64
"""So many small ones in a row that it matters little how the first and the last few of several clients fare."""


@dataclass
class Service:
    process: subprocess.Popen[bytes]
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def alive(self) -> bool:
        return self.process.poll() is None

    def family(self) -> list[int]:
        """It and its children, by their process ids."""
        try:
            tasks = list(Path(f"/proc/{self.process.pid}/task").iterdir())
            return [self.process.pid, *(int(pid) for task in tasks for pid in (task / "children").read_text().split())]
        except OSError:  # a thread that ended meanwhile
            return self.family() if self.alive() else []

    def resident_bytes(self, quick: bool = False) -> int:
        """Of the family; `quick`: all of the service's, and of its children's what they share with nobody, which takes no time."""
        total = 0
        for pid in self.family():
            with contextlib.suppress(OSError):
                if quick:
                    _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
                    total += (resident - shared * (pid != self.process.pid)) * os.sysconf("SC_PAGE_SIZE")
                else:
                    words = Path(f"/proc/{pid}/smaps_rollup").read_text()
                    total += int(next(line for line in words.splitlines() if line.startswith("Pss:")).split()[1]) * 1024
        return total

    @contextmanager
    def watched(self) -> Iterator[list[int]]:
        """In the list, at its end, lies the most that was resident of the family, by looking 50 times a second."""
        most, over = [0], threading.Event()

        def look() -> None:
            while not over.wait(0.02):
                most[0] = max(most[0], self.resident_bytes(quick=True))

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            yield most
        finally:
            over.set()
            watcher.join()

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextmanager
def serving(log: Path, **settings: object) -> Iterator[Service]:
    """`serving(log, max_queued_pictures=2)`: `clearfold serve` with these settings, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {f"CLEARFOLD_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-c", "from app.cli import main; main()", "serve", "--port", str(port)]
    with log.open("wb") as out:
        service = Service(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out), port)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                if httpx.get(service.address + "/readyz", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert service.alive(), log.read_text()
            assert time.monotonic() < until, "the service did not become ready"
            time.sleep(0.02)
        yield service
    finally:
        service.process.terminate()
        service.process.wait(30)


def photograph(side: int) -> Tensor:
    """A smooth picture with noise of sigma 25 on it, (side, side, 3): JPEG finds in it what it finds in a noisy photograph."""
    g = torch.Generator().manual_seed(side)
    small = torch.rand(1, 3, side // 32, side // 32, generator=g)
    smooth = torch.nn.functional.interpolate(small, (side, side), mode="bicubic")[0].permute(1, 2, 0)
    return (smooth + 25 / 255 * torch.randn(side, side, 3, generator=g)).clamp(0, 1)


def start_seconds(folder: Path) -> tuple[float, float]:
    """How long `import torch` takes, and how long until the service is ready."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True, cwd=ROOT)
    imported = time.perf_counter() - began
    began = time.perf_counter()
    with serving(folder / "log", train_dir=folder):
        return imported, time.perf_counter() - began


async def slowest_health(port: int, denoise: bytes) -> float:
    """Seconds that GET /livez took at most while a picture was denoised: what else holds up the event loop shows here."""
    worst = 0.0
    work = asyncio.create_task(ask(port, denoise))
    while not work.done():
        began = time.perf_counter()
        await ask(port, b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        worst = max(worst, time.perf_counter() - began)
        await asyncio.sleep(0.005)
    return worst


async def rate(port: int, data: bytes, clients: int, count: int) -> float:
    """Pictures a second."""
    left = iter(range(count))

    async def client() -> None:
        for _ in left:
            answer = await ask(port, data)
            assert answer.status == 200, answer

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    chosen = parser.parse_args()
    told: dict[str, float] = {}
    wishes = "/denoise?model=gaussian&sigma=25"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starts = [start_seconds(folder) for _ in range(chosen.rounds)]
        told["ready_after_import_torch_seconds"] = statistics.median(ready - imported for imported, ready in starts)
        with serving(folder / "log", train_dir=folder, max_queued_pictures=16) as service:
            one = request(images.write(Picture(photograph(1024), format="jpeg")), wishes)
            small = request(images.write(Picture(photograph(256), format="jpeg")), wishes)
            walls, engines, healths, rates = [], [], [], {1: [0.0], 8: [0.0]}
            for i in range(chosen.rounds + 1):
                began = time.perf_counter()
                answer = asyncio.run(ask(service.port, one))
                wall = time.perf_counter() - began
                found = re.search(rb"denoise;dur=([\d.]+)", answer.headers)
                assert answer.status == 200, answer
                assert found is not None
                health = asyncio.run(slowest_health(service.port, one))
                for clients, measured in rates.items():
                    measured.append(asyncio.run(rate(service.port, small, clients, PICTURES)))
                if i:  # the first warms up
                    walls.append(wall)
                    engines.append(float(found[1]) / 1000)
                    healths.append(health)
        told["one_megapixel_seconds"] = statistics.median(walls)
        told["of_the_engines_own"] = statistics.median(wall / engine for wall, engine in zip(walls, engines, strict=True))
        told["health_slowest_seconds"] = max(healths)
        told["small_pictures_a_second"] = statistics.median(rates[1][2:])
        told["small_by_8_clients_of_one"] = statistics.median(many / alone for many, alone in zip(rates[8][2:], rates[1][2:], strict=True))
    if chosen.json:
        print(json.dumps({key: round(value, 4) for key, value in told.items()}))
        return
    print(f"ready {told['ready_after_import_torch_seconds']:.2f} s after `import torch` alone would be done")
    print(f"a JPEG of 1024x1024 in {told['one_megapixel_seconds']:.3f} s, {told['of_the_engines_own']:.3f} times the network's own time")
    print(f"meanwhile GET /livez took {1000 * told['health_slowest_seconds']:.0f} ms at most")
    small, many = told["small_pictures_a_second"], told["small_by_8_clients_of_one"]
    print(f"JPEGs of 256x256: {small:.1f} a second by one client, {many:.2f} times as many by 8")


if __name__ == "__main__":
    main()
