"""``.safetensors`` files, read by the library of that name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from bit_paddle.errors import CheckpointError
from bit_paddle.models.containers.base import Container, Stored

_DTYPES = {"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"}


class SafetensorsFile(Container):
    """An open ``.safetensors`` file; the library checks names, sizes and offsets at opening."""

    def __init__(self, path: str | os.PathLike):
        from safetensors import SafetensorError, safe_open

        super().__init__(path)
        self._errors = (SafetensorError, OSError, ValueError, TypeError, MemoryError)
        try:
            self._file = safe_open(str(path), "numpy")
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
        except self._errors as error:
            raise CheckpointError(
                f"{path}: not a readable .safetensors file ({error}); it may be cut short: "
                "download or copy it again"
            ) from error
        self.arrays = {
            name: Stored(tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), "object"))
            for name, part in slices.items()
        }

    @staticmethod
    def matches(path: Path) -> bool:
        """Return whether a file begins as the format does: the header's length, then ``{``."""
        with open(path, "rb") as stream:
            start = stream.read(9)
        return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size

    def read(self, name: str) -> np.ndarray:
        try:
            if self.arrays[name].dtype == "bfloat16":
                return self._bfloat16(name)
            return self._file.get_tensor(name)
        except self._errors as error:
            raise CheckpointError(f"{self.path}: {name} cannot be read ({error})") from error

    def _bfloat16(self, name: str) -> np.ndarray:
        """Return a bfloat16 array as float32; the library's NumPy part does not know the type."""
        with open(self.path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            start, end = json.loads(stream.read(length))[name]["data_offsets"]
            stream.seek(8 + length + start)
            words = np.frombuffer(stream.read(end - start), "<u2")
        wide = words.astype(np.uint32) << 16
        return wide.view(np.float32).reshape(self.arrays[name].shape)

    def close(self) -> None:
        del self._file
