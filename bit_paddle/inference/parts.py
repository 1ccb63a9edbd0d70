"""Compute the images of a batch in smaller parts where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from bit_paddle.errors import OutOfMemoryError

Result = TypeVar("Result")


class Parts:
    """Computes batches whole, and in smaller parts as soon as memory has run out once.

    ``say`` is called with a message when the parts become smaller.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say, self._most = say, 0  # images per part; 0: all of a batch

    def of(self, compute: Callable[[Any], Result], items: Sequence) -> list[Result]:
        """Return the results of ``compute`` for consecutive parts of ``items``.

        That is one result as long as memory suffices. A part that runs out of memory is halved
        until it fits. Raises `OutOfMemoryError` if one item does not fit.
        """
        from bit_paddle.system import device  # imports Paddle

        results: list[Result] = []
        done, shrunk = 0, False
        while done < len(items):
            part = items[done : done + self._most] if self._most else items
            before = len(results)
            with suppress(MemoryError), device.memory_errors():  # the error itself holds memory
                results.append(compute(part))
                done += len(part)
            if len(results) > before:
                continue
            if len(part) == 1:
                raise OutOfMemoryError("out of memory with one image at a time")
            self._most, shrunk = -(-len(part) // 2), True
            device.free_memory()
        if shrunk:
            self._say(f"out of memory: from now on {self._most} images are evaluated at a time")
        return results
