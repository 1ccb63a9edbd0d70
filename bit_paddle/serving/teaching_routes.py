"""The two routes of teaching: POST /teach, and POST /teach/save.

The server keeps nothing: a request has all features. So any process of the server can answer it.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field, ValidationError

from bit_paddle.errors import BitPaddleError, DataError
from bit_paddle.inference.trained import TrainedFile
from bit_paddle.serving import teaching
from bit_paddle.serving.teaching import MOST_CLASSES, Taught

_PIECE = 1 << 20  # bytes of a file that are sent at once


class Lesson(BaseModel):
    """The body of both routes. Features are little-endian float32 [N, C] in base64."""

    features: str
    labels: list[Annotated[int, Field(ge=0, lt=MOST_CLASSES)]]
    classes: list[str]
    queries: str = ""


_BODY = {  # for the server's list of routes
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": Lesson.model_json_schema()}},
    }
}


def routes(file: TrainedFile) -> APIRouter:
    """Return the routes that teach the network of ``file``.

    Each process computes one lesson at a time, in a thread. Errors are JSON: {"error": sentence}.
    """
    router, one = APIRouter(), CapacityLimiter(1)

    async def answer(work: Callable[[TrainedFile, bytes], Response], request: Request) -> Response:
        body = await request.body()
        try:
            return await to_thread.run_sync(work, file, body, limiter=one)
        except BitPaddleError as error:
            status = 422 if isinstance(error, DataError) else 500
            return JSONResponse({"error": str(error)}, status)

    @router.post("/teach", openapi_extra=_BODY)
    async def teach(request: Request) -> Response:
        """Teach new classes from features; classify other features with them."""
        return await answer(_teach, request)

    @router.post("/teach/save", openapi_extra=_BODY)
    async def save(request: Request) -> Response:
        """Return the model file with the taught classes."""
        return await answer(_save, request)

    return router


def _teach(file: TrainedFile, body: bytes) -> Response:
    taught = _taught(file, body)
    pairs = zip(taught.predicted.tolist(), taught.judged.tolist())
    answer: dict[str, Any] = {
        "leave_one_out": taught.leave_one_out(),
        "predicted": [label if judged else None for label, judged in pairs],
        "strength": taught.strength,
        "queries": taught.queries.tolist(),
    }
    return JSONResponse(answer)


def _save(file: TrainedFile, body: bytes) -> Response:
    taught = _taught(file, body)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.npz")
        teaching.save(file, taught, path)
        stream = open(path, "rb")  # it can be read although its name is removed
    headers = {
        "Content-Disposition": 'attachment; filename="model.npz"',
        "Content-Length": str(os.fstat(stream.fileno()).st_size),
    }
    return StreamingResponse(_pieces(stream), 200, headers, "application/octet-stream")


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while piece := stream.read(_PIECE):
            yield piece


# --- The body -----------------------------------------------------------------------------------


def _taught(file: TrainedFile, body: bytes) -> Taught:
    try:
        lesson = Lesson.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the body"
        raise DataError(f"{place}: {first['msg']}") from error
    features = _array("features", lesson.features, file.features)
    queries = _array("queries", lesson.queries, file.features)
    labels = np.array(lesson.labels, np.int64)
    return teaching.teach(features, labels, lesson.classes, queries)


def _array(name: str, text: str, columns: int) -> np.ndarray:
    """Return the float32 [N, columns] of ``text`` in base64. Raises `DataError`."""
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise DataError(f"{name}: is not base64 ({error})") from error
    if len(content) % (4 * columns):
        raise DataError(
            f"{name}: has {len(content):,} bytes; expected float32 [N, {columns}], which is a "
            f"multiple of {4 * columns:,}"
        )
    return np.frombuffer(content, "<f4").reshape(-1, columns)
