"""Data sets by name: each reader returns training, validation and perhaps test images.

Labels, class names and sizes are available without decoding an image.

To add a data set, write a function that takes a `DataSpec` and returns `Parts` (images to train and
to validate on), in a module of this folder, and add one entry to `READERS`. Images in folders or
lists need no code, only a YAML file (`bit_paddle.data.spec`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bit_paddle.data import classes, exclude, names, splits
from bit_paddle.data import spec as specs
from bit_paddle.data.images import Dataset, FileImages, Images, Parts
from bit_paddle.data.readers import archives
from bit_paddle.data.readers.cifar import open_cifar
from bit_paddle.data.readers.digits import open_digits
from bit_paddle.data.readers.folders import open_folder
from bit_paddle.data.readers.hf import located as located_hf
from bit_paddle.data.readers.hf import open_hf
from bit_paddle.data.readers.imagenet import open_imagenet
from bit_paddle.data.readers.lists import open_list
from bit_paddle.data.readers.oxford import open_flowers, open_pets
from bit_paddle.data.readers.several import open_coco, open_labels_file, open_lists
from bit_paddle.data.readers.shards import open_shards
from bit_paddle.data.readers.tf_flowers import open_tf_flowers
from bit_paddle.data.readers.unlabelled import open_unlabelled
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import ConfigError


class DatadirRequired(ConfigError):
    """The data set cannot be read without --datadir."""


class Known(NamedTuple):
    """Sizes of a data set that are known without reading it; None for unknown ones."""

    images: int | None = None  # training images
    classes: int | None = None
    resolution: str | None = None  # small or large of BiT-HyperRule


@dataclass(frozen=True)
class Reader:
    """A function that opens a data set, and its requirements."""

    open: Callable[[DataSpec], Parts]
    #: The function for images with several labels: with ``separator``, or if it is ``open``, always
    several: Callable[[DataSpec], Parts] | None = None
    #: Optional keys of a description that ``open`` reads, of `_OPTIONAL`
    uses: frozenset[str] = frozenset()
    #: Content of --datadir, if the data set requires it
    datadir: str | None = None
    #: Whether --datadir may be an archive of such files
    archives: bool = False
    #: Reason why --datadir is not accepted, if so
    no_datadir: str | None = None
    #: Published sizes by the list of training images (None: the reader's default list)
    known: dict[str | None, Known] = field(default_factory=dict)


_OPTIONAL = (
    *("train", "val", "test", "val_fraction", "encoding", "separator"),
    *("image", "label", "subset", "window", "several"),
)

_LISTS = frozenset({"train", "val", "test"})

_FILES = frozenset({"group", "fold", "exclude", "pixel_range"})  # of images that have paths

READERS: dict[str, Reader] = {
    "cifar10": Reader(open_cifar, known={None: Known(50_000, 10, "small")}),
    "cifar100": Reader(open_cifar, known={None: Known(50_000, 100, "small")}),
    "coco": Reader(
        open_coco,
        several=open_coco,
        uses=_LISTS | _FILES | {"val_fraction"},
        datadir="a folder with annotations.json of COCO (or train.json, val.json) and its images",
        archives=True,
    ),
    "digits": Reader(open_digits, no_datadir="which comes with scikit-learn"),
    "folder": Reader(
        open_folder,
        several=open_labels_file,
        uses=_LISTS | _FILES | {"val_fraction", "separator"},
        datadir="a folder with train/<class>/* and val/<class>/*, or <class>/* alone",
        archives=True,
    ),
    "hf": Reader(
        open_hf,
        uses=_LISTS | _FILES | {"val_fraction", "image", "label", "subset"},
        datadir="a folder with parquet files, or one such file; or write --dataset hf:OWNER/NAME",
    ),
    "imagenet2012": Reader(
        open_imagenet,
        uses=_FILES,
        datadir="a folder with train/<WordNet id>/*.JPEG and val/",
        known={None: Known(1_281_167, 1000, "large")},
    ),
    "list": Reader(
        open_list,
        several=open_lists,
        uses=_LISTS | _FILES | {"val_fraction", "encoding", "separator"},
        datadir="a folder with its lists, such as train.csv and val.csv, or one such list",
        archives=True,
        known={"train800val200.txt": Known(1_000)},  # VTAB-1k; configs/data has the classes
    ),
    "oxford_flowers102": Reader(
        open_flowers, uses=_LISTS | _FILES, known={None: Known(1_020, 102, "large")}
    ),
    "oxford_iiit_pet": Reader(
        open_pets, uses=_LISTS | _FILES, known={None: Known(3_680, 37, "large")}
    ),
    "table": Reader(
        open_lists,
        several=open_lists,
        uses=_LISTS | _FILES | {"val_fraction", "encoding"},
        datadir="a folder with train.csv and val.csv, or one such table: a column of paths, and a "
        "column of 0 and 1 per label",
        archives=True,
    ),
    "shards": Reader(
        open_shards,
        uses=_LISTS | {"val_fraction", "encoding", "window", "several"},
        datadir="a folder or an address with the shards that bit_paddle pack writes, or with tars",
    ),
    "tf_flowers": Reader(
        open_tf_flowers,
        uses=_FILES | {"val_fraction"},
        known={None: Known(3_303, 5, "large")},  # without the tenth that is held out
    ),
    "unlabelled": Reader(
        open_unlabelled,
        uses=_FILES | {"val_fraction"},
        datadir="a folder of images without labels, at any depth",
        archives=True,
    ),
}


def find(dataset: str, need_datadir: bool = True, **overrides: Any) -> DataSpec:
    """Return the description of ``dataset``, where ``overrides`` that are not None replace values.

    ``dataset`` is a name of `READERS` or of configs/data, or a YAML file. Without ``need_datadir``
    a required --datadir may be missing. Errors: `ConfigError`, `MissingFileError`.
    """
    spec = specs.overridden(specs.find(dataset, READERS), **overrides)
    reader = READERS[spec.reader]
    if reader.no_datadir and spec.datadir is not None:
        raise ConfigError(f"--datadir: is not for --dataset {dataset}, {reader.no_datadir}")
    if spec.repository and spec.datadir is not None:
        raise ConfigError(
            f"--datadir: is not for {spec.repository}; --dataset hf reads local parquet files"
        )
    if need_datadir and reader.datadir and spec.datadir is None and not spec.repository:
        raise DatadirRequired(f"--datadir: is required by --dataset {dataset}: {reader.datadir}")
    flags = {"group": "--group", "fold": "--folds", "exclude": "--exclude"}
    for key, flag in {**flags, "pixel_range": f"--dataset {dataset}: pixel_range"}.items():
        if getattr(spec, key) is not None and key not in reader.uses:
            raise ConfigError(f"{flag}: is not for {spec.reader}, whose images have no paths")
    lists = (open_lists, open_list)
    if spec.group is not None and reader.open not in lists:  # a list may have such a column
        splits.group_pattern(spec.group)
    uses = reader.uses | ({"encoding"} if spec.separator is not None else set())  # of labels.csv
    for key in _OPTIONAL:
        if getattr(spec, key) is not None and key not in uses:
            is_flag = key in ("val_fraction", "separator")
            name = f"--{key}" if is_flag else f"--dataset {dataset}: {key}"
            raise ConfigError(f"{name}: is not for {spec.reader}, which has its own")
    several = reader.open is reader.several or spec.separator is not None
    return replace(spec, several=several or bool(spec.several))


def known(spec: DataSpec) -> Known:
    """Return the sizes of a data set without reading it; unknown ones are None."""
    sizes = READERS[spec.reader].known.get(spec.train, Known())
    fewer = spec.classes and sizes.classes not in (None, len(spec.classes))
    return Known(
        None if fewer or isinstance(spec.classes, Mapping) else sizes.images,
        len(spec.classes) if spec.classes else sizes.classes,
        spec.resolution or sizes.resolution,
    )


def open_dataset(dataset: str, datadir: str | None = None, **overrides: Any) -> Dataset:
    """Open ``dataset``; the arguments are those of `find`.

    Errors: `ConfigError`, `MissingFileError`, `DataError`, `DownloadError`.
    """
    return read(find(dataset, datadir=datadir, **overrides))


def _located(spec: DataSpec) -> tuple[DataSpec, tuple[str, ...]]:
    """Return ``spec`` with the folder of the images as ``datadir``, and notes.

    Archives and parquet files are unpacked into the cache at the first use. Errors: as of
    `open_dataset`.
    """
    if spec.reader == "hf":
        found = located_hf(spec)
    elif READERS[spec.reader].archives and spec.datadir and archives.is_archive(Path(spec.datadir)):
        found = replace(spec, datadir=str(archives.cached(Path(spec.datadir))))
    else:
        return spec, ()
    if found == spec:
        return spec, ()
    title = spec.repository or spec.datadir
    return found, (f"{title} is read from its unpacked copy {found.datadir}",)


def read(spec: DataSpec) -> Dataset:
    """Open the data set of ``spec``. Errors: as of `open_dataset`."""
    reader = READERS[spec.reader]
    spec, notes = _located(spec)
    parts = reader.several(spec) if spec.several and reader.several else reader.open(spec)
    if spec.classes:  # after images are held out, so a selection leaves each image in its part
        parts = classes.select(parts, spec.classes)
    if spec.fold:
        parts = splits.cut(parts, spec)
    if spec.exclude:
        parts = exclude.without(parts, spec)
    for images in (parts.train, parts.val, parts.test):
        if isinstance(images, FileImages):
            images.pixel_range = spec.pixel_range
    return Dataset(
        train=parts.train,
        val=parts.val,
        flip=spec.flip,
        random_crop=spec.random_crop,
        resolution=spec.resolution,
        test=parts.test,
        folds=parts.folds,
        datadir=spec.datadir,
        notes=(
            *notes,
            *parts.notes,
            *splits.group_notes(parts, spec),
            *splits.absences(parts),
            *names.notes(parts.train.classes, spec.classes is not None),
        ),
    )


def sizes(images: Images, subset: np.ndarray, sample: int = 256) -> list[tuple[int, int]]:
    """Return (height, width), sorted by area, of ``sample`` evenly spaced images of ``subset``."""
    positions = np.unique(np.linspace(0, len(subset) - 1, min(sample, len(subset))).astype(int))
    return sorted((images.size(k) for k in subset[positions]), key=lambda size: size[0] * size[1])
