"""``.npz`` files: a zip archive of NumPy arrays, in any of the layouts of BiT's own code."""

from __future__ import annotations

import json
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bit_paddle.errors import CheckpointError
from bit_paddle.models.containers.base import Container, Stored
from bit_paddle.models.npz import NOTES

BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    OSError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    MemoryError,
    OverflowError,
    TypeError,
)  # errors that a damaged zip or .npy header can raise

_MOST = 100  # bytes of arrays per byte of the file; trained weights compress to no less than half

_FREE = 1 << 26  # bytes that any file may hold: small models can be all zeros


class NpzFile(Container):
    """An open ``.npz`` file. Python objects in it are never unpickled.

    The size of every array is compared with that of its member in the archive. A file that would
    expand to more than `_MOST` times its size is refused.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        try:
            self._npz = np.load(self.path, allow_pickle=False)
        except BROKEN as error:
            raise CheckpointError(
                f"{path}: not a readable .npz file ({reason(error)}); "
                "it may be cut short: download or copy it again"
            ) from error
        try:
            self._check_size()
            members = self._npz.zip.namelist()
            self.arrays = dict(self._header(member) for member in members)
            if len(self.arrays) < len(members):
                raise CheckpointError(f"{path}: two of its arrays have the same name")
        except BaseException:
            self.close()
            raise

    @staticmethod
    def matches(path: Path) -> bool:
        """Return whether a file is a zip archive with NumPy arrays, or without anything."""
        if not zipfile.is_zipfile(path):
            return False
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except BROKEN:
            return True  # the constructor reports what is broken
        return not names or any(name.endswith(".npy") for name in names)

    def _check_size(self) -> None:
        size = sum(member.file_size for member in self._npz.zip.infolist())
        stored = self.path.stat().st_size
        if size > _MOST * stored + _FREE:
            raise CheckpointError(
                f"{self.path}: has {stored:,} bytes, but expands to {size:,}. No trained model is "
                "compressed that far; the file is not read"
            )

    def _header(self, member: str) -> tuple[str, Stored]:
        """Return an array's name and what its header says, after a check of its size."""
        if not member.endswith(".npy"):
            raise CheckpointError(f"{self.path}: contains {member!r}, which is not an array")
        name = member[: -len(".npy")]
        with self._reading(member), self._npz.zip.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(stream)
            if dtype.hasobject:
                raise CheckpointError(
                    f"{self.path}: {name} contains Python objects, which are never "
                    "loaded; expected arrays of numbers"
                )
            expected = stream.tell() + dtype.itemsize * int(np.prod(shape, dtype=object))
            if expected != (found := self._npz.zip.getinfo(member).file_size):
                raise ValueError(f"it has {found:,} bytes, and {list(shape)} needs {expected:,}")
        return name, Stored(shape, dtype.name)

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except BROKEN as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{self.path}: {name} is damaged ({reason(error)}); download or copy the file again"
            ) from error

    def read(self, name: str) -> np.ndarray:
        with self._reading(name):
            return self._npz[name]

    def notes(self) -> dict[str, Any]:
        """Return the notes that `npz.write` wrote (class names, for example); {} without them."""
        if NOTES not in self.arrays:
            return {}
        with self._reading(NOTES):
            notes = json.loads(self.read(NOTES).astype(np.uint8).tobytes().decode())
            if not isinstance(notes, dict):
                raise ValueError(f"it contains a {type(notes).__name__}, expected an object")
            return notes

    def close(self) -> None:
        self._npz.close()


def reason(error: Exception) -> str:
    """Return the first line of an error's message, or its kind."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
