"""POST /denoise and /denoise/batch: noisy pictures in, clean ones out. Keeps nothing of either, but where its client asks (`app.kept`)."""

import logging
import re
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, closing, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePath
from tempfile import SpooledTemporaryFile
from typing import Annotated, Any, BinaryIO, Literal, cast
from urllib.parse import quote

import anyio
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
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
from starlette.types import Receive, Scope, Send

from app import batch
from app.accept import choose
from app.doors import no_stray_fields
from app.errors import (
    BadRequest,
    Busy,
    Internal,
    Invalid,
    NotAcceptable,
    NotReady,
    PictureRefused,
    Problem,
    TimedOut,
    TooLarge,
    UnknownModel,
    UnknownPicture,
    UnsupportedMedia,
    problem_responses,
)
from app.kept import Kept, noted
from app.limits import KeepGoing
from app.metrics import Metrics
from app.models import Taker
from app.state import DecodersNow, KeptNow, MetricsNow, ModelsNow, SettingsNow, WorkersNow
from core import Cancelled, Denoiser, ImageError, PictureFile, Region, images

STEPS = 255
ENDING = "-denoised"
IN_MEMORY_BYTES = 64 << 20
"""Of an answer; a larger one waits in a temporary file, and of a stack no more than a frame is in memory."""
PIECE_BYTES = 1 << 18
_log = logging.getLogger("clearfold")

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


def _region(text: str) -> str:
    """Whether the picture holds it is known once that is decoded."""
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9}){3}", text):
        raise ValueError("must be four whole numbers: x,y,width,height")
    return text


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
    metadata: Literal["keep", "strip", "safe"] = Field(
        default="keep",
        description="`keep` EXIF, XMP and IPTC; `safe`: without what tells the place; `strip`: none but the colour profile.",
    )
    crop: Annotated[str, AfterValidator(_region)] | None = Field(
        default=None,
        description="`x,y,width,height` in pixels of the upright picture: only that region of the answer is made and sent, "
        "at the region's cost. `auto` still looks at the whole picture.",
        examples=["0,0,512,384"],
    )


class OneWishes(Wishes):
    keep: bool = Field(
        default=False,
        description="Keep the decoded picture in memory for a while (`CLEARFOLD_KEPT_SECONDS` after the last question), if there is room: "
        "`X-Clearfold-Kept` of the answer says what to send in its place, such as for other settings or regions.",
    )


@dataclass(frozen=True)
class Upload:
    file: PictureFile
    name: str
    kept: images.Stack | None = None  # in place of `file`


@dataclass(frozen=True)
class Cleaned:
    file: BinaryIO  # at its beginning
    size: int
    format: str
    sigma: float  # [0, 1] image units; of the first frame
    denoiser: Denoiser
    reason: str
    dropped: list[str]  # what is not as it came
    pixels: int
    seconds: dict[str, float]


async def _upload(
    request: Request,
    workers: WorkersNow,
    kept: KeptNow,
    token: Annotated[
        str | None, Header(alias="X-Clearfold-Kept", description="Stands for a picture that was kept, see `keep`; the body is then empty.")
    ] = None,
) -> AsyncIterator[Upload]:
    """The picture of a form's `file`, of the raw body, or one that was kept; not even looked at when there is no place for it."""
    workers.refuse_if_full()
    with closing(PictureFile()) as file:
        yield await _received(request, kept, token, file)


async def _received(request: Request, kept: Kept, token: str | None, picture: PictureFile) -> Upload:
    if token is not None:
        if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
            raise Invalid("X-Clearfold-Kept stands for the picture: leave it out, or send an empty body.")
        found = kept[token]
        return Upload(picture, found.name, found.stack)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        async with request.form(max_files=1) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise Invalid("file is missing: send the picture as a file in the form's field 'file'.")
            no_stray_fields(form.multi_items(), "file")
            await anyio.to_thread.run_sync(picture.copy, file.file)
            name = file.filename or ""
    elif content_type.startswith("image/") or content_type in ("application/octet-stream", ""):
        await _write(request, picture)
        name = ""
    else:
        raise UnsupportedMedia(
            f"Content-Type = {content_type!r}: the body must be multipart/form-data with the picture in 'file', "
            "or the picture itself as image/* or application/octet-stream."
        )
    if not picture.size:
        raise Invalid("The picture is empty: send its bytes.")
    if images.sniff(picture.head) is None:
        readable = ", ".join(images.FORMATS)
        raise UnsupportedMedia(f"The picture is of no format that can be read here: send one of {readable}.")
    return Upload(picture, name)


async def _write(request: Request, file: PictureFile) -> None:
    """The body, piece by piece as it comes."""
    async for piece in request.stream():
        if file.on_disk:
            await anyio.to_thread.run_sync(file.write, piece)
        else:
            file.write(piece)


