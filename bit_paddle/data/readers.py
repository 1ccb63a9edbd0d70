"""Data sets by name: each reader gives training and validation images.

Labels, class names and sizes are known without decoding an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bit_paddle.data import spec as specs
from bit_paddle.data.cifar import open_cifar
from bit_paddle.data.folders import open_folder, open_imagenet
from bit_paddle.data.images import ArrayImages, Dataset, Images
from bit_paddle.data.lists import open_list
from bit_paddle.data.oxford import open_flowers, open_pets
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import ConfigError


def _open_digits(spec: DataSpec) -> Dataset:
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
        spec.flip,
        spec.random_crop,
        spec.resolution,
    )


READERS: dict[str, Callable[[DataSpec], Dataset]] = {
    "cifar10": open_cifar,
    "cifar100": open_cifar,
    "digits": _open_digits,
    "folder": open_folder,
    "imagenet2012": open_imagenet,
    "list": open_list,
    "oxford_flowers102": open_flowers,
    "oxford_iiit_pet": open_pets,
}
WITH_VAL_FRACTION = ("folder", "list")
DATADIR = {  # what it is, where nothing can be read without it
    "folder": "a folder with train/<class>/* and val/<class>/*, or <class>/* alone",
    "list": "a folder with train.csv and val.csv (or .tsv, .txt), or one such list",
    "imagenet2012": "a folder with train/<WordNet id>/*.JPEG and val/",
}


def find(dataset: str, **given: Any) -> DataSpec:
    """Return the description of ``dataset``, with what is ``given`` (not None) in its place.

    ``dataset`` is a name of `READERS` or of configs/data, or a YAML file. Errors: `ConfigError`,
    `MissingFileError`.
    """
    spec = specs.overridden(specs.find(dataset, READERS), **given)
    if spec.reader == "digits" and spec.datadir is not None:
        raise ConfigError("--datadir: is not for --dataset digits, which comes with scikit-learn")
    if spec.datadir is None and spec.reader in DATADIR:
        raise ConfigError(f"--datadir: is required by --dataset {dataset}: {DATADIR[spec.reader]}")
    if spec.val_fraction is not None and spec.reader not in WITH_VAL_FRACTION:
        raise ConfigError(
            f"--val_fraction: is not for {spec.reader}, which has validation images of its own"
        )
    return spec


def open_dataset(dataset: str, datadir: str | None = None, **given: Any) -> Dataset:
    """Open ``dataset``, which `find` knows.

    Errors: `ConfigError`, `MissingFileError`, `DataError`, `DownloadError`.
    """
    spec = find(dataset, datadir=datadir, **given)
    return READERS[spec.reader](spec)


def names() -> list[str]:
    """Return every name that --dataset may have, besides that of a YAML file."""
    return sorted({*READERS, *specs.described()})


def median_size(images: Images, sample: int = 256) -> tuple[int, int]:
    """Return the (height, width) of median area among up to ``sample`` evenly spaced images."""
    indices = np.unique(np.linspace(0, len(images) - 1, min(sample, len(images))).astype(int))
    sizes = sorted((images.size(index) for index in indices), key=lambda size: size[0] * size[1])
    return sizes[len(sizes) // 2]
