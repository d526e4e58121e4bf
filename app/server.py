"""The server's own limits, below HTTP: how long a connection may wait, and how many there may be. uvicorn has none of them.

A connection is never ended while its client may still be sending: what had come and was not read would make the system answer with a
reset, which takes away from the client what it was told before it can read it.
"""

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


LINGER_SECONDS = 5.0
"""For a client to read its answer, where it was answered before all had come."""


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


class Lingering:
    """A transport that, closed while the client still sends, first says that no more will come, and hears the client out for a while."""

    def __init__(self, transport: asyncio.Transport, connection: "Protocol") -> None:
        self._transport, self._connection = transport, connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        if self._connection.sends() and not self._transport.is_closing():
            self._connection.linger()
        else:
            self._transport.close()


class Protocol(H11Protocol):
    """HTTP/1.1 with deadlines: for a request's head, for a client that takes nothing, and for what still comes after the answer."""

    settings: Settings

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head, self._taking, self._rest = (Deadline(self.settings.max_silence_seconds, self) for _ in range(3))
        self._end = Deadline(LINGER_SECONDS, self)
        self._lingers = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Lingering(transport, self))  # type: ignore[arg-type]
        if len(self.connections) > self.settings.max_connections and not self._make_room():
            detail = f"max_connections = {self.settings.max_connections} are open: try again in 1 second."
            body = BODY % detail.encode()
            transport.write(REFUSAL % (len(body), body))
            if len(self.connections) <= 2 * self.settings.max_connections:
                self.linger()
            else:  # of these, too, there must be an end
                transport.close()
            return
        self._head.set()

    def _make_room(self) -> bool:
        """Ends a connection that lies idle between two requests."""
        idle = next((each for each in self.connections if isinstance(each, Protocol) and each.is_idle()), None)
        if idle is not None:
            idle.shutdown()
        return idle is not None

    def is_idle(self) -> bool:
        answered = self.cycle is not None and self.cycle.response_complete
        return answered and self.conn.their_state is h11.IDLE and not self.transport.is_closing()

    def sends(self) -> bool:
        """Whether more of a request is to come."""
        return not self._lingers and self.conn.their_state is h11.SEND_BODY

    def linger(self) -> None:
        self._lingers = True
        self._head.take_back()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._end.set()

    def data_received(self, data: bytes) -> None:
        if self._lingers or self.transport.is_closing():
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
        for deadline in (self._head, self._taking, self._rest, self._end):
            deadline.take_back()
        super().connection_lost(exc)


def protocol(settings: Settings) -> type[Protocol]:
    """For uvicorn's `http`."""
    return type("ClearfoldProtocol", (Protocol,), {"settings": settings})
