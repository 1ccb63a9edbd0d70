"""Paddle's files of weights (``.pdparams``), read without Paddle and without unpickling."""

from __future__ import annotations

import codecs
import math
import os
from pathlib import Path
from typing import Any, Union

import numpy as np

from bit_paddle.errors import CheckpointError
from bit_paddle.models.containers import state_dict
from bit_paddle.models.containers.base import Container, Stored
from bit_paddle.models.containers.pickled import interpret, reading
from bit_paddle.models.containers.symbols import (
    NUMPY,
    Array,
    Calls,
    Opaque,
    Span,
    description,
    float32_of,
    shape_of,
)

_SPLIT = "UnpackBigParamInfor@@"  # Paddle's own key for arrays that protocol 2 has to split
_CHUNK = 2**20


def _tuple(items: Any = ()) -> tuple:
    """Stand for ``tuple``: Paddle writes a tensor as ``tuple((name, array))``."""
    if type(items) is not tuple:
        raise ValueError("a tensor without a name")
    return items


_CALLS: Calls = {**NUMPY, "builtins.tuple": _tuple, "__builtin__.tuple": _tuple}


class _Joined:
    """An array that was split into flat pieces."""

    def __init__(self, shape: Any, pieces: list[Array]):
        self.shape, self.pieces = shape_of(shape), pieces


_Array = Union[Array, _Joined]


def _array(value: Any) -> _Array | None:
    """Return the array of an entry, which may stand behind the tensor's name."""
    if type(value) is tuple and len(value) == 2 and type(value[0]) is str:
        value = value[1]
    if isinstance(value, _Joined):
        return value
    return value if isinstance(value, Array) and value.dtype and value.dtype.numpy else None


class PdparamsFile(Container):
    """A file by ``paddle.save(state_dict, path)`` of Paddle 2 and 3.

    ``wrapper`` names the entry whose arrays are taken, such as ``model``; it is None if the state
    dict is not wrapped. The arrays' bytes are part of the pickle: they stay in the file until
    `read`. Paddle writes bfloat16 as uint16.

    The format is that of ``paddle/framework/io.py``: a pickle of protocol 2 to 4 of NumPy arrays.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        with reading(self.path, "the file"):
            self._stream = open(path, "rb")
        try:
            with reading(self.path, "its index"):
                size = os.fstat(self._stream.fileno()).st_size
                value = interpret(self._stream, size, _CALLS)
                self._list(value)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def matches(path: Path) -> bool:
        """Return whether a file is a pickle of the protocols that Paddle writes.

        So are PyTorch's old files: ask `TorchFile` first.
        """
        with open(path, "rb") as stream:
            start = stream.read(2)
        return len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5

    def _list(self, value: Any) -> None:
        """Fill ``arrays``, after a check that the file holds the bytes of every array."""
        found, self.wrapper = state_dict.find(value, lambda value: _array(value) is not None)
        if not found:
            raise CheckpointError(
                f"{self.path}: expected a pickled state dict of Paddle, found an object of "
                f"class {description(value)} without arrays by name. Save the weights with "
                'paddle.save(model.state_dict(), "weights.pdparams")'
            )
        if _SPLIT in found:
            found = _with_joined(found)
        self._found, self.arrays = {}, {}
        for name, value in state_dict.without_prefixes(found).items():
            array = _array(value)
            if array is not None:
                self._found[name], self.arrays[name] = array, self._check(name, array)
            elif isinstance(value, (Array, Opaque)):
                self.arrays[name] = Stored((), "object")

    def _check(self, name: str, array: _Array) -> Stored:
        pieces = array.pieces if isinstance(array, _Joined) else [array]
        dtype = pieces[0].dtype.numpy
        with reading(self.path, name):
            for piece in pieces:
                _check_bytes(piece)
            numbers = sum(math.prod(piece.shape) for piece in pieces)
            if numbers != math.prod(array.shape) or any(p.dtype.numpy != dtype for p in pieces):
                raise ValueError(f"its pieces do not fit its shape {list(array.shape)}")
        return Stored(array.shape, "bfloat16" if dtype.name == "uint16" else dtype.name)

    def read(self, name: str) -> np.ndarray:
        if name not in self._found:
            raise CheckpointError(f"{self.path}: {name} is no array of numbers that can be read")
        array = self._found[name]
        pieces = array.pieces if isinstance(array, _Joined) else [array]
        with reading(self.path, name):
            flat = np.empty(math.prod(array.shape), pieces[0].dtype.numpy)
            target = memoryview(flat.view(np.uint8))
            for piece in pieces:
                length = math.prod(piece.shape) * flat.itemsize
                self._fill(piece, target[:length])
                target = target[length:]
            fortran = isinstance(array, Array) and array.fortran
            shaped = flat.reshape(array.shape, order="F" if fortran else "C")
            if flat.dtype.name == "uint16":
                return float32_of(shaped)
            return shaped.astype(flat.dtype.newbyteorder("="), copy=False)

    def _fill(self, array: Array, target: memoryview) -> None:
        data = array.data
        if isinstance(data, str):
            target[:] = data.encode("latin-1")
            return
        self._stream.seek(data.start)
        if not data.utf8:
            if self._stream.readinto(target) != len(target):
                raise EOFError("the end is missing")
            return
        decoder, left, done = codecs.getincrementaldecoder("utf-8")(), data.length, 0
        while left:
            block = self._stream.read(min(left, _CHUNK))
            left -= len(block)
            content = decoder.decode(block, not (block and left)).encode("latin-1")
            target[done : done + len(content)] = content  # a ValueError if it does not fit
            done += len(content)
            if not block:
                break
        if done != len(target):
            raise ValueError(f"it has {done} bytes, expected {len(target)}")

    def close(self) -> None:
        self._stream.close()


def _check_bytes(array: Array) -> None:
    """Raise ValueError if the bytes in the file are not as many as the shape needs."""
    length, data = math.prod(array.shape) * array.dtype.numpy.itemsize, array.data
    if isinstance(data, str):
        fits = len(data) == length
    elif isinstance(data, Span) and data.utf8:
        fits = length <= data.length <= 2 * length  # the bytes from 128 on need two in UTF-8
    else:
        fits = isinstance(data, Span) and data.length == length
    if not fits:
        raise ValueError(f"it needs {length} bytes, which are not in the file")


def _with_joined(found: dict[str, Any]) -> dict[str, Any]:
    """Put the arrays that were split in the place of their pieces."""
    found = dict(found)
    split = found.pop(_SPLIT)
    for name, how in split.items() if isinstance(split, dict) else ():
        keys = how.get("slices") if isinstance(how, dict) else None
        if type(keys) is not list or not keys or not all(type(key) is str for key in keys):
            raise ValueError(f"{name} is split in an unknown way")
        pieces = [found.pop(key, None) for key in keys]
        if not all(isinstance(piece, Array) and _array(piece) for piece in pieces):
            raise ValueError(f"a piece of {name} is missing")
        found[name] = _Joined(how.get("OriginShape"), pieces)
    return found
