"""/livez, /readyz and /metrics of a worker, which has no service around it. Tells nothing else, and takes no request's body."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from app.errors import PROBLEM_JSON
from app.ledger import AWAY, Ledger
from app.metrics import MEDIA_TYPE, Metrics

SILENCE_SECONDS = 5.0
"""A client that says nothing for so long is cut off."""


@contextmanager
def answering(address: tuple[str, int] | None, ledger: Ledger, ready: Callable[[], bool]) -> Iterator[tuple[str, int] | None]:
    """Answers meanwhile; gives the address, with the port that was free where 0 was asked for. Without an address it does nothing."""
    if address is None:
        yield None
        return
    metrics = Metrics()
    metrics.watch("clearfold_jobs_queued", "Training jobs that wait.", lambda: ledger.counts().get("queued", 0))
    metrics.watch("clearfold_jobs_unfinished", "Training jobs that wait or run.", lambda: sum(ledger.counts().values()))

    class Answer(BaseHTTPRequestHandler):
        timeout = SILENCE_SECONDS

        def do_GET(self) -> None:
            if self.path == "/livez":
                self._send(200, "application/json", b'{"status":"live"}')
            elif self.path == "/readyz" and ready():
                self._send(200, "application/json", b'{"status":"ready"}')
            elif self.path == "/readyz":
                self._problem(503, "The worker takes no jobs", "The jobs' database has not answered for a while, or the worker stops.")
            elif self.path == "/metrics":
                try:
                    self._send(200, MEDIA_TYPE, metrics.text())
                except AWAY:
                    self._problem(503, "The jobs' database does not answer", "Nobody knows how many jobs there are: ask again.")
            else:
                self._problem(404, "Nothing lives here", "A worker answers /livez, /readyz and /metrics.")

        def _problem(self, status: int, title: str, detail: str) -> None:
            told = {"type": "about:blank", "title": title, "status": status, "detail": detail, "instance": self.path}
            self._send(status, PROBLEM_JSON, json.dumps(told).encode())

        def _send(self, status: int, media_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *values: object) -> None:
            pass  # a line a probe is of no use

    server = ThreadingHTTPServer(address, Answer)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="clearfold-probes", daemon=True)
    thread.start()
    try:
        yield server.server_address[0], server.server_address[1]  # type: ignore[misc]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
