"""The published layout of BiT's checkpoints, ``.npz`` files: keys, shapes and a writer.

Kernels are HWIO. Keys that begin with ``bit_paddle/`` hold notes of this package; other readers
ignore them. `models.checkpoint` reads these files, and those of other libraries.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from bit_paddle.models import heads
from bit_paddle.models.architecture import Architecture
from bit_paddle.system import files

NOTES = "bit_paddle/notes"

DETECTOR = "bit_paddle/detector/"  # prefix of the arrays of a detector beside its backbone's

FACTS = "facts"  # the note of an export: classes, preprocessing and loss of its model

HEAD_KERNEL, HEAD_BIAS = heads.last_keys(heads.LINEAR)  # as published; `heads` has other kinds

ROOT_KERNEL = "resnet/root_block/standardized_conv2d/kernel"


def shapes(architecture: Architecture, classes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (key, shape) for every array of a checkpoint, in the published layout, root to head.

    ``classes`` 0 means no head.
    """
    channels = architecture.root_channels
    yield ROOT_KERNEL, (7, 7, 3, channels)
    for block, units in enumerate(architecture.units, 1):
        middle = architecture.root_channels * 2 ** (block - 1)
        for unit in range(1, units + 1):
            prefix = f"resnet/block{block}/unit{unit:02d}"
            if unit == 1:
                yield f"{prefix}/a/proj/standardized_conv2d/kernel", (1, 1, channels, 4 * middle)
            for letter, shape in (
                ("a", (1, 1, channels, middle)),
                ("b", (3, 3, middle, middle)),
                ("c", (1, 1, middle, 4 * middle)),
            ):
                yield f"{prefix}/{letter}/group_norm/gamma", (shape[2],)
                yield f"{prefix}/{letter}/group_norm/beta", (shape[2],)
                yield f"{prefix}/{letter}/standardized_conv2d/kernel", shape
            channels = 4 * middle
    yield "resnet/group_norm/gamma", (channels,)
    yield "resnet/group_norm/beta", (channels,)
    yield from heads.shapes(architecture.head, channels, classes)


def write(
    path: str | os.PathLike,
    arrays: Iterable[tuple[str, np.ndarray]],
    notes: dict[str, Any] | None = None,
) -> None:
    """Write (published key, array) pairs as an ``.npz`` file, with one array in memory at a time.

    The file gets its name only when it is complete and on the disk; until then an older file stays.
    ``notes`` must be JSON. Raises `WriteError`.
    """

    def fill(stream: BinaryIO) -> None:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for key, array in arrays:
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
            if notes:
                _write_notes(archive, notes)

    files.write(path, fill)


def replace_notes(path: str | os.PathLike, notes: dict[str, Any]) -> None:
    """Replace the notes of an ``.npz`` file; its arrays are copied as they are.

    The file is replaced when the new one is complete and on the disk. Raises `WriteError`.
    """

    def fill(stream: BinaryIO) -> None:
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(stream, "w") as archive:
            for member in old.infolist():
                if member.filename == f"{NOTES}.npy":
                    continue
                copied = zipfile.ZipInfo(member.filename, member.date_time)
                copied.compress_type = member.compress_type
                with (
                    old.open(member) as source,
                    archive.open(copied, "w", force_zip64=True) as target,
                ):
                    shutil.copyfileobj(source, target, 1 << 20)
            _write_notes(archive, notes)

    files.write(os.path.realpath(path), fill)


def _write_notes(archive: zipfile.ZipFile, notes: dict[str, Any]) -> None:
    text = np.frombuffer(json.dumps(notes).encode(), np.uint8)
    with archive.open(f"{NOTES}.npy", "w") as member:
        np.lib.format.write_array(member, text, allow_pickle=False)
