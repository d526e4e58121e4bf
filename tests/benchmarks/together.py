"""`python -m tests.benchmarks.together`: training by several processes of one thread each, beside one process of one thread.

Each run is one of the trainer's own, on pictures made here. The same batch for all: its pixels a second are told of the steps' median time,
and the losses of both runs are compared. `--each` gives every process a whole batch instead, as one does who wants larger batches.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.multiprocessing import get_context

from core import trainer
from core.ranks import ALONE, Ranks
from core.trainer import Progress, Recipe
from tests.core.made import photo, save


def run(rank: int, size: int, folder: Path, recipe: Recipe) -> None:
    """One process: writes its losses and its steps' median seconds."""
    torch.set_num_threads(1)
    losses: list[float] = []
    ends: list[float] = []

    def report(now: Progress) -> None:
        losses.append(now.loss)
        ends.append(time.perf_counter())

    if size == 1:
        trainer.train(recipe, report, ranks=ALONE)
    else:
        with Ranks.joined(torch.device("cpu"), rank, size, folder / "meeting") as joined:
            trainer.train(recipe, report, ranks=joined)
    steps = [b - a for a, b in itertools.pairwise(ends[2:-1])]  # the first warm up, the last measures
    (folder / f"{size}-{rank}.json").write_text(json.dumps({"losses": losses, "seconds": statistics.median(steps)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of text")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--each", action="store_true", help="a batch of that size for every process, not for all together")
    chosen = parser.parse_args()
    told: dict[str, object] = {"batch": chosen.batch, "patch": chosen.patch, "dtype": chosen.dtype, "each": chosen.each}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(10):
            save(folder / "pictures" / f"{i}.png", photo(320, 480, seed=i))
        found = {}
        for size in (1, chosen.processes):
            recipe = Recipe(
                data=(folder / "pictures",),
                out=folder / f"{size}" / "m.safetensors",
                steps=chosen.steps,
                batch=chosen.batch * (size if chosen.each else 1),
                patch=chosen.patch,
                warm_up=min(200, chosen.steps // 2),
                evaluate_every=10 * chosen.steps,
                device="cpu",
                dtype=chosen.dtype,
            )
            processes = [get_context("spawn").Process(target=run, args=(rank, size, folder, recipe)) for rank in range(size)]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
                assert process.exitcode == 0
            found[size] = json.loads((folder / f"{size}-0.json").read_text())
            told[f"pixels a second, {size} process{'es' * (size > 1)}"] = round(recipe.batch * recipe.patch**2 / found[size]["seconds"])
        one, many = found[1], found[chosen.processes]
        told["ratio"] = round(one["seconds"] / many["seconds"] * (chosen.processes if chosen.each else 1), 3)
        if not chosen.each:
            told["losses differ at most by, relative"] = max(abs(a / b - 1) for a, b in zip(one["losses"], many["losses"], strict=True))
    print(json.dumps(told) if chosen.json else "\n".join(f"{name}: {value}" for name, value in told.items()))


if __name__ == "__main__":
    main()
