"""GET /livez and /readyz, for whoever runs the service. Neither waits behind a picture."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.errors import NotReady, problem_responses
from app.state import ModelsNow


class Live(BaseModel):
    status: Literal["live"] = Field(default="live", examples=["live"])


class Ready(BaseModel):
    status: Literal["ready"] = Field(default="ready", examples=["ready"])
    device: str = Field(examples=["cpu"])
    dtype: str = Field(description="Precision that the network computes in.", examples=["bfloat16"])
    model: str = Field(description="The model used when none is asked for.", examples=["gaussian"])


router = APIRouter(tags=["health"])


@router.get("/livez", summary="Is the process alive?")
async def livez() -> Live:
    return Live()


@router.get("/readyz", summary="Can it denoise?", responses=problem_responses(NotReady))
async def readyz(models: ModelsNow) -> Ready:
    denoiser = models[None]
    return Ready(device=str(denoiser.device), dtype=str(denoiser.dtype).removeprefix("torch."), model=denoiser.name)
