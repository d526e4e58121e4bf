"""HEAD wherever there is GET (RFC 9110, 9.3.2): the same answer without its body. The framework's own routes know GET alone."""

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

ENDLESS = re.compile(r"/train/[^/]+/events")
"""An answer that would go on until somebody leaves."""


class Heads:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or ENDLESS.fullmatch(scope["path"]):
            return await self.app(scope, receive, send)

        async def told(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app({**scope, "method": "GET"}, receive, told)
