"""What bounds the work at hand: bytes counted as they arrive, seconds while they do not, pixels as they wait. Knows no picture."""

import asyncio
import contextlib
import contextvars
import math
import re
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import anyio
from fastapi import Request
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Busy, TimedOut, TooLarge
from core import Cancelled, hardware

T = TypeVar("T")
KeepGoing = Callable[[], bool]


@dataclass(frozen=True)
class Body:
    """The limit of a path's body: the setting's name and its bytes. `held`: it stays in memory until it is answered."""

    name: str
    most: int
    held: bool = False


class BodyLimit:
    """Refuses a body as soon as it is known to be too large, and stops waiting for one that does not come.

    `limits` by patterns of paths, `other` for every other one. `max_held_bytes`: of bodies that are held, over all requests.
    The framework's own `max_body_size` answers plain text where the length was declared, and names no limit.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Mapping[str, Body],
        other: Body,
        max_held_bytes: int,
        max_silence_seconds: float,
        max_receive_seconds: float,
    ) -> None:
        self.app = app
        self.limits, self.other = [(re.compile(paths), body) for paths, body in limits.items()], other
        self.max_held_bytes = max_held_bytes
        self.max_silence_seconds, self.max_receive_seconds = max_silence_seconds, max_receive_seconds
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body = next((body for paths, body in self.limits if paths.fullmatch(scope["path"])), self.other)
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        arrived, complete, given_up, deadline = 0, False, False, time.monotonic() + self.max_receive_seconds

        async def counted() -> Message:
            nonlocal arrived, complete, given_up
            if complete:  # what comes now is that the client leaves, whenever that is
                return await receive()
            if declared.isdecimal() and int(declared) > body.most:
                raise too_large
            try:
                message = await self._in_time(receive, deadline)
            except TimedOut:
                given_up = True
                raise
            size = len(message.get("body", b""))
            complete = not message.get("more_body", False)
            arrived += size
            self._held += size if body.held else 0
            if arrived > body.most:
                raise too_large
            if body.held and self._held > self.max_held_bytes:
                raise Busy(
                    f"The bodies of all requests are larger than max_held_bytes = {self.max_held_bytes}: try again in 1 second.",
                    headers={"Retry-After": "1"},
                    limit={"max_held_bytes": self.max_held_bytes},
                )
            return message

        async def told(message: Message) -> None:
            """An answer that is ready before all has come waits for the rest: a client that still sends would never read it."""
            if message["type"] == "http.response.start" and not (complete or given_up) and (declared or "transfer-encoding" in headers):
                await drain()
            await send(message)

        async def drain() -> None:
            room = body.most - arrived
            if declared.isdecimal() and int(declared) > body.most:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.max_silence_seconds):
                    while room >= 0 and (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                        room -= len(message.get("body", b""))

        too_large = TooLarge(
            f"The body is larger than {body.name} = {body.most}: send a smaller one, or raise CLEARFOLD_{body.name.upper()}.",
            limit={body.name: body.most},
        )
        try:
            await self.app(scope, counted, told)
        finally:
            self._held -= arrived if body.held else 0

    async def _in_time(self, receive: Receive, deadline: float) -> Message:
        left = deadline - time.monotonic()
        name, seconds = "max_silence_seconds", self.max_silence_seconds
        if left < seconds:
            name, seconds = "max_receive_seconds", self.max_receive_seconds
        try:
            async with asyncio.timeout(min(max(left, 0), self.max_silence_seconds)):
                return await receive()
        except TimeoutError:
            raise TimedOut(
                f"The body did not arrive within {name} = {seconds:g}: send it again.", {"Connection": "close"}, limit={name: seconds}
            ) from None


SMALL_PIXELS = 1 << 18
"""A picture of so few keeps several cores busy only in part: when others wait, each gets one core to itself."""
SPARE = 1
"""So many more of them than there are cores are worked on at once: one or another waits for its decoder (measured: 6 % more a second)."""


class _Failed(NamedTuple):
    error: Exception


async def _outcome(work: Awaitable[T]) -> T | _Failed:
    try:
        return await work
    except Exception as error:
        return _Failed(error)


class _Seats:
    """Places that are dealt several at a time, in the order of asking."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._asking: deque[tuple[int, anyio.Event]] = deque()

    @contextlib.asynccontextmanager
    async def take(self, seats: int) -> AsyncIterator[None]:
        asked = seats, anyio.Event()
        self._asking.append(asked)
        self._deal()
        try:
            await asked[1].wait()
            yield
        finally:
            if asked[1].is_set():
                self._free += seats
            else:
                self._asking.remove(asked)
            self._deal()

    def _deal(self) -> None:
        while self._asking and self._asking[0][0] <= self._free:
            seats, turn = self._asking.popleft()
            self._free -= seats
            turn.set()


