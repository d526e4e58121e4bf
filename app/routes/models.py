"""/models: what there is to denoise with, to look at, to take away, to bring and to choose. Trains nothing."""

from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from app import folders, samples
from app.doors import no_stray_parameters
from app.errors import (
    BadRequest,
    DiskFull,
    Invalid,
    JobsAway,
    ModelExists,
    ModelInUse,
    NothingHere,
    NotReady,
    NotWritable,
    StoreAway,
    TooLarge,
    UnknownModel,
    WeightsRefused,
    problem_responses,
    writing_below,
)
from app.models import RESERVED, SUFFIX, ModelName, Models, kept_dir
from app.samples import Panel
from app.state import ModelsNow, SettingsNow
from core import Denoiser

SUMMARY = ("title", "summary", "architecture", "weights", "data", "figures", "licence", "limits", "method", "note", "quality")


class Model(BaseModel):
    name: str = Field(examples=["gaussian"])
    default: bool = Field(
        description="Whether it is the default model; while the picture decides (`chosen` = `auto`), the first of all.", examples=[True]
    )
    shipped: bool = Field(description="Whether it lies in models_dir, where the service changes nothing.", examples=[True])
    job: str | None = Field(description="The training job that made it here.", examples=[None])
    parent: str | None = Field(description="The model that it was started from.", examples=[None])
    bytes: int = Field(description="Size of the weights file.", examples=[8361160])
    sample: bool = Field(description="Whether there is a picture at /models/{name}/sample.png.", examples=[False])
    card: dict[str, Any] = Field(
        description="What the model's card says, in a list in short.",
        examples=[{"title": "gaussian", "summary": "Removes white Gaussian noise.", "architecture": "unet"}],
    )


class ModelList(BaseModel):
    default: str | None = Field(
        description="The default model; while the picture decides (`chosen` = `auto`), the first of all.", examples=["gaussian"]
    )
    chosen: str = Field(description="What was chosen as the default; `auto`: nothing, the picture decides.", examples=["auto"])
    models: list[Model]


class Choice(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="Name of a model, see `GET /models`; `auto`: none, the picture decides.", examples=["my-scanner"])


class Chosen(BaseModel):
    default: str = Field(description="What it is now; after `auto`, that of the settings, if they name one.", examples=["my-scanner"])
    previous: str = Field(description="With which to go back.", examples=["auto"])


router = APIRouter(tags=["models"], dependencies=[Depends(no_stray_parameters)])


@router.get("/models", summary="List the models")
async def list_models(models: ModelsNow) -> ModelList:
    """Every model that can be asked for with `model=`."""
    await models.news()
    return ModelList(default=models.default, chosen=models.chosen, models=[_told(models, each, SUMMARY) for each in models])


@router.put(
    "/models/default",
    summary="Choose the default model",
    responses=problem_responses(UnknownModel, Invalid, JobsAway, DiskFull, NotWritable),
)
async def choose_model(choice: Choice, models: ModelsNow, settings: SettingsNow) -> Chosen:
    """From the next request on, also after a restart; on other replicas within two seconds. Pictures that are being denoised are finished
    with the model they began with."""
    await models.news()
    previous = models.chosen
    with writing_below(settings.train_dir):
        await anyio.to_thread.run_sync(models.choose, choice.model)
    return Chosen(default=models.chosen, previous=previous)


@router.get("/models/{name}", summary="What a model is", responses=problem_responses(UnknownModel, NotReady))
async def tell_model(name: str, models: ModelsNow) -> Model:
    """With its whole card: how it was made, from what, and its figures. `default` names the default model."""
    await models.news()
    return _told(models, models[None if name == RESERVED else name])


@router.get(
    "/models/{name}/weights",
    summary="Download a model",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {}}}, **problem_responses(UnknownModel, NothingHere, NotReady)},
)
async def send_weights(name: str, models: ModelsNow) -> Response:
    """Its safetensors file, with the card inside."""
    await models.news()
    denoiser = models[None if name == RESERVED else name]
    path = models.weights(denoiser.name)
    if not path.exists():
        raise NothingHere(f"model = {denoiser.name!r}: its file is gone from the disk.")
    return FileResponse(path, media_type="application/octet-stream", filename=denoiser.name + SUFFIX)


@router.get(
    "/models/{name}/sample.png",
    summary="What a model makes of a picture",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}, **problem_responses(UnknownModel, NothingHere, NotReady)},
)
async def show_sample(
    request: Request,
    name: str,
    models: ModelsNow,
    show: Annotated[Panel | None, Query(description="One of the panels; all side by side if not given.")] = None,
) -> Response:
    """One that was kept apart when it was trained: before, as its parent denoised it, and as it does. Squares side by side."""
    await models.news()
    denoiser = models[None if name == RESERVED else name]
    path = models.sample(denoiser.name)
    if not path.exists():
        raise NothingHere(f"model = {denoiser.name!r}: it has no sample: only what was trained here has.")
    return await samples.answer(request, await anyio.to_thread.run_sync(path.read_bytes), show)


@router.put(
    "/models/{name}",
    summary="Bring a model",
    status_code=201,
    responses={
        201: {"headers": {"Location": {"schema": {"type": "string"}, "example": "/models/my-scanner"}}},
        **problem_responses(BadRequest, ModelExists, TooLarge, Invalid, WeightsRefused, JobsAway, StoreAway, DiskFull, NotWritable),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "A weights file that `clearfold train` or a service wrote.",
            "content": {"application/octet-stream": {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}},
        }
    },
)
async def take_model(
    request: Request, response: Response, name: Annotated[ModelName, InPath()], models: ModelsNow, settings: SettingsNow
) -> Model:
    """The body is the safetensors file. It is served once its shapes fit, its numbers are finite and its card can be read."""
    with writing_below(settings.train_dir), folders.workshop(kept_dir(settings)) as folder:
        uploaded = folder / "uploaded.safetensors"
        with uploaded.open("wb") as file:
            async for chunk in request.stream():
                file.write(chunk)
        denoiser = await anyio.to_thread.run_sync(models.take, uploaded, name)
    response.headers["Location"] = f"/models/{name}"
    return _told(models, denoiser)


@router.delete(
    "/models/{name}",
    summary="Delete a model",
    status_code=204,
    responses=problem_responses(UnknownModel, ModelInUse, JobsAway, NotWritable),
)
async def delete_model(name: str, models: ModelsNow, settings: SettingsNow) -> None:
    """One that was trained or brought here, and is not the default."""
    await models.news()
    with writing_below(settings.train_dir):
        await anyio.to_thread.run_sync(models.remove, name)


def _told(models: Models, denoiser: Denoiser, keys: tuple[str, ...] | None = None) -> Model:
    name, card, path = denoiser.name, denoiser.card, models.weights(denoiser.name)
    return Model(
        name=name,
        default=name == models.default,
        shipped=models.shipped(name),
        job=card.get("job"),
        parent=card.get("parent"),
        bytes=path.stat().st_size if path.exists() else 0,
        sample=models.sample(name).exists(),
        card={key: card[key] for key in keys if key in card} if keys else dict(card),
    )
