"""What the service holds while it runs, and how a handler gets at it. Builds nothing: `app.main` does."""

from typing import Annotated, TypedDict

from fastapi import Depends, Request

from app.access import Access
from app.jobs import Jobs
from app.kept import Kept
from app.limits import Workers
from app.metrics import Metrics
from app.models import Models
from app.settings import Settings
from core import Decoders


class State(TypedDict):
    settings: Settings
    models: Models
    workers: Workers
    kept: Kept
    jobs: Jobs
    metrics: Metrics
    decoders: Decoders
    access: Access


# Coroutines, because the framework would run plain functions in a thread.
async def _settings(request: Request) -> Settings:
    return request.state.settings  # type: ignore[no-any-return]


async def _models(request: Request) -> Models:
    return request.state.models  # type: ignore[no-any-return]


async def _workers(request: Request) -> Workers:
    return request.state.workers  # type: ignore[no-any-return]


async def _kept(request: Request) -> Kept:
    return request.state.kept  # type: ignore[no-any-return]


async def _jobs(request: Request) -> Jobs:
    return request.state.jobs  # type: ignore[no-any-return]


async def _metrics(request: Request) -> Metrics:
    return request.state.metrics  # type: ignore[no-any-return]


async def _decoders(request: Request) -> Decoders:
    return request.state.decoders  # type: ignore[no-any-return]


async def _access(request: Request) -> Access:
    return request.state.access  # type: ignore[no-any-return]


SettingsNow = Annotated[Settings, Depends(_settings)]
ModelsNow = Annotated[Models, Depends(_models)]
WorkersNow = Annotated[Workers, Depends(_workers)]
KeptNow = Annotated[Kept, Depends(_kept)]
JobsNow = Annotated[Jobs, Depends(_jobs)]
MetricsNow = Annotated[Metrics, Depends(_metrics)]
DecodersNow = Annotated[Decoders, Depends(_decoders)]
AccessNow = Annotated[Access, Depends(_access)]