_ANY_BYTES = {"type": "string", "contentMediaType": "application/octet-stream"}
_BYTES = _ANY_BYTES | {"minLength": 1}
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
_BATCH_BODY: dict[str, Any] = {
    "required": True,
    "description": "The pictures, and zips of them.",
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["files"],
                "properties": {"files": {"type": "array", "minItems": 1, "items": _ANY_BYTES}},
            }
        }
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
        "X-Clearfold-Dropped": _header("What is not as it came, if anything.", "exif (bmp holds none)"),
        "X-Clearfold-Kept": _header("What to send in place of the picture, where it is kept, see `keep`.", "kPtS3ZMm0dPz5G4eXo4bKQ"),
        "Server-Timing": _header("Milliseconds of each stage.", "decode;dur=4.1, denoise;dur=310.0, encode;dur=9.7"),
        "Vary": _header("The format may depend on this.", "Accept"),
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
        **problem_responses(
            BadRequest,
            UnknownModel,
            UnknownPicture,
            NotAcceptable,
            TimedOut,
            TooLarge,
            UnsupportedMedia,
            Invalid,
            PictureRefused,
            Busy,
            NotReady,
        ),
    },
    openapi_extra={"requestBody": _REQUEST_BODY},
)
async def denoise(
    request: Request,
    wishes: Annotated[OneWishes, Query()],
    upload: Annotated[Upload, Depends(_upload, scope="function")],  # closed before the answer is sent
    settings: SettingsNow,
    models: ModelsNow,
    workers: WorkersNow,
    kept: KeptNow,
    metrics: MetricsNow,
    decoders: DecodersNow,
) -> Response:
    """Send a picture, get it back without its noise, in the format in which it came if `Accept` allows it."""
    await models.seek(wishes.model)
    taker = models.taker(wishes.model)
    stack = upload.kept
    if stack is None:
        stack = await anyio.to_thread.run_sync(decoders.open, upload.file, settings.limits())  # looks at the header, beside the workers
    format = wishes.format or _acceptable(request.headers.get("accept"), stack)
    keeps, decoded = wishes.keep and upload.kept is None and kept.fits(stack), list[images.Picture]()
    frames = noted(stack, decoded) if keeps else stack
    cleaned = await workers.run(
        request,
        lambda keep_going: _clean(frames, wishes, format, taker, keep_going, kept=keeps or upload.kept is not None),
        _pixels(wishes, upload, stack),
    )
    _count(metrics, stack, cleaned)
    return _respond(cleaned, upload.name, kept.keep(stack, decoded[0], upload.name) if keeps else None)


def _pixels(wishes: Wishes, upload: Upload, stack: images.Stack) -> int:
    """What there is to do: a part is quick once the picture is decoded."""
    if upload.kept is None or wishes.crop is None:
        return stack.pixels
    _, _, width, height = map(int, wishes.crop.split(","))
    return min(stack.pixels, width * height)


def _count(metrics: Metrics, stack: images.Stack, cleaned: Cleaned) -> None:
    for stage, seconds in cleaned.seconds.items():
        metrics.stages.labels(stage).observe(seconds)
    metrics.pictures.labels(stack.format).inc(stack.count)
    metrics.pixels.labels(cleaned.denoiser.name).inc(cleaned.pixels)


def _acceptable(accept: str | None, stack: images.Stack) -> str:
    """The format to answer in when none is asked for by name."""
    types = {form.media_type: form.name for form in images.FORMATS.values() if form.many or stack.count == 1}
    chosen = choose(accept, images.FORMATS[stack.format].media_type, list(types))
    if chosen is None:
        raise NotAcceptable(f"Accept = {accept!r}: none of it can be written here: ask for one of {', '.join(types)}, or for */*.")
    return types[chosen]


