"""`python -m tests.benchmarks.beside`: how long POST /denoise takes while a training job runs, beside how long it takes when none does.

Idle and training take turns, so that whatever else the machine does slows both alike.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from core import Picture, images
from tests.benchmarks.jobs import ROOT, Service, picture


def percentile(seconds: list[float], share: float) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512, help="Of the picture that is denoised, in pixels.")
    parser.add_argument("--requests", type=int, default=40, help="Of each kind in a turn.")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    wishes = parser.parse_args()
    pixels = torch.rand(wishes.side, wishes.side, 3, generator=torch.Generator().manual_seed(0))
    noisy = images.write(Picture(pixels))
    files = [("files", (f"{seed}.png", picture(seed))) for seed in range(8)]
    took: dict[str, list[float]] = {"idle": [], "training": []}
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder), models_dir=ROOT / "weights", threads=None)
        service.start()
        try:
            for _ in range(wishes.turns):
                for kind, seconds in took.items():
                    id = ""
                    if kind == "training":
                        id = service.client.post("/train", files=files, data={"minutes": "60", "steps": "1000000"}).json()["id"]
                        while (service.client.get(f"/train/{id}").json()["step"] or 0) < 2:
                            time.sleep(0.2)
                    for _ in range(wishes.requests):
                        began = time.monotonic()
                        answer = service.client.post("/denoise?model=gaussian&sigma=25", content=noisy)
                        seconds.append(time.monotonic() - began)
                        assert answer.status_code == 200, answer.text
                    if id:
                        service.client.post(f"/train/{id}/cancel")
                        while service.client.get(f"/train/{id}").json()["status"] == "cancelling":
                            time.sleep(0.1)
        finally:
            service.kill()
    told = {kind: {f"p{share:g}": percentile(seconds, share / 100) for share in (50, 95)} for kind, seconds in took.items()}
    if wishes.json:
        print(json.dumps(told))
        return
    for kind, row in told.items():
        print(f"{kind:<9} " + "  ".join(f"{name} {1000 * value:6.0f} ms" for name, value in row.items()))
    print(f"p95 while training / idle: {told['training']['p95'] / told['idle']['p95']:.2f}")


if __name__ == "__main__":
    main()
