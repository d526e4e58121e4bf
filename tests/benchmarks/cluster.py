"""Several machines on one: a PostgreSQL, a bucket, replicas of the service and workers, each a process of its own that may be killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import torch

from core import networks, weights

ROOT = Path(__file__).parents[2]
START_SECONDS = 120.0
BUCKET = "clearfold"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Postgres:
    """A PostgreSQL of one's own in a temporary folder; of Debian's package, or of whatever is in the path."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        self._bin = found[-1] if found else Path(shutil.which("postgres") or "/nowhere/postgres").parent
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="clearfold-postgres-"))
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:  # it refuses to be root's
            name = "postgres" if _is_user("postgres") else "nobody"
            shutil.chown(self._folder, name)
            self._user = {"user": name, "extra_groups": []}
        self._run("initdb", "--auth=trust", "--username=clearfold", "--no-sync", "--encoding=UTF8", "--locale=C", "-D", "data")
        self._server: subprocess.Popen[bytes] | None = None

    @staticmethod
    def there() -> bool:
        return bool(list(Path("/usr/lib/postgresql").glob("*/bin/initdb"))) or shutil.which("initdb") is not None

    @property
    def url(self) -> str:
        return self.database("clearfold")

    def database(self, name: str) -> str:
        return f"postgresql://clearfold@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([self._bin / program, *arguments], cwd=self._folder, check=True, stdout=subprocess.DEVNULL, **self._user)

    def start(self) -> None:
        options = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self._folder, "fsync": "off"}
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [self._bin / "postgres", "-D", "data", *settings], cwd=self._folder, stdout=log, stderr=log, **self._user
            )
        wait_for(lambda: self._answers(), "PostgreSQL")

    def _answers(self) -> bool:
        return subprocess.run([self._bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode == 0

    def create(self, name: str) -> str:
        """Another database; its address."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "clearfold", name)
        return self.database(name)

    @property
    def running(self) -> bool:
        return self._server is not None

    def connections(self) -> int:
        with psycopg.connect(self.url, autocommit=True) as connection:
            found = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = 'clearfold'").fetchone()
            return int(found[0]) - 1 if found else 0

    def stop(self) -> None:
        """As if its machine had lost its power."""
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(60)
            self._server = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    try:
        server.start()
        server.create("clearfold")
        yield server
    finally:
        server.remove()


@contextmanager
def bucket(folder: Path) -> Iterator[dict[str, str]]:
    """An S3-compatible server with an empty bucket; the environment that leads there."""
    port = free_port()
    with (folder / "bucket.log").open("ab") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: _puts(f"{address}/{BUCKET}"), "the bucket")
        yield {
            "CLEARFOLD_STORE_URL": f"s3://{BUCKET}/files",
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
    finally:
        server.kill()
        server.wait()


def _puts(address: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.put(address).status_code == 200
    return False


def _is_user(name: str) -> bool:
    return any(line.startswith(f"{name}:") for line in Path("/etc/passwd").read_text().splitlines())


class Machine:
    """`clearfold serve` or `clearfold worker` as a process, started anew whenever it was killed. Its log lies in `folder`."""

    def __init__(self, role: str, name: str, folder: Path, environment: dict[str, str]) -> None:
        self.role, self.name, self.folder, self.port, self.starts = role, name, folder, free_port(), 0
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "CLEARFOLD_DEVICE": "cpu", **environment}
        if role == "serve":
            self._environment["CLEARFOLD_TRAIN_HERE"] = "false"
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text(errors="replace")

    def start(self, wait: bool = True) -> None:
        with (self.folder / f"{self.name}.log").open("ab") as log:
            command = [sys.executable, "-m", "app.cli", self.role, "--port", str(self.port)]
            self.process = subprocess.Popen(command, env=self._environment, cwd=ROOT, stdout=log, stderr=log)
        self.starts += 1
        if wait:
            wait_for(self.ready, self.name)

    def ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log[-3000:]
        with suppress(httpx.HTTPError):
            return self.client.get("/readyz").status_code == 200
        return False

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(60)
            self.process = None


@contextmanager
def nginx(folder: Path, replicas: list[Machine]) -> Iterator[int]:
    """nginx with `app/deploy/nginx.conf` before the replicas; its port. There is no name here that stands for them, so they are listed."""
    port = free_port()
    site = (ROOT / "app/deploy/nginx.conf").read_text()
    assert "set $replicas replica:8000;" in site
    assert "listen 8080;" in site
    site = site.replace("replica:8000;", "replica;").replace("listen 8080;", f"listen 127.0.0.1:{port};")
    (folder / "site.conf").write_text(site)
    servers = " ".join(f"server 127.0.0.1:{replica.port} max_fails=0;" for replica in replicas)
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; worker_processes 1; events {{}}\n"
        f"http {{ access_log off; {temporary} upstream replica {{ {servers} }} include {folder}/site.conf; }}\n"
    )
    folder.chmod(0o755)
    command = [shutil.which("nginx") or "/usr/sbin/nginx", "-c", f"{folder}/nginx.conf"]
    subprocess.run([*command, "-t"], check=True, capture_output=True)
    server = subprocess.Popen(command)
    try:
        wait_for(lambda: _answers(port), "nginx")
        yield port
    finally:
        server.terminate()
        server.wait()


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def wait_for(condition: Any, what: str, seconds: float = START_SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)
    return value


def shipped(folder: Path, **biases: float) -> Path:
    """A folder of models whose weights are all 0, but for the last layer's bias: `same=0` corrects nothing, `white=1` makes all white."""
    folder.mkdir()
    for name, bias in biases.items():
        values = {p.name: torch.zeros_like(p.value) for p in networks.unet().param()}
        values[[each for each in values if each.endswith("bias")][-1]] += bias
        weights.save(folder / f"{name}.safetensors", values, {"title": name, "architecture": "unet"})
    return folder
