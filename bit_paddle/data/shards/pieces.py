"""What is known of one shard: its images in their order. Pieces make the index of all shards.

A shard is a tar in the layout of WebDataset: the members of a sample follow each other and have one
name up to its first dot, such as ``000001.jpg``, ``000001.cls`` and ``000001.json``.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import crc32c
import numpy as np

from bit_paddle.system import files

# Of an image: its place in the shard in bytes, its checksum, and the number of its shard
ROW = np.dtype([("offset", "<i8"), ("length", "<u4"), ("crc32c", "<u4"), ("shard", "<u4")])

LONGEST = 2**31 - 1  # bytes of an image, which one call reads

FAULTS = (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile)  # of a damaged .npz

_BLOCK = 512  # bytes: the unit of a tar


class Piece(NamedTuple):
    """The N images of one shard. Image k has ``label_counts[k]`` labels and a name in UTF-8."""

    images: np.ndarray  # `ROW` [N]; the number of the shard is not known yet
    label_counts: np.ndarray  # int64 [N]
    labels: np.ndarray  # int64: numbers of `texts`
    texts: np.ndarray  # str: the labels that occur in this shard
    name_lengths: np.ndarray  # int64 [N], in bytes
    names: np.ndarray  # uint8: the bytes of all names
    size: np.ndarray  # int64 []: bytes of the shard
    crc32c: np.ndarray  # uint32 []: of the shard


class Collector:
    """Collects the images of a shard, one after the other."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, int]] = []
        self._labels: list[list[str]] = []
        self._names: list[bytes] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, offset: int, content: bytes, labels: list[str], name: str) -> None:
        """Add an image, whose bytes begin at ``offset`` of the shard."""
        self._rows.append((offset, len(content), crc32c.crc32c(content), 0))
        self._labels.append(labels)
        self._names.append(name.encode(errors="surrogateescape"))

    def piece(self, size: int, checksum: int) -> Piece:
        """Return the piece of a shard with so many bytes and this CRC32C."""
        every = [label for labels in self._labels for label in labels]
        texts, numbers = np.unique(np.array(every, str), return_inverse=True)
        return Piece(
            np.array(self._rows, ROW),
            np.array([len(labels) for labels in self._labels], np.int64),
            numbers.reshape(-1).astype(np.int64),
            texts,
            np.array([len(name) for name in self._names], np.int64),
            np.frombuffer(b"".join(self._names), np.uint8),
            np.array(size, np.int64),
            np.array(checksum, np.uint32),
        )


def save(piece: Piece, path: Path) -> None:
    """Write ``piece`` to an .npz file. Raises `WriteError`."""
    buffer = io.BytesIO()
    np.savez(buffer, **piece._asdict())
    files.write(path, lambda stream: stream.write(buffer.getbuffer()))


def load(path: Path) -> Piece | None:
    """Return the piece in the file ``path``; None if there is none that is whole."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return Piece(**{key: file[key] for key in Piece._fields})
    except FAULTS:
        return None


class Summed:
    """A stream to write to; it knows the bytes that were written and their CRC32C."""

    def __init__(self, stream: BinaryIO):
        self._stream, self.size, self.crc32c = stream, 0, 0

    def write(self, content: Any) -> None:
        """Write ``content``. Raises `OSError`."""
        self._stream.write(content)
        self.size += len(content)
        self.crc32c = crc32c.crc32c(content, self.crc32c)


def write_member(stream: Summed, name: str, content: bytes) -> int:
    """Write a file with a short ASCII ``name`` into a tar; return the place of its content."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    stream.write(header.tobuf(tarfile.USTAR_FORMAT))
    place = stream.size
    stream.write(content)
    stream.write(bytes(-len(content) % _BLOCK))
    return place


def write_end(stream: Summed) -> None:
    """Write the two empty blocks that end a tar."""
    stream.write(bytes(2 * _BLOCK))
