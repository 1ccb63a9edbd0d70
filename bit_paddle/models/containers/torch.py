"""PyTorch's files of weights (``.pth``, ``.pt``, ``.bin``, ``.pth.tar``), read without PyTorch."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bit_paddle.errors import CheckpointError
from bit_paddle.models.containers import state_dict
from bit_paddle.models.containers.base import Container, Stored
from bit_paddle.models.containers.pickled import BROKEN, interpret, reading
from bit_paddle.models.containers.symbols import NUMPY, Opaque, description, float32_of
from bit_paddle.models.containers.torch_symbols import (
    CALLS,
    Storage,
    Tensor,
    numpy_dtype,
    persistent_value,
)

HOW_TO_SAVE = 'save its weights with torch.save(model.state_dict(), "weights.pth")'

_NUMBER = 0x1950A86A20F9469CFC6C  # the first pickle of the older format
_MAGIC = b"\x8a\n" + _NUMBER.to_bytes(10, "little") + b"."  # as pickled, without the protocol
_TAR_MEMBERS = {b"sys_info", b"pickle", b"tensors", b"storages"}
_LONGEST_PICKLE = 2**26  # bytes; it holds names and shapes alone
_CHUNK = 2**20


class _Zip:
    """The format since PyTorch 1.6: a zip file with ``data.pkl``, and a member for each storage."""

    def __init__(self, path: Path, stream: BinaryIO, size: int):
        self.path, self.stream = path, stream
        with zipfile.ZipFile(stream) as archive:
            self.members = {info.filename: info for info in archive.infolist()}
        members = self.members.values()
        roots = [name[: -len("data.pkl")] for name in self.members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise CheckpointError(f"{path}: not a file of weights by PyTorch; {HOW_TO_SAVE}")
        self.root = roots[0]
        if f"{self.root}constants.pkl" in self.members:
            raise CheckpointError(
                f"{path}: a TorchScript archive, which is a program. Load it in PyTorch with "
                f"torch.jit.load and {HOW_TO_SAVE}"
            )
        if any(info.compress_type or info.flag_bits & 1 for info in members):
            raise CheckpointError(
                f"{path}: compressed or encrypted, which PyTorch's own files never are. "
                f"Load it in PyTorch and {HOW_TO_SAVE}"
            )
        if sum(max(info.file_size, info.compress_size) for info in members) > size:
            raise ValueError("its members are larger than the file")
        self.intact: set[str] = set()  # members whose sum is right
        order = self._whole("byteorder") if f"{self.root}byteorder" in self.members else b"little"
        if order != b"little":
            raise CheckpointError(
                f"{path}: its byte order is {order[:20]!r}; only b'little' is read"
            )
        index = self._whole("data.pkl")
        self.value = interpret(io.BytesIO(index), len(index), CALLS, persistent_value)

    def _whole(self, name: str) -> bytes:
        length = self.members[self.root + name].file_size
        if length > _LONGEST_PICKLE:
            raise ValueError(f"{name} has {length} bytes")
        content = bytearray(length)
        self._fill(self.root + name, 0, memoryview(content))
        return bytes(content)

    def room(self, storage: Storage) -> int:
        """Return the bytes of a storage that are in the file. Raises ValueError without it."""
        member = self.members.get(f"{self.root}data/{storage.key}")
        if member is None:
            raise ValueError("its storage is missing")
        return min(member.file_size, storage.numbers * storage.itemsize)

    def fill(self, storage: Storage, start: int, target: memoryview) -> None:
        """Read bytes of a storage into ``target``. The first time, its sum is checked."""
        self._fill(f"{self.root}data/{storage.key}", start, target)

    def _fill(self, name: str, start: int, target: memoryview) -> None:
        member = self.members[name]
        self.stream.seek(member.header_offset)
        header = self.stream.read(30)
        if len(header) < 30 or not header.startswith(b"PK\3\4"):
            raise ValueError("a member of the zip file does not begin where it should")
        begin = member.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if name not in self.intact and member.CRC:  # 0: PyTorch was told to leave it out
            self.stream.seek(begin)
            left, found = member.file_size, 0
            while left:
                block = self.stream.read(min(left, _CHUNK))
                if not block:
                    raise EOFError("the end is missing")
                left, found = left - len(block), zlib.crc32(block, found)
            if found != member.CRC:
                raise ValueError("its checksum differs")
        self.intact.add(name)
        self.stream.seek(begin + start)
        _read_into(self.stream, target)


class _Legacy:
    """The format before PyTorch 1.6: five pickles, and then the storages one after another."""

    def __init__(self, path: Path, stream: BinaryIO, size: int):
        self.stream, self.places = stream, {}
        storages: dict[str, Storage] = {}

        def persistent(key: object) -> Storage | Opaque:
            value = persistent_value(key)
            if isinstance(value, Storage) and storages.setdefault(value.key, value) != value:
                raise ValueError("one storage is described in two ways")
            return value

        magic, protocol, system = (interpret(stream, size, NUMPY) for _ in range(3))
        if magic != _NUMBER or protocol != 1001:
            raise ValueError("its protocol is not 1001")
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise CheckpointError(f"{path}: not written on a little-endian machine")
        self.value = interpret(stream, size, CALLS, persistent)
        keys = interpret(stream, size, NUMPY)
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise ValueError("the list of its storages is missing")
        for key in keys:
            (numbers,) = struct.unpack("<q", stream.read(8).ljust(8, b"\xff"))
            begin, length = stream.tell(), numbers * storages[key].itemsize
            if numbers < 0 or begin + length > size:
                raise EOFError("the end is missing")
            self.places[key] = begin, length
            stream.seek(length, os.SEEK_CUR)

    def room(self, storage: Storage) -> int:
        if storage.key not in self.places:
            raise ValueError("its storage is missing")
        return min(self.places[storage.key][1], storage.numbers * storage.itemsize)

    def fill(self, storage: Storage, start: int, target: memoryview) -> None:
        self.stream.seek(self.places[storage.key][0] + start)
        _read_into(self.stream, target)


def _read_into(stream: BinaryIO, target: memoryview) -> None:
    if stream.readinto(target) != len(target):
        raise EOFError("the end is missing")


class TorchFile(Container):
    """A file by ``torch.save``: a state dict, or a training checkpoint that contains one.

    ``wrapper`` names the entry whose arrays are taken, such as ``state_dict_ema``; it is None if
    the state dict is not wrapped. Prefixes that all names share (``module.``) are removed.
    Quantized, sparse and other special tensors are listed with the dtype "object".

    The format is described in PyTorch's notes "Serialization semantics"
    (https://docs.pytorch.org/docs/stable/notes/serialization.html), the one before PyTorch 1.6 in
    the source of ``torch/serialization.py`` (``_legacy_save``).
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        with reading(self.path, "the file"):
            self._stream = open(path, "rb")
        try:
            with reading(self.path, "its index"):
                start = self._stream.read(257 + 5)
                if _is_tar(start):
                    raise CheckpointError(
                        f"{path}: written by PyTorch before 0.1.10. Load it in PyTorch and "
                        f"{HOW_TO_SAVE}"
                    )
                self._stream.seek(0)
                size = os.fstat(self._stream.fileno()).st_size
                kind = _Legacy if start.startswith(b"\x80") else _Zip
                self._content = kind(self.path, self._stream, size)
            self._list()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def matches(path: Path) -> bool:
        """Return whether a file is one by PyTorch, TorchScript and the oldest format included."""
        with open(path, "rb") as stream:
            start = stream.read(257 + 5)
        if start.startswith(b"PK\3\4"):
            name = start[30 : 30 + int.from_bytes(start[26:28], "little")]
            if name.endswith(b"/data.pkl"):  # a file that was cut short has no list of members
                return True
            try:
                with zipfile.ZipFile(path) as archive:
                    return any(name.endswith("/data.pkl") for name in archive.namelist())
            except BROKEN:
                return False
        return (start.startswith(b"\x80") and _MAGIC in start[:40]) or _is_tar(start)

    def _list(self) -> None:
        """Fill ``arrays``, after a check that every array lies within its storage."""
        value = self._content.value
        found, self.wrapper = state_dict.find(value, lambda value: isinstance(value, Tensor))
        if not found:
            raise CheckpointError(
                f"{self.path}: expected a state dict, found an object of class "
                f"{description(value)} without arrays by name. In PyTorch, {HOW_TO_SAVE}"
            )
        self._tensors, self.arrays = {}, {}
        for name, value in state_dict.without_prefixes(found).items():
            if isinstance(value, Tensor):
                with reading(self.path, name):
                    self._tensors[name] = value, value.extent(self._content.room(value.storage))
                self.arrays[name] = Stored(value.shape, value.dtype)
            elif isinstance(value, Opaque):
                self.arrays[name] = Stored((), "object")

    def read(self, name: str) -> np.ndarray:
        if name not in self._tensors:
            raise CheckpointError(f"{self.path}: {name} is no array of numbers that can be read")
        tensor, (start, length) = self._tensors[name]
        dtype = numpy_dtype(tensor.dtype)
        with reading(self.path, name):
            flat = np.empty(length // dtype.itemsize, dtype)
            if length:
                self._content.fill(tensor.storage, start, memoryview(flat.view(np.uint8)))
                strides = [stride * dtype.itemsize for stride in tensor.strides]
                array = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides)
            else:
                array = flat.reshape(tensor.shape)
            return float32_of(array) if tensor.dtype == "bfloat16" else array

    def close(self) -> None:
        self._stream.close()


def _is_tar(start: bytes) -> bool:
    return start[257:262] == b"ustar" and start[:100].partition(b"\0")[0] in _TAR_MEMBERS
