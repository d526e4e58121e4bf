"""Training jobs under fire: a service whose jobs are cancelled and resumed, and whose processes are killed, at random points.

    python -m tests.benchmarks.jobs --jobs 50 --seed 1

Starts `clearfold serve` on an empty folder, orders tiny jobs, and does something cruel every few seconds: `kill -9` of a child, of the
service or of both, cancel, resume, an upload that breaks off. At the end every job must have ended as the driver wished, each model must be
there once, no process may be left, and no file but those of the models and of the ended jobs.
"""

import argparse
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
from PIL import Image

from core import networks, weights

ACTS = ["order"] * 6 + ["cancel", "resume", "kill child", "kill child", "kill service", "kill both", "break upload", "stop service"]
ENDED = ("cancelled", "done", "failed")
ROOT = Path(__file__).parents[2]


class Service:
    """`clearfold serve` as a process, started anew whenever it was killed."""

    def __init__(self, folder: Path, models_dir: Path, threads: int | None = 1) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.models_dir, self.threads, self.starts = folder, models_dir, threads, 0
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {
            **os.environ,
            "CLEARFOLD_MODELS_DIR": str(self.models_dir),
            "CLEARFOLD_TRAIN_DIR": str(self.folder / "train"),
            "CLEARFOLD_DEVICE": "cpu",
            **({} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}),
        }
        with (self.folder / "service.log").open("ab") as log:
            command = [sys.executable, "-m", "app.cli", "serve", "--port", str(self.port)]
            self.process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
        self.starts += 1
        while True:
            with suppress(httpx.HTTPError):
                if self.client.get("/readyz").status_code == 200:
                    return
            assert self.process.poll() is None, (self.folder / "service.log").read_text()[-2000:]
            time.sleep(0.1)

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(60)


