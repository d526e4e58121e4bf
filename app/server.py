"""The server's own limits, below HTTP: how long a connection may wait, and how many there may be. uvicorn has none of them."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.settings import Settings

REFUSAL = (
    b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/problem+json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b"
)
BODY = b'{"type":"urn:clearfold:problem:busy","title":"Too many connections","status":429,"detail":"%b","instance":"/"}'


class Deadline:
    """Ends the connection unless it is taken back in time. Set twice, it still counts from the first time."""

    def __init__(self, seconds: float, connection: "Protocol") -> None:
        self._seconds, self._connection = seconds, connection
        self._timer: asyncio.TimerHandle | None = None

    def set(self) -> None:
        if self._timer is None:
            self._timer = self._connection.loop.call_later(self._seconds, self._connection.transport.abort)

    def take_back(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Protocol(H11Protocol):
    """HTTP/1.1 with deadlines: for a request's head, for a client that takes nothing, and for what still comes after the answer."""

    settings: Settings

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head, self._taking, self._rest = (Deadline(self.settings.max_silence_seconds, self) for _ in range(3))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            detail = f"max_connections = {self.settings.max_connections} are open: try again in 1 second."
            body = BODY % detail.encode()
            transport.write(REFUSAL % (len(body), body))
            transport.close()
            return
        self._head.set()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.cycle is None or not self.cycle.response_complete or self.conn.their_state is not h11.SEND_BODY:
            self._rest.take_back()  # all has come, or it is another request already
        if self.conn.their_state is not h11.IDLE:
            self._head.take_back()
        elif self.conn.our_state is h11.IDLE:
            self._head.set()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY:
            self._rest.set()  # answered before all had come: what still comes is for nobody

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking.set()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taking.take_back()

    def connection_lost(self, exc: Exception | None) -> None:
        for deadline in (self._head, self._taking, self._rest):
            deadline.take_back()
        super().connection_lost(exc)


def protocol(settings: Settings) -> type[Protocol]:
    """For uvicorn's `http`."""
    return type("ClearfoldProtocol", (Protocol,), {"settings": settings})
