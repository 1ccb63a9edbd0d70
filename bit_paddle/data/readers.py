"""Data sets: images with labels, read one at a time.

A reader opens a data set by name and gives its training and validation images. Labels, class names and
sizes are known without decoding an image.
"""
from __future__ import annotations

import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from bit_paddle import catalog, download
from bit_paddle.errors import ConfigError, DataError, MissingFileError, did_you_mean

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


class Images(Protocol):
    """What the loader needs to know of a set of images."""

    labels: np.ndarray      # int64 [N]
    classes: Sequence[str]  # names, in the order of the head's outputs

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Return image ``index`` as RGB; raise `DataError` if it cannot be decoded."""

    def size(self, index: int) -> tuple[int, int]:
        """Return the (height, width) of image ``index`` in pixels, without decoding it."""

    def name(self, index: int) -> str:
        """Return what to call image ``index`` in a message: its path, where it has one."""


class Dataset(NamedTuple):
    """Training and validation images."""

    train: Images
    val: Images


class ArrayImages:
    """Images of one size, held in memory as ``pixels`` uint8 [N, H, W, 3]."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str], title: str):
        self.pixels, self.classes, self.title = pixels, list(classes), title
        self.labels = np.asarray(labels, np.int64)
        if len(pixels) != len(self.labels):
            raise DataError(f"{title}: {len(pixels)} images, but {len(self.labels)} labels")
        _check_labels(self.labels, self.classes, title)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def size(self, index: int) -> tuple[int, int]:
        return self.pixels.shape[1:3]

    def name(self, index: int) -> str:
        return f"{self.title} image {index}"