def _clean(stack: images.Stack, wishes: Wishes, format: str, taker: Taker, keep_going: KeepGoing, kept: bool = False) -> Cleaned:
    """A file to a file, frame by frame; runs in a worker's thread. Frames that are not `kept` are written over."""
    seconds = dict.fromkeys(("decode", "denoise", "encode"), 0.0)
    used: list[tuple[float, Denoiser, str]] = []
    dropped: list[str] = []
    pixels = 0

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        if not keep_going():
            raise Cancelled
        began = time.perf_counter()
        yield
        seconds[stage] += time.perf_counter() - began

    def clean(noisy: images.Picture, arrived: Callable[[int], object]) -> images.Picture:
        if taker.looks or wishes.crop is not None:
            arrived(len(noisy.samples))
        seen = noisy.visible()
        region, wanted = _region_of(wishes, noisy)
        part = noisy.opaque(seen)
        before = _settled(used) if stack.format != "tiff" else None
        denoiser, reason = before[1:] if before else taker.take(part)
        blind = denoiser.blind and wishes.sigma == "auto"
        if wishes.sigma != "auto":
            sigma: float | None = wishes.sigma / STEPS
        elif blind:
            sigma = None
        elif before:
            sigma = before[0]
        else:
            arrived(len(noisy.samples))
            sigma = denoiser.estimate(part)
        if sigma == 0 or wishes.strength == 0:
            arrived(len(noisy.samples))
            used.append((sigma or 0.0, denoiser, reason))
            return wanted
        level = None if blind else sigma
        if region is None:
            cleaned = seen.clone() if kept else seen
            found = denoiser.over(cleaned, level, wishes.strength, keep_going, arrived=arrived)
        else:
            cleaned = denoiser.region(seen, region, level, wishes.strength, keep_going)
            found = denoiser.found(seen[region.rows, region.columns], cleaned) if blind else 0.0
        used.append((found if sigma is None else sigma, denoiser, reason))
        return wanted.denoised(cleaned)

    def arriving(arrive: Callable[[KeepGoing], images.Arriving]) -> images.Picture:
        with timed("decode"):
            coming = arrive(keep_going)
        with closing(coming), timed("denoise"):
            picture = clean(coming.picture.with_metadata(wishes.metadata), coming.until)
        seconds["decode"] += coming.waited
        seconds["denoise"] -= coming.waited
        return picture

    def frames() -> Iterator[images.Picture]:
        nonlocal pixels
        noisy = stack.frames(keep_going)
        for _ in range(stack.count):
            if stack.arriving is not None:
                picture = arriving(stack.arriving)
            else:
                with timed("decode"):
                    picture = next(noisy).with_metadata(wishes.metadata)
                with timed("denoise"):
                    picture = clean(picture, lambda rows: None)
            dropped.extend(f"broken {name}" for name in picture.metadata.broken if f"broken {name}" not in dropped)
            pixels += picture.samples.shape[0] * picture.samples.shape[1]
            yield picture

    file = cast(BinaryIO, SpooledTemporaryFile(IN_MEMORY_BYTES))  # noqa: SIM115, whoever sends it closes it
    try:
        began = time.perf_counter()
        dropped += images.write_all(frames(), file, format, stack.count, wishes.quality, stack.loop)
        seconds["encode"] = time.perf_counter() - began - seconds["decode"] - seconds["denoise"]
        if not keep_going():
            raise Cancelled
    except BaseException as error:
        file.close()
        _let_go(error)
        raise
    size = file.tell()
    file.seek(0)
    sigma, denoiser, reason = (_settled(used) if stack.format != "tiff" else None) or used[0]
    return Cleaned(file, size, format, sigma, denoiser, reason, dropped, pixels, seconds)


def _settled(used: Sequence[tuple[float, Denoiser, str]]) -> tuple[float, Denoiser, str] | None:
    """What all of an animation has from the first frame with noise on, or it would flicker: it may begin in black."""
    return next((each for each in used if each[0] > 0), None)


