"""The image in each of its roles, as a program: a replica and a worker, with a PostgreSQL beside them, by buildah, without a Docker engine.

    buildah build -t clearfold . && python -m tests.benchmarks.containers clearfold

Each must start, be ready and end when it is told to; a picture is denoised through the replica, and the worker does one training job of
which the replica then serves the model.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx

from app.access import new_key
from tests.benchmarks.cluster import free_port, postgres, wait_for
from tests.benchmarks.jobs import picture
from tests.benchmarks.replicas import ENDED, GREY


class Container:
    """One of the image, on this machine's network, that shares a folder with the others.

    Not as /data: buildah puts the image's own volume over what is mounted there.
    """

    def __init__(self, image: str, role: list[str], data: Path, environment: dict[str, str]) -> None:
        self.port = free_port()
        self._name = subprocess.run(["buildah", "from", "--pull-never", image], check=True, capture_output=True, text=True).stdout.strip()
        given = [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
        given += ["--env", f"CLEARFOLD_PORT={self.port}"]
        command = ["buildah", "run", "--isolation=chroot", "-v", f"{data}:/shared", *given, self._name]
        self.log = (data.parent / f"{role[1]}.log").open("wb")
        role = [word.replace("PORT", str(self.port)) for word in role]
        self.began = time.monotonic()
        self.process = subprocess.Popen([*command, "--", *role], stdout=self.log, stderr=self.log)

    def ready(self) -> bool:
        assert self.process.poll() is None, Path(self.log.name).read_text()[-3000:]
        with suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz").status_code == 200
        return False

    def stop(self) -> None:
        if self.log.closed:
            return
        for pid in self._inside():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        self.process.kill()
        self.process.wait()
        self.log.close()
        subprocess.run(["buildah", "rm", self._name], stdout=subprocess.DEVNULL)

    def has_ended_well(self) -> bool:
        """uvicorn ends as if by the signal that it has heeded; of that, buildah tells in words alone."""
        if self.process.returncode == 1:
            return "subprocess exited on terminated" in Path(self.log.name).read_text()
        return self.process.returncode == 0

    def _inside(self) -> list[int]:
        """The role's own process, which is to be told: buildah hands no signal on."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"CLEARFOLD_PORT={self.port}".encode() in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
        return found


def roles(image: str) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clearfold-containers-")))
        data = folder / "data"
        data.mkdir()
        folder.chmod(0o755)
        data.chmod(0o777)  # for the image's ordinary user
        key, entry = new_key()
        environment = {
            "CLEARFOLD_JOBS_URL": stack.enter_context(postgres()).url,
            "CLEARFOLD_API_KEYS": f"{entry}:denoise+train+admin",
            "CLEARFOLD_TRAIN_DIR": "/shared",
            "CLEARFOLD_DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
        }
        replica = Container(image, ["clearfold", "serve"], data, environment | {"CLEARFOLD_TRAIN_HERE": "false"})
        stack.callback(replica.stop)
        worker = Container(image, ["clearfold", "worker", "--host", "0.0.0.0", "--port", "PORT"], data, environment)
        stack.callback(worker.stop)
        ready = {}
        for name, container in (("replica", replica), ("worker", worker)):
            wait_for(container.ready, name)
            ready[name] = round(time.monotonic() - container.began, 1)
        client = stack.enter_context(
            httpx.Client(base_url=f"http://127.0.0.1:{replica.port}", headers={"Authorization": f"Bearer {key}"}, timeout=120)
        )
        denoised = client.post("/denoise", content=GREY)
        assert denoised.status_code == 200, denoised.text
        files = [("files", (f"{seed}.png", picture(seed))) for seed in range(2)]
        order = {"steps": "2", "minutes": "10", "model": "mine", "parent": "scratch", "activate": "always"}
        ordered = client.post("/train", files=files, data=order)
        assert ordered.status_code == 202, ordered.text
        id = ordered.json()["id"]
        wait_for(lambda: client.get(f"/train/{id}").json()["status"] in ENDED, "the job", 600)
        job = client.get(f"/train/{id}").json()

        def served() -> str:
            return client.post("/denoise", content=GREY).headers.get("X-Clearfold-Model", "")

        until = time.monotonic() + 5  # so long may another process's change of the default take to arrive
        while served() != "mine" and time.monotonic() < until:
            time.sleep(0.2)
        then = served()
        wrong = [] if job["status"] == "done" else [f"the job is {job['status']}: {job['reason']}"]
        if then != "mine":
            wrong.append(f"its model is not the default: {then}")
        told = {
            "image": image, "seconds until ready": ready, "denoised by": denoised.headers["X-Clearfold-Model"],
            "then by": then, "job": job["status"],
        }  # fmt: skip
        for name, container in (("replica", replica), ("worker", worker)):
            container.stop()
            if not container.has_ended_well():
                wrong.append(f"the {name} ended with {container.process.returncode} when it was told to")
        return told | {"wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("--json", action="store_true")
    wishes = parser.parse_args()
    told = roles(wishes.image)
    print(json.dumps(told) if wishes.json else "\n".join(f"{name}: {value}" for name, value in told.items()))
    sys.exit(1 if told["wrong"] else 0)


if __name__ == "__main__":
    main()