class FileImages:
    """Images in files, decoded when they are asked for."""

    def __init__(self, paths: Sequence[str], labels: Sequence[int], classes: Sequence[str]):
        self.paths, self.classes = list(paths), list(classes)
        self.labels = np.asarray(labels, np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        with self._open(index) as image:
            try:
                return image.convert("RGB")
            except (OSError, ValueError, SyntaxError) as error:
                raise DataError(f"{self.paths[index]}: cannot be decoded ({error}); "
                                "repair or remove the file") from error

    def size(self, index: int) -> tuple[int, int]:
        with self._open(index) as image:
            return image.height, image.width

    def name(self, index: int) -> str:
        return self.paths[index]

    def _open(self, index: int) -> Image.Image:
        try:
            return Image.open(self.paths[index])
        except FileNotFoundError as error:
            raise MissingFileError(f"{self.paths[index]}: the image has gone since the start") from error
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise DataError(f"{self.paths[index]}: not an image that can be read ({error}); "
                            "repair or remove the file") from error


def _check_labels(labels: np.ndarray, classes: Sequence[str], title: str) -> None:
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        raise DataError(f"{title}: {len(outside)} labels are outside 0 … {len(classes) - 1}, the first "
                        f"is {labels[outside[0]]} of image {outside[0]}; the head has an output for "
                        f"each of {len(classes)} classes")


# --- CIFAR ---------------------------------------------------------------------------------------

class _CifarLayout(NamedTuple):
    archive: str
    md5: str
    folder: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    meta: str
    labels: bytes
    names: bytes


CIFAR_URL = "https://dataset.bj.bcebos.com/cifar/"  # Paddle's own mirror: paddle.vision.datasets.Cifar10
_CIFAR = {
    "cifar10": _CifarLayout("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a",
                            "cifar-10-batches-py", tuple(f"data_batch_{k}" for k in range(1, 6)),
                            ("test_batch",), "batches.meta", b"labels", b"label_names"),
    "cifar100": _CifarLayout("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85",
                             "cifar-100-python", ("train",), ("test",), "meta", b"fine_labels",
                             b"fine_label_names"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, bytes and NumPy arrays; refuses to import anything else."""

    _ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
                ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data set needs")
        return super().find_class(module, name)


def _open_cifar(name: str, datadir: str | None) -> Dataset:
    """Read the official archive or its unpacked folder, from ``datadir`` or, downloaded, from the cache."""
    layout = _CIFAR[name]
    read = _cifar_members(layout, _find_cifar(layout, datadir))
    classes = [word.decode() for word in _cifar_value(layout, read(layout.meta), layout.meta, layout.names)]

    def split(members: Sequence[str], title: str) -> ArrayImages:
        contents = [read(member) for member in members]
        labels = np.concatenate([_cifar_value(layout, content, member, layout.labels)
                                 for content, member in zip(contents, members)])
        pixels = [np.asarray(_cifar_value(layout, content, member, b"data"))
                  for content, member in zip(contents, members)]
        if any(part.ndim != 2 or part.shape[1] != 3072 or part.dtype != np.uint8 for part in pixels):
            raise DataError(f"{name}: pixels of {[list(part.shape) for part in pixels]} "
                            f"{pixels[0].dtype}; expected uint8 [N, 3072]")
        pixels = np.concatenate(pixels).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return ArrayImages(np.ascontiguousarray(pixels), labels, classes, f"{name} {title}")

    return Dataset(split(layout.train, "train"), split(layout.val, "test"))


def _find_cifar(layout: _CifarLayout, datadir: str | None) -> Path:
    folder = Path(datadir) if datadir else catalog.cache_dir()
    for path in (folder / layout.archive, folder / layout.folder, folder):
        if path.is_file() or (path / layout.meta).is_file():
            return path
    if datadir:
        raise MissingFileError(f"--datadir {datadir}: holds neither {layout.archive} nor the folder "
                               f"{layout.folder}; leave --datadir out to download it")
    return download.fetch(CIFAR_URL + layout.archive, folder / layout.archive, md5=layout.md5)


def _cifar_members(layout: _CifarLayout, path: Path) -> Callable[[str], dict]:
    """Return a function from a member's name to its unpickled content."""
    broken = (OSError, EOFError, tarfile.TarError, zlib.error, pickle.UnpicklingError, KeyError,
              ValueError, TypeError, IndexError, AttributeError, ImportError, MemoryError)

    def unpickle(member: str, blob: bytes) -> dict:
        try:
            content = _ArrayUnpickler(io.BytesIO(blob), encoding="bytes").load()
        except broken as error:
            raise DataError(f"{path}: {member} is damaged or not CIFAR's ({error})") from error
        if not isinstance(content, dict):
            raise DataError(f"{path}: {member} holds a {type(content).__name__}, expected a dictionary")
        return content

    if path.is_dir():
        def read(member: str) -> dict:
            try:
                return unpickle(member, (path / member).read_bytes())
            except FileNotFoundError as error:
                raise MissingFileError(f"{path}: lacks {member}") from error
        return read
    wanted = {f"{layout.folder}/{member}": member for member in (*layout.train, *layout.val, layout.meta)}
    try:
        with tarfile.open(path) as archive:  # one pass: going back in a .tar.gz means starting over
            blobs = {wanted[info.name]: archive.extractfile(info).read()
                     for info in archive if info.name in wanted and info.isfile()}
    except broken as error:
        raise DataError(f"{path}: cannot be read as a .tar.gz ({error}); remove it to download it "
                        "again") from error
    lacking = sorted(set(wanted.values()) - set(blobs))
    if lacking:
        raise DataError(f"{path}: lacks {', '.join(lacking)}; expected CIFAR's official archive "
                        f"{layout.archive}")
    return lambda member: unpickle(member, blobs[member])


def _cifar_value(layout: _CifarLayout, content: dict, member: str, key: bytes) -> object:
    if key not in content:
        raise DataError(f"{layout.archive}: {member} has no {key.decode()!r}; is it another data set's?")
    return content[key]


# --- Digits --------------------------------------------------------------------------------------

def _open_digits(name: str, datadir: str | None) -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; every fifth of a class is for validation."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError("--dataset digits comes with scikit-learn, which is not installed: "
                          "pip install 'bit_paddle[digits]'") from error
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 17 levels, 0 … 16
    pixels = np.repeat(grey[..., None], 3, axis=3)
    classes = [str(digit) for digit in digits.target_names]
    held_out = np.zeros(len(pixels), bool)
    for label in range(len(classes)):
        held_out[np.flatnonzero(digits.target == label)[4::5]] = True
    return Dataset(ArrayImages(pixels[~held_out], digits.target[~held_out], classes, "digits train"),
                   ArrayImages(pixels[held_out], digits.target[held_out], classes, "digits val"))


# --- A folder of one's own -------------------------------------------------------------------------

def _open_folder(name: str, datadir: str | None) -> Dataset:
    """``train/<class>/*`` and ``val/<class>/*``; the training folders, sorted, name the classes."""
    if not datadir:
        raise ConfigError("--dataset folder needs --datadir: a folder with train/<class>/* and val/<class>/*")
    root = Path(datadir)
    if not root.is_dir():
        raise MissingFileError(f"--datadir {datadir}: no such folder")
    for part in ("train", "val"):
        if not (root / part).is_dir():
            found = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
            raise MissingFileError(f"--datadir {datadir}: has no {part}/; expected train/<class>/* and "
                                   f"val/<class>/*, found {found}")
    classes = _subfolders(root / "train")
    if len(classes) < 2:
        raise DataError(f"{root / 'train'}: {len(classes)} class folders"
                        f"{' (' + classes[0] + ')' if classes else ''}; expected two or more")
    strangers = [other for other in _subfolders(root / "val") if other not in classes]
    if strangers:
        raise DataError(f"{root / 'val'}: class {strangers[0]!r} is not in train/ "
                        f"({did_you_mean(strangers[0], classes)}); the head has an output for each "
                        "training class alone")
    train, val = (_class_folders(root / part, classes) for part in ("train", "val"))
    empty = [classes[label] for label in np.flatnonzero(np.bincount(train.labels, minlength=len(classes)) == 0)]
    if empty:
        raise DataError(f"{root / 'train'}: no images in {', '.join(empty[:5])}"
                        f"{f' and {len(empty) - 5} more' if len(empty) > 5 else ''}; images end in "
                        f"{' '.join(sorted(SUFFIXES))}")
    if not len(val):
        raise DataError(f"{root / 'val'}: no images in its class folders; images end in "
                        f"{' '.join(sorted(SUFFIXES))}")
    return Dataset(train, val)


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder)
                  if entry.is_dir() and not entry.name.startswith("."))


