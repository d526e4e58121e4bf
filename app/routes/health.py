"""GET /livez, /readyz and /metrics, for whoever runs the service. None waits behind a picture."""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from app.errors import NotReady, problem_responses
from app.metrics import MEDIA_TYPE
from app.state import MetricsNow, ModelsNow


class Live(BaseModel):
    status: Literal["live"] = Field(default="live", examples=["live"])


class Ready(BaseModel):
    status: Literal["ready"] = Field(default="ready", examples=["ready"])
    device: str = Field(examples=["cpu"])
    dtype: str = Field(description="Precision that the network computes in.", examples=["bfloat16"])
    model: str = Field(
        description="The default model; while the picture decides (`chosen` = `auto` in `GET /models`), the first of all.",
        examples=["gaussian"],
    )


router = APIRouter(tags=["health"])


@router.get("/livez", summary="Is the process alive?")
async def livez() -> Live:
    return Live()


@router.get("/readyz", summary="Can it denoise?", responses=problem_responses(NotReady))
async def readyz(models: ModelsNow) -> Ready:
    denoiser = models[None]
    return Ready(device=str(denoiser.device), dtype=str(denoiser.dtype).removeprefix("torch."), model=denoiser.name)


@router.get(
    "/metrics",
    summary="What was done, in Prometheus' format",
    response_class=Response,
    responses={200: {"description": "Counts and gauges.", "content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}},
)
async def metrics(metrics: MetricsNow) -> Response:
    return Response(metrics.text(), media_type=MEDIA_TYPE)
