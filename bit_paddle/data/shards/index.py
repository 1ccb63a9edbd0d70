"""The index of shards: for each image its place, labels and name, in arrays that are mapped.

A mapped array takes no time to open and no memory of a process: the system reads the pages that
are used, and all processes share them. Labels are compressed rows, as in SciPy's CSR: those of
image k are ``labels[label_starts[k] : label_starts[k + 1]]``. So an image may have several.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import tokenize
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from bit_paddle.data.shards import pieces
from bit_paddle.data.shards.pieces import Summed
from bit_paddle.errors import DataError, did_you_mean
from bit_paddle.system import files
from bit_paddle.system.checksums import wrong_sum

FILE = "index.json"

FORMAT = 1

_TYPES = {
    "images": pieces.ROW,
    "label_starts": np.dtype("<i8"),
    "labels": np.dtype("<i4"),
    "name_starts": np.dtype("<i8"),
    "names": np.dtype("u1"),
}


_NAME = re.compile(r"[^./\\\0][^/\\\0]*")  # of a shard: plain, so that it leads nowhere else

ARRAYS = tuple(_TYPES)  # each is in the file NAME.npy


class Shard(NamedTuple):
    """The name of a shard's file, and what the file must be like."""

    name: str
    size: int | None  # bytes; None: not known yet
    crc32c: str | None  # hexadecimal


class Index(NamedTuple):
    """The index of N images in shards; the arrays are mapped and cannot be written."""

    classes: list[str]
    shards: list[Shard]
    images: np.ndarray  # `pieces.ROW` [N]
    label_starts: np.ndarray  # int64 [N + 1]
    labels: np.ndarray  # int32 [number of labels]: numbers of `classes`
    name_starts: np.ndarray  # int64 [N + 1]
    names: np.ndarray  # uint8: the names in UTF-8
    digest: str  # of all above

    @property
    def mapped(self) -> int:
        """The bytes of the arrays."""
        return sum(getattr(self, key).nbytes for key in _TYPES)

    def release(self) -> None:
        """Take all pages from the memory of this process; see `release`."""
        for key in _TYPES:
            release(getattr(self, key))

    def name(self, row: int) -> str:
        """Return the name of an image in its shard."""
        start, end = self.name_starts[row : row + 2].tolist()
        return self.names[start:end].tobytes().decode(errors="surrogateescape")


# --- Writing ------------------------------------------------------------------------------------


def build(
    folder: Path, shards: Sequence[str], parts: Sequence[Path], classes: Sequence[str] | None
) -> None:
    """Write the index of ``shards`` into ``folder``, from the file of the piece of each.

    One piece is in memory at a time. ``classes`` are the names of the labels; None: the labels that
    occur, in the order of their values if all are numbers. Errors: `DataError` (no image, or a
    label that is no class), `WriteError`.
    """
    every = [partial(_array, path) for path in parts]
    sizes = [(int(array("size")), int(array("crc32c"))) for array in every]
    counts = {key: sum(len(array(key)) for array in every) for key in ("images", "labels", "names")}
    images = counts["images"]
    if not images:
        raise DataError(f"{folder}: the shards have no images")
    if classes is None:
        classes = _ordered({text for array in every for text in array("texts").tolist()})
    number = {name: place for place, name in enumerate(classes)}

    def rows() -> Iterator[np.ndarray]:
        for shard, array in enumerate(every):
            own = array("images")
            own["shard"] = shard
            yield own

    def labels() -> Iterator[np.ndarray]:
        for array in every:
            texts = array("texts").tolist()
            unknown = next((text for text in texts if text not in number), None)
            if unknown is not None:
                raise DataError(
                    f"{folder}: the label {unknown!r} is no class; {did_you_mean(unknown, number)}"
                )
            yield np.array([number[text] for text in texts], np.int64)[array("labels")]

    contents: dict[str, tuple[int, Iterator[np.ndarray]]] = {
        "images": (images, rows()),
        "label_starts": (images + 1, _starts(array("label_counts") for array in every)),
        "labels": (counts["labels"], labels()),
        "name_starts": (images + 1, _starts(array("name_lengths") for array in every)),
        "names": (counts["names"], (array("names") for array in every)),
    }
    written = {key: _write(folder, key, *contents[key]) for key in _TYPES}
    content = {
        "format": FORMAT,
        "images": images,
        "classes": list(classes),
        "shards": [
            Shard(name, size, f"{crc:08x}")._asdict() for name, (size, crc) in zip(shards, sizes)
        ],
        "arrays": written,
    }
    files.write_text(folder / FILE, files.to_json(content))


