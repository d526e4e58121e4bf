"""How often one key, or one address, may ask for work. Off unless the operator sets a rate."""

import math
import time

from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers
from starlette.types import Scope

from app.access import given
from app.errors import Problem, TooOften

WORK = ("POST", "PUT", "PATCH", "DELETE")


class Rates:
    """`rate`: as `60/minute`; empty for none. `by_key`: keys were checked, so each has a rate of its own."""

    def __init__(self, rate: str, by_key: bool) -> None:
        self._told, self._by_key = rate, by_key
        self._rate = parse(rate) if rate else None
        self._limiter = MovingWindowRateLimiter(MemoryStorage()) if rate else None

    def refusal(self, scope: Scope, headers: Headers) -> Problem | None:
        if self._rate is None or self._limiter is None or scope["method"] not in WORK:
            return None
        who = (given(headers) if self._by_key else None) or (scope.get("client") or ("-",))[0]
        if self._limiter.hit(self._rate, str(hash(who))):
            return None
        free_at = self._limiter.get_window_stats(self._rate, str(hash(who))).reset_time
        seconds = max(1, math.ceil(free_at - time.time()))
        return TooOften(
            f"rate_limit = '{self._told}' was reached: try again in {seconds} seconds.",
            {"Retry-After": str(seconds)},
            limit={"rate_limit": self._told},
        )
