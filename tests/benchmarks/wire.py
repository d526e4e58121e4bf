"""One HTTP request over a socket of its own, as cheaply as can be: the drivers share the machine with what they measure."""

from __future__ import annotations

import asyncio
from typing import NamedTuple


class Answer(NamedTuple):
    status: int  # 0: none came
    size: int
    headers: bytes = b""


def request(body: bytes, path: str = "/denoise") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body


async def ask(port: int, data: bytes) -> Answer:
    """What comes back for the bytes of a request."""
    writer: asyncio.StreamWriter | None = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        size = 0
        while piece := await reader.read(1 << 18):
            size += len(piece)
        return Answer(int(head.split(b" ", 2)[1]), size, head)
    except (OSError, asyncio.IncompleteReadError):
        return Answer(0, 0)
    finally:
        if writer is not None:
            writer.close()


def part(values: list[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
