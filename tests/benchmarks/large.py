"""Pictures of 100 megapixels, in every format, by `clearfold denoise` and by the service: the most memory that each took.

python -m tests.benchmarks.large            --only png jpeg, --by command, --megapixels 40, --json for machines
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import httpx
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from core import Picture, images
from tests.benchmarks.service import ROOT, serving

KINDS = {
    "png": "8 bits",
    "png16": "16 bits",
    "png-alpha": "8 bits, transparent",
    "jpeg": "8 bits",
    "tiff": "8 bits",
    "tiff16": "16 bits",
    "webp": "8 bits",
    "avif": "8 bits",
    "bmp": "8 bits",
}
MOST_BYTES = 2_000_000_000
NOISE = 24
ROWS = 1000  # made at a time


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--only", nargs="*", default=list(KINDS), choices=list(KINDS))
    asked.add_argument("--by", nargs="*", default=["command", "service"], choices=["command", "service"])
    asked.add_argument("--megapixels", type=int, default=100)
    asked.add_argument("--json", action="store_true")
    chosen = asked.parse_args()
    table = Table("format", "by", "megapixels", "file, MB", "seconds", "most memory, MB", title="one picture, sigma told")
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in chosen.only:
            path = Path(folder) / f"{kind}.{kind.rstrip('16').removesuffix('-alpha')}"
            with get_context("spawn").Pool(1) as apart:  # what making it took is then not held while it is measured
                megapixels = apart.apply(make, (path, kind, chosen.megapixels))
            for by in chosen.by:
                seconds, most = {"command": command, "service": service}[by](path, Path(folder))
                row = {"format": kind, "by": by, "megapixels": round(megapixels, 1), "megabytes": round(path.stat().st_size / 1e6)}
                rows.append(row | {"seconds": round(seconds, 1), "most_megabytes": round(most / 1e6)})
                table.add_row(*map(str, rows[-1].values()))
                print(*rows[-1].values(), file=sys.stderr, flush=True)
            path.unlink()
    if chosen.json:
        print(json.dumps(rows))
    else:
        Console().print(table)
    sys.exit(0 if all(int(str(row["most_megabytes"])) * 1e6 < MOST_BYTES for row in rows) else 1)


def make(path: Path, kind: str, megapixels: int) -> float:
    """Writes a smooth picture with noise on it, as square as the format allows; gives its megapixels."""
    width = min(16_383 if kind == "webp" else 1 << 15, round((megapixels * 1e6) ** 0.5))
    height = min(16_383 if kind == "webp" else 1 << 15, round(megapixels * 1e6 / width))
    deep = kind.endswith("16")
    samples = np.empty((height, width, 3), np.uint16 if deep else np.uint8)
    across, chance = np.linspace(0, 9, width), np.random.default_rng(0)
    for top in range(0, height, ROWS):
        part = samples[top : top + ROWS]
        down = np.arange(top, top + len(part))[:, None] / height * 7
        waves = np.stack([np.sin(across + down), np.cos(across - down), np.sin(across * 2 + down)], axis=-1)
        steps = 257 if deep else 1
        part[:] = ((waves + 1) * 100 * steps).astype(samples.dtype) + chance.integers(0, NOISE * steps, part.shape, dtype=samples.dtype)
    alpha = None
    if kind == "png-alpha":
        alpha = torch.full((height, width), 255, dtype=torch.uint8)
        alpha[: height // 4] = 0
    picture = Picture(torch.from_numpy(samples), alpha, depth=16 if deep else 8)
    path.write_bytes(images.write(picture, path.suffix[1:]))
    return height * width / 1e6


WATCHED = """
import atexit, sys
from pathlib import Path
told = Path(sys.argv.pop())
atexit.register(lambda: told.write_text(Path("/proc/self/status").read_text()))
from app.cli import main
main()
"""
"""The command, and at its end what the system says of it. (What `wait4` says counts what this process held, too, when it began another.)"""


def command(path: Path, folder: Path) -> tuple[float, int]:
    """Seconds that `clearfold denoise` took, and the most that was resident of it."""
    said, told = ["denoise", str(path), "-o", str(folder / f"out{path.suffix}"), "--sigma", "10", "--model", "gaussian"], folder / "told"
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", WATCHED, *said, str(told)], cwd=ROOT, check=True)
    most = next(line for line in told.read_text().splitlines() if line.startswith("VmHWM:"))
    return time.perf_counter() - began, int(most.split()[1]) * 1024


def service(path: Path, folder: Path) -> tuple[float, int]:
    """Seconds of a request, and the most that was resident of the service and its children. The answer is not held here."""
    data = path.read_bytes()
    raised = {
        "max_upload_bytes": 2 << 30, "max_held_bytes": 3 << 30, "max_pixels": 200_000_000, "max_queued_pixels": 400_000_000,
    }  # fmt: skip
    with serving(folder / "log", train_dir=folder, **raised) as running, running.watched() as most:
        began = time.perf_counter()
        address = running.address + "/denoise?sigma=10&model=gaussian"
        with httpx.stream("POST", address, content=data, timeout=1000) as answer:
            assert answer.status_code == 200, answer.read()
            for _ in answer.iter_raw():
                pass
        seconds = time.perf_counter() - began
    return seconds, most[0]


if __name__ == "__main__":
    main()
