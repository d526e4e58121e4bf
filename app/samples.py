"""Answers with a sample picture: squares side by side, or one of them. Makes none."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Literal

import anyio
from fastapi import Request, Response

from app.errors import NothingHere
from core import images

Panel = Literal["before", "parent", "now"]
ALL: tuple[tuple[Panel, ...], ...] = (("now",), ("before", "now"), ("before", "parent", "now"))


async def answer(request: Request, data: bytes, show: Panel | None) -> Response:
    """The picture, or the panel of it that was asked for. Raises NothingHere."""
    return await anyio.to_thread.run_sync(_answer, request, data, show)


def panels(picture: images.Picture) -> Sequence[Panel]:
    """Which there are, by how many squares lie side by side."""
    height, width = picture.pixels.shape[:2]
    return ALL[min(len(ALL), width // height) - 1]


def _answer(request: Request, data: bytes, show: Panel | None) -> Response:
    if show is not None:
        picture = images.read(data)
        there = panels(picture)
        if show not in there:
            raise NothingHere(f"show = {show!r}: the sample has {', '.join(there)}: there was no model to start from.")
        side, index = picture.pixels.shape[0], there.index(show)
        data = images.write(picture.with_pixels(picture.pixels[:, side * index : side * (index + 1)]), "png")
    tag = f'"{sha256(data).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="image/png", headers=headers)
