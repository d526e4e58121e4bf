"""What each door takes, as its schema tells it, and in which words anything else is refused: no wish is passed over in silence.

Knows no door by its name.
"""

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.exceptions import RequestValidationError

MOST_CHARACTERS = 100
"""Of a value that is shown."""


async def no_stray_parameters(request: Request) -> None:
    """For doors whose parameters are not one model that forbids others: without it the framework passes over what it does not know."""
    known = _parameters(request)
    _refuse("query", ((name, value) for name, value in request.query_params.multi_items() if name not in known))


def no_stray_fields(form: Iterable[tuple[str, Any]], *known: str) -> None:
    """For doors that take their form apart themselves."""
    _refuse("body", ((name, value) for name, value in form if name not in known))


def _refuse(where: str, strays: Iterable[tuple[str, Any]]) -> None:
    if errors := [{"type": "extra_forbidden", "loc": (where, name), "msg": "", "input": value} for name, value in strays]:
        raise RequestValidationError(errors)


def rule(request: Request, error: dict[str, Any]) -> str | None:
    """What a validation error comes to in words of ours; None: those of its validator will do."""
    where, *names = error["loc"]
    if error["type"] == "extra_forbidden":
        return _stray(request, where, str(names[-1]), error["input"])
    if where == "body" and (example := _example(request)) is not None:
        if error["type"] == "json_invalid":
            return f"it is no JSON ({error['ctx']['error']}): send an object such as {example}"
        if not names:
            return f"send a JSON object, with Content-Type: application/json, such as {example}"
    return None


def _stray(request: Request, where: str, name: str, value: Any) -> str:
    parameters, fields = _parameters(request), _fields(request)
    shown, quoted = (value[:MOST_CHARACTERS], quote(value[:MOST_CHARACTERS])) if isinstance(value, str) else ("…", "…")
    if where == "query" and name in fields:
        return f"{name} is a field of the form, not of the address: -F {name}={shown}"
    if where == "body" and name in parameters:
        return f"{name} is a parameter of the address, not of the form: {request.url.path}?{name}={quoted}"
    what, known = ("parameter", parameters) if where == "query" else ("field", fields or _body(request).get("properties", {}))
    return f"there is no such {what}. There are: {', '.join(known) or 'none'}"


def _operation(request: Request) -> dict[str, Any]:
    operation: dict[str, Any] = request.app.openapi()["paths"][request.scope["route"].path][request.method.lower()]
    return operation


def _parameters(request: Request) -> list[str]:
    return [each["name"] for each in _operation(request).get("parameters", ()) if each["in"] == "query"]


def _fields(request: Request) -> list[str]:
    return [*_body(request, "multipart/form-data").get("properties", ())]


def _body(request: Request, media_type: str = "application/json") -> dict[str, Any]:
    """The schema of the body where it is of that type."""
    content = _operation(request).get("requestBody", {}).get("content", {})
    shape: dict[str, Any] = content.get(media_type, {}).get("schema", {})
    if "$ref" in shape:
        shape = request.app.openapi()["components"]["schemas"][shape["$ref"].rpartition("/")[2]]
    return shape


def _example(request: Request) -> str | None:
    """A JSON body that the door takes; None where it takes none."""
    shown = [f'"{name}": "{each["examples"][0]}"' for name, each in _body(request).get("properties", {}).items()]
    return f"{{{', '.join(shown)}}}" if shown else None
