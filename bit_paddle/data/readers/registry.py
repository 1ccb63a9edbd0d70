"""Data sets by name: each reader gives training and validation images.

Labels, class names and sizes are known without decoding an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bit_paddle.data import spec as specs
from bit_paddle.data.images import Dataset, Images
from bit_paddle.data.readers.cifar import open_cifar
from bit_paddle.data.readers.digits import open_digits
from bit_paddle.data.readers.folders import open_folder, open_imagenet
from bit_paddle.data.readers.lists import open_list
from bit_paddle.data.readers.oxford import open_flowers, open_pets
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import ConfigError

READERS: dict[str, Callable[[DataSpec], Dataset]] = {
    "cifar10": open_cifar,
    "cifar100": open_cifar,
    "digits": open_digits,
    "folder": open_folder,
    "imagenet2012": open_imagenet,
    "list": open_list,
    "oxford_flowers102": open_flowers,
    "oxford_iiit_pet": open_pets,
}

USES = {  # of what a description may say, what each reader reads
    "folder": {"train", "val", "classes", "val_fraction"},
    "imagenet2012": {"classes"},
    "list": {"train", "val", "classes", "val_fraction"},
    "oxford_flowers102": {"train", "val", "classes"},
    "oxford_iiit_pet": {"train", "val", "classes"},
}

DATADIR = {  # what it is, where nothing can be read without it
    "folder": "a folder with train/<class>/* and val/<class>/*, or <class>/* alone",
    "list": "a folder with its lists, such as train.csv and val.csv, or one such list",
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
    for key in ("train", "val", "classes", "val_fraction"):
        if getattr(spec, key) is not None and key not in USES.get(spec.reader, ()):
            name = "--val_fraction" if key == "val_fraction" else f"--dataset {dataset}: {key}"
            raise ConfigError(f"{name}: is not for {spec.reader}, which has its own")
    return spec


def open_dataset(dataset: str, datadir: str | None = None, **given: Any) -> Dataset:
    """Open ``dataset``, which `find` knows.

    Errors: `ConfigError`, `MissingFileError`, `DataError`, `DownloadError`.
    """
    spec = find(dataset, datadir=datadir, **given)
    return READERS[spec.reader](spec)


def sizes(images: Images, subset: np.ndarray, sample: int = 256) -> list[tuple[int, int]]:
    """Return (height, width), by area, of up to ``sample`` evenly spaced images of ``subset``."""
    places = np.unique(np.linspace(0, len(subset) - 1, min(sample, len(subset))).astype(int))
    return sorted((images.size(k) for k in subset[places]), key=lambda size: size[0] * size[1])
