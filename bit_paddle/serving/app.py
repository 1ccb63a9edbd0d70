"""The routes of the server."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from bit_paddle import __version__
from bit_paddle.errors import BitPaddleError, did_you_mean
from bit_paddle.inference.model import TrainedModel
from bit_paddle.inference.trained import required_preprocessing
from bit_paddle.serving import bodies, facts, listing, measures, teaching_routes
from bit_paddle.serving.batching import Engine
from bit_paddle.serving.desk import KINDS, Desk
from bit_paddle.serving.gate import Gate, Json
from bit_paddle.serving.settings import ServerSettings

_PAGE = Path(__file__).with_name("page")

_GONE = 499  # the status in the metrics of a client that left; nobody receives it

_STATUSES = {bodies.TooLarge: 413, bodies.UnknownType: 415}  # of errors; the others are 400


def _body() -> dict[str, Any]:
    """Return what OpenAPI says about a body of images."""
    texts = {"type": "array", "items": {"type": "string", "description": "base64, or data:"}}
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    schemas = {
        "image/*": {"type": "string", "format": "binary"},
        bodies.MULTIPART: {"type": "object", "properties": {bodies.FIELD: files}},
        bodies.JSON: {"type": "object", "properties": {bodies.FIELD: texts}},
    }
    content = {kind: {"schema": schema} for kind, schema in schemas.items()}
    return {"requestBody": {"required": True, "content": content}}


def create_app(model: TrainedModel, settings: ServerSettings) -> FastAPI:
    """Return the server of ``model`` as an ASGI application.

    Loads the model, if it is not loaded. ``app.state.engine`` is its `Engine`, and
    ``app.state.stopping`` True makes it refuse new requests. Errors: those of the model;
    `ConfigError` if its image size is unknown.
    """
    required_preprocessing(model.file)
    model.function(head=model.file.outputs > 0)  # here: Paddle cannot check operators in a thread
    counted = measures.Measures()
    engine = Engine(model, settings.batch, settings.batch_wait_ms, counted)
    desk = Desk(engine, settings, counted)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        desk.close()

    app = FastAPI(
        title="bit_paddle", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.state.engine, app.state.stopping = engine, False
    app.add_middleware(Gate, settings=settings, engine=engine, measures=counted)
    _add_errors(app)
    _add_images(app, desk)
    _add_state(app, counted, functools.partial(facts.describe, model, settings))
    app.include_router(teaching_routes.routes(model.file))
    app.mount("/page", StaticFiles(directory=_PAGE))
    return app


def _add_images(app: FastAPI, desk: Desk) -> None:
    @app.post("/predict", openapi_extra=_body())
    async def predict(
        request: Request,
        top: int = Query(5, ge=1, description="classes per image"),
        calibrated: bool = Query(False, description="calibrated probabilities"),
        unknown: str = Query(
            "", description="share of known images, such as 5%, that may be called unknown"
        ),
        threshold: str = Query(
            "", description="all classes from this probability on, or auto, in place of the top"
        ),
    ) -> Response:
        """Classify one or many images."""
        return await desk.predict(request, top, calibrated, unknown, threshold)

    @app.post("/features", openapi_extra=_body())
    async def features(request: Request) -> Response:
        """Return the features of images: JSON, or float32 if Accept is application/octet-stream."""
        return await desk.features(request)

    @app.post("/explain", openapi_extra=_body())
    async def explain(
        request: Request,
        label: str = Query("", description="the class to explain; empty: the predicted class"),
        kind: str = Query(KINDS[1], description="overlay, or heat: the map alone in grey"),
    ) -> Response:
        """Return as PNG where the network looks in one image."""
        if kind not in KINDS:
            raise HTTPException(422, f"kind: is {kind!r}: {did_you_mean(kind, KINDS)}")
        return await desk.explain(request, label, kind)


def _add_state(
    app: FastAPI, counted: measures.Measures, describe: Callable[[], dict[str, Any]]
) -> None:
    engine, about = app.state.engine, functools.cache(describe)

    @app.get("/model")
    def model() -> Response:  # in a thread, because the first call reads files
        """Return the facts about the model and the limits of the server."""
        if not engine.ready:
            raise HTTPException(503, "the server is starting", {"Retry-After": "5"})
        return Json(about())

    @app.get("/healthz")
    async def healthz() -> Response:
        """Return 200 while the process lives."""
        return Json({"status": "alive"})

    @app.get("/readyz")
    async def readyz() -> Response:
        """Return 200 if the model can compute and the server is not stopping, else 503."""
        if app.state.stopping or not engine.ready:
            raise HTTPException(503, "stopping" if app.state.stopping else "starting")
        return Json({"status": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return the counters of all processes, as text for Prometheus."""
        return Response(counted.text(), 200, None, measures.CONTENT_TYPE)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(listing.page(app.openapi()))

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(_PAGE / "index.html")


# --- Errors -------------------------------------------------------------------------------------


def _add_errors(app: FastAPI) -> None:
    """Let every error be JSON: {"error": sentence}."""

    @app.exception_handler(BitPaddleError)
    async def own(request: Request, error: BitPaddleError) -> Response:
        status = next((code for kind, code in _STATUSES.items() if isinstance(error, kind)), 400)
        return Json({"error": str(error)}, status)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return Json({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        faults = (f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
        return Json({"error": "; ".join(faults)}, 422)

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=_GONE)

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> Response:
        return Json({"error": "the server has a defect; its log shows where"}, 500)
