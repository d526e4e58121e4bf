"""Two replicas of the service and two workers on one PostgreSQL, as a program:

    python -m tests.benchmarks.replicas kill --jobs 30 --store folder     # and --store bucket
    python -m tests.benchmarks.replicas outage
    python -m tests.benchmarks.replicas swap
    python -m tests.benchmarks.replicas nginx

`kill`: training jobs, with replicas, workers and children killed at random: every job must be done once, from its last checkpoint, and
every replica tell the same. `outage`: PostgreSQL is gone for 30 seconds: denoising goes on, jobs answer 503, all recovers by itself.
`swap`: the default model is changed 50 times under load: no request fails, and each answer is that of the model that it names.
`nginx`: with app/deploy/nginx.conf before two replicas, one of which is killed again and again: no picture fails, events come as they
happen, a client that stops is cut off, and what is too large is told as the service tells it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import safetensors

from tests.benchmarks.cluster import Machine, Postgres, bucket, nginx, postgres, shipped, wait_for
from tests.benchmarks.jobs import picture

ENDED = ("cancelled", "done", "failed")
FILES = [("files", (f"{seed}.png", picture(seed))) for seed in range(2)]


class Cluster:
    """Two replicas and two workers, with a folder that all share or a folder each and a bucket."""

    def __init__(self, stack: ExitStack, store: str, workers: int = 2, **models: float) -> None:
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clearfold-replicas-")))
        self.postgres: Postgres = stack.enter_context(postgres())
        models_dir = shipped(self.folder / "shipped", **models)
        environment = {"CLEARFOLD_JOBS_URL": self.postgres.url, "CLEARFOLD_MODELS_DIR": str(models_dir)}
        if store == "bucket":
            environment |= stack.enter_context(bucket(self.folder))

        def machine(role: str, name: str) -> Machine:
            own = {"CLEARFOLD_TRAIN_DIR": str(self.folder / (name if store == "bucket" else "shared"))}
            made = Machine(role, name, self.folder, environment | own)
            stack.callback(made.kill)
            return made

        self.replicas = [machine("serve", f"replica{i}") for i in range(2)]
        self.workers = [machine("worker", f"worker{i}") for i in range(workers)]
        self.machines = [*self.replicas, *self.workers]
        for each in self.machines:
            each.start(wait=False)
        for each in self.machines:
            wait_for(each.ready, each.name)

    def children(self) -> list[tuple[int, str]]:
        """The processes that train, each with the job it is at."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if "app.training" in words:
                    found += [(int(process.name), Path(word).name) for word in words if word.startswith(str(self.folder))]
        return found


def events(replica: Machine, id: str) -> list[dict[str, Any]]:
    told = replica.client.get(f"/train/{id}/events").text
    blocks = [dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != ":") for block in told.split("\n\n")]
    return [{"kind": block["event"], **json.loads(block["data"])} for block in blocks if "data" in block]


def began_with(log: str) -> list[int]:
    """The step that each child began with."""
    return [int(step) for step in re.findall(r"^began with step (\d+) of ", log, re.MULTILINE)]


def checkpoints(cluster: Cluster) -> list[tuple[str, int, int]]:
    """Of each job that is worked on: how many children have begun, and the step of the checkpoint that lies there."""
    found = []
    for path in (cluster.folder / "shared/jobs").glob("*/made/*.checkpoint"):
        with suppress(OSError, safetensors.SafetensorError), safetensors.safe_open(path, framework="pt") as file:
            log = path.parents[1] / "log.txt"
            found.append((path.parents[1].name, len(began_with(log.read_text(errors="replace"))), int(file.metadata()["step"])))
    return found


def jobs_of(replica: Machine) -> list[dict[str, Any]]:
    return list(replica.client.get("/train?limit=100").json()["jobs"])


