"""Who may ask for what: API keys with scopes, and what a service that has none keeps shut. Knows no picture and no model.

A key is 32 random bytes, so one SHA-256 of it is as good as any slow hash, and that is all that is kept. With no keys everything is open
to whoever reaches the port, which is why the service then listens on loopback only; asked by name to be open to anyone, it denoises, and
training and changes to models stay off.

What listens on loopback without keys answers to its own names only. Else any site could, by a name of its own that it lets point here
(DNS rebinding), be the same site as the service to a browser on this machine.
"""

import hashlib
import hmac
import ipaddress
import re
import secrets
from dataclasses import dataclass
from typing import Any, Literal

from starlette.datastructures import Headers

from app.errors import Forbidden, Misdirected, Problem, Unauthorized, problem_responses
from app.settings import Settings

Scope = Literal["denoise", "train", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = ("denoise", "train", "admin", "metrics")
HASHED = re.compile(r"sha256\$([0-9a-f]{64})")
MIN_KEY_CHARACTERS = 24
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
PORT = re.compile(r":[0-9]*$")
METRICS = "/metrics"
SCHEMES: dict[str, dict[str, str]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, as `Authorization: Bearer KEY`."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key, as `X-API-Key: KEY`."},
}
"""Either will do."""

OPEN = re.compile(r"/|/docs|/web/.*|/openapi\.json|/favicon\.ico|/livez|/readyz")
SCOPED: tuple[tuple[str, re.Pattern[str], Scope], ...] = (
    (".*", re.compile(r"/denoise(/.*)?"), "denoise"),
    ("GET|HEAD", re.compile(r"/models(/.*)?"), "denoise"),
    (".*", re.compile(r"/train(/.*)?"), "train"),
    ("GET|HEAD", re.compile(METRICS), "metrics"),
)
"""Methods, paths, and the scope that they need. What is not listed here, and not open, needs `admin`."""


class AccessError(ValueError):
    """The service must not start like this; the text says what to set."""


@dataclass(frozen=True)
class Key:
    digest: bytes
    scopes: frozenset[str]


class Access:
    """The keys of this run of the service."""

    def __init__(self, settings: Settings) -> None:
        self.keys = [_key(entry) for entry in settings.api_keys.replace(",", " ").split()]
        self.public = not self.keys and settings.open_to_anyone
        if not self.keys and not self.public and not _is_loopback(settings.host):
            raise AccessError(
                f"host = '{settings.host}' is reached from other machines, and no API keys are set: set CLEARFOLD_API_KEYS "
                "(`clearfold key` makes one), or CLEARFOLD_OPEN_TO_ANYONE=true to denoise for anyone, with training off"
            )

        named = tuple(settings.allowed_hosts.replace(",", " ").lower().split())
        alone = not self.keys and _is_loopback(settings.host)
        self.hosts = () if "*" in named else named or ((*LOOPBACK_HOSTS, settings.host.lower()) if alone else ())

    def scopes(self, headers: Headers) -> frozenset[str]:
        """What whoever was let in may do."""
        if not self.keys:
            return frozenset(SCOPES)
        found = self._key(given(headers) or "")
        return found.scopes if found else frozenset()

    def refusal(self, method: str, path: str, headers: Headers) -> Problem | None:
        """Why this request is not let in, or None."""
        host = headers.get("host")
        if self.hosts and host and PORT.sub("", host).lower() not in self.hosts:
            return Misdirected(
                f"Host = {host[:100]!r}: it is not one of {', '.join(dict.fromkeys(self.hosts))}: ask by one of these, "
                "or set CLEARFOLD_ALLOWED_HOSTS."
            )
        if OPEN.fullmatch(path):
            return None
        needed = scope_of(method, path)
        if not self.keys:
            if headers.get("sec-fetch-site") in ("cross-site", "same-site") and method not in ("GET", "HEAD"):
                return Forbidden(
                    "Another site asks through a browser, and no API keys are set: ask from the service's own page, or set keys."
                )
            if self._shut(path, needed):
                return Forbidden(f"{path} needs an API key of scope '{needed}', and none are set here: see CLEARFOLD_API_KEYS.")
            return None
        key = given(headers)
        if key is None:
            return Unauthorized(
                "An API key is needed: send it as 'Authorization: Bearer KEY', or as 'X-API-Key: KEY'.", {"WWW-Authenticate": "Bearer"}
            )
        found = self._key(key)
        if found is None:
            return Unauthorized("The API key is not known here: check it.", {"WWW-Authenticate": 'Bearer error="invalid_token"'})
        if needed not in found.scopes:
            return Forbidden(f"{method} {path} needs a key of scope '{needed}', and this one has {', '.join(sorted(found.scopes))}.")
        return None

    def describe(self, schema: dict[str, Any]) -> None:
        """Writes into an OpenAPI schema what is asked of whoever comes to each door. It is the middleware that asks, not the framework."""
        if self.keys:
            schema["components"]["securitySchemes"] = SCHEMES
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                refusals: list[type[Problem]] = [Misdirected] if self.hosts else []
                needed = scope_of(method.upper(), path)
                if self.keys and not OPEN.fullmatch(path):
                    operation["security"] = [{name: [needed]} for name in SCHEMES]
                    refusals += [Unauthorized, Forbidden]
                elif not OPEN.fullmatch(path) and self._shut(path, needed):
                    refusals += [Forbidden]
                for status, answer in problem_responses(*refusals).items():
                    operation["responses"].setdefault(str(status), answer)

    def _shut(self, path: str, needed: Scope) -> bool:
        """Whether a door is for nobody while the service is open to anyone."""
        return self.public and needed != "denoise" and path != METRICS

    def _key(self, text: str) -> Key | None:
        digest, found = hashlib.sha256(text.encode()).digest(), None
        for key in self.keys:  # all of them, so that time tells nothing
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def scope_of(method: str, path: str) -> Scope:
    return next((scope for methods, paths, scope in SCOPED if re.fullmatch(methods, method) and paths.fullmatch(path)), "admin")


def new_key() -> tuple[str, str]:
    """A key, and the entry of CLEARFOLD_API_KEYS that knows it without being it."""
    key = secrets.token_urlsafe(32)
    return key, f"sha256${hashlib.sha256(key.encode()).hexdigest()}"


def _key(entry: str) -> Key:
    """`KEY`, `KEY:denoise+train` or `sha256$DIGEST:admin`; every scope if none is named. Who is `admin` reads metrics, too."""
    secret, _, named = entry.partition(":")
    scopes = frozenset(named.split("+")) if named else frozenset(SCOPES)
    if unknown := scopes - set(SCOPES):
        raise AccessError(f"CLEARFOLD_API_KEYS names the scope '{min(unknown)}': there are {', '.join(SCOPES)}")
    if "admin" in scopes:
        scopes |= {"metrics"}
    if hashed := HASHED.fullmatch(secret):
        return Key(bytes.fromhex(hashed[1]), scopes)
    if len(secret) < MIN_KEY_CHARACTERS:
        raise AccessError(
            f"CLEARFOLD_API_KEYS holds a key of {len(secret)} characters, and {MIN_KEY_CHARACTERS} are needed: `clearfold key` makes one"
        )
    return Key(hashlib.sha256(secret.encode()).digest(), scopes)


def given(headers: Headers) -> str | None:
    """The key that a request has, known or not."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else headers.get("x-api-key")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
