"""POST /denoise: a noisy picture in, the clean one out. Keeps nothing of either."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from starlette.datastructures import UploadFile

from app.errors import (
    BadRequest,
    Busy,
    Invalid,
    NotReady,
    PictureRefused,
    TooLarge,
    UnknownModel,
    UnsupportedMedia,
    problem_responses,
)
from app.limits import KeepGoing
from app.models import Taker
from app.state import ModelsNow, SettingsNow, WorkersNow
from core import Cancelled, Denoiser, images

STEPS = 255
T = TypeVar("T")

_NAMES = {suffix[1:]: form.name for form in images.FORMATS.values() for suffix in (*form.suffixes, f".{form.name}")}


def _sigma(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        return read(value)
    except ValidationError:  # of two kinds at once; one sentence says it
        raise ValueError("must be 'auto' or a number from 0 to 100") from None


def _known_format(name: str) -> str:
    if name not in _NAMES:
        raise ValueError(f"must be one of {', '.join(images.FORMATS)}")
    return _NAMES[name]


Sigma = Annotated[Literal["auto"] | Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)], WrapValidator(_sigma)]


class Wishes(BaseModel):
    """How the picture is to be denoised. An unknown parameter is refused, so that no wish is passed over in silence."""

    model_config = ConfigDict(extra="forbid")

    sigma: Sigma = Field(default="auto", description="Noise level, a standard deviation in 8-bit steps; `auto` estimates it.")
    strength: float = Field(default=1.0, ge=0, le=2, allow_inf_nan=False, description="Scales the noise level; 0 changes nothing.")
    model: str | None = Field(
        default=None,
        description="Name of a model, see `GET /models`, or `auto`: the one that suits the noise seen in the picture. "
        "By default `auto`, unless whoever runs the service chose a default.",
    )
    format: Annotated[str, AfterValidator(_known_format)] | None = Field(
        default=None,
        description="Format of the answer; by default the one that came in.",
        json_schema_extra={"enum": [*images.FORMATS]},
    )
    quality: int | None = Field(default=None, ge=1, le=100, description="Quality of lossy formats.")


@dataclass(frozen=True)
class Upload:
    data: bytes
    name: str


@dataclass(frozen=True)
class Cleaned:
    data: bytes
    format: str
    sigma: float  # [0, 1] image units
    denoiser: Denoiser
    reason: str
    seconds: dict[str, float]


async def _upload(request: Request) -> Upload:
    """The picture of a form's `file`, or of the raw body."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        async with request.form(max_files=1) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise Invalid("file is missing: send the picture as a file in the form's field 'file'.")
            upload = Upload(await file.read(), file.filename or "")
    elif content_type.startswith("image/") or content_type in ("application/octet-stream", ""):
        upload = Upload(await request.body(), "")
    else:
        raise UnsupportedMedia(
            f"Content-Type = {content_type!r}: the body must be multipart/form-data with the picture in 'file', "
            "or the picture itself as image/* or application/octet-stream."
        )
    if not upload.data:
        raise Invalid("The picture is empty: send its bytes.")
    if images.sniff(upload.data) is None:
        readable = ", ".join(images.FORMATS)
        raise UnsupportedMedia(f"The picture is of no format that can be read here: send one of {readable}.")
    return upload


_BYTES = {"type": "string", "contentMediaType": "application/octet-stream"}
_PICTURES = {form.media_type: {"schema": {"type": "string", "contentMediaType": form.media_type}} for form in images.FORMATS.values()}
_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "description": "The picture, as the file of a form or as the body itself.",
    "content": {
        "multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": {"file": _BYTES}}},
        "application/octet-stream": {"schema": _BYTES},
        **_PICTURES,
    },
}


def _header(description: str, example: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}, "example": example}


_ANSWER: dict[str, Any] = {
    "description": "The denoised picture.",
    "content": _PICTURES,
    "headers": {
        "X-Clearfold-Sigma": _header(
            "Noise level of the picture, given or estimated, in 8-bit steps; of a model that finds it by itself, what was taken away.",
            "24.87",
        ),
        "X-Clearfold-Model": _header("The model used.", "gaussian"),
        "X-Clearfold-Reason": _header("Why it was used.", "white noise: 24.9 of 255 at full size, 25.1 by half size"),
        "X-Clearfold-Device": _header("Where it ran.", "cpu"),
        "Server-Timing": _header("Milliseconds of each stage.", "decode;dur=4.1, denoise;dur=310.0, encode;dur=9.7"),
        "Content-Disposition": _header("A name for the file.", "inline; filename*=UTF-8''cat-denoised.png"),
    },
}

router = APIRouter(tags=["pictures"])


@router.post(
    "/denoise",
    summary="Denoise a picture",
    response_class=Response,
    responses={
        200: _ANSWER,
        **problem_responses(BadRequest, UnknownModel, TooLarge, UnsupportedMedia, Invalid, PictureRefused, Busy, NotReady),
    },
    openapi_extra={"requestBody": _REQUEST_BODY},
)
async def denoise(
    request: Request,
    wishes: Annotated[Wishes, Query()],
    upload: Annotated[Upload, Depends(_upload)],
    settings: SettingsNow,
    models: ModelsNow,
    workers: WorkersNow,
) -> Response:
    """Send a picture, get it back without its noise, in the format in which it came."""
    take = models.taker(wishes.model)
    cleaned = await workers.run(request, lambda keep_going: _clean(upload.data, wishes, take, settings.max_pixels, keep_going))
    return _respond(cleaned, upload.name)


def _clean(data: bytes, wishes: Wishes, take: Taker, max_pixels: int, keep_going: KeepGoing) -> Cleaned:
    """Bytes to bytes; runs in a worker's thread."""
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], T]) -> T:
        if not keep_going():
            raise Cancelled
        began = time.perf_counter()
        result = work()
        seconds[stage] = time.perf_counter() - began
        return result

    def clean() -> tuple[images.Picture, float, Denoiser, str]:
        denoiser, reason = take(noisy.pixels)
        sigma = wishes.sigma / STEPS if wishes.sigma != "auto" else None if denoiser.blind else denoiser.estimate(noisy.pixels)
        pixels = denoiser(noisy.pixels, sigma, wishes.strength, keep_going)
        return noisy.with_pixels(pixels), denoiser.found(noisy.pixels, pixels) if sigma is None else sigma, denoiser, reason

    noisy = timed("decode", lambda: images.read(data, max_pixels))
    picture, sigma, denoiser, reason = timed("denoise", clean)
    encoded = timed("encode", lambda: images.write(picture, wishes.format, wishes.quality))
    return Cleaned(encoded, wishes.format or picture.format, sigma, denoiser, reason, seconds)


def _respond(cleaned: Cleaned, upload_name: str) -> Response:
    form = images.FORMATS[cleaned.format]
    stem = PurePath(upload_name.replace("\\", "/")).stem[:100] or "picture"
    name = quote(f"{stem}-denoised{form.suffixes[0]}", safe="", errors="replace")
    return Response(
        cleaned.data,
        media_type=form.media_type,
        headers={
            "X-Clearfold-Sigma": f"{cleaned.sigma * STEPS:.2f}",
            "X-Clearfold-Model": quote(cleaned.denoiser.name),
            "X-Clearfold-Reason": cleaned.reason,
            "X-Clearfold-Device": str(cleaned.denoiser.device),
            "Server-Timing": ", ".join(f"{stage};dur={1000 * s:.1f}" for stage, s in cleaned.seconds.items()),
            "Content-Disposition": f"inline; filename*=UTF-8''{name}",
            "X-Content-Type-Options": "nosniff",
        },
    )
