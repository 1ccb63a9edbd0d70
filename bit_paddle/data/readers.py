"""Data sets by name: each reader gives training and validation images.

Labels, class names and sizes are known without decoding an image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bit_paddle.data.cifar import open_cifar
from bit_paddle.data.images import SUFFIXES, ArrayImages, Dataset, FileImages, Images
from bit_paddle.errors import ConfigError, DataError, MissingFileError, did_you_mean

# --- Digits -------------------------------------------------------------------------------------


def _open_digits(name: str, datadir: str | None) -> Dataset:
    """scikit-learn's 1,797 digits of 8 x 8 pixels; every fifth of a class is for validation."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            "--dataset digits comes with scikit-learn, which is not installed: "
            "pip install 'bit_paddle[digits]'"
        ) from error
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 17 levels, 0 … 16
    pixels = np.repeat(grey[..., None], 3, axis=3)
    classes = [str(digit) for digit in digits.target_names]
    held_out = np.zeros(len(pixels), bool)
    for label in range(len(classes)):
        held_out[np.flatnonzero(digits.target == label)[4::5]] = True
    return Dataset(
        ArrayImages(pixels[~held_out], digits.target[~held_out], classes, "digits train"),
        ArrayImages(pixels[held_out], digits.target[held_out], classes, "digits val"),
    )


# --- A folder of one's own ----------------------------------------------------------------------


def _open_folder(name: str, datadir: str | None) -> Dataset:
    """``train/<class>/*`` and ``val/<class>/*``; the training folders, sorted, name the classes."""
    if not datadir:
        raise ConfigError(
            "--dataset folder needs --datadir: a folder with train/<class>/* and val/<class>/*"
        )
    root = Path(datadir)
    if not root.is_dir():
        raise MissingFileError(f"--datadir {datadir}: no such folder")
    for part in ("train", "val"):
        if not (root / part).is_dir():
            found = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
            raise MissingFileError(
                f"--datadir {datadir}: has no {part}/; expected train/<class>/* and "
                f"val/<class>/*, found {found}"
            )
    classes = _subfolders(root / "train")
    if len(classes) < 2:
        raise DataError(
            f"{root / 'train'}: {len(classes)} class folders"
            f"{' (' + classes[0] + ')' if classes else ''}; expected two or more"
        )
    strangers = [other for other in _subfolders(root / "val") if other not in classes]
    if strangers:
        raise DataError(
            f"{root / 'val'}: class {strangers[0]!r} is not in train/ "
            f"({did_you_mean(strangers[0], classes)}); the head has an output for each "
            "training class alone"
        )
    train, val = (_class_folders(root / part, classes) for part in ("train", "val"))
    empty = [
        classes[label]
        for label in np.flatnonzero(np.bincount(train.labels, minlength=len(classes)) == 0)
    ]
    if empty:
        raise DataError(
            f"{root / 'train'}: no images in {', '.join(empty[:5])}"
            f"{f' and {len(empty) - 5} more' if len(empty) > 5 else ''}; images end in "
            f"{' '.join(sorted(SUFFIXES))}"
        )
    if not len(val):
        raise DataError(
            f"{root / 'val'}: no images in its class folders; images end in "
            f"{' '.join(sorted(SUFFIXES))}"
        )
    return Dataset(train, val)


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )


def _class_folders(folder: Path, classes: Sequence[str]) -> FileImages:
    paths, labels = [], []
    for label, name in enumerate(classes):
        if not (folder / name).is_dir():
            continue
        files = sorted(
            entry.path
            for entry in os.scandir(folder / name)
            if os.path.splitext(entry.name)[1].lower() in SUFFIXES
            and not entry.name.startswith(".")
        )
        paths += files
        labels += [label] * len(files)
    return FileImages(paths, labels, classes)


# ------------------------------------------------------------------------------------------------

READERS: dict[str, Callable[[str, str | None], Dataset]] = {
    "cifar10": open_cifar,
    "cifar100": open_cifar,
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
