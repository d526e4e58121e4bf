"""POST /train and /train/{id}: models made from pictures that are sent, as jobs in a queue. Knows what is asked, not how it is done."""

import secrets
from collections.abc import AsyncIterator
from typing import Annotated, Literal, Self

import anyio
from fastapi import APIRouter, Depends, File, Form, Header, Query, Request, Response, UploadFile
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app import samples
from app.doors import no_stray_parameters
from app.errors import (
    BadRequest,
    DiskFull,
    Forbidden,
    Invalid,
    JobsAway,
    ModelExists,
    NotEnded,
    NothingHere,
    NothingMore,
    NotResumable,
    NotWritable,
    PicturesRefused,
    StoreAway,
    TooLarge,
    UnknownJob,
    UnknownModel,
    problem_responses,
)
from app.folders import LOG, SAMPLE
from app.models import ModelName
from app.orders import Activate, Job, Method, Order, Status
from app.samples import Panel
from app.state import AccessNow, DecodersNow, JobsNow, ModelsNow, SettingsNow
from app.uploads import lay_pictures

SCRATCH = "scratch"
LOOK_SECONDS = 0.4
AWAY_SECONDS = 2.0
RECONNECT_MILLISECONDS = 2000


class Wishes(BaseModel):
    """What is to be made, and of what. `sigma_*` in 8-bit steps."""

    model_config = ConfigDict(extra="forbid")

    files: Annotated[list[UploadFile], File(min_length=1, description="Pictures, or zips of them.")]
    method: Method = Field(
        default="clean",
        description="What the pictures are. `clean`: free of noise; it is put on. `pairs`: two shots of each scene, `x_1.png` and "
        "`x_2.png`, or `x_noisy.png` and `x_clean.png`, or equal names in two folders. `noisy`: noisy ones and nothing else.",
        examples=["noisy"],
    )
    model: ModelName | None = Field(
        default=None,
        description="Name for the new model: small letters, digits, '.', '_', '-', at most 63.",
        examples=["my-scanner"],
    )
    minutes: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="How long to train.", examples=[10])
    steps: int | None = Field(default=None, ge=1, le=10_000_000, description="Steps at most; by default what `minutes` allow.")
    noise: Literal["gaussian", "camera", "mixed"] = Field(default="gaussian", description="What is put on clean pictures.")
    sigma_min: float = Field(default=0, ge=0, le=100, allow_inf_nan=False, description="Least Gaussian noise, in 8-bit steps.")
    sigma_max: float = Field(default=55, ge=0, le=100, allow_inf_nan=False, description="Most Gaussian noise, in 8-bit steps.")
    parent: str | None = Field(
        default=None,
        description=f"Model to start from, `{SCRATCH}` for none; by default the default model, or the first of all where the picture "
        "decides.",
        examples=[SCRATCH],
    )
    activate: Activate = Field(
        default="never",
        description="Whether it is to be the default model when it is done; of API keys, only one of scope `admin` may ask for that.",
        examples=["if_better"],
    )

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if self.sigma_min > self.sigma_max:
            raise ValueError(f"sigma_min = {self.sigma_min:g} must not be above sigma_max = {self.sigma_max:g}")
        if self.method != "clean" and self.model_fields_set & {"noise", "sigma_min", "sigma_max"}:
            raise ValueError(
                f"noise, sigma_min and sigma_max are for method = 'clean': with {self.method!r} the pictures bring their noise"
            )
        return self


class JobList(BaseModel):
    jobs: list[Job]
    next: str | None = Field(description="The address of the page after this one.", examples=["/train?limit=20&before=9b1c4e02"])


router = APIRouter(tags=["training"], dependencies=[Depends(no_stray_parameters)])


@router.post(
    "/train",
    summary="Train a model on pictures of your own",
    status_code=202,
    responses={
        202: {
            "description": "The job, with its address in `Location`.",
            "headers": {"Location": {"schema": {"type": "string"}, "example": "/train/9b1c4e02"}},
        },
        **problem_responses(
            BadRequest,
            Forbidden,
            UnknownModel,
            ModelExists,
            TooLarge,
            Invalid,
            PicturesRefused,
            JobsAway,
            StoreAway,
            DiskFull,
            NotWritable,
        ),
    },
)
async def start_training(
    request: Request,
    response: Response,
    wishes: Annotated[Wishes, Form(media_type="multipart/form-data")],
    settings: SettingsNow,
    models: ModelsNow,
    jobs: JobsNow,
    decoders: DecodersNow,
    access: AccessNow,
) -> Job:
    """Puts one job into the queue. It goes on where it was when the service or the machine starts anew."""
    minutes = wishes.minutes or settings.train_minutes
    if minutes > settings.max_train_minutes:
        raise Invalid(f"minutes = {minutes:g}: max_train_minutes = {settings.max_train_minutes:g}: ask for fewer.")
    scopes = access.scopes(request.headers)
    if wishes.activate != "never" and "admin" not in scopes:
        raise Forbidden(
            f"activate = {wishes.activate!r}: it changes the default model, which needs a key of scope 'admin', and this one has "
            f"{', '.join(sorted(scopes))}: leave it out, and have the model chosen with PUT /models/default."
        )
    await models.seek(wishes.parent)
    asked = wishes.parent or models.default or SCRATCH
    parent = None if asked == SCRATCH else models[asked].name
    order = Order(
        method=wishes.method,
        model=wishes.model or f"trained-{secrets.token_hex(3)}",
        minutes=minutes,
        steps=wishes.steps,
        noise=wishes.noise,
        sigma_min=wishes.sigma_min,
        sigma_max=wishes.sigma_max,
        parent=parent,
        activate=wishes.activate,
    )
    uploads = [(file.filename or "file", file.file) for file in wishes.files]
    weights = None if parent is None else models.weights(parent).absolute()
    job = await jobs.start(order, lambda folder: lay_pictures(uploads, folder, settings, order.method, decoders.read), weights)
    response.headers["Location"] = f"/train/{job.id}"
    return job


