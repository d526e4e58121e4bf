"""Around every request: an id, the headers that keep a browser safe, a line in the log, a count, and whether it is let in at all.

Large answers are handed on in pieces, so that the server notices a client that takes nothing.
"""

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access import Access
from app.errors import Busy, Internal, Problem, answer
from app.logs import request_id
from app.metrics import Metrics
from app.rates import Rates

POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
PICTURE_POLICY = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'"
"""A browser lays out a bare picture by styles of its own, which are inline."""
PIECE_BYTES = 1 << 18
GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
DENOISE = "/denoise"
QUIET = ("/livez", "/readyz", "/metrics")
_log = logging.getLogger("clearfold")


class Envelope:
    def __init__(self, app: ASGIApp, access: Access, rates: Rates, metrics: Metrics) -> None:
        self.app = app
        self.access, self.rates, self.metrics = access, rates, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        id = given if GIVEN_ID.fullmatch(given) else secrets.token_hex(8)
        token = request_id.set(id)
        began, status = time.perf_counter(), 0

        async def sealed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _seal(MutableHeaders(scope=message), id)
            body = message.get("body", b"")
            if len(body) <= PIECE_BYTES:
                return await send(message)
            for at in range(0, len(body), PIECE_BYTES):
                last = at + PIECE_BYTES >= len(body)
                more = message.get("more_body", False) or not last
                await send({"type": "http.response.body", "body": body[at : at + PIECE_BYTES], "more_body": more})

        try:
            refusal = self.access.refusal(scope["method"], scope["path"], headers) or self.rates.refusal(scope, headers) or _full(scope)
            if refusal is None:
                await self.app(scope, receive, sealed)
            else:
                await answer(Request(scope, receive), refusal)(scope, receive, sealed)
        except Exception:
            _log.exception("the service failed at this request")
            if status:  # the answer has begun, and can only be cut off
                raise
            await answer(Request(scope, receive), Internal(Internal.example))(scope, receive, sealed)
        finally:
            self._count(scope, status, time.perf_counter() - began)
            request_id.reset(token)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")
        door = getattr(route, "path", None) or (DENOISE if scope["path"] == DENOISE else "other")  # no other path: of them there is no end
        method = scope["method"] if scope["method"] in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS") else "other"
        self.metrics.requests.labels(method, door, str(status)).inc()
        self.metrics.seconds.labels(door).observe(seconds)
        level = logging.DEBUG if scope["path"] in QUIET else logging.INFO
        client = (scope.get("client") or ("-",))[0]
        told = {"method": method, "path": scope["path"], "status": status, "milliseconds": round(1000 * seconds, 1), "client": client}
        _log.log(level, "%s %s %d in %.1f ms", method, scope["path"].encode("unicode_escape").decode(), status, 1000 * seconds, extra=told)


def _full(scope: Scope) -> Problem | None:
    """What the door would refuse for want of a place is refused before its form is looked at: under overload, most of all requests."""
    if scope["path"] == DENOISE and scope["method"] == "POST" and (workers := scope.get("state", {}).get("workers")) is not None:
        try:
            workers.refuse_if_full()
        except Busy as busy:
            return busy
    return None


def _seal(headers: MutableHeaders, id: str) -> None:
    headers["X-Request-Id"] = id
    headers["X-Content-Type-Options"] = "nosniff"
    picture = headers.get("content-type", "").startswith("image/")
    headers.setdefault("Content-Security-Policy", PICTURE_POLICY if picture else POLICY)
    headers.setdefault("Referrer-Policy", "no-referrer")
    headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
