"""POST /train and GET /train/{id}: a model made from pictures that are sent. One job at a time, and no history."""

import secrets
from typing import Annotated, Self

from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.errors import (
    AlreadyTraining,
    BadRequest,
    Invalid,
    ModelExists,
    PicturesRefused,
    TooLarge,
    UnknownJob,
    UnknownModel,
    problem_responses,
)
from app.jobs import Job, Order
from app.state import JobsNow, ModelsNow, SettingsNow
from app.uploads import lay_pictures

SCRATCH = "scratch"


class Wishes(BaseModel):
    """What is to be made, and of what. `sigma_*` in 8-bit steps."""

    model_config = ConfigDict(extra="forbid")

    files: Annotated[list[UploadFile], File(min_length=1, description="Clean pictures, or zips of them.")]
    model: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="Name for the new model: small letters, digits, '.', '_', '-'.",
        examples=["my-scanner"],
    )
    minutes: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="How long to train.", examples=[10])
    steps: int | None = Field(default=None, ge=1, le=10_000_000, description="Steps at most; by default what `minutes` allow.")
    sigma_min: float = Field(default=0, ge=0, le=100, allow_inf_nan=False, description="Least noise, in 8-bit steps.")
    sigma_max: float = Field(default=55, ge=0, le=100, allow_inf_nan=False, description="Most noise, in 8-bit steps.")
    parent: str | None = Field(
        default=None,
        description=f"Model to start from, `{SCRATCH}` for none; by default the default model.",
        examples=[SCRATCH],
    )

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if self.sigma_min > self.sigma_max:
            raise ValueError(f"sigma_min = {self.sigma_min:g} must not be above sigma_max = {self.sigma_max:g}")
        return self


router = APIRouter(tags=["training"])


@router.post(
    "/train",
    summary="Train a model on pictures of your own",
    status_code=202,
    responses={
        202: {
            "description": "The job, with its address in `Location`.",
            "headers": {"Location": {"schema": {"type": "string"}, "example": "/train/9b1c4e02"}},
        },
        **problem_responses(BadRequest, UnknownModel, AlreadyTraining, ModelExists, TooLarge, Invalid, PicturesRefused),
    },
)
async def start_training(
    request: Request,
    response: Response,
    wishes: Annotated[Wishes, Form(media_type="multipart/form-data")],
    settings: SettingsNow,
    models: ModelsNow,
    jobs: JobsNow,
) -> Job:
    """Starts one background job. Noise is added to the pictures, and the model learns to take it away."""
    minutes = wishes.minutes or settings.train_minutes
    if minutes > settings.max_train_minutes:
        raise Invalid(f"minutes = {minutes:g}: max_train_minutes = {settings.max_train_minutes:g}: ask for fewer.")
    parent = wishes.parent or models.default or SCRATCH
    order = Order(
        model=wishes.model or f"trained-{secrets.token_hex(3)}",
        minutes=minutes,
        steps=wishes.steps,
        sigma_min=wishes.sigma_min,
        sigma_max=wishes.sigma_max,
        parent=None if parent == SCRATCH else models.weights(models[parent].name).absolute(),
        device=settings.device,
    )
    uploads = [(file.filename or "file", file.file) for file in wishes.files]
    job = await jobs.start(order, lambda folder: lay_pictures(uploads, folder, settings))
    response.headers["Location"] = str(request.url_for("tell_job", id=job.id).path)
    return job


@router.get("/train/{id}", summary="How a training job goes", responses=problem_responses(UnknownJob))
async def tell_job(id: str, jobs: JobsNow) -> Job:
    """Its state, its last figures, or why it failed."""
    return jobs[id]
