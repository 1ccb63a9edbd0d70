"""What threads decode, also where memory does not suffice for all of them at once."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from bit_paddle.system.threads import started_pool

Result = TypeVar("Result")


class Threads:
    """``with Threads(4) as pool``: the threads of this process, shared by all that ask for four.

    They are all started at the first time, and stay.
    """

    def __init__(self, workers: int):
        self._pool = _started(workers)
        self._futures: set[Future] = set()  # in progress

    def submit(self, call: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Compute ``call(*arguments)`` in a thread."""
        future = self._pool.submit(call, *arguments)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel what has not begun, and wait for what has."""
        begun = [future for future in list(self._futures) if not future.cancel()]
        wait(begun)


@functools.cache
def _started(workers: int) -> ThreadPoolExecutor:
    return started_pool(workers, "decode")


os.register_at_fork(after_in_child=_started.cache_clear)  # a fork has none of the threads


def results(
    pool: Threads,
    parts: Sequence[Callable[[], Result]],
    futures: Sequence[Future[Result]],
    later: Sequence[Future],
) -> list[Result]:
    """Return the results of ``futures``, in which the threads of ``pool`` compute ``parts``.

    A part that runs out of memory is computed again when the threads have done what else they have
    to do, ``later``: one after the other, images need less. Raises `MemoryError`.
    """
    found = []
    for part, future in zip(parts, futures):
        try:
            found.append(future.result())
        except MemoryError:
            wait([*futures, *later])
            _say_once_that_memory_ran_out()
            try:  # in a thread: what these have freed, malloc keeps for them
                found.append(pool.submit(part).result())
            except MemoryError:
                raise MemoryError(
                    "out of memory while an image was decoded, with nothing else under way; take "
                    "a smaller --cache_gb, or smaller image files"
                ) from None
    return found


@functools.cache
def _say_once_that_memory_ran_out() -> None:
    print(
        "warning: out of memory while several threads decoded images; one decodes these again. "
        "Fewer --workers need less memory",
        file=sys.stderr,
    )