def kill(jobs: int, steps: int, pause: float, store: str, chance: random.Random) -> dict[str, Any]:
    with ExitStack() as stack:
        cluster = Cluster(stack, store, same=0.0)
        did: Counter[str] = Counter()
        ids: list[str] = []
        saved: list[tuple[str, int, int]] = []
        began = time.monotonic()
        calm = 0.0
        while True:
            replica = chance.choice([each for each in cluster.replicas if each.process is not None])
            if len(ids) < jobs:
                data = {"steps": str(steps), "minutes": "60", "model": f"m{len(ids)}", "parent": chance.choice(["same", "scratch"])}
                answer = replica.client.post("/train", files=FILES, data=data)
                assert answer.status_code == 202, answer.text
                ids.append(answer.json()["id"])
            elif all(job["status"] in ENDED for job in jobs_of(replica)):
                break
            time.sleep(chance.uniform(0.05, 1.0))
            if time.monotonic() < calm:
                continue
            calm = time.monotonic() + pause * chance.uniform(0.2, 1.8)
            if store == "folder":
                saved += checkpoints(cluster)
            victim = chance.choice(["replica", "worker", "worker", "worker and child", "child", "stop worker"])
            did[victim] += 1
            if victim.endswith("child"):
                for pid, _ in chance.sample(running := cluster.children(), min(1, len(running))):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            if victim != "child":
                machine = chance.choice(cluster.replicas if victim == "replica" else cluster.workers)
                machine.kill(signal.SIGTERM if victim == "stop worker" else signal.SIGKILL)
                machine.start(wait=machine.role == "serve")
        seconds = time.monotonic() - began
        told = [{job["id"]: job for job in jobs_of(replica)} for replica in cluster.replicas]
        wrong = [] if told[0] == told[1] else ["the replicas tell of different jobs"]
        again = 0
        for id in ids:
            job = told[0].get(id, {"status": "unknown"})
            if job["status"] != "done" or job["step"] != steps:
                wrong.append(f"{id} is {job['status']} at step {job.get('step')}: {job.get('reason')}")
                continue
            each = [events(replica, id) for replica in cluster.replicas]
            if each[0] != each[1]:
                wrong.append(f"the replicas tell of different events of {id}")
            ends = sum(event["kind"] == "job" and event["status"] == "done" for event in each[0])
            if ends != 1:
                wrong.append(f"{id} was done {ends} times")
            again += job["attempt"] > 1
            for replica in cluster.replicas:
                for file in ("sample.png", "log"):
                    if replica.client.get(f"/train/{id}/{file}").status_code != 200:
                        wrong.append(f"{replica.name} has no {file} of {id}")
        begins = {id: began_with(cluster.replicas[0].client.get(f"/train/{id}/log").text) for id in ids}
        for id, times, step in saved:
            if len(begins[id]) > times and begins[id][times] <= step:
                wrong.append(f"{id} began with {begins[id][times]} although a checkpoint of step {step} was there")
        lists = [replica.client.get("/models").json() for replica in cluster.replicas]
        if lists[0] != lists[1]:
            wrong.append("the replicas tell of different models")
        if sorted(model["job"] for model in lists[0]["models"] if model["job"]) != sorted(ids):
            wrong.append("the models are not those of the jobs")
        for replica in cluster.replicas:
            weights = {replica.client.get(f"/models/m{number}/weights").status_code for number in range(jobs)}
            if weights != {200}:
                wrong.append(f"{replica.name} sends weights with {weights}")
        connections = cluster.postgres.connections()
        starts = {machine.name: machine.starts for machine in cluster.machines}
        return {
            "store": store, "jobs": len(ids),
            "done": sum(job["status"] == "done" for job in told[0].values()),
            "done in more than one attempt": again,
            "times a child went on from a checkpoint": sum(step > 1 for each in begins.values() for step in each),
            "seconds": round(seconds), "killed": dict(did),
            "connections to PostgreSQL": connections, "starts": starts, "wrong": wrong,
        }  # fmt: skip


@dataclass(frozen=True)
class _At:
    port: int
    name: str


class Load:
    """Clients that denoise one after the other, through each replica in turn; `wrong` is what should not have happened."""

    def __init__(self, replicas: Sequence[Machine | _At], clients: int, right: dict[str, bytes], pause: float = 0.0) -> None:
        self._replicas, self._right, self._pause = replicas, right, pause
        self.wrong: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.slowest = 0.0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._over.wait(self._pause):
                number += 1
                replica = self._replicas[number % len(self._replicas)]
                began = time.monotonic()
                try:
                    answer = client.post(f"http://127.0.0.1:{replica.port}/denoise?sigma=10", content=GREY)
                except httpx.HTTPError as error:
                    self.wrong[f"{replica.name}: {type(error).__name__}"] += 1
                    continue
                self.slowest = max(self.slowest, time.monotonic() - began)
                name = answer.headers.get("X-Clearfold-Model", "")
                self.answers[name or str(answer.status_code)] += 1
                if answer.status_code != 200:
                    self.wrong[f"{replica.name}: {answer.status_code} {answer.text[:100]}"] += 1
                elif answer.content != self._right[name]:
                    self.wrong[f"{replica.name}: an answer that {name} does not give"] += 1


def _grey() -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (48, 32), (128, 128, 128)).save(file, "PNG")
    return file.getvalue()


