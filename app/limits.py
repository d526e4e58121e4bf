"""What bounds the work at hand: bytes counted as they arrive, pictures counted as they wait. Knows no picture."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import anyio
from fastapi import Request
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Busy, TooLarge
from core import Cancelled

T = TypeVar("T")
KeepGoing = Callable[[], bool]


class BodyLimit:
    """Refuses a body as soon as it is known to be too large. `limits`: path -> (name of the setting, bytes).

    The framework's own `max_body_size` answers plain text where the length was declared, and names no limit.
    """

    def __init__(self, app: ASGIApp, limits: Mapping[str, tuple[str, int]]) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in self.limits:
            return await self.app(scope, receive, send)
        name, limit = self.limits[scope["path"]]
        declared = Headers(scope=scope).get("content-length", "")
        arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            if declared.isdecimal() and int(declared) > limit:
                raise too_large
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > limit:
                raise too_large
            return message

        too_large = TooLarge(
            f"The body is larger than {name} = {limit}: send a smaller one, or raise CLEARFOLD_{name.upper()}.",
            limit={name: limit},
        )
        await self.app(scope, counted, send)


class Workers:
    """`count` threads that work on pictures, and `max_queued_pictures` places to wait for one."""

    def __init__(self, count: int, max_queued_pictures: int) -> None:
        self.count = count
        self.max_queued_pictures = max_queued_pictures
        self._threads = anyio.CapacityLimiter(count)
        self._admitted = 0
        self._last_seconds = 1.0

    async def run(self, request: Request, work: Callable[[KeepGoing], T]) -> T:
        """What `work` returns. It is asked to stop, by `keep_going`, when the client of `request` leaves."""
        if self._admitted >= self.count + self.max_queued_pictures:
            raise self._busy()
        self._admitted += 1
        left = threading.Event()

        def timed() -> T:
            began = time.monotonic()
            result = work(lambda: not left.is_set())
            self._last_seconds = time.monotonic() - began
            return result

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            left.set()
            waiting.cancel()  # frees the place in the queue; a thread that has begun is waited for

        watcher = asyncio.create_task(watch())
        try:
            with anyio.CancelScope() as waiting:
                return await anyio.to_thread.run_sync(timed, limiter=self._threads)
        except Cancelled:
            pass
        finally:
            watcher.cancel()
            self._admitted -= 1
        raise ClientDisconnect

    def _busy(self) -> Busy:
        waiting = self._admitted - self.count
        seconds = max(1, math.ceil(self._last_seconds * self._admitted / self.count))
        return Busy(
            f"{waiting} pictures are waiting, and max_queued_pictures = {self.max_queued_pictures}: try again in {seconds} seconds.",
            headers={"Retry-After": str(seconds)},
            limit={"max_queued_pictures": self.max_queued_pictures},
        )
