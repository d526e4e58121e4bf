"""`python -m tests.benchmarks.together`: training by several processes of one thread each, beside one process of one thread.

Each run is one of the trainer's own, on pictures made here, its pixels a second of the steps' median time. Several processes run twice:
with a batch for each of them, and with the same batch for all together, where each has less to do between what all must wait for; the
losses of the latter are one process's, and are compared. Seconds of the processor tell what a step costs where others compute as well.
The ceiling is what as many processes reach that know nothing of each other: they share the machine's memory and caches alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import get_context

from core import trainer
from core.ranks import ALONE, Ranks
from core.trainer import Progress, Recipe
from tests.core.made import photo, save


def run(rank: int, size: int, folder: Path, recipe: Recipe, apart: bool) -> None:
    """One process: writes its losses, its steps' median seconds and their mean seconds of the processor."""
    torch.set_num_threads(1)
    losses: list[float] = []
    ends: list[tuple[float, float]] = []

    def report(now: Progress) -> None:
        losses.append(now.loss)
        ends.append((time.perf_counter(), time.process_time()))

    if size == 1 or apart:
        trainer.train(replace(recipe, out=recipe.out.with_stem(f"{rank}")), report, ranks=ALONE)
    else:
        with Ranks.joined(torch.device("cpu"), rank, size, folder / f"meeting {recipe.batch}") as joined:
            trainer.train(recipe, report, ranks=joined)
    timed = ends[2:-1]  # the first steps warm up, the last measures
    seconds = statistics.median(b[0] - a[0] for a, b in itertools.pairwise(timed))
    told = {"losses": losses, "seconds": seconds, "processor": (timed[-1][1] - timed[0][1]) / (len(timed) - 1)}
    (folder / f"{size}-{recipe.batch}-{rank}.json").write_text(json.dumps(told))


def measured(size: int, folder: Path, recipe: Recipe, apart: bool = False) -> dict[str, Any]:
    """What rank 0 wrote, and the most that any rank needed of its processor. apart: they don't know of each other."""
    processes = [get_context("spawn").Process(target=run, args=(rank, size, folder, recipe, apart)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    told = [json.loads((folder / f"{size}-{recipe.batch}-{rank}.json").read_text()) for rank in range(size)]
    return told[0] | {name: max(each[name] for each in told) for name in ("seconds", "processor")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of text")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--losses", action="store_true", help="nothing but how far losses differ")
    chosen = parser.parse_args()
    told: dict[str, Any] = {name: getattr(chosen, name) for name in ("batch", "patch", "steps", "dtype", "processes")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(10):
            save(folder / "pictures" / f"{i}.png", photo(320, 480, seed=i))

        def recipe(batch: int) -> Recipe:
            out = folder / f"{batch}" / "m.safetensors"
            more = {"steps": chosen.steps, "patch": chosen.patch, "dtype": chosen.dtype, "evaluate_every": 10 * chosen.steps}
            return Recipe(data=(folder / "pictures",), out=out, batch=batch, device="cpu", **more)

        one = measured(1, folder, recipe(chosen.batch))
        told["one process"] = figures(one, chosen.batch, chosen.patch)
        for what, apart, batch in (
            ("the ceiling: processes that know nothing of each other", True, chosen.batch * chosen.processes),
            ("a batch each", False, chosen.batch * chosen.processes),
            ("the same batch", False, chosen.batch),
        )[2 * chosen.losses :]:
            found = measured(chosen.processes, folder, recipe(chosen.batch if apart else batch), apart)
            told[what] = figures(found, batch, chosen.patch)
            told[what]["times one process"] = round(one["seconds"] / found["seconds"] * batch / chosen.batch, 3)
            told[what]["by the processor's seconds"] = round(one["processor"] / found["processor"] * batch / chosen.batch, 3)
        told["losses of the same batch differ at most by, relative"] = max(
            abs(a / b - 1) for a, b in zip(one["losses"], found["losses"], strict=True)
        )
    print(json.dumps(told) if chosen.json else "\n".join(f"{key}: {value}" for key, value in told.items()))


def figures(found: dict[str, Any], batch: int, patch: int) -> dict[str, Any]:
    return {"pixels a second": round(batch * patch**2 / found["seconds"]), "ms a step": round(1e3 * found["seconds"], 1)}


if __name__ == "__main__":
    main()
