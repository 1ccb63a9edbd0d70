"""Data sets by name: each reader gives training and validation images.

Labels, class names and sizes are known without decoding an image.

To add a data set, write a function that takes a `DataSpec` and returns `Parts` (images to train and
to validate on), in a module of this folder, and add one entry to `READERS`. Images in folders or
lists need no code: a YAML file does (`bit_paddle.data.spec`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bit_paddle.data import spec as specs
from bit_paddle.data.images import Dataset, Images, Parts
from bit_paddle.data.readers.cifar import open_cifar
from bit_paddle.data.readers.digits import open_digits
from bit_paddle.data.readers.folders import open_folder, open_imagenet
from bit_paddle.data.readers.lists import open_list
from bit_paddle.data.readers.oxford import open_flowers, open_pets
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import ConfigError


class DatadirRequired(ConfigError):
    """A data set that cannot be read without --datadir."""


class Known(NamedTuple):
    """What is known of a data set without reading it."""

    images: int | None = None  # for training
    classes: int | None = None
    resolution: str | None = None  # small or large of BiT-HyperRule


@dataclass(frozen=True)
class Reader:
    """How a data set is read, and what its reader needs for it."""

    open: Callable[[DataSpec], Parts]
    #: Optional keys of a description (train, val, classes, val_fraction) that ``open`` reads
    uses: frozenset[str] = frozenset()
    #: What --datadir is, where nothing can be read without it
    datadir: str | None = None
    #: Why --datadir cannot be given, where it cannot
    no_datadir: str | None = None
    #: Published sizes, by the list of training images (None: the reader's own)
    known: dict[str | None, Known] = field(default_factory=dict)


_LISTS = frozenset({"train", "val", "classes"})

READERS: dict[str, Reader] = {
    "cifar10": Reader(open_cifar, known={None: Known(50_000, 10, "small")}),
    "cifar100": Reader(open_cifar, known={None: Known(50_000, 100, "small")}),
    "digits": Reader(open_digits, no_datadir="which comes with scikit-learn"),
    "folder": Reader(
        open_folder,
        uses=_LISTS | {"val_fraction"},
        datadir="a folder with train/<class>/* and val/<class>/*, or <class>/* alone",
    ),
    "imagenet2012": Reader(
        open_imagenet,
        uses=frozenset({"classes"}),
        datadir="a folder with train/<WordNet id>/*.JPEG and val/",
        known={None: Known(1_281_167, 1000, "large")},
    ),
    "list": Reader(
        open_list,
        uses=_LISTS | {"val_fraction"},
        datadir="a folder with its lists, such as train.csv and val.csv, or one such list",
        known={"train800val200.txt": Known(1_000)},  # VTAB-1k: configs/data says the rest
    ),
    "oxford_flowers102": Reader(open_flowers, _LISTS, known={None: Known(1_020, 102, "large")}),
    "oxford_iiit_pet": Reader(open_pets, _LISTS, known={None: Known(3_680, 37, "large")}),
}


def find(dataset: str, need_datadir: bool = True, **given: Any) -> DataSpec:
    """Return the description of ``dataset``, with what is ``given`` (not None) in its place.

    ``dataset`` is a name of `READERS` or of configs/data, or a YAML file; without ``need_datadir``
    nobody wants to open it. Errors: `ConfigError`, `MissingFileError`.
    """
    spec = specs.overridden(specs.find(dataset, READERS), **given)
    reader = READERS[spec.reader]
    if reader.no_datadir and spec.datadir is not None:
        raise ConfigError(f"--datadir: is not for --dataset {dataset}, {reader.no_datadir}")
    if need_datadir and spec.datadir is None and reader.datadir:
        raise DatadirRequired(f"--datadir: is required by --dataset {dataset}: {reader.datadir}")
    for key in ("train", "val", "classes", "val_fraction"):
        if getattr(spec, key) is not None and key not in reader.uses:
            name = "--val_fraction" if key == "val_fraction" else f"--dataset {dataset}: {key}"
            raise ConfigError(f"{name}: is not for {spec.reader}, which has its own")
    return spec


def known(spec: DataSpec) -> Known:
    """Return what is known of a data set without reading it; None for what is not."""
    sizes = READERS[spec.reader].known.get(spec.train, Known())
    return Known(
        sizes.images,
        len(spec.classes) if spec.classes else sizes.classes,
        spec.resolution or sizes.resolution,
    )


def open_dataset(dataset: str, datadir: str | None = None, **given: Any) -> Dataset:
    """Open ``dataset``, which `find` knows.

    Errors: `ConfigError`, `MissingFileError`, `DataError`, `DownloadError`.
    """
    return read(find(dataset, datadir=datadir, **given))


def read(spec: DataSpec) -> Dataset:
    """Open what ``spec`` describes. Errors: as of `open_dataset`."""
    parts = READERS[spec.reader].open(spec)
    return Dataset(
        train=parts.train,
        val=parts.val,
        flip=spec.flip,
        random_crop=spec.random_crop,
        resolution=spec.resolution,
        notes=parts.notes,
    )


def sizes(images: Images, subset: np.ndarray, sample: int = 256) -> list[tuple[int, int]]:
    """Return (height, width), by area, of up to ``sample`` evenly spaced images of ``subset``."""
    places = np.unique(np.linspace(0, len(subset) - 1, min(sample, len(subset))).astype(int))
    return sorted((images.size(k) for k in subset[places]), key=lambda size: size[0] * size[1])
