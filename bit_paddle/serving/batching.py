"""The one thread of a process that computes; it gathers images into batches.

Paddle computes in one thread, on all processors that the process may use. An image waits until the
batch is full, but no longer than the batch wait. While the network computes, the next images gather
without any wait. Batches have 1, 2, 4 … images: the operators prepare each size once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Optional

import numpy as np

from bit_paddle.inference.model import TrainedModel
from bit_paddle.inference.trained import required_preprocessing
from bit_paddle.serving.measures import Measures

LOGITS, FEATURES, MAPS = "logits", "features", "maps"

Kind = tuple[str, Optional[int]]  # what to compute; of maps, the number of the output or None


class _Job(NamedTuple):
    kind: Kind
    pixels: np.ndarray  # uint8 [3, S, S]
    arrived: float
    loop: asyncio.AbstractEventLoop
    result: asyncio.Future


class Engine:
    """Computes logits, features and maps of single images, together in batches.

    The model must be loaded. ``warmed`` is done when the network has computed a first time; it has
    the error if that has failed.
    """

    def __init__(self, model: TrainedModel, batch: int, wait_ms: float, measures: Measures):
        self.model, self.warmed = model, Future()
        self._batch, self._wait, self._measures = batch, wait_ms / 1000, measures
        self._jobs: deque[_Job] = deque()
        self._changed, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)

    def start(self) -> None:
        """Start the thread, which first computes a batch of nothing."""
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether the network has computed a first time."""
        return self.warmed.done() and self.warmed.exception() is None

    async def compute(self, pixels: np.ndarray, what: str, output: int | None = None) -> Any:
        """Return a row of logits [K] or features [C], or a tuple of a row of `ClassMaps`.

        ``pixels`` are uint8 [3, S, S]. ``output`` is that of maps. Errors: as of `TrainedModel`.
        """
        loop = asyncio.get_running_loop()
        job = _Job((what, output), pixels, time.monotonic(), loop, loop.create_future())
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        return await job.result

    def close(self) -> None:
        """End the thread after the images that wait."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    # --- In the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._warm()
        except BaseException as error:
            self.warmed.set_exception(error)
            return
        self.warmed.set_result(None)
        while jobs := self._next_batch():
            start = time.perf_counter()
            try:
                pixels = np.stack([job.pixels for job in jobs])
                rows = self._function(jobs[0].kind)(pixels)
            except Exception as error:
                _tell(jobs, [error] * len(jobs))
            else:
                self._measures.computed(len(jobs), time.perf_counter() - start)
                _tell(jobs, rows)

    def _warm(self) -> None:
        from bit_paddle.models.native import library

        crop = required_preprocessing(self.model.file).crop
        compute = self.model.function(head=self.model.file.outputs > 0)
        library.set_threads()  # OpenMP keeps both settings per thread
        library.limit_spinning(1)
        for count in {1, self._largest(self._batch)}:
            compute(np.zeros((count, 3, crop, crop), np.uint8))

    def _function(self, kind: Kind) -> Callable[[np.ndarray], Sequence[Any]]:
        what, output = kind
        if what == MAPS:
            compute = self.model.map_function()
            return lambda pixels: list(
                zip(*compute(pixels, None if output is None else np.full(len(pixels), output)))
            )
        return self.model.function(head=what == LOGITS)

    def _next_batch(self) -> list[_Job]:
        """Wait for images of one kind and return them, the oldest first; [] at the end."""
        with self._changed:
            while True:
                while not self._jobs and not self._closing:
                    self._changed.wait()
                if not self._jobs:
                    return []
                kind, oldest = self._jobs[0].kind, self._jobs[0].arrived
                alike = [job for job in self._jobs if job.kind == kind][: self._batch]
                left = oldest + self._wait - time.monotonic()
                if len(alike) == self._batch or left <= 0 or self._closing:
                    break
                self._changed.wait(left)
            chosen = alike[: self._largest(len(alike))]
            gone = {id(job) for job in chosen}
            self._jobs = deque(job for job in self._jobs if id(job) not in gone)
            return chosen

    @staticmethod
    def _largest(count: int) -> int:
        """Return the largest power of two up to ``count``."""
        return 1 << (count.bit_length() - 1)


def _tell(jobs: Sequence[_Job], results: Sequence[Any]) -> None:
    """Give the results to the event loop that waits for them; an error is raised there."""

    def settle() -> None:
        for job, result in zip(jobs, results):
            if job.result.done():  # the request has been given up
                continue
            if isinstance(result, Exception):
                job.result.set_exception(result)
            else:
                job.result.set_result(result)

    jobs[0].loop.call_soon_threadsafe(settle)