@router.get("/train", summary="List the training jobs", responses=problem_responses(UnknownJob, Invalid, JobsAway))
async def list_jobs(
    jobs: JobsNow,
    limit: Annotated[int, Query(ge=1, le=100, description="Most jobs on a page.")] = 20,
    before: Annotated[str | None, Query(description="Only jobs that were ordered before this one.")] = None,
    status: Annotated[Status | None, Query(description="Only jobs of this status.")] = None,
) -> JobList:
    """The newest first."""
    found = await jobs.page(limit + 1, before, status)
    more = f"/train?limit={limit}&before={found[limit - 1].id}" + (f"&status={status}" if status else "") if len(found) > limit else None
    return JobList(jobs=found[:limit], next=more)


@router.get("/train/{id}", summary="How a training job goes", responses=problem_responses(UnknownJob, JobsAway))
async def tell_job(id: str, jobs: JobsNow) -> Job:
    """Its state, its last figures, or why it failed."""
    return await jobs.get(id)


async def _from(
    id: str,
    jobs: JobsNow,
    last_event_id: Annotated[int, Header(ge=0, le=2**63 - 1, description="The number of the last event that was seen; 0: none.")] = 0,
) -> int:
    """The number after which to tell. Asked before the answer begins, so that an unknown job is a plain 404."""
    _, over = await jobs.events(id, last_event_id)
    if over:
        raise NothingMore
    return last_event_id


@router.get(
    "/train/{id}/events",
    summary="Follow a training job",
    response_class=EventSourceResponse,
    responses={204: {"description": "The job has ended, and all was told before."}, **problem_responses(UnknownJob, JobsAway)},
)
async def follow_job(id: str, jobs: JobsNow, after: Annotated[int, Depends(_from)]) -> AsyncIterator[ServerSentEvent]:
    """Events from the first, or from after `Last-Event-ID`, until the job has ended: `job` with its whole state at each change of it,
    `progress` after some steps, `quality` when it was measured and `sample.png` is new."""
    yield ServerSentEvent(comment="the events so far, then as they come", retry=RECONNECT_MILLISECONDS)
    while True:
        try:
            events, over = await jobs.events(id, after)
        except UnknownJob:  # deleted meanwhile
            return
        except JobsAway:
            if jobs.hung_up:
                return
            yield ServerSentEvent(comment="the jobs' database does not answer")
            await anyio.sleep(AWAY_SECONDS)
            continue
        for event in events:
            yield ServerSentEvent(event=event.kind, data=event.data, id=str(event.number))
            after = event.number
        if over or jobs.hung_up:
            return
        if not events:
            await anyio.sleep(LOOK_SECONDS)


@router.get(
    "/train/{id}/sample.png",
    summary="What it makes of a picture kept apart",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}, **problem_responses(UnknownJob, NothingHere, JobsAway, StoreAway)},
)
async def show_sample(
    request: Request,
    id: str,
    jobs: JobsNow,
    show: Annotated[Panel | None, Query(description="One of the panels; all side by side if not given.")] = None,
) -> Response:
    """The picture before, as the parent denoises it, and as the new model does by now: squares side by side."""
    sample = await jobs.file(id, SAMPLE)
    if sample is None:
        raise NothingHere(f"Training job {id!r} has measured nothing so far: follow its events until 'quality'.")
    return await samples.answer(request, sample, show)


@router.get(
    "/train/{id}/log",
    summary="What its processes wrote",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **problem_responses(UnknownJob, NothingHere, JobsAway, StoreAway)},
)
async def show_log(id: str, jobs: JobsNow) -> Response:
    """Of all attempts, for whoever looks for the reason of a failure."""
    log = await jobs.file(id, LOG)
    if log is None:
        raise NothingHere(f"Training job {id!r} has not begun, and has no log.")
    return Response(log, media_type="text/plain; charset=utf-8", headers={"X-Content-Type-Options": "nosniff"})


@router.post(
    "/train/{id}/cancel",
    summary="Cancel a training job",
    responses=problem_responses(UnknownJob, JobsAway, DiskFull, NotWritable),
)
async def cancel_job(id: str, jobs: JobsNow) -> Job:
    """One that is queued is cancelled at once, one that runs within two seconds; its checkpoint is kept. Does nothing to one that ended."""
    return await jobs.cancel(id)


@router.post(
    "/train/{id}/resume",
    summary="Resume a training job",
    status_code=202,
    responses=problem_responses(UnknownJob, NotResumable, ModelExists, JobsAway, DiskFull, NotWritable),
)
async def resume_job(id: str, jobs: JobsNow) -> Job:
    """One that was cancelled or failed goes into the queue once more, and on from its last checkpoint."""
    return await jobs.go_on(id)


@router.delete(
    "/train/{id}",
    summary="Delete a training job",
    status_code=204,
    responses=problem_responses(UnknownJob, NotEnded, JobsAway, DiskFull, NotWritable),
)
async def delete_job(id: str, jobs: JobsNow) -> None:
    """One that has ended, with its files. The model that it made stays."""
    await jobs.remove(id)
