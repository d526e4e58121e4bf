"""The service: `create_app()` puts settings, models, workers, jobs and routes together. Does no work of its own."""

import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware import Middleware

from app import __version__, errors
from app.access import Access
from app.envelope import Envelope
from app.errors import Internal, ProblemDetails, problem_responses
from app.heads import Heads
from app.jobs import Jobs
from app.kept import Kept
from app.limits import Body, BodyLimit, Workers
from app.metrics import Metrics
from app.models import Models
from app.rates import Rates
from app.routes import denoise, health, models, train
from app.settings import Settings
from app.state import State
from core import Decoders, hardware

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; worker-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types worker"
)
DOCS_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
ASSET_HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,  # a worker keeps to that of its own script
    "Cache-Control": "no-cache",  # asked for anew, by its ETag: scripts of two versions would not fit together
}
WEB = Path(__file__).parent / "web"
SPARE_DECODERS = 2
"""Beside one for every place where a picture is worked on: those who only look at headers never wait for long."""


class Clearfold(FastAPI):
    def __init__(self, access: Access, **options: Any) -> None:
        self._access = access
        super().__init__(**options)

    def openapi(self) -> dict[str, Any]:
        """The schema, with what the framework does not know: the shape of a problem, which it would only give as application/json, and
        the keys, which it does not ask for."""
        if self.openapi_schema is None:
            schema = super().openapi()
            schema["components"]["schemas"]["Problem"] = ProblemDetails.model_json_schema()
            self._access.describe(schema)
        return super().openapi()


def create_app(
    settings: Settings | None = None, shelf: Callable[[Settings], Models] = Models.load, decoders: Decoders | None = None
) -> FastAPI:
    """The application. `shelf` gives its models; by default they are loaded from the settings' folders.

    `decoders`: processes that outlive it; by default it has its own, and ends them.
    """
    settings = settings or Settings()
    metrics, access = Metrics(), Access(settings)
    app = Clearfold(
        access,
        title="Clearfold",
        summary="Noisy pictures in, clean pictures out.",
        version=__version__,
        license_info={"name": "MIT", "identifier": "MIT"},
        lifespan=_lifespan(settings, shelf, metrics, access, decoders),
        middleware=[
            Middleware(
                BodyLimit,
                limits={
                    "/denoise": Body("max_upload_bytes", settings.max_upload_bytes, held=True),
                    "/denoise/batch": Body("max_batch_bytes", settings.max_batch_bytes),
                    "/train": Body("max_train_upload_bytes", settings.max_train_upload_bytes),
                    "/models/[^/]+": Body("max_model_bytes", settings.max_model_bytes),
                },
                other=Body("max_other_bytes", settings.max_other_bytes),
                max_held_bytes=settings.max_held_bytes,
                max_silence_seconds=settings.max_silence_seconds,
                max_receive_seconds=settings.max_receive_seconds,
            ),
            Middleware(Envelope, access=access, rates=Rates(settings.rate_limit, bool(access.keys)), metrics=metrics),
            Middleware(Heads),
        ],
        form_limits={"max_files": settings.max_train_pictures},  # where the framework takes forms apart, which is for training alone
        responses=problem_responses(Internal),
        redirect_slashes=False,  # a redirect has an empty body, which a client that does not follow it takes for a picture
        docs_url=None,
        redoc_url=None,
    )
    errors.install(app)
    for door in (denoise, train, models, health):
        app.include_router(door.router)
    app.add_api_route("/", _page("index.html", PAGE_POLICY), include_in_schema=False)
    app.add_api_route("/docs", _page("docs/index.html", DOCS_POLICY), include_in_schema=False)
    app.add_api_route("/favicon.ico", _page("favicon.svg", PAGE_POLICY), include_in_schema=False)  # asked for beside a bare picture
    app.mount("/web", _Assets(directory=WEB))
    return app


def _lifespan(
    settings: Settings, shelf: Callable[[Settings], Models], metrics: Metrics, access: Access, given: Decoders | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[State]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        with nullcontext(given) if given else Decoders(settings.workers * hardware.threads() + SPARE_DECODERS) as decoders:
            models = await anyio.to_thread.run_sync(shelf, settings)
            places = settings.max_queued_pictures, settings.max_queued_pixels, settings.max_batches
            workers = Workers(settings.workers, *places, cores=hardware.threads())
            metrics.watch("clearfold_pictures_admitted", "Pictures that wait or are worked on.", lambda: workers.admitted)
            metrics.watch("clearfold_pictures_waiting", "Pictures that wait.", lambda: workers.waiting)
            metrics.watch("clearfold_pixels_admitted", "Pixels of the pictures that wait or are worked on.", lambda: workers.pixels)
            kept = Kept(settings.max_kept_bytes, settings.kept_seconds)
            metrics.watch(
                "clearfold_kept_bytes", "Bytes of the pictures that are kept for their client's next question.", lambda: kept.size
            )
            for model in models:
                metrics.device.labels(str(model.device), str(model.dtype).removeprefix("torch."), model.name).set(1)
            await anyio.to_thread.run_sync(app.openapi)  # by which doors know what they take: not made at the first request
            jobs = Jobs(models, settings)
            metrics.watch("clearfold_jobs_queued", "Training jobs that wait.", lambda: jobs.waiting.get("queued", 0))
            metrics.watch("clearfold_jobs_unfinished", "Training jobs that wait or run.", lambda: sum(jobs.waiting.values()))
            await anyio.to_thread.run_sync(jobs.resume)
            async with anyio.create_task_group() as group:
                group.start_soon(models.watch)
                group.start_soon(jobs.watch)
                group.start_soon(kept.watch)
                try:
                    _when_told_to_stop(jobs.hang_up)
                    yield State(
                        settings=settings,
                        models=models,
                        workers=workers,
                        kept=kept,
                        jobs=jobs,
                        metrics=metrics,
                        decoders=decoders,
                        access=access,
                    )
                finally:
                    await anyio.to_thread.run_sync(jobs.close)
                    models.close()
                    workers.close()
                    group.cancel_scope.cancel()

    return lifespan


def _when_told_to_stop(then: Callable[[], None]) -> None:
    """The server waits for open answers before it ends the lifespan, and a follower's is open until its job has ended: tell it before."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def stop(number: int, frame: FrameType | None, before: Any = before) -> None:
            then()
            if callable(before):
                before(number, frame)

        if callable(before):  # the server's own; without a server nobody waits
            signal.signal(number, stop)


class _Assets(StaticFiles):
    def file_response(self, *given: Any, **named: Any) -> Response:
        response = super().file_response(*given, **named)
        response.headers.update(ASSET_HEADERS)
        return response


def _page(name: str, policy: str) -> Callable[[], Any]:
    async def page() -> FileResponse:
        return FileResponse(WEB / name, headers=ASSET_HEADERS | {"Content-Security-Policy": policy})

    return page
