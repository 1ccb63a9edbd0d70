"""Shards that other programs made: read once from their start to their end, and indexed."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import crc32c

from bit_paddle.data.decoding import HEIF_SUFFIXES, SUFFIXES
from bit_paddle.data.shards import index, pieces
from bit_paddle.data.shards.pieces import Collector, Piece
from bit_paddle.errors import DataError
from bit_paddle.system.progress import progress_bar

_LABELS = ("cls", "json")  # extensions of members with a label, in the order of preference

_KEYS = ("label", "labels", "cls", "class")  # of a .json, in the order of preference

_LONGEST_LABEL = 1 << 20  # bytes of a member with labels

_BLOCK = 1 << 22  # bytes that are read at once


class Sample(NamedTuple):
    """A sample of a tar: its image, and its members with labels by their extensions."""

    name: str
    offset: int
    content: bytes
    labels: dict[str, bytes]


def build(folder: Path, names: Sequence[str], located: Callable[[int], Path]) -> None:
    """Write the index of the shards ``names`` into ``folder``, unless it is there.

    ``located`` returns the path of a shard by its number. After a stop, the next call continues
    behind the last shard. Several processes may call this; one works, and the others wait. Errors:
    `DataError`, and those of ``located``.
    """
    from filelock import FileLock  # imported here: packed data have an index

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if (folder / index.FILE).exists():
            return
        parts = [folder / f"{number:06d}.npz" for number in range(len(names))]
        with progress_bar(desc="indexing shards", unit="shard", total=len(names)) as bar:
            for number, part in enumerate(parts):
                if pieces.load(part) is None:
                    pieces.save(piece_of(located(number)), part)
                bar.update()
        index.build(folder, names, parts, None)
        for part in parts:
            part.unlink()


def piece_of(path: Path) -> Piece:
    """Return the piece of a shard. Raises `DataError`, which names the shard and the sample."""
    collector = Collector()
    for sample in _samples(path):
        name = f"{path}/{sample.name}"
        if not 0 < len(sample.content) <= pieces.LONGEST:
            raise DataError(f"{name}: has {len(sample.content):,} bytes, which is no image")
        collector.add(sample.offset, sample.content, _labels(sample, name), sample.name)
    size, checksum = 0, 0
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            size, checksum = size + len(block), crc32c.crc32c(block, checksum)
    return collector.piece(size, checksum)


def _samples(path: Path) -> Iterator[Sample]:
    """Yield the samples of a tar."""
    key, found = None, Sample("", 0, b"", {})
    for member, extension, content in _members(path):
        own = member.name[: len(member.name) - len(extension) - 1]
        if own != key:
            if key is not None:
                yield _whole(path, key, found)
            key, found = own, Sample("", 0, b"", {})
        if extension in _LABELS:
            found.labels[extension] = content
        elif found.name:
            raise DataError(f"{path}: the sample {key} has two images, expected one")
        else:
            found = found._replace(name=member.name, offset=member.offset_data, content=content)
    if key is not None:
        yield _whole(path, key, found)


def _whole(path: Path, key: str, sample: Sample) -> Sample:
    if not sample.name or not sample.labels:
        missing = "image" if not sample.name else "label (.cls or .json)"
        raise DataError(f"{path}: the sample {key} has no {missing}")
    return sample


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, str, bytes]]:
    """Yield the images and labels of a tar: the member, its extension and its content."""
    images = SUFFIXES | HEIF_SUFFIXES
    try:
        with open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                extension = os.path.basename(member.name).partition(".")[2]
                is_label = extension in _LABELS
                if member.isreg() and (is_label or f".{extension.lower()}" in images):
                    if is_label and member.size > _LONGEST_LABEL:
                        raise DataError(f"{path}: {member.name} has {member.size:,} bytes")
                    content = os.pread(stream.fileno(), member.size, member.offset_data)
                    if len(content) < member.size:
                        raise tarfile.ReadError(f"{member.name} is cut short")
                    yield member, extension, content
                tar.members.clear()  # or every header stays in memory
            # tarfile takes a damaged header for the end of the archive
            if os.pread(stream.fileno(), tarfile.BLOCKSIZE, tar.offset) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"it has no end: no member and no mark at {tar.offset:,}")
    except (tarfile.TarError, OSError, EOFError, UnicodeError) as error:
        raise DataError(
            f"{path}: is no whole tar ({error}); copy it again from where it is whole. A "
            "compressed shard must be decompressed first"
        ) from error


def _labels(sample: Sample, name: str) -> list[str]:
    """Return the labels of a sample as texts. Raises `DataError`."""
    extension = next(one for one in _LABELS if one in sample.labels)
    try:
        text = sample.labels[extension].decode("utf-8")
        found: Any = text.strip() if extension == "cls" else json.loads(text)
        if isinstance(found, dict):
            found = next(found[key] for key in _KEYS if found.get(key) is not None)
        values = found if isinstance(found, list) else [found]
        if all(type(value) in (int, str) and str(value) for value in values):
            return [str(value) for value in values]
    except (ValueError, StopIteration, RecursionError):
        pass
    raise DataError(
        f"{name}: its .{extension} has no label; expected a number or a name, in a .json as "
        f"{' or '.join(_KEYS)}"
    )
