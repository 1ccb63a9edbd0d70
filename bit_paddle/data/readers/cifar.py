"""CIFAR-10 and CIFAR-100 from their official archives, unpickled without running their code."""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bit_paddle.data.images import ArrayImages, Parts
from bit_paddle.data.readers.archives import faults
from bit_paddle.data.readers.members import Budget, opened
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import DataError, MissingFileError
from bit_paddle.system import fetch
from bit_paddle.system.progress import progress_bar


class Layout(NamedTuple):
    archive: str
    md5: str
    folder: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    meta: str
    labels: bytes
    names: bytes


URL = "https://dataset.bj.bcebos.com/cifar/"  # Paddle's own mirror: paddle.vision.datasets.Cifar10

LAYOUTS = {
    "cifar10": Layout(
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        "cifar-10-batches-py",
        tuple(f"data_batch_{k}" for k in range(1, 6)),
        ("test_batch",),
        "batches.meta",
        b"labels",
        b"label_names",
    ),
    "cifar100": Layout(
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-python",
        ("train",),
        ("test",),
        "meta",
        b"fine_labels",
        b"fine_label_names",
    ),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, bytes and NumPy arrays; refuses everything else."""

    _ALLOWED = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no data set needs")
        return super().find_class(module, name)


_LARGEST = 200_000_000  # bytes of a batch; that of CIFAR-100 has 155,000,000


def open_cifar(spec: DataSpec) -> Parts:
    """Read the official archive, or its unpacked folder, from --datadir or the cache."""
    name, layout = spec.reader, LAYOUTS[spec.reader]
    read = _members(layout, _find(layout, spec.datadir))
    words = _value(layout, read(layout.meta), layout.meta, layout.names)
    if not isinstance(words, list) or not all(isinstance(word, bytes) for word in words):
        raise DataError(f"{layout.archive}: {layout.meta} names no classes")
    classes = [word.decode(errors="replace") for word in words]

    def split(members: Sequence[str], title: str) -> ArrayImages:
        contents = [read(member) for member in members]
        labels = np.concatenate(
            [
                _value(layout, content, member, layout.labels)
                for content, member in zip(contents, members)
            ]
        )
        pixels = [
            np.asarray(_value(layout, content, member, b"data"))
            for content, member in zip(contents, members)
        ]
        if any(
            part.ndim != 2 or part.shape[1] != 3072 or part.dtype != np.uint8 for part in pixels
        ):
            raise DataError(
                f"{name}: pixels of {[list(part.shape) for part in pixels]} "
                f"{pixels[0].dtype}; expected uint8 [N, 3072]"
            )
        pixels = np.concatenate(pixels).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return ArrayImages(np.ascontiguousarray(pixels), labels, classes, f"{name} {title}")

    train, val = split(layout.train, "train"), split(layout.val, "test")
    return Parts(train, val)


def _find(layout: Layout, datadir: str | None) -> Path:
    folder = Path(datadir) if datadir else fetch.cache_dir()
    for path in (folder / layout.archive, folder / layout.folder, folder):
        if path.is_file() or (path / layout.meta).is_file():
            return path
    if datadir:
        raise MissingFileError(
            f"--datadir {datadir}: holds neither {layout.archive} nor the folder "
            f"{layout.folder}; leave --datadir out to download it"
        )
    return fetch.fetch(URL + layout.archive, folder / layout.archive, expected={"md5": layout.md5})


def _members(layout: Layout, path: Path) -> Callable[[str], dict]:
    """Return a function from a member's name to its unpickled content."""
    broken = (
        OSError,
        EOFError,
        pickle.UnpicklingError,
        LookupError,
        ValueError,
        TypeError,
        ArithmeticError,
        AttributeError,
        ImportError,
        MemoryError,
    )

    def unpickle(member: str, blob: bytes) -> dict:
        try:
            content = _ArrayUnpickler(io.BytesIO(blob), encoding="bytes").load()
        except broken as error:
            raise DataError(f"{path}: {member} is damaged or not CIFAR's ({error})") from error
        if not isinstance(content, dict):
            raise DataError(
                f"{path}: {member} holds a {type(content).__name__}, expected a dictionary"
            )
        return content

    if path.is_dir():

        def read(member: str) -> dict:
            try:
                return unpickle(member, (path / member).read_bytes())
            except FileNotFoundError as error:
                raise MissingFileError(f"{path}: {member} is missing") from error

        return read
    wanted = {
        f"{layout.folder}/{member}": member for member in (*layout.train, *layout.val, layout.meta)
    }
    try:
        blobs = {}
        with opened(path, path.parent, Budget(path, path.parent)) as every:
            for one in progress_bar(iterable=every, desc=path.name, unit="file", delay=2):
                if one.name in wanted and not one.is_folder:
                    if one.size > _LARGEST:
                        raise ValueError(f"{one.name} has {one.size:,} bytes")
                    copy = io.BytesIO()
                    shutil.copyfileobj(one.open(), copy)  # in pieces: larger reads are refused
                    blobs[wanted[one.name]] = copy.getvalue()
    except (*broken, *faults()) as error:
        raise DataError(
            f"{path}: cannot be read as a .tar.gz ({error}); remove it to download it again"
        ) from error
    missing = sorted(set(wanted.values()) - set(blobs))
    if missing:
        raise DataError(
            f"{path}: missing {', '.join(missing)}; expected CIFAR's official archive "
            f"{layout.archive}"
        )
    return lambda member: unpickle(member, blobs[member])


def _value(layout: Layout, content: dict, member: str, key: bytes) -> object:
    if key not in content:
        raise DataError(
            f"{layout.archive}: {member} has no {key.decode()!r}; is it another data set's file?"
        )
    return content[key]