class Workers:
    """`count` places where pictures are worked on, and places to wait for one: `max_queued_pictures`, and as many as have
    `max_queued_pixels`. A picture gets `cores` threads to compute with, or a small one a single thread, beside others.
    """

    def __init__(
        self, count: int, max_queued_pictures: int, max_queued_pixels: int = 80_000_000, max_batches: int = 4, cores: int = 1
    ) -> None:
        self.count = count
        self.cores = cores
        self._seats = _Seats(count * (cores + SPARE))
        self.max_batches = max_batches
        self._batches = 0
        self.max_queued_pictures = max_queued_pictures
        self.max_queued_pixels = max_queued_pixels
        self._many, self._one = ThreadPoolExecutor(count), ThreadPoolExecutor(count * (cores + SPARE))
        """The first have a team of threads each, and nobody else has: see `core.hardware.on_one_thread`."""
        self._admitted = self._in_turn = 0
        self._pixels = 0
        self._seconds_a_pixel = 1e-6
        self._last_seconds = 1.0

    @property
    def waiting(self) -> int:
        return max(0, self._admitted - self.count)

    @property
    def admitted(self) -> int:
        return self._admitted

    @property
    def pixels(self) -> int:
        """Of the pictures that wait or are worked on."""
        return self._pixels

    async def run(self, request: Request, work: Callable[[KeepGoing], T], pixels: int = 1) -> T:
        """What `work` returns. It is asked to stop, by `keep_going`, when the client of `request` leaves."""
        self.refuse_if_full()
        if self._admitted and self._pixels + pixels > self.max_queued_pixels:  # a picture alone is always let in
            raise self._busy(f"{self._pixels} pixels are waiting or worked on, and", "max_queued_pixels", self.max_queued_pixels)
        left = threading.Event()

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            left.set()
            waiting.cancel()  # frees the place in the queue; a thread that has begun is waited for

        watcher = asyncio.create_task(watch())
        try:
            with anyio.CancelScope() as waiting:
                return await self._work(work, pixels, left)
        except Cancelled:
            pass
        finally:
            left.set()  # also where the server gave up the request
            watcher.cancel()
        raise ClientDisconnect

    def close(self) -> None:
        """Lets the threads go that have nothing to do."""
        for threads in (self._many, self._one):
            threads.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """A place for one batch, from before it has come until it was sent."""
        if self._batches >= self.max_batches:
            raise self._busy(f"{self._batches} batches are under way, and", "max_batches", self.max_batches)
        self._batches += 1
        try:
            yield
        finally:
            self._batches -= 1

    def refuse_if_full(self) -> None:
        """A batch's picture, of which there is one at a time, takes no place in the queue from others."""
        if self._admitted - self._in_turn >= self.count + self.max_queued_pictures:
            raise self._busy(f"{self.waiting} pictures are waiting, and", "max_queued_pictures", self.max_queued_pictures)

    async def run_in_turn(self, work: Callable[[KeepGoing], T], pixels: int = 1) -> T:
        """As `run`, for one who asks for one thing at a time: it waits instead of being refused, and is asked to stop when cancelled."""
        left = threading.Event()

        async def canary() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                left.set()

        self._in_turn += 1
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(canary)
                outcome = await _outcome(self._work(work, pixels, left))  # a failure that left the group would come as a group's
                group.cancel_scope.cancel()
        finally:
            self._in_turn -= 1
        if isinstance(outcome, _Failed):
            raise outcome.error
        return outcome

    async def _work(self, work: Callable[[KeepGoing], T], pixels: int, left: threading.Event) -> T:
        def timed(cores: int) -> T:
            hardware.compute_on(cores)
            began = time.monotonic()
            result = work(lambda: not left.is_set())
            self._last_seconds = time.monotonic() - began
            self._seconds_a_pixel = self._last_seconds / max(1, pixels)
            return result

        self._admitted += 1
        self._pixels += pixels
        beside = pixels <= SMALL_PIXELS and self._admitted > 1
        try:
            async with self._seats.take(1 if beside else self.cores + SPARE):
                threads, context = self._one if beside else self._many, contextvars.copy_context()
                result = asyncio.get_running_loop().run_in_executor(threads, context.run, timed, 1 if beside else self.cores)
                with anyio.CancelScope(shield=True):  # a thread cannot be stopped from outside: it is waited for
                    await asyncio.wait([result])
                return result.result()
        finally:
            self._admitted -= 1
            self._pixels -= pixels

    def _busy(self, told: str, name: str, limit: int) -> Busy:
        expected = max(self._last_seconds, self._seconds_a_pixel * self._pixels)
        seconds = max(1, math.ceil(min(expected / self.count, 600)))
        return Busy(
            f"{told} {name} = {limit}: try again in {seconds} second{'s' if seconds > 1 else ''}.",
            headers={"Retry-After": str(seconds)},
            limit={name: limit},
        )
