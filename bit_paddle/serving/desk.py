"""The way of a request's images: body, files, pixels, numbers, answer.

The event loop only waits. Threads read bodies, fetch, decode and write answers; one more thread
computes (`batching`).
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

import anyio
import numpy as np
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from bit_paddle.data.transforms import evaluation_view
from bit_paddle.errors import BitPaddleError, DataError
from bit_paddle.inference import calibration, explain, outputs, trained
from bit_paddle.serving import addresses, batching, bodies
from bit_paddle.serving.batching import Engine
from bit_paddle.serving.bodies import Given, TooLarge
from bit_paddle.serving.decoding import decode
from bit_paddle.serving.gate import Json
from bit_paddle.serving.measures import Measures
from bit_paddle.serving.settings import ServerSettings
from bit_paddle.system import environment

KINDS = ("heat", "overlay")

_FETCHERS = 8  # threads that wait for other servers

_FETCH_SECONDS = 15.0

_MOST_EXPLAINED = 4  # requests at once: each holds a whole image

_Result = TypeVar("_Result")


@dataclass
class Answer:
    """The row of numbers that the network computed for an image, or the fault of the image."""

    name: str
    values: Any = None
    fault: BitPaddleError | None = None
    image: Image.Image | None = None


class Desk:
    """Answers requests with images. At most ``settings.queue`` images are under way at once."""

    def __init__(self, engine: Engine, settings: ServerSettings, measures: Measures):
        self.engine, self.file, self.settings = engine, engine.model.file, settings
        self._measures, self._taken = measures, 0
        self._pool = ThreadPoolExecutor(environment.cpu_count(), thread_name_prefix="decode")
        self._fetchers = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch")
        self._explained = anyio.Semaphore(_MOST_EXPLAINED)

    async def predict(
        self, request: Request, top: int, calibrated: bool, unknown: str, threshold: str
    ) -> Response:
        """Return the ``top`` classes of each image, or those that reach a ``threshold``."""
        share = calibration.parse_share(unknown, "unknown") if unknown else None
        least = calibration.parse_threshold(threshold, "threshold") if threshold else None
        trained.check_confidence(self.file, (), calibrated, share, least)
        wanted = top, calibrated, share, least

        async def work(given: Sequence[Given]) -> Response:
            answers = await self._compute_all(given, batching.LOGITS)
            return await self._in_thread(self._predictions, answers, *wanted)

        return await self._answer(request, work)

    async def features(self, request: Request) -> Response:
        """Return the features of each image."""
        raw = bodies.BYTES in request.headers.get("accept", "")

        async def work(given: Sequence[Given]) -> Response:
            answers = await self._compute_all(given, batching.FEATURES)
            return await self._in_thread(_raw_features if raw else _features, answers)

        return await self._answer(request, work)

    async def explain(self, request: Request, label: str, kind: str) -> Response:
        """Return the activation map of one image as PNG."""
        output = explain.output_of(self.file, label) if label else None
        self.engine.model.map_function()  # reports a model without maps

        async def work(given: Sequence[Given]) -> Response:
            if len(given) != 1:
                raise DataError(f"the request has {len(given)} images; expected one")
            async with self._explained:
                answer = await self._compute(given[0], batching.MAPS, output)
                if answer.fault:
                    raise answer.fault
                return await self._in_thread(self._picture, answer, output, kind)

        return await self._answer(request, work)

    def close(self) -> None:
        """End the threads; those that wait for another server are left alone."""
        self.engine.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._fetchers.shutdown(wait=False, cancel_futures=True)

    # --- The way of the images ------------------------------------------------------------------

    async def _answer(
        self, request: Request, work: Callable[[Sequence[Given]], Awaitable[Response]]
    ) -> Response:
        """Return what ``work`` makes of the images in the body of ``request``.

        Errors: `DataError`; `HTTPException` for a full queue (429) and the time limit (504).
        """
        body = await request.body()
        with self._places() as take:
            take(1)
            try:
                with anyio.fail_after(self.settings.answer_seconds):
                    given = await self._read(body, request.headers.get("content-type", ""))
                    take(len(given) - 1)
                    return await work(given)
            except TimeoutError:
                sentence = f"the answer took longer than {self.settings.answer_seconds:g} seconds"
                raise HTTPException(504, sentence) from None

    async def _read(self, body: bytes, header: str) -> list[Given]:
        if bodies.is_image(bodies.type_of(header)):  # nothing to do that would need a thread
            return bodies.read(body, header, self.settings)
        return await self._in_thread(bodies.read, body, header, self.settings)

    @contextmanager
    def _places(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that takes places in the queue; they are free again at the end."""
        own = 0

        def take(count: int) -> None:
            nonlocal own
            if self._taken + count > self.settings.queue:
                raise HTTPException(429, "too many images wait", {"Retry-After": "1"})
            own += count
            self._taken += count
            self._measures.queued(self._taken)

        try:
            yield take
        finally:
            self._taken -= own
            self._measures.queued(self._taken)

    async def _compute_all(self, given: Sequence[Given], what: str) -> list[Answer]:
        return await asyncio.gather(*(self._compute(one, what) for one in given))

    async def _compute(self, given: Given, what: str, output: int | None = None) -> Answer:
        answer, content = Answer(given.name), given.content
        try:
            if content is None:
                most = int(self.settings.image_mb * 1e6)
                content = await asyncio.get_running_loop().run_in_executor(
                    self._fetchers, addresses.fetch, given.name, most, _FETCH_SECONDS
                )
            keep = what == batching.MAPS
            pixels, answer.image = await self._in_thread(self._seen, content, given.name, keep)
        except BitPaddleError as fault:
            answer.fault = fault
            return answer
        answer.values = await self.engine.compute(pixels, what, output)
        if what != batching.MAPS and not np.isfinite(answer.values).all():
            answer.fault = DataError(f"{given.name}: the model's numbers for it are not finite")
        return answer

    def _seen(self, content: bytes, name: str, keep: bool) -> tuple[np.ndarray, Image.Image | None]:
        image = decode(content, name, self.settings.megapixels)
        pixels = evaluation_view(image, trained.required_preprocessing(self.file))
        return pixels, image if keep else None

    async def _in_thread(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, partial(work, *arguments))

    # --- Answers --------------------------------------------------------------------------------

    def _predictions(
        self,
        answers: Sequence[Answer],
        top: int,
        calibrated: bool,
        share: float | None,
        least: float | str | None,
    ) -> Response:
        rows: list[dict[str, Any]] = [
            {"name": one.name, "error": str(one.fault)} for one in answers
        ]
        good = [k for k, one in enumerate(answers) if one.fault is None]
        if good:
            logits = np.stack([answers[k].values for k in good])
            strange = np.zeros(len(good), bool)
            if share is not None:
                strange = trained.are_unknown(self.file, logits, share)
            found = outputs.best_classes(self.file, logits, top, calibrated, least)
            for k, best, flag in zip(good, found, strange.tolist()):
                classes = [{"name": name, "probability": value} for name, value in best]
                rows[k] = {"name": answers[k].name, "classes": classes, "unknown": flag}
        content: dict[str, Any] = {"predictions": rows}
        if good:
            return Json(content)
        return Json({**content, "error": rows[0]["error"]}, _status(answers))

    def _picture(self, answer: Answer, output: int | None, kind: str) -> Response:
        assert answer.image is not None  # `_compute` keeps it for maps
        found = explain.explanation(self.file, answer.image, *answer.values, output)
        stream = io.BytesIO()
        (found.heat() if kind == KINDS[0] else found.overlay()).save(stream, format="PNG")
        headers = {
            "X-Class": quote(found.label, safe="", errors="replace"),
            "X-Probability": f"{found.probability:.6f}",
        }
        return Response(stream.getvalue(), 200, headers, "image/png")


def _features(answers: Sequence[Answer]) -> Response:
    faults = {str(k): str(one.fault) for k, one in enumerate(answers) if one.fault}
    content = {
        "features": [None if one.fault else one.values.tolist() for one in answers],
        "names": [one.name for one in answers],
        "errors": faults,
    }
    if len(faults) < len(answers):
        return Json(content)
    return Json({**content, "error": faults["0"]}, _status(answers))


def _raw_features(answers: Sequence[Answer]) -> Response:
    for one in answers:
        if one.fault:
            raise one.fault
    values = np.stack([one.values for one in answers]).astype("<f4")
    headers = {"X-Shape": ",".join(map(str, values.shape))}
    return Response(values.tobytes(), 200, headers, bodies.BYTES)


def _status(answers: Sequence[Answer]) -> int:
    """Return the status where all images have faults."""
    return 413 if any(isinstance(one.fault, TooLarge) for one in answers) else 400
