"""The numbers of a large ONNX model: a data file beside the ``.onnx`` file, or arrays in memory.

A protocol buffer holds at most 2 GB. So the arrays of a larger model are ONNX's external data: the
graph names the file ``NAME.onnx.data``, and an offset and a length per array. The metadata of the
graph have the length and the SHA-256 of that file.

A graph from outside may name any file. So this package reads data files itself, by the rules of
`arrays`, and gives the arrays to ONNX Runtime and OpenVINO, which open no file then.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bit_paddle.errors import CheckpointError

DATA = "bit_paddle.data"  # key of the metadata

MOST_INLINE = 2_000_000_000  # bytes of arrays in one file; the limit is 2**31, and names need some

_SMALL = 1024  # bytes; such arrays stay in the graph

_ALIGNMENT = 4096  # bytes, a page: so that arrays can be mapped

Store = Callable[[np.ndarray, str], Any]  # array and its name -> onnx.TensorProto


def path_of(path: Path) -> Path:
    """Return the path of the data file of the ONNX file ``path``; small models have none."""
    return path.with_name(f"{path.name}.data")


# --- Writing ------------------------------------------------------------------------------------


class Writer:
    """Write arrays one after another into the ``stream`` of a data file called ``name``."""

    def __init__(self, stream: BinaryIO, name: str):
        self._stream, self._name = stream, name
        self._length, self._digest = 0, hashlib.sha256()

    def store(self, array: np.ndarray, name: str) -> Any:
        """Return the ``onnx.TensorProto`` of an array; a large one is written to the file."""
        if array.nbytes <= _SMALL:
            return inline(array, name)
        self._append(bytes(-self._length % _ALIGNMENT))
        tensor = _reference(array, name)
        places = {"location": self._name, "offset": self._length, "length": array.nbytes}
        for key, value in places.items():
            tensor.external_data.add(key=key, value=str(value))
        self._append(np.ascontiguousarray(array).data.cast("B"))
        return tensor

    def facts(self) -> dict[str, Any]:
        """Return what the metadata of the graph keep about the file."""
        return {"bytes": self._length, "sha256": self._digest.hexdigest()}

    def _append(self, content: bytes | memoryview) -> None:
        self._stream.write(content)
        self._digest.update(content)
        self._length += len(content)


def in_memory(kept: dict[str, np.ndarray]) -> Store:
    """Return a `Store` that keeps large arrays in ``kept``, not in the graph."""

    def store(array: np.ndarray, name: str) -> Any:
        if array.nbytes <= _SMALL:
            return inline(array, name)
        kept[name] = array
        tensor = _reference(array, name)
        tensor.external_data.add(key="location", value=name)
        return tensor

    return store


def inline(array: np.ndarray, name: str) -> Any:
    """Return the ``onnx.TensorProto`` that holds an array."""
    from onnx import numpy_helper

    return numpy_helper.from_array(array, name)


def _reference(array: np.ndarray, name: str) -> Any:
    from onnx import TensorProto, helper

    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return TensorProto(
        name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL
    )


def relocate(proto: Any, name: str) -> None:
    """Let the graph name the data file ``name``, if it has one."""
    for tensor in referring(proto):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name


# --- Reading ------------------------------------------------------------------------------------


def referring(proto: Any) -> list[Any]:
    """Return the initializers of the graph whose numbers are in a data file."""
    return [one for one in proto.graph.initializer if one.data_location == one.EXTERNAL]


def check(proto: Any, path: Path) -> None:
    """Raise `CheckpointError` if the data file of ``proto`` is missing or has the wrong length.

    That holds too if the graph, read from ``path``, names it in a way that `arrays` refuses.
    """
    if any(_tensors_outside(proto)):
        descriptor, _ = _open(proto, path)
        os.close(descriptor)


def arrays(proto: Any, path: Path) -> dict[str, np.ndarray]:
    """Return the arrays in the data file of ``proto``, which was read from ``path``, by their name.

    They are mapped, not read. The file must be a regular one in the folder of ``path``: no link, no
    path elsewhere. It must have the length and the SHA-256 that the graph's metadata state.
    Raises `CheckpointError` otherwise.
    """
    if not any(_tensors_outside(proto)):
        return {}
    descriptor, kept = _open(proto, path)
    try:
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    finally:
        os.close(descriptor)
    if hashlib.sha256(mapped).hexdigest() != kept.get("sha256"):
        raise CheckpointError(
            f"{_named(proto, path)}: its checksum is not the one that {path.name} states: it is "
            "damaged, or belongs to another export; export the model again"
        )
    return {tensor.name: _array(tensor, mapped, path) for tensor in referring(proto)}


def _array(tensor: Any, mapped: mmap.mmap, path: Path) -> np.ndarray:
    kinds = {tensor.FLOAT: np.float32, tensor.INT8: np.int8, tensor.INT32: np.int32}
    places = {entry.key: entry.value for entry in tensor.external_data}
    try:
        kind, start, length = kinds[tensor.data_type], int(places["offset"]), int(places["length"])
        shape = list(tensor.dims)
        if min(shape, default=0) < 0 or length != math.prod(shape) * np.dtype(kind).itemsize:
            raise ValueError(f"{length} bytes do not fit the shape {shape}")
        if start < 0 or start % _ALIGNMENT or start + length > len(mapped):
            raise ValueError(f"{length} bytes at {start} are not in the file")
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: the place of {tensor.name!r} in its data file is malformed ({error}); export "
            "the model again"
        ) from error
    return np.frombuffer(mapped, kind, math.prod(shape), start).reshape(shape)


def _open(proto: Any, path: Path) -> tuple[int, dict[str, Any]]:
    """Return an open descriptor of the data file, of the right length, and its facts."""
    file, metadata = _named(proto, path), {one.key: one.value for one in proto.metadata_props}
    try:
        kept = json.loads(metadata[DATA])
        expected = int(kept["bytes"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: its numbers are in another file, and it was not written by this version's "
            "`export --format onnx`; export the checkpoint again"
        ) from error
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: its numbers are in {file.name}, which is missing beside it; the two files "
            "belong together: copy both, and do not rename the second"
        ) from error
    except OSError as error:
        link = file.is_symlink()
        reason = "it is a symbolic link, which is not followed" if link else error.strerror
        raise CheckpointError(f"{file}: the numbers cannot be read ({reason})") from error
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_size == expected > 0:
        return descriptor, kept
    os.close(descriptor)
    raise CheckpointError(
        f"{file}: has {found.st_size:,} bytes, but {path.name} states {expected:,}: it is "
        "incomplete, or belongs to another export; export the model again"
    )


def _named(proto: Any, path: Path) -> Path:
    """Return the path of the data file that a graph names: one, and in its own folder."""
    tensors = referring(proto)
    names = {
        entry.value for one in tensors for entry in one.external_data if entry.key == "location"
    }
    if len(tensors) != sum(1 for _ in _tensors_outside(proto)) or len(names) != 1:
        raise CheckpointError(
            f"{path}: its numbers are in other files, and not as this version's `export` writes "
            "them; export the checkpoint again"
        )
    (name,) = names
    if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
        raise CheckpointError(
            f"{path}: names the file {name!r} for its numbers; only a file in the same folder is "
            "read; export the checkpoint again"
        )
    return path.with_name(name)


def _tensors_outside(message: Any) -> Iterator[Any]:
    """Yield every tensor in ``message``, at any depth, whose numbers are in another file."""
    from google.protobuf.message import Message
    from onnx import TensorProto

    if isinstance(message, TensorProto):  # its fields are large
        if message.data_location == TensorProto.EXTERNAL:
            yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in [value] if isinstance(value, Message) else value:
                yield from _tensors_outside(one)
