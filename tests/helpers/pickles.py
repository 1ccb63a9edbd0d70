"""Files of PyTorch and Paddle, written without either, well formed or hostile."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "float64": "Double", "float32": "Float", "float16": "Half", "int64": "Long", "int32": "Int",
    "int16": "Short", "int8": "Char", "uint8": "Byte", "bool": "Bool",
}  # fmt: skip


class Named:
    """A class or function that a pickle names by ``module`` and ``name``, whether it exists."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __call__(self, *_: object):
        raise AssertionError("it must never be called")


class Called:
    """``function(*arguments)`` in a pickle, with a state if one is given."""

    def __init__(self, function: Named, *arguments: Any, state: Any = None):
        self.reduced = (function, arguments) + (() if state is None else (state,))

    def __reduce__(self):
        return self.reduced


class Storage:
    """A storage of PyTorch: numbers, whose count a hostile file can lie about."""

    def __init__(self, numbers: np.ndarray, kind: str | None = None, claimed: int | None = None):
        self.numbers = np.ascontiguousarray(numbers).reshape(-1)
        self.kind = kind or STORAGES[numbers.dtype.name]
        self.claimed = self.numbers.size if claimed is None else claimed
        self.key: str | None = None


def tensor(value: Any, storage: Storage | None = None, offset: int = 0, shape=None, strides=None):
    """An array as PyTorch pickles a tensor, contiguous unless ``strides`` says otherwise."""
    value = np.asarray(value)
    shape = value.shape if shape is None else shape
    if strides is None:
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    function = Named("torch._utils", "_rebuild_tensor_v2")
    hooks = OrderedDict()
    return Called(function, storage or Storage(value), offset, shape, strides, False, hooks)


class _Pickler(pickle._Pickler):
    def __init__(self, stream, protocol: int):
        super().__init__(stream, protocol)
        self.storages: dict[str, Storage] = {}

    def save_named(self, named: Named) -> None:
        self.write(f"c{named.module}\n{named.name}\n".encode())
        self.memoize(named)

    dispatch = {**pickle._Pickler.dispatch, Named: save_named}

    def persistent_id(self, value: Any):
        if not isinstance(value, Storage):
            return None
        if value.key is None:
            value.key = str(len(self.storages))
        self.storages[value.key] = value
        kind = Named("torch", f"{value.kind}Storage")
        return ("storage", kind, value.key, "cpu", value.claimed)


def pickled(value: Any, protocol: int = 2) -> tuple[bytes, dict[str, Storage]]:
    stream = io.BytesIO()
    pickler = _Pickler(stream, protocol)
    pickler.dump(value)
    return stream.getvalue(), pickler.storages


def write_zip(path: Path, value: Any, index: bytes | None = None, extra=None, **options) -> Path:
    """Write the format since PyTorch 1.6; ``index`` replaces the pickle, ``extra`` adds members."""
    content, storages = pickled(value)
    members = {
        "data.pkl": content if index is None else index,
        "byteorder": b"little",
        **{f"data/{key}": storage.numbers.tobytes() for key, storage in storages.items()},
        "version": b"3\n",
        **(extra or {}),
    }
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(f"{path.stem}/{name}", content)
    return path


def write_legacy(path: Path, value: Any, index: bytes | None = None, little: bool = True) -> Path:
    """Write the format before PyTorch 1.6."""
    content, storages = pickled(value)
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}
    with open(path, "wb") as stream:
        for part in (MAGIC, 1001, system):
            stream.write(pickle.dumps(part, 2))
        stream.write(content if index is None else index)
        stream.write(pickle.dumps(sorted(storages), 2))
        for key in sorted(storages):
            numbers = storages[key].numbers
            stream.write(struct.pack("<q", numbers.size) + numbers.tobytes())
    return path