GREY = _grey()


def answers(replica: Machine, *names: str) -> dict[str, bytes]:
    found = {}
    for name in names:
        answer = replica.client.post(f"/denoise?sigma=10&model={name}", content=GREY)
        assert answer.status_code == 200, answer.text
        found[name] = answer.content
    assert len(set(found.values())) == len(names)
    return found


def swap(times: int) -> dict[str, Any]:
    with ExitStack() as stack:
        cluster = Cluster(stack, "folder", workers=0, same=0.0)
        one, other = cluster.replicas
        made = shipped(cluster.folder / "made", black=-1.0, white=1.0)
        for name in ("black", "white"):
            brought = one.client.put(f"/models/{name}", content=(made / f"{name}.safetensors").read_bytes())
            assert brought.status_code == 201, brought.text
        right = answers(other, "same", "black", "white")  # also that a model brought to one is known to the other at once
        spread: list[float] = []
        with Load(cluster.replicas, 2, right) as load:
            for turn in range(times):
                name = ("black", "white")[turn % 2]
                began = time.monotonic()
                assert cluster.replicas[turn % 2].client.put("/models/default", json={"model": name}).status_code == 200
                for replica in cluster.replicas:
                    wait_for(lambda replica=replica, name=name: replica.client.get("/readyz").json()["model"] == name, name)
                spread.append(time.monotonic() - began)
        wrong = [f"{count} times: {what}" for what, count in load.wrong.items()]
        if max(spread) > 5:
            wrong.append(f"a change took {max(spread):.1f} s to reach both")
        return {
            "changes": times, "requests": sum(load.answers.values()), "answers": dict(load.answers),
            "failed or mixed": sum(load.wrong.values()),
            "seconds until both had it": {"median": round(sorted(spread)[times // 2], 2), "most": round(max(spread), 2)}, "wrong": wrong,
        }  # fmt: skip


def outage(seconds: float) -> dict[str, Any]:
    with ExitStack() as stack:
        cluster = Cluster(stack, "folder", workers=1, same=0.0)
        one, other = cluster.replicas
        right = answers(one, "same")
        order = {"steps": "100000", "minutes": "60", "model": "before", "parent": "scratch"}
        long = one.client.post("/train", files=FILES, data=order).json()["id"]
        wait_for(lambda: one.client.get(f"/train/{long}").json()["step"], "a first step")
        before = one.client.get(f"/train/{long}").json()
        wrong: list[str] = []
        statuses: dict[str, Counter[int]] = {}
        retry: set[str | None] = set()
        slowest = 0.0
        with Load(cluster.replicas, 1, right, pause=0.2) as load:
            cluster.postgres.stop()
            down = time.monotonic()
            while time.monotonic() - down < seconds:
                for replica in cluster.replicas:
                    asked = time.monotonic()
                    calls = {
                        "GET /train": replica.client.get("/train"),
                        "GET /train/ID": replica.client.get(f"/train/{long}"),
                        "POST /train": replica.client.post("/train", files=FILES, data={"steps": "1", "model": f"m{time.monotonic_ns()}"}),
                        "PUT /models/default": replica.client.put("/models/default", json={"model": "same"}),
                        "GET /models": replica.client.get("/models"),
                        "GET /readyz": replica.client.get("/readyz"),
                    }
                    slowest = max(slowest, time.monotonic() - asked)
                    for call, answer in calls.items():
                        statuses.setdefault(call, Counter())[answer.status_code] += 1
                        retry |= {answer.headers.get("Retry-After")} if answer.status_code == 503 else set()
                time.sleep(1)
            cluster.postgres.start()
            up = time.monotonic()
            for replica in cluster.replicas:
                wait_for(lambda replica=replica: replica.client.get("/train").status_code == 200, "the jobs")
            answered = time.monotonic() - up
            wait_for(lambda: cluster.workers[0].client.get("/readyz").status_code == 200, "the worker")
            wait_for(lambda: other.client.get(f"/train/{long}").json()["status"] == "running", "the long job")
            job = other.client.get(f"/train/{long}").json()
            if job["attempt"] != 1 or job["step"] <= before["step"]:
                wrong.append(f"the job that ran is at attempt {job['attempt']}, step {job['step']} after {before['step']}")
            other.client.post(f"/train/{long}/cancel")
            short = one.client.post("/train", files=FILES, data={"steps": "2", "minutes": "60", "model": "after", "activate": "always"})
            id = short.json()["id"]
            wait_for(lambda: other.client.get(f"/train/{id}").json()["status"] in ENDED, "a job afterwards", 300)
            if other.client.get(f"/train/{id}").json()["status"] != "done":
                wrong.append(f"a job afterwards: {other.client.get(f'/train/{id}').json()}")
            right |= answers(one, "after")
            for replica in cluster.replicas:
                if replica.client.get("/models").json()["default"] != "after":
                    wrong.append(f"{replica.name} does not have the model as default")
        wrong += [f"{count} times: {what}" for what, count in load.wrong.items()]
        for call, found in statuses.items():
            expected = {200} if call in ("GET /readyz", "GET /models") else {503}
            if set(found) != expected:
                wrong.append(f"{call} answered {dict(found)}")
        if retry != {"5"}:
            wrong.append(f"Retry-After was {retry}")
        return {
            "seconds down": seconds, "denoised": sum(load.answers.values()), "slowest, s": round(load.slowest, 2),
            "answers meanwhile": {call: dict(found) for call, found in statuses.items()},
            "slowest round of those six, s": round(slowest, 2),
            "jobs answered again after, s": round(answered, 1), "wrong": wrong,
        }  # fmt: skip


def said(port: int, data: bytes) -> bytes:
    """The first that comes back for bytes on a connection."""
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(data)
        with suppress(ConnectionError):
            return connection.recv(1000)
    return b""


def behind_nginx(kills: int = 5) -> dict[str, Any]:
    with ExitStack() as stack:
        cluster = Cluster(stack, "folder", workers=1, same=0.0)
        (cluster.folder / "nginx").mkdir()
        cluster.folder.chmod(0o755)
        port = stack.enter_context(nginx(cluster.folder / "nginx", cluster.replicas))
        door = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60))
        wrong: list[str] = []
        with Load([_At(port, "nginx")], 2, answers(cluster.replicas[0], "same")) as load:
            for turn in range(kills):
                replica = cluster.replicas[turn % 2]
                replica.kill()
                time.sleep(1)
                replica.start()
        wrong += [f"{count} times: {what}" for what, count in load.wrong.items()]

        order = {"steps": "6", "minutes": "60", "model": "mine", "parent": "scratch"}
        id = door.post("/train", files=FILES, data=order).json()["id"]
        arrived: list[float] = []
        with door.stream("GET", f"/train/{id}/events", timeout=300) as answer:
            for line in answer.iter_lines():
                if line.startswith("event: quality"):
                    arrived.append(time.monotonic())
        spread = arrived[-1] - arrived[0] if arrived else 0.0
        if len(arrived) != 6 or spread < 0.5:
            wrong.append(f"{len(arrived)} measurements came within {spread:.1f} s: they were held back")

        large = said(port, b"POST /train HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000000\r\n\r\n")
        if not large.startswith(b"HTTP/1.1 413 ") or b"application/problem+json" not in large:
            wrong.append(f"too large was answered {large!r}")
        began = time.monotonic()
        said(port, b"POST /denoise HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
        cut_off = time.monotonic() - began
        if not 10 < cut_off < 20:
            wrong.append(f"a client that stopped was cut off after {cut_off:.0f} s")
        for replica in cluster.replicas:
            replica.kill()
        gone = door.get("/models")
        if (gone.status_code, gone.headers.get("Retry-After"), gone.json()["status"]) != (503, "2", 503):
            wrong.append(f"without replicas: {gone.status_code} {gone.text[:200]}")
        return {
            "replicas killed": kills, "denoised meanwhile": sum(load.answers.values()), "failed": sum(load.wrong.values()),
            "slowest, s": round(load.slowest, 2), "events came over, s": round(spread, 1),
            "a client that stops is cut off after, s": round(cut_off), "wrong": wrong,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kill", "outage", "swap", "nginx"])
    parser.add_argument("--jobs", type=int, default=30)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--pause", type=float, default=20.0, help="Seconds between two kills on average: a process takes some to start.")
    parser.add_argument("--store", choices=["folder", "bucket"], default="folder")
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    wishes = parser.parse_args()
    if wishes.what == "kill":
        told = kill(wishes.jobs, wishes.steps, wishes.pause, wishes.store, random.Random(wishes.seed))
    else:
        told = {"swap": lambda: swap(wishes.times), "outage": lambda: outage(wishes.seconds), "nginx": behind_nginx}[wishes.what]()
    print(json.dumps(told) if wishes.json else "\n".join(f"{name}: {value}" for name, value in told.items()))
    sys.exit(1 if told["wrong"] else 0)


if __name__ == "__main__":
    main()
