"""Values that stand for PyTorch's tensors and storages in a pickle. They do nothing."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from bit_paddle.models.containers.symbols import NUMPY, Calls, Global, Opaque, shape_of

_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexDouble": "complex128",
    "ComplexFloat": "complex64",
}
OPAQUE = Opaque(Global("torch", "Tensor"))  # a quantized, sparse or conjugated one, for example
_DTYPES = {*_STORAGES.values(), "uint16", "uint32", "uint64"}


def numpy_dtype(dtype: str) -> np.dtype:
    return np.dtype("<u2") if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<")


class Storage(NamedTuple):
    """A run of numbers in the file; ``dtype`` is None for bytes and for quantized numbers."""

    key: str
    dtype: str | None
    itemsize: int
    numbers: int


class Tensor:
    """A strided view of a storage."""

    __slots__ = ("dtype", "offset", "shape", "storage", "strides")

    def __init__(self, storage: Storage, dtype: str, offset: Any, shape: Any, strides: Any):
        self.storage, self.dtype = storage, dtype
        (self.offset,) = shape_of((offset,))
        self.shape, self.strides = shape_of(shape), shape_of(strides)
        if len(self.strides) != len(self.shape):
            raise ValueError("a tensor without a stride for each axis")

    def extent(self, room: int) -> tuple[int, int]:
        """Return where it starts in its storage, and its length there, in bytes.

        Raises ValueError if it does not lie within the ``room`` bytes of the storage, or repeats
        numbers: a small file could claim a huge array.
        """
        itemsize, numbers = numpy_dtype(self.dtype).itemsize, math.prod(self.shape)
        if not numbers:
            return 0, 0
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides))
        if max(self.offset + last + 1, numbers) * itemsize > room:
            raise ValueError(f"{numbers} numbers of {self.dtype}, but only {room} bytes are stored")
        return self.offset * itemsize, (last + 1) * itemsize


def persistent_value(key: object) -> Storage | Opaque:
    """Return what a persistent id stands for: a storage, or in old files a class with its code."""
    if type(key) is not tuple or not 2 <= len(key) <= 6 or not isinstance(key[1], Global):
        raise ValueError("an unknown reference to a storage")
    module, _, name = str(key[1]).rpartition(".")
    known = module in ("torch", "torch.cuda", "torch.storage") and name.endswith("Storage")
    is_view = any(part is not None for part in key[5:])  # of another storage: before PyTorch 0.4
    if key[0] != "storage" or len(key) < 5 or not known or is_view:
        return Opaque(key[1])
    if type(key[2]) is not str:
        raise ValueError("a storage without a key")
    kind = name[: -len("Storage")]
    dtype = _STORAGES.get(kind)
    itemsize = numpy_dtype(dtype).itemsize if dtype else 4 if kind == "QInt32" else 1
    return Storage(key[2], dtype, itemsize, *shape_of((key[4],)))


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor | Opaque:
    """Stand for ``_rebuild_tensor_v2``. ``rest[2]`` notes "conjugated" or "negated", if given."""
    if not isinstance(storage, Storage) or storage.dtype is None or any(rest[2:]):
        return OPAQUE
    return Tensor(storage, storage.dtype, offset, shape, strides)


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _: Any, __: Any, dtype: Any, *rest: Any
) -> Tensor | Opaque:
    """Stand for ``_rebuild_tensor_v3``, whose storage is one of bytes."""
    name = str(dtype)[len("torch.") :] if isinstance(dtype, Global) else None
    if not isinstance(storage, Storage) or name not in _DTYPES or any(rest):
        return OPAQUE
    return Tensor(storage, name, offset, shape, strides)


def _of_type(function: Any, kind: Any, arguments: Any, _: Any) -> Tensor | Opaque:
    """Stand for ``_rebuild_from_type_v2``: a tensor with attributes, or of a class of its own."""
    build = _TENSORS.get(str(function)) if isinstance(function, Global) else None
    plain = isinstance(kind, Global) and str(kind) in ("torch.Tensor", "torch._tensor.Tensor")
    if build is None or not plain or type(arguments) is not tuple:
        return OPAQUE
    return build(*arguments)


_TENSORS: Calls = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
}
CALLS: Calls = {
    **NUMPY,
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
}
