"""What every file of named arrays can do, whichever library wrote it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Stored(NamedTuple):
    """What a file says about an array before the array is read."""

    shape: tuple[int, ...]
    dtype: str  # such as "float32" or "bfloat16"; "object" for what is no array of numbers


class Container(ABC):
    """An open file of named arrays. Use it in a ``with`` statement.

    ``arrays`` is known after opening, without reading an array; opening needs memory for names and
    shapes alone. Errors: `CheckpointError` for a file that is damaged, or of another kind.
    """

    arrays: dict[str, Stored]  # in the names and shapes of the file

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    @abstractmethod
    def read(self, name: str) -> np.ndarray:
        """Return an array in the shape of the file; bfloat16 is returned as float32.

        It needs no more memory than the array. Raises `CheckpointError` if it is damaged.
        """

    def notes(self) -> dict[str, Any]:
        """Return the notes of this package in the file; {} for other files."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
