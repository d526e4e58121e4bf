"""`python -m tests.benchmarks.capacity`: what a number of pictures costs, from what is measured here, with its assumptions.

Measured: seconds of the processor for a picture, from file to file; memory of a picture in flight; how long an answer takes by how many
are asked for at once. Counted from that: core hours of a million and a billion pictures, which holds while cores are added with their
memory bandwidth, disks keep up, and pictures are of this size. No GPU is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch
from torch.multiprocessing import get_context

from app import archive
from app.archive import Gate, How, Task
from core import hardware, images
from tests.benchmarks.memory import greatest
from tests.benchmarks.service import Service, photograph, serving
from tests.benchmarks.wire import ask, part, request

ROOT = Path(__file__).parents[2]
CLIENTS = (1, 2, 4, 8, 16)
COUNTS = {"a million": 10**6, "a billion": 10**9}


def a_core(folder: Path, count: int) -> float:
    """Seconds of the processor for a picture, from file to file, as an archive's engine does it."""
    torch.set_num_threads(1)
    hardware.keep_freed_memory()
    how = How((ROOT / "weights" / "gaussian.safetensors",), "cpu")
    denoiser, gate = how.load(), Gate()
    times = []
    for i in range(count + 2):
        began = time.process_time()
        outcome = archive.denoise(Task(i, folder / "in.jpg", folder / "out.jpg"), how, denoiser, gate)
        assert outcome.error is None, outcome.error
        times.append(time.process_time() - began)
    return statistics.median(times[2:])


def in_flight(folder: Path, pictures: int) -> float:
    """MB of a process at most, with so many pictures at a time, each in a thread."""
    torch.set_num_threads(1)
    hardware.keep_freed_memory()
    how = How((ROOT / "weights" / "gaussian.safetensors",), "cpu")
    denoiser, gate = how.load(), Gate()
    greatest(anew=True)

    def work(number: int) -> None:
        hardware.compute_on(1)
        for _ in range(2):
            archive.denoise(Task(number, folder / "in.jpg", folder / f"out{number}.jpg"), how, denoiser, gate)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(pictures)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return greatest()


def alone(function: str, *arguments: object) -> float:
    with get_context("spawn").Pool(1) as pool:
        return float(pool.apply(globals()[function], arguments))


async def asked(service: Service, data: bytes, clients: int, seconds: float) -> dict[str, float]:
    """Each client asks again as soon as it is answered."""
    until, took = time.perf_counter() + seconds, list[float]()

    async def client() -> None:
        while (began := time.perf_counter()) < until:
            assert (await ask(service.port, data)).status == 200
            took.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    rate = len(took) / (time.perf_counter() - began)
    return {"a second": round(rate, 2), "p50 s": round(part(took, 0.5), 3), "p99 s": round(part(took, 0.99), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of text")
    parser.add_argument("--megapixels", type=float, default=1.0)
    parser.add_argument("--pictures", type=int, default=20, help="timed pictures of one core")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each number of clients; 0: no service is asked")
    chosen = parser.parse_args()
    side = round((chosen.megapixels * 1e6) ** 0.5)
    body = images.write(images.Picture(photograph(side)), "jpeg")
    told: dict[str, object] = {"megapixels": chosen.megapixels}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in.jpg").write_bytes(body)
        seconds = alone("a_core", folder, chosen.pictures)
        memory = {count: alone("in_flight", folder, count) for count in (1, 4)}
        many = {
            "max_queued_pictures": 64,
            "max_queued_pixels": 10**9,
            "train_here": False,
            "train_dir": folder,
            "default_model": "gaussian",
        }
        waits: dict[int, dict[str, float]] = {}
        if chosen.seconds:
            with serving(folder / "log", **many) as service:
                data = request(body)
                asyncio.run(asked(service, data, 1, 2))
                waits = {clients: asyncio.run(asked(service, data, clients, chosen.seconds)) for clients in CLIENTS}
    told["seconds of a core for a picture"], told["pictures a second and core"] = round(seconds, 3), round(1 / seconds, 2)
    told["MB of a process with its first picture"] = round(memory[1])
    told["MB of each picture more in flight"] = round((memory[4] - memory[1]) / 3)
    told["service, by clients that ask at once"] = waits
    told["core hours"] = {name: round(count * seconds / 3600, 1) for name, count in COUNTS.items()}
    told["days on 1000 cores"] = {name: round(count * seconds / 86400 / 1000, 3) for name, count in COUNTS.items()}
    if chosen.json:
        print(json.dumps(told))
    else:
        for key, value in told.items():
            print(f"{key}: {value}" if not isinstance(value, dict) else f"{key}:")
            for inner, figure in value.items() if isinstance(value, dict) else ():
                print(f"    {inner}: {figure}")


if __name__ == "__main__":
    main()
