"""Sends every file of a folder to a running service, and tells what came of it: crashes, answers of 500, the slowest, and memory.

python -m tests.benchmarks.hostile FOLDER            --json for machines, --query 'strength=0' for another request
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx

from tests.benchmarks.service import serving


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("folder", type=Path)
    asked.add_argument("--query", default="")
    asked.add_argument("--json", action="store_true")
    chosen = asked.parse_args()
    files = sorted(path for path in chosen.folder.rglob("*") if path.is_file())
    answers: Counter[int] = Counter()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder) / "log", train_dir=folder) as service, httpx.Client() as client:
        client.post(service.address + "/denoise", content=_picture(), timeout=60)
        idle = service.resident_bytes(quick=True)
        with service.watched() as most:
            for path in files:
                began = time.perf_counter()
                try:
                    answer = client.post(f"{service.address}/denoise?{chosen.query}", content=path.read_bytes(), timeout=120)
                    status, told = answer.status_code, answer.json()["detail"] if answer.status_code >= 400 else ""
                except httpx.TransportError as error:
                    status, told = 0, repr(error)
                seconds = time.perf_counter() - began
                answers[status] += 1
                rows.append({"file": str(path.relative_to(chosen.folder)), "status": status, "seconds": round(seconds, 3), "detail": told})
                if not service.alive():
                    rows[-1]["detail"] = f"the service ended with {service.process.returncode}"
                    break
        above = (most[0] - idle) / 1e6
        alive = service.alive() and client.get(service.address + "/readyz").status_code == 200
    told = {
        "files": len(files),
        "answers": {str(status): count for status, count in sorted(answers.items())},
        "alive": alive,
        "pngsuite": {
            "good_read": sum(row["status"] == 200 for row in rows if _of_pngsuite(row["file"], "good")),
            "bad_refused": sum(row["status"] in (415, 422) for row in rows if _of_pngsuite(row["file"], "bad")),
        },
        "slowest": sorted(rows, key=lambda row: -float(str(row["seconds"])))[:5],
        "megabytes_above_idle": round(above),
    }
    if chosen.json:
        print(json.dumps(told | {"rows": rows}))
    else:
        for name, value in told.items():
            print(f"{name}: {value}")
    sys.exit(0 if alive and not any(status == 0 or status >= 500 for status in answers) else 1)


def _of_pngsuite(file: object, kind: str) -> bool:
    """The suite's own naming: what is broken begins with an x."""
    path = Path(str(file))
    return path.parent.name == "pngsuite" and path.suffix == ".png" and path.name.startswith("x") is (kind == "bad")


def _picture() -> bytes:
    import torch

    from core import images

    return images.write(images.Picture(torch.rand(64, 64, 3)))


if __name__ == "__main__":
    main()