def _let_go(error: BaseException | None) -> None:
    """Of all that the functions held through which an error came, the picture among it: the error itself may be held for long."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _region_of(wishes: Wishes, picture: images.Picture) -> tuple[Region | None, images.Picture]:
    """The region that is wished for, and that part of the picture; None and all of it where there is no such wish."""
    if wishes.crop is None:
        return None, picture
    region = Region(*map(int, wishes.crop.split(",")))
    try:
        region.check(*picture.samples.shape[:2])
    except ValueError as error:
        raise Invalid(f"crop: {error}.") from None
    return region, picture.cut(region.rows, region.columns)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece


async def _pieces_in_memory(file: BinaryIO) -> AsyncIterator[bytes]:
    for piece in _pieces(file):
        yield piece


class Sent(StreamingResponse):
    """An answer in pieces; what it `holds` is let go of once it is sent or the client has left.

    at_hand: no piece has to be waited for, so that nobody need watch meanwhile whether the client is there yet.
    """

    def __init__(
        self,
        pieces: Iterator[bytes] | AsyncIterator[bytes],
        holds: AsyncExitStack,
        media_type: str,
        headers: dict[str, str],
        at_hand: bool = False,
    ) -> None:
        super().__init__(pieces, media_type=media_type, headers=headers)
        self._holds, self._at_hand = holds, at_hand

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._holds:
            if self._at_hand:
                await self.stream_response(send)
            else:
                await super().__call__(scope, receive, send)


def _respond(cleaned: Cleaned, upload_name: str, kept: str | None) -> Response:
    form = images.FORMATS[cleaned.format]
    stem = PurePath(upload_name.replace("\\", "/")).stem[:100] or "picture"
    name = quote(f"{stem}{ENDING}{form.suffixes[0]}", safe="", errors="replace")
    holds = AsyncExitStack()
    holds.enter_context(cleaned.file)
    at_hand = cleaned.size <= IN_MEMORY_BYTES
    return Sent(
        _pieces_in_memory(cleaned.file) if at_hand else _pieces(cleaned.file),  # a disk is read by other threads
        holds,
        form.media_type,
        headers={
            "Content-Length": str(cleaned.size),
            "X-Clearfold-Sigma": f"{cleaned.sigma * STEPS:.2f}",
            "X-Clearfold-Model": quote(cleaned.denoiser.name),
            "X-Clearfold-Reason": cleaned.reason,
            "X-Clearfold-Device": str(cleaned.denoiser.device),
            "Server-Timing": ", ".join(f"{stage};dur={1000 * s:.1f}" for stage, s in cleaned.seconds.items()),
            "Content-Disposition": f"inline; filename*=UTF-8''{name}",
            "Vary": "Accept",
            **({"X-Clearfold-Kept": kept} if kept else {}),
            **({"X-Clearfold-Dropped": ", ".join(cleaned.dropped)} if cleaned.dropped else {}),
        },
        at_hand=at_hand,
    )


def _only_files(sent: Sequence[UploadFile | str]) -> list[UploadFile]:
    """Raises Invalid for a name where there should be a file, as `-F files=a.png` sends it."""
    if words := [each for each in sent if isinstance(each, str)]:
        raise Invalid(f"files = {words[0][:100]!r}: it must be a file, and is text: -F files=@…")
    return [each for each in sent if isinstance(each, UploadFile)]


@router.post(
    "/denoise/batch",
    summary="Denoise many pictures",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "A zip of the pictures, and of a `.problem.json` for each file that could not be denoised.",
            "content": {"application/zip": {"schema": _ANY_BYTES}},
        },
        **problem_responses(BadRequest, UnknownModel, TimedOut, TooLarge, UnsupportedMedia, Invalid, Busy, NotReady),
    },
    openapi_extra={"requestBody": _BATCH_BODY},
)
async def denoise_batch(
    request: Request,
    wishes: Annotated[Wishes, Query()],
    settings: SettingsNow,
    models: ModelsNow,
    workers: WorkersNow,
    metrics: MetricsNow,
    decoders: DecodersNow,
) -> Response:
    """Send pictures, or zips of them, get a zip. It is sent while later ones are denoised; a bad file is told inside, the rest go on."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "multipart/form-data":
        raise UnsupportedMedia(f"Content-Type = {content_type!r}: the body must be multipart/form-data with the pictures in 'files'.")
    await models.seek(wishes.model)
    taker = models.taker(wishes.model)
    async with AsyncExitStack() as held:
        held.enter_context(workers.batch())
        form = await held.enter_async_context(request.form(max_files=settings.max_batch_files))
        if "files" in form:  # that there are none is told first
            no_stray_fields(form.multi_items(), "files")
        uploads = [(each.filename or "picture", each.file) for each in _only_files(form.getlist("files"))]
        found = await anyio.to_thread.run_sync(batch.files, uploads, settings)
        until_sent = held.pop_all()

    async def one(file: batch.File) -> tuple[str, BinaryIO]:
        """The name's ending and what lies under it."""
        try:
            data = await anyio.to_thread.run_sync(file.read)
            if images.sniff(data) is None:
                raise UnsupportedMedia(f"The file is of no format that can be read here: send one of {', '.join(images.FORMATS)}.")
            stack = await anyio.to_thread.run_sync(decoders.open, data, settings.limits())
            format = wishes.format or stack.format
            cleaned = await workers.run_in_turn(lambda keep_going: _clean(stack, wishes, format, taker, keep_going), stack.pixels)
            _count(metrics, stack, cleaned)
            return f"{ENDING}{images.FORMATS[format].suffixes[0]}", cleaned.file
        except ImageError as error:
            problem: Problem = PictureRefused(str(error))
        except Problem as error:
            problem = error
        except Exception:
            _log.exception("a file of a batch failed")
            problem = Internal(Internal.example)
        return ".problem.json", BytesIO(batch.told(problem, file.name))

    async def zipped() -> AsyncIterator[bytes]:
        archive, names = batch.Zip(), batch.Names()
        for file in found:
            ending, clean = await one(file)
            with clean:
                for piece in archive.add(names.take(file.name, ending), _pieces(clean)):
                    yield piece
        yield archive.end()

    headers = {"Content-Disposition": "attachment; filename*=UTF-8''denoised.zip"}
    return Sent(zipped(), until_sent, "application/zip", headers)