def _array(path: Path, key: str) -> np.ndarray:
    """Return an array of a `Piece` that is in a file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return file[key]
    except pieces.FAULTS as error:
        raise DataError(
            f"{path}: is damaged; remove it, and start the command again ({error})"
        ) from error


def _ordered(texts: set[str]) -> list[str]:
    numbers = all(text.isascii() and text.isdigit() for text in texts)
    return sorted(texts, key=int) if numbers else sorted(texts)


def _starts(counts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    total = 0
    yield np.zeros(1, np.int64)
    for own in counts:
        ends = total + np.cumsum(own)
        total = int(ends[-1]) if len(ends) else total
        yield ends


def _write(folder: Path, key: str, length: int, content: Iterator[np.ndarray]) -> dict[str, Any]:
    """Write an array [length] to its .npy file; return its bytes and CRC32C."""
    told: dict[str, Any] = {}

    def fill(stream: BinaryIO) -> None:
        summed: Any = Summed(stream)
        descr = np.lib.format.dtype_to_descr(_TYPES[key])
        header = {"descr": descr, "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(summed, header)
        for part in content:
            summed.write(np.ascontiguousarray(part, _TYPES[key]).tobytes())
        told.update(bytes=summed.size, crc32c=f"{summed.crc32c:08x}")

    files.write(folder / f"{key}.npy", fill)
    return told


# --- Reading ------------------------------------------------------------------------------------


def read(folder: Path, title: str) -> Index:
    """Return the index in ``folder``; its files are compared with their checksums.

    Of the names, which decide nothing, only the lengths are compared: to read them takes long.
    ``title`` is the place of the shards, for messages. Raises `DataError`, which names the file
    that is missing, damaged or of another index.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DataError(
                f"{path}: has the format {content['format']!r}, expected {FORMAT}; another version "
                "of bit_paddle wrote it: pack the data again"
            )
        classes, arrays = [str(name) for name in content["classes"]], content["arrays"]
        shards = [
            Shard(str(s["name"]), int(s["size"]), str(s["crc32c"])) for s in content["shards"]
        ]
        sums = {key: {name: arrays[key][name] for name in ("bytes", "crc32c")} for key in _TYPES}
        images = int(content["images"])
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: is damaged ({error}); {_cure(title)}") from error
    wrong = next((one.name for one in shards if not _NAME.fullmatch(one.name)), None)
    if wrong is not None:
        raise DataError(f"{path}: names a shard {wrong!r}, expected the name of a file beside it")
    found = {key: _mapped(folder / f"{key}.npy", key, sums[key], title) for key in _TYPES}
    lengths = [len(found[key]) - extra for key, extra in _PER_IMAGE.items()]
    ends = [(int(found[f"{key}_starts"][-1]), len(found[f"{key}s"])) for key in ("label", "name")]
    if set(lengths) != {images} or any(end != length for end, length in ends):
        raise DataError(f"{path}: its arrays do not belong together; {_cure(title)}")
    labels = found["labels"]
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise DataError(f"{path}: has fewer classes than labels; {_cure(title)}")
    release(labels)
    digest = hashlib.sha256(json.dumps([classes, sums]).encode()).hexdigest()
    return Index(classes, shards, **found, digest=digest)


_PER_IMAGE = {"images": 0, "label_starts": 1, "name_starts": 1}


def release(array: np.ndarray) -> None:
    """Take the pages of a mapped array from the memory of this process; they can be read again."""
    array.base.base.madvise(mmap.MADV_DONTNEED)


def _mapped(path: Path, key: str, sums: dict[str, Any], title: str) -> np.ndarray:
    try:
        if key.startswith("name"):
            size = path.stat().st_size
            fault = None if size == sums["bytes"] else f"its length is {size}"
        else:
            fault = wrong_sum(path, sums)
        if fault is None:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.dtype == _TYPES[key] and array.ndim == 1:
                return np.asarray(array)
            fault = f"it holds {array.dtype} {list(array.shape)}, expected {_TYPES[key]}"
    except OSError as error:
        fault = f"it cannot be read ({error.strerror})"
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError) as error:  # of its header
        fault = str(error)
    raise DataError(f"{path}: is not the file of this index: {fault}; {_cure(title)}")


def _cure(title: str) -> str:
    return f"copy {title} again from where it is whole, or pack the data again"
