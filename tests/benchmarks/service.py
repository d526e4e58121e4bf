"""The service as a process of its own, for the drivers beside this file: started on a free port, its memory, threads and files read."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]


@dataclass
class Service:
    process: subprocess.Popen[bytes]
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def alive(self) -> bool:
        return self.process.poll() is None

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def peak_bytes(self) -> int:
        """The most that was resident since the last `forget_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextmanager
def serving(log: Path, **settings: object) -> Iterator[Service]:
    """`serving(log, max_queued_pictures=2)`: `clearfold serve` with these settings, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {f"CLEARFOLD_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-c", "from app.cli import main; main()", "serve", "--port", str(port)]
    with log.open("wb") as out:
        service = Service(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out), port)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                if httpx.get(service.address + "/readyz", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert service.alive(), log.read_text()
            assert time.monotonic() < until, "the service did not become ready"
            time.sleep(0.1)
        yield service
    finally:
        service.process.terminate()
        service.process.wait(30)