def children(folder: Path) -> list[tuple[int, str]]:
    """The processes that train in the folder, each with its job's folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            found += [(int(process.name), word) for word in words if word.startswith(f"{folder}/train/jobs/")]
    return found


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGB", (100, 100), random.Random(seed).randbytes(30_000)).save(file, "PNG")
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pause", type=float, default=6.0, help="Seconds between two acts at most, once all jobs are ordered.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    wishes = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clearfold-jobs-") as folder:
        told = drive(Path(folder), wishes.jobs, wishes.steps, wishes.pause, random.Random(wishes.seed))
    print(json.dumps(told) if wishes.json else "\n".join(f"{name}: {value}" for name, value in told.items()))
    sys.exit(1 if told["wrong"] else 0)


def drive(folder: Path, jobs: int, steps: int, pause: float, chance: random.Random) -> dict[str, object]:
    values = {name: value.half() * 0 for name, value, _ in networks.unet().param()}
    (folder / "shipped").mkdir()
    weights.save(folder / "shipped" / "same.safetensors", values, {"title": "Same", "architecture": "unet"})
    service = Service(folder, folder / "shipped")
    service.start()
    files = [("files", (f"{seed}.png", picture(seed))) for seed in range(2)]
    wanted: dict[str, str] = {}  # how each job is to end
    did: Counter[str] = Counter()
    wrong: list[str] = []
    began = time.monotonic()
    ordered = 0
    while ordered < jobs or any(status not in ENDED for status in statuses(service).values()):
        time.sleep(chance.uniform(0.05, 1.0 if ordered < jobs else pause))  # first a storm, then time to get something done
        running = children(folder)
        if len(running) > 1:  # a killed service's child outlives it by a moment, and holds its folder's lock for that long
            wrong += [
                f"two processes trained {where} at once" for where, count in Counter(where for _, where in running).items() if count > 1
            ]
        act = chance.choice(ACTS)
        with suppress(httpx.HTTPError):
            if act == "order" and ordered < jobs:
                method = chance.choice(["clean", "noisy"])
                data = {"steps": str(steps), "minutes": "60", "model": f"m{ordered}", "method": method}
                data["parent"] = chance.choice(["same", "scratch"])
                answer = service.client.post("/train", files=files, data=data)
                assert answer.status_code == 202, answer.text
                wanted[answer.json()["id"]] = "done"
                ordered += 1
                did[act] += 1
            elif act in ("cancel", "resume") and wanted:
                id = chance.choice(list(wanted))
                if act == "cancel" and wanted[id] == "done":
                    asked = time.monotonic()
                    job = service.client.post(f"/train/{id}/cancel").json()
                    while job["status"] == "cancelling":
                        time.sleep(0.05)
                        job = service.client.get(f"/train/{id}").json()
                        if time.monotonic() - asked > 10:
                            wrong.append(f"{id} was still {job['status']} 10 s after it was cancelled")
                            break
                    did["cancel"] += 1
                    did["slowest cancel, ms"] = max(did["slowest cancel, ms"], round(1000 * (time.monotonic() - asked)))
                    wanted[id] = job["status"]
                elif act == "resume" and wanted[id] == "cancelled" and service.client.post(f"/train/{id}/resume").status_code == 202:
                    wanted[id] = "done"
                    did[act] += 1
            elif act.startswith("kill") or act == "stop service":
                did[act] += 1
                if act in ("kill child", "kill both"):
                    for pid, _ in running:
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                if act != "kill child":
                    service.kill(signal.SIGTERM if act == "stop service" else signal.SIGKILL)
                    service.start()
            elif act == "break upload":
                did[act] += 1
                with socket.create_connection(("127.0.0.1", service.port)) as half:
                    half.sendall(
                        b"POST /train HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
                        b"Content-Length: 99999\r\n\r\n--b\r\n"
                        b'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + picture(0)[:5000]
                    )
    seconds = time.monotonic() - began
    ends = statuses(service)
    for id, wish in wanted.items():
        if ends.get(id) != wish:
            job = service.client.get(f"/train/{id}").json()
            if ends.get(id) == "failed" and "SIGKILL" in (job.get("reason") or ""):
                did["killed too often"] += 1  # again and again before its first step, as it should fail
            else:
                wrong.append(f"{id} is {ends.get(id)} and should be {wish}: {job.get('reason')}")
    if len(ends) != len(wanted):
        wrong.append(f"{len(ends)} jobs are there, {len(wanted)} were ordered")
    for id, end in ends.items():
        told = [json.loads(line[6:]) for line in service.client.get(f"/train/{id}/events").text.splitlines() if line.startswith("data: ")]
        dones = sum(each.get("status") == "done" for each in told)
        if dones != (end == "done"):
            wrong.append(f"{id} was done {dones} times")
    models = {model["name"]: model["job"] for model in service.client.get("/models").json()["models"]} | {}
    made = {job for job in models.values() if job}
    if made != {id for id, end in ends.items() if end == "done"} or len(made) != len(models) - 1:
        wrong.append(f"models of the jobs {made}, done are {[id for id, end in ends.items() if end == 'done']}")
    service.kill(signal.SIGTERM)
    deadline = time.monotonic() + 10
    while children(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    wrong += [f"process {pid} is left, of {where}" for pid, where in children(folder)]
    keep = {"lock", "log.txt", "sample.png"}
    for path in (folder / "train").rglob("*"):
        parts = path.relative_to(folder / "train").parts
        fine = parts[0].startswith("jobs.sqlite") or parts == ("jobs",) or (parts[0] == "jobs" and parts[1] in ends)
        if fine and parts[0] == "jobs" and len(parts) > 2 and ends[parts[1]] == "done":
            fine = parts[2] in keep
        fine = fine or parts == ("models",) or (parts[0] == "models" and Path(parts[-1]).stem in models and len(parts) == 2)
        if not fine:
            wrong.append(f"stray file {path.relative_to(folder)}")
    ended = dict(Counter(ends.values()))
    return {"jobs": ordered, "ended": ended, "seconds": round(seconds), "service starts": service.starts, **did, "wrong": wrong}


def statuses(service: Service) -> dict[str, str]:
    found: dict[str, str] = {}
    address: str | None = "/train?limit=100"
    while address:
        try:
            page = service.client.get(address).json()
        except httpx.HTTPError:
            time.sleep(0.2)
            continue
        found |= {job["id"]: job["status"] for job in page["jobs"]}
        address = page["next"]
    return found


if __name__ == "__main__":
    main()
