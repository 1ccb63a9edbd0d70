"""What threads decode, also where memory does not suffice for all of them at once."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

Result = TypeVar("Result")


def results(
    pool: ThreadPoolExecutor,
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
