"""GET /models: what there is to denoise with. Changes nothing."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.state import ModelsNow

SUMMARY = ("title", "summary", "architecture", "weights", "data", "figures", "licence", "limits")


class Model(BaseModel):
    name: str = Field(examples=["gaussian"])
    default: bool = Field(description="Whether it is used when none is asked for.", examples=[True])
    card: dict[str, Any] = Field(
        description="What the model's card says in short.",
        examples=[{"title": "gaussian", "summary": "Removes white Gaussian noise.", "architecture": "unet"}],
    )


class ModelList(BaseModel):
    models: list[Model]


router = APIRouter(tags=["models"])


@router.get("/models", summary="List the models")
async def list_models(models: ModelsNow) -> ModelList:
    """Every model that can be asked for with `model=`."""
    return ModelList(
        models=[
            Model(
                name=each.name,
                default=each.name == models.default,
                card={key: each.card[key] for key in SUMMARY if key in each.card},
            )
            for each in models
        ]
    )
