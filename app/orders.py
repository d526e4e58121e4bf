"""What a training job is, in plain values: what was ordered, how it goes, and what is told of it. Does nothing."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

Status = Literal["queued", "running", "cancelling", "cancelled", "done", "failed"]
Method = Literal["clean", "pairs", "noisy"]
Activate = Literal["never", "if_better", "always"]
ENDED: tuple[Status, ...] = ("cancelled", "done", "failed")


class Order(BaseModel):
    """What is to be trained. `sigma_*` in 8-bit steps; `parent`: the model to start from, whose weights lie in the job's folder."""

    method: Method = "clean"
    model: str
    minutes: float
    steps: int | None = None  # None: as many as fit
    noise: Literal["gaussian", "camera", "mixed"] = "gaussian"
    sigma_min: float = 0
    sigma_max: float = 55
    parent: str | None = None
    activate: Activate = "never"


class Quality(BaseModel):
    """What the job measured at its end on pictures kept apart, in dB; larger is better."""

    what: str = Field(examples=["PSNR in dB against the clean pictures"])
    before: float = Field(description="The noisy pictures themselves.", examples=[20.2])
    parent: float | None = Field(description="The model started from.", examples=[27.1])
    trained: float = Field(description="The new model.", examples=[29.4])
    better: bool = Field(description="Better than the parent, or than the noisy pictures if there is none.", examples=[True])


class Sample(BaseModel):
    """The picture at `/train/{id}/sample.png`: squares side by side."""

    panels: list[Literal["before", "parent", "now"]] = Field(examples=[["before", "parent", "now"]])
    step: int = Field(examples=[500])


class Job(BaseModel):
    """How a training job goes."""

    id: str = Field(examples=["9b1c4e02"])
    status: Status = Field(default="queued", examples=["running"])
    method: Method = Field(examples=["noisy"])
    model: str = Field(description="Name of the model being made.", examples=["my-scanner"])
    parent: str | None = Field(description="Model started from; null: from scratch.", examples=["gaussian"])
    activate: Activate = Field(examples=["if_better"])
    pictures: int = Field(description="Pictures that were sent, of pairs both.", examples=[20])
    minutes: float = Field(description="The time it may train.", examples=[10.0])
    attempt: int = Field(default=1, description="Rises when it is resumed, by a person or after a crash.", examples=[1])
    created: datetime = Field(examples=["2026-05-04T12:00:00Z"])
    started: datetime | None = Field(default=None, examples=["2026-05-04T12:00:01Z"])
    ended: datetime | None = Field(default=None, examples=[None])
    step: int | None = Field(default=None, examples=[120])
    steps: int | None = Field(default=None, examples=[900])
    loss: float | None = Field(default=None, examples=[0.021])
    psnr: float | None = Field(default=None, description="In dB, on pictures kept apart, as `quality.what` says.", examples=[31.4])
    seconds_trained: float = Field(default=0.0, examples=[88.0])
    seconds_left: float | None = Field(default=None, examples=[512.0])
    reason: str | None = Field(default=None, description="Why the job failed.", examples=[None])
    note: str | None = Field(default=None, description="What the method assumes, and whether it holds for these pictures.", examples=[None])
    quality: Quality | None = Field(default=None, description="What was measured at the end.", examples=[None])
    activated: bool = Field(default=False, description="Whether it was made the default model.", examples=[False])
    sample: Sample | None = Field(default=None, examples=[{"panels": ["before", "parent", "now"], "step": 100}])


class Event(BaseModel):
    """One of a job's events: what `kind` says, as JSON."""

    number: int
    kind: Literal["job", "progress", "quality"]
    data: dict[str, Any]
