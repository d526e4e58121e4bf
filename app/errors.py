"""Every way in which a request can fail, and the one shape in which that is told (RFC 9457).
Decides nothing: who raises a problem knows why.

    Problem                          the request was not answered as asked
    ├── BadRequest            400    a body that cannot be taken apart
    ├── Unauthorized          401    no API key, or one that is not known
    ├── Forbidden             403    a key without the scope, or a door that is shut here
    ├── NotFound              404
    │   ├── UnknownModel
    │   ├── UnknownJob
    │   ├── UnknownPicture           not kept, or no longer
    │   └── NothingHere              a file that is not there yet, or never will be
    ├── NotAcceptable         406    no picture format that the client takes
    ├── TimedOut              408    the body did not arrive in time
    ├── Conflict              409
    │   ├── NotEnded                 a training job that is queued or runs
    │   ├── NotResumable             a training job that is done, or has not ended
    │   ├── ModelExists
    │   └── ModelInUse               a model that is shipped, or the default
    ├── TooLarge              413    more bytes than the limit
    ├── UnsupportedMedia      415    neither a picture nor a form that holds one
    ├── Misdirected           421    asked for by a name that is not the service's
    ├── Invalid               422    a parameter or a field against its rule
    │   ├── PictureRefused           a picture that cannot be read whole, or with too many pixels
    │   ├── PicturesRefused          a set of pictures that cannot be trained on
    │   └── WeightsRefused           a file that is no model of this program
    ├── Busy                  429    every place in the queue is taken
    │   └── TooOften                 more requests than the rate that is allowed
    ├── Internal              500    our fault
    ├── NotReady              503    no weights are loaded
    ├── JobsAway              503    the jobs' database does not answer
    ├── StoreAway             503    the bucket does not answer
    ├── DiskFull              507
    └── NotWritable           507    a train_dir that is not this user's, or read-only
"""

import errno
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match, Route

from app import doors, folders
from app.heads import ENDLESS
from core import ImageError

PROBLEM_JSON = "application/problem+json"
MOST_FILES = {"/denoise/batch": "max_batch_files", "/train": "max_train_pictures"}
"""The settings that bound the files of a form, by the paths that take many."""
_log = logging.getLogger("clearfold")


