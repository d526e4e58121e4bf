"""`python -m tests.benchmarks.archive`: an archive by the plain engine and by Ray, beside each other, and under fire.

Every run is a `clearfold denoise IN OUT --engine …` of its own, on pictures made here; its rate is of the pictures behind the first ones,
and once more of all its time, start and end included. With `--kill`, a worker of Ray is killed in the middle, then the whole run, and the
same command ends it: every answer must be there, whole, and made once but for those that were under way.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image

from tests.core.made import photo

SETTLED = 0.1
"""The share of the pictures before the rate is taken: engines start, weights are loaded."""


def make(folder: Path, count: int, megapixels: float, suffix: str) -> None:
    folder.mkdir(parents=True)
    side = round((megapixels * 1e6) ** 0.5)
    clean = photo(side, side)

    def one(i: int) -> None:
        noisy = clean.roll(7 * i, 0) + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(i))
        pixels = noisy.clamp(0, 1).mul(255).round().to(torch.uint8)
        Image.frombytes("RGB", (side, side), pixels.numpy().tobytes()).save(folder / f"{i:05}.{suffix}", quality=92, compress_level=1)

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, range(count)))


def start(engine: str, folder: Path, out: Path, arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "app.cli", "denoise", str(folder), str(out), "--engine", engine, *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def answers(out: Path) -> dict[str, int]:
    """Each answer by its name, and when it was written, in ns."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("[0-9]*") if path.is_file()}


def rate(engine: str, folder: Path, out: Path, arguments: list[str]) -> dict[str, float]:
    count = len(list(folder.iterdir()))
    began = time.time()
    child = start(engine, folder, out, arguments)
    _, said = child.communicate()
    seconds = time.time() - began
    assert child.returncode == 0, said
    written = sorted(answers(out).values())
    assert len(written) == count
    first = max(1, int(SETTLED * count))
    settled = (count - first) / ((written[-1] - written[first - 1]) / 1e9)
    return {"pictures a second": round(settled, 3), "with start and end": round(count / seconds, 3), "seconds": round(seconds, 1)}


def workers() -> list[int]:
    """Ray's actors of this machine that denoise."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(b"ray::Worker"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def killed(folder: Path, out: Path, arguments: list[str]) -> dict[str, object]:
    """A worker is killed at a quarter of the pictures, the whole run at a half; then it is ended."""
    count = len(list(folder.iterdir()))
    child = start("ray", folder, out, arguments)
    threading.Thread(target=child.stderr.read, daemon=True).start()  # type: ignore[union-attr]

    def until(share: float) -> None:
        while len(answers(out)) < share * count:
            assert child.poll() is None, "it ended early"
            time.sleep(0.05)

    until(0.25)
    victim = workers()[0]
    os.kill(victim, signal.SIGKILL)
    until(0.5)
    child.kill()
    child.wait()
    before = answers(out)
    again = start("ray", folder, out, arguments)
    _, said = again.communicate()
    after = answers(out)
    redone = sum(after[name] != when for name, when in before.items())
    for path in out.glob("[0-9]*"):
        with Image.open(path) as image:
            image.load()
    stray = [path.name for path in out.rglob("*.part")]
    return {
        "answers": len(after),
        "of": count,
        "there before the restart": len(before),
        "of these made twice": redone,
        "files left over": stray,
        "status": again.returncode,
        "said": said.strip().splitlines()[-1],
        "held": len(after) == count and redone <= len(before) // 10 + 8 and not stray and again.returncode == 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of text")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--megapixels", type=float, default=1.0)
    parser.add_argument("--suffix", default="jpg", choices=["jpg", "png"])
    parser.add_argument("--engines", nargs="*", default=["plain", "ray"])
    parser.add_argument("--kill", action="store_true", help="kill a worker of Ray, then the run, and end it with the same command")
    parser.add_argument("arguments", nargs="*", help="more for `clearfold denoise`, behind --", default=[])
    chosen = parser.parse_args()
    arguments = chosen.arguments or ["--model", "gaussian"]
    told: dict[str, object] = {"pictures": chosen.pictures, "megapixels": chosen.megapixels, "as": chosen.suffix, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "in", chosen.pictures, chosen.megapixels, chosen.suffix)
        found = {engine: rate(engine, folder / "in", folder / engine, arguments) for engine in chosen.engines}
        told |= found
        if {"plain", "ray"} <= found.keys():
            told["ray's rate to plain's"] = {
                key: round(found["ray"][key] / found["plain"][key], 3) for key in found["ray"] if key != "seconds"
            }
        if chosen.kill:
            told["killed"] = killed(folder / "in", folder / "killed", arguments)
    print(json.dumps(told) if chosen.json else "\n".join(f"{key}: {value}" for key, value in told.items()))


if __name__ == "__main__":
    main()
