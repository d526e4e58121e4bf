"""`python -m tests.benchmarks.memory`: memory of a training step beside autograd's; memory and time of pictures of 1 to 100 megapixels.

Each figure is taken in a process of its own, from the kernel's own count of its greatest resident size.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.multiprocessing import get_context

from core import hardware
from core.denoiser import Denoiser
from tests.benchmarks.engine import LEVEL, TRAINING, Ours, Torch, asks_for_network, network

MEGA = 1 << 20
PICTURES = {"1": (1024, 1024), "12": (3000, 4000), "24": (4000, 6000), "100": (10_000, 10_000)}


def greatest(anew: bool = False) -> float:
    """The greatest resident size of this process since it was last counted anew, in MB."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    told = Path("/proc/self/status").read_text()
    return int(told.split("VmHWM:")[1].split()[0]) / 1024


def training(architecture: str, kind: str, size: tuple[int, int], threads: int) -> float:
    """MB that a network, its optimiser and two steps take at most."""
    torch.set_num_threads(threads)
    before = greatest(anew=True)
    ours = kind.startswith("clearfold ")
    contender = Ours(architecture, getattr(torch, kind.removeprefix("clearfold "))) if ours else Torch(architecture, kind)
    step, _ = contender.training(*size)
    for _ in range(2):
        step()
    return greatest() - before


def inference(architecture: str, size: tuple[int, int], threads: int) -> tuple[float, float]:
    """MB beyond the picture and its answer, and seconds a megapixel, the better of two times."""
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    denoiser = Denoiser(network(architecture), {}, "benchmark", device, hardware.fast_dtype(device))
    denoiser(torch.zeros(64, 64, 3, dtype=torch.uint8), LEVEL)
    H, W = size
    picture = torch.randint(256, (H, W, 3), dtype=torch.uint8)
    before, times = greatest(anew=True), []
    for _ in range(2):
        started = time.perf_counter()
        answer = denoiser(picture, LEVEL)
        times.append((time.perf_counter() - started) / (H * W / 1e6))
        peak = greatest() - before - answer.numel() / MEGA
        del answer
    return peak, min(times)


def alone(function: str, *arguments: object) -> object:
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(globals()[function], arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of tables")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    asks_for_network(parser)
    parser.add_argument("--only", nargs="*", default=list(PICTURES), help="megapixels: " + ", ".join(PICTURES))
    chosen = parser.parse_args()
    if not sys.platform.startswith("linux"):
        parser.error("memory is counted by Linux's /proc: run this on Linux")

    ours = f"clearfold {str(hardware.fast_dtype(torch.device('cpu'))).removeprefix('torch.')}"
    found: dict[str, dict[str, dict[str, float]]] = {"training": {}, "inference": {}}
    steps = Table(
        "batch", ours, "torch.nn, autocast", "torch.nn, float32", title=f"{chosen.network}: a training step, MB at most (of torch.nn's)"
    )
    for label, size in TRAINING.items():
        own, autocast, fp32 = (
            float(str(alone("training", chosen.network, kind, size, chosen.threads))) for kind in (ours, "autocast", "fp32")
        )
        found["training"][label] = {"mb": round(own), "vs_autocast": round(own / autocast, 3), "vs_fp32": round(own / fp32, 3)}
        steps.add_row(label, f"{own:.0f}", f"{autocast:.0f} ({own / autocast:.2f})", f"{fp32:.0f} ({own / fp32:.2f})")
    pictures = Table("megapixels", "MB beyond picture and answer", "seconds a megapixel", title=f"{chosen.network}: inference, {ours}")
    for label in chosen.only:
        told = alone("inference", chosen.network, PICTURES[label], chosen.threads)
        assert isinstance(told, tuple)
        mb, seconds = told
        found["inference"][label] = {"mb": round(mb), "seconds_a_megapixel": round(seconds, 4)}
        pictures.add_row(label, f"{mb:.0f}", f"{seconds:.3f}")
    if chosen.json:
        print(json.dumps(found))
        return
    out = Console()
    out.print(steps, pictures)


if __name__ == "__main__":
    main()