class Problem(HTTPException):
    """Told to whoever asked. `detail`: parameter = value, the rule, the remedy; `members`: the same for machines."""

    status: ClassVar[int]
    title: ClassVar[str]
    example: ClassVar[str]

    def __init__(self, detail: str, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        super().__init__(self.status, detail, headers)
        self.members = members

    def __str__(self) -> str:
        return self.detail

    @classmethod
    def type(cls) -> str:
        return "urn:clearfold:problem:" + "".join(f"-{c.lower()}" if c.isupper() else c for c in cls.__name__)[1:]


class BadRequest(Problem):
    status = 400
    title = "The body cannot be taken apart"
    example = "Invalid multipart data."


class Unauthorized(Problem):
    status = 401
    title = "An API key is needed"
    example = "An API key is needed: send it as 'Authorization: Bearer KEY'."


class Forbidden(Problem):
    status = 403
    title = "Not allowed"
    example = "POST /train needs a key of scope 'train', and this one has denoise."


class NotFound(Problem):
    status = 404
    title = "There is no such thing here"
    example = "Nothing lives at /nowhere."


class UnknownModel(NotFound):
    title = "There is no such model"
    example = "model = 'sharpest': there is no such model. There are: 'gaussian'."


class UnknownJob(NotFound):
    title = "There is no such training job"
    example = "id = '3f2a': there is no such training job."


class UnknownPicture(NotFound):
    title = "The picture is not kept"
    example = "The picture is not kept here, or no longer: send it again."


class NothingHere(NotFound):
    title = "There is no such file"
    example = "Training job '9b1c4e02' has measured nothing so far: follow its events until 'quality'."


class NotAcceptable(Problem):
    status = 406
    title = "No picture format that the client takes"
    example = "Accept = 'text/html': none of it can be written here: ask for one of png, jpeg, or for */*."


class TimedOut(Problem):
    status = 408
    title = "The body did not arrive in time"
    example = "Nothing of the body arrived for max_silence_seconds = 15: send it again."


class Conflict(Problem):
    status = 409
    title = "Not now"
    example = "The request and the state of the service do not fit."


class NotEnded(Conflict):
    title = "The training job has not ended"
    example = "Training job '9b1c4e02' is running: cancel it first."


class NotResumable(Conflict):
    title = "The training job cannot be resumed"
    example = "Training job '9b1c4e02' is done: only a cancelled or failed one is resumed."


class ModelExists(Conflict):
    title = "A model with this name is there"
    example = "model = 'gaussian': a model with this name is there, and none is overwritten: choose another name."


class ModelInUse(Conflict):
    title = "The model is needed"
    example = "model = 'gaussian': it is the default model: choose another default first."


class TooLarge(Problem):
    status = 413
    title = "More bytes than the limit"
    example = "The body is larger than max_upload_bytes = 33554432: send a smaller one."


class UnsupportedMedia(Problem):
    status = 415
    title = "Not a picture"
    example = "The body is not a picture in a format that can be read here: send one of 'png', 'jpeg'."


class Misdirected(Problem):
    status = 421
    title = "Asked for by another name"
    example = "Host = 'example.org': it is not one of localhost, 127.0.0.1, [::1]: ask by one of these, or set CLEARFOLD_ALLOWED_HOSTS."


class Invalid(Problem):
    status = 422
    title = "A value against its rule"
    example = "strength = '3': Input should be less than or equal to 2."


class PictureRefused(Invalid):
    title = "The picture cannot be read"
    example = "The picture ends before its last row: send the whole file."


class PicturesRefused(Invalid):
    title = "These pictures cannot be trained on"
    example = "'notes.txt' is not a picture that can be read: leave it out."


class WeightsRefused(Invalid):
    title = "The weights cannot be used"
    example = "The file is not a readable safetensors file: it may be truncated, or of another format."


class Busy(Problem):
    status = 429
    title = "Too many pictures are waiting"
    example = "16 pictures are waiting, and max_queued_pictures = 16: try again in 4 seconds."


class TooOften(Busy):
    title = "More requests than the rate that is allowed"
    example = "rate_limit = '60/minute' was reached: try again in 12 seconds."


class Internal(Problem):
    status = 500
    title = "Something broke in the service"
    example = "The service failed at this request; its log says why."


class NotReady(Problem):
    status = 503
    title = "No weights are loaded"
    example = "models_dir = '/models' holds no weights: put a model there, or set CLEARFOLD_MODELS_DIR."


RETRY_SECONDS = 5


class JobsAway(Problem):
    status = 503
    title = "The jobs' database does not answer"
    example = f"The jobs' database does not answer: try again in {RETRY_SECONDS} seconds. Denoising goes on."


class StoreAway(Problem):
    status = 503
    title = "The store of weights and jobs' files does not answer"
    example = f"The store of weights and jobs' files does not answer: try again in {RETRY_SECONDS} seconds. Denoising goes on."


class DiskFull(Problem):
    status = 507
    title = "The disk is full"
    example = "train_dir = '/data' has no space left: nothing was kept; free some and try again."


class NotWritable(Problem):
    status = 507
    title = "The folder for training cannot be written"
    example = "train_dir = '/data' cannot be written (Permission denied): give it to this user, or set CLEARFOLD_TRAIN_DIR."

    @classmethod
    def because(cls, folder: Path, why: str) -> "NotWritable":
        return cls(f"train_dir = '{folder}' cannot be written ({why}): give it to this user, or set CLEARFOLD_TRAIN_DIR.")


class NothingMore(Exception):
    """A follower of events has seen the last one: a status that tells it not to come back."""


@contextmanager
def writing_below(folder: Path) -> Iterator[None]:
    """What cannot be written below `folder`, which is train_dir, is a DiskFull or NotWritable."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"train_dir = '{folder}' has no space left: nothing was kept; free some and try again.") from None
        why = os.strerror(error.errno) if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) else folders.unwritable(folder)
        if why is None:
            raise
        raise NotWritable.because(folder, why) from None


class ProblemDetails(BaseModel):
    """What a problem looks like on the wire; some kinds add members of their own."""

    model_config = ConfigDict(extra="allow", title="Problem")

    type: str = Field(description="Names the kind of problem; about:blank says no more than `status`.")
    title: str = Field(description="The kind of problem in words.")
    status: int = Field(description="The HTTP status, once more.")
    detail: str = Field(description="What is wrong this time, and the remedy.")
    instance: str = Field(description="The path that was asked for.")


def problem_responses(*kinds: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """How OpenAPI should describe these problems: by status, with an example of each kind."""
    described: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        key, text = (kind.status, HTTPStatus(kind.status).phrase) if kind is not Internal else ("default", "Any failure")
        answer = described.setdefault(key, {"description": text, "content": {}})
        media = answer["content"].setdefault(PROBLEM_JSON, {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}})
        shown = ProblemDetails(type=kind.type(), title=kind.title, status=kind.status, detail=kind.example, instance="/path/asked/for")
        media["examples"][kind.__name__] = {"summary": kind.title, "value": shown.model_dump()}
    return described


def install(app: FastAPI) -> None:
    """Make every failure of `app` answer in the one shape."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ImageError, _picture)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(NothingMore, _no_more)
    app.add_exception_handler(Exception, _internal)


def answer(request: Request, problem: Problem) -> Response:
    """For whoever refuses a request before it reaches a route."""
    return _tell(request, problem.status_code, problem.type(), problem.title, problem.detail, problem.members, problem.headers)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # the framework's, from taking a form apart
        error = _of_a_form(request.url.path, error.detail)
    if isinstance(error, Problem):
        return answer(request, error)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(_allowed(request)))
    phrase = HTTPStatus(error.status_code).phrase
    detail = {
        404: _nowhere(request),
        405: f"{request.url.path} does not answer {request.method}: see the Allow header.",
    }.get(error.status_code, error.detail)
    return _tell(request, error.status_code, "about:blank", phrase, detail, {}, headers)


