"""Pictures that a client asked to be kept for a while, decoded, so that its next question about one need not bring it again.

Held in memory alone, under names that cannot be guessed; what was asked for longest ago goes first. Knows nothing of requests.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import anyio

from app.errors import UnknownPicture
from core import images

LOOK_SECONDS = 1.0


@dataclass
class Keeping:
    """One of them. `stack` gives the picture as often as it is asked."""

    stack: images.Stack
    name: str  # of the file
    size: int  # bytes
    until: float  # by the clock that `Kept` was given


class Kept:
    """At most `max_bytes` of them, each for `seconds` after it was last asked for. To be called in the event loop alone."""

    def __init__(self, max_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes, self._seconds, self._clock = max_bytes, seconds, clock
        self._there: dict[str, Keeping] = {}  # what was asked for last comes last

    @property
    def size(self) -> int:
        """Bytes of all that is kept."""
        return sum(each.size for each in self._there.values())

    def fits(self, stack: images.Stack) -> bool:
        """Whether it may be kept at all: one frame, and not too large, as far as is known before it is decoded."""
        return stack.count == 1 and stack.pixels <= self._max_bytes

    def keep(self, stack: images.Stack, picture: images.Picture, name: str) -> str | None:
        """The picture that `stack` held, from now on. What it is to be asked for by, or None where it is too large."""
        size = picture.samples.nbytes + (0 if picture.alpha is None else picture.alpha.nbytes)
        if size > self._max_bytes:
            return None
        while self.size + size > self._max_bytes:
            del self._there[next(iter(self._there))]
        token = secrets.token_urlsafe(16)
        decoded = stack.with_frames(lambda keep_going: iter((picture,)))
        self._there[token] = Keeping(decoded, name, size, self._clock() + self._seconds)
        return token

    def __getitem__(self, token: str) -> Keeping:
        """What was kept under that name, and is for another while. Raises UnknownPicture."""
        self.forget()
        found = self._there.pop(token, None)
        if found is None:
            raise UnknownPicture("The picture is not kept here, or no longer: send it again.")
        found.until = self._clock() + self._seconds
        self._there[token] = found
        return found

    def forget(self) -> None:
        """Lets go of what nobody asked for in time."""
        now = self._clock()
        self._there = {token: each for token, each in self._there.items() if each.until > now}

    async def watch(self) -> None:
        while True:
            await anyio.sleep(LOOK_SECONDS)
            self.forget()


def noted(stack: images.Stack, pictures: list[images.Picture]) -> images.Stack:
    """The same stack; what is decoded of it is put into `pictures` as well."""

    def frames(keep_going: images.KeepGoing) -> Iterator[images.Picture]:
        for picture in stack.frames(keep_going):
            pictures.append(picture)
            yield picture

    return stack.with_frames(frames)