def _class_folders(folder: Path, classes: Sequence[str]) -> FileImages:
    paths, labels = [], []
    for label, name in enumerate(classes):
        if not (folder / name).is_dir():
            continue
        files = sorted(entry.path for entry in os.scandir(folder / name)
                       if os.path.splitext(entry.name)[1].lower() in SUFFIXES
                       and not entry.name.startswith("."))
        paths += files
        labels += [label] * len(files)
    return FileImages(paths, labels, classes)


# -------------------------------------------------------------------------------------------------

READERS: dict[str, Callable[[str, str | None], Dataset]] = {
    "cifar10": _open_cifar,
    "cifar100": _open_cifar,
    "digits": _open_digits,
    "folder": _open_folder,
}


def open_dataset(name: str, datadir: str | None = None) -> Dataset:
    """Open the data set ``name`` of `READERS`.

    Errors: `ConfigError`, `MissingFileError`, `DataError`, `DownloadError`.
    """
    if name not in READERS:
        raise ConfigError(f"unknown dataset {name!r}: {did_you_mean(name, READERS)}")
    return READERS[name](name, datadir)


def median_size(images: Images, sample: int = 256) -> tuple[int, int]:
    """Return the (height, width) of median area among up to ``sample`` evenly spaced images."""
    indices = np.unique(np.linspace(0, len(images) - 1, min(sample, len(images))).astype(int))
    sizes = sorted((images.size(index) for index in indices), key=lambda size: size[0] * size[1])
    return sizes[len(sizes) // 2]