def _of_a_form(path: str, detail: str) -> Problem:
    """The framework's words name no setting."""
    most = re.search(r"Maximum number of files is (\d+)", detail)
    if most and path in MOST_FILES:
        return Invalid(f"There are more files than {MOST_FILES[path]} = {most[1]}: send fewer at a time.")
    if most:
        return Invalid(f"There are more files than one, which is all that {path} takes: send several to {path}/batch, in 'files'.")
    return BadRequest(detail)


def _nowhere(request: Request) -> str:
    path = request.url.path
    there = request.scope["path"].rstrip("/")
    if there != request.scope["path"] and _route(request, there) is not None:
        return f"Nothing lives at {path}: ask for {path.rstrip('/')}, without the slash behind it."
    return f"Nothing lives at {path}: see /docs for what does."


def _routes(request: Request) -> list[Route]:
    routes: list[BaseRoute] = []
    for each in request.app.routes:
        inside = getattr(each, "original_router", None)
        routes += inside.routes if inside is not None else [each]
    return [route for route in routes if isinstance(route, Route)]


def _route(request: Request, path: str) -> str | None:
    """The path as the first route has it that answers there, if only to other methods."""
    scope = {**request.scope, "path": path}
    return next((route.path for route in _routes(request) if route.matches(scope)[0] is not Match.NONE), None)


def _allowed(request: Request) -> set[str]:
    """Every method of the address that was asked for; the framework names those of its first route alone."""
    path = _route(request, request.scope["path"])
    found = {method for route in _routes(request) if route.path == path for method in route.methods or ()}
    return found | {"HEAD"} if "GET" in found and not ENDLESS.fullmatch(request.url.path) else found


async def _invalid(request: Request, error: Exception) -> Response:
    # Only words of our own and of pydantic go out, never the input as a number: NaN is no JSON.
    assert isinstance(error, RequestValidationError)
    errors, told = [], []
    for each in error.errors():
        where, *names = each["loc"]
        name = ".".join(map(str, names)) if names and each["type"] != "json_invalid" else str(where)  # which has a place in the body there
        rule = doors.rule(request, each) or each["msg"].removeprefix("Value error, ")
        value = f" = {each['input'][:100]!r}" if isinstance(each.get("input"), str) else ""
        errors.append({"name": name, "in": where, "rule": rule})
        told.append(f"{name}{value}: {rule}")
    return await _http(request, Invalid("; ".join(told) + ".", errors=errors))


async def _picture(request: Request, error: Exception) -> Response:
    return await _http(request, PictureRefused(str(error)))


async def _internal(request: Request, error: Exception) -> Response:
    return await _http(request, Internal(Internal.example))


async def _gone(request: Request, error: Exception) -> Response:
    _log.info("the client left %s before its answer", request.url.path)
    return Response(status_code=499)  # nobody reads it; it keeps a client's leaving out of the log of errors


async def _no_more(request: Request, error: Exception) -> Response:
    return Response(status_code=204)


def _tell(
    request: Request,
    status: int,
    kind: str,
    title: str,
    detail: str,
    members: Mapping[str, Any],
    headers: Mapping[str, str] | None,
) -> Response:
    body = {"type": kind, "title": title, "status": status, "detail": detail, "instance": request.url.path, **members}
    return JSONResponse(body, status, headers, media_type=PROBLEM_JSON)
