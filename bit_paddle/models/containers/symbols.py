"""Values that stand for what a pickle names: classes, objects, NumPy's arrays. They do nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple, Union

import numpy as np

Calls = Mapping[str, Callable[..., Any]]  # "module.function" -> what stands for it

_DTYPE = re.compile(r"f[248]|i[1248]|u[1248]|b1|c8|c16")


class Span(NamedTuple):
    """Bytes that stay in the file."""

    start: int
    length: int
    utf8: bool = False  # they are Latin-1 text in UTF-8, as protocol 2 writes bytes


Bytes = Union[Span, str]  # a short text holds the bytes as Latin-1


class Global:
    """A class or function that a pickle names. It is never imported."""

    __slots__ = ("_module", "_name")

    def __init__(self, module: str, name: str):
        self._module, self._name = module, name  # joined when asked for, which saves memory

    def __str__(self) -> str:
        return f"{self._module}.{self._name}"


class Opaque:
    """An object that stays unknown, such as the settings of a training run."""

    __slots__ = ("kind",)

    def __init__(self, kind: Global):
        self.kind = kind  # its class, or the function that makes it


def description(value: object) -> str:
    """Return the class of a value, for messages."""
    return ascii(str(value.kind))[1:-1] if isinstance(value, Opaque) else type(value).__name__


class Dtype:
    """A NumPy dtype; ``numpy`` is None if it is none of plain numbers."""

    __slots__ = ("numpy",)

    def __init__(self, code: object, *_: object):
        plain = isinstance(code, str) and _DTYPE.fullmatch(code)
        self.numpy = np.dtype(code) if plain else None

    def build(self, state: tuple) -> None:
        order = state[1]
        if type(order) is not str or order not in ("<", ">", "|"):
            raise ValueError("a dtype of unknown byte order")
        self.numpy = self.numpy and self.numpy.newbyteorder(order)


class Array:
    """A NumPy array whose bytes may still be in the file. ``dtype`` is None until it is built."""

    __slots__ = ("data", "dtype", "fortran", "shape")

    def __init__(self, *_: object):
        self.dtype: Dtype | None = None

    def build(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, Dtype) or not isinstance(data, (str, Span, list)):
            raise ValueError("an array without dtype or data")
        self.shape, self.dtype = shape_of(shape), dtype
        self.fortran, self.data = bool(fortran), data


def shape_of(value: object) -> tuple[int, ...]:
    """Return ``value`` if it can be the shape of an array. Raises ValueError."""
    if type(value) is not tuple or len(value) > 32:
        raise ValueError("an array without a shape")
    if not all(type(size) is int and 0 <= size < 2**62 for size in value):
        raise ValueError("a size that is no whole number from 0 to 2**62")
    return value


def _ordered_dict(pairs: object = ()) -> dict[str, Any]:
    """Python 2 writes the items as a list of lists."""
    return {key: value for key, value in pairs if type(key) is str}


def _encode(text: object, encoding: object) -> object:
    if not isinstance(text, (str, Span)) or encoding != "latin1":
        raise ValueError("bytes in an unknown encoding")
    return text


NUMPY: Calls = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": lambda *_: {},
    "_codecs.encode": _encode,
    "builtins.bytes": lambda: "",
    "__builtin__.bytes": lambda: "",
    "numpy.dtype": Dtype,
    "numpy.core.multiarray._reconstruct": Array,
    "numpy._core.multiarray._reconstruct": Array,
}


def float32_of(bfloat16: np.ndarray) -> np.ndarray:
    """Return bfloat16 numbers, given as uint16 in any byte order, as float32 numbers."""
    numbers = bfloat16.astype(np.uint32)
    numbers <<= np.uint32(16)  # a number of the same type, for arrays without axes in NumPy 1
    return numbers.view(np.float32)
