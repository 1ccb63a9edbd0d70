"""Descriptions of data sets: a YAML file, or the name of a reader.

To add a data set, write such a file. Its keys are the fields of `DataSpec`:

    reader: list            # cifar10, cifar100, digits, folder, list, imagenet2012, …
                            # or hf:OWNER/NAME, a data set of the Hugging Face hub
    datadir: /data/birds    # --datadir overrides it
    train: train.csv        # train, val and test name lists or folders, depending on the reader
    val: val.csv            # chooses the best model
    test: test.csv          # measured once, at the end of a run
    classes: [crow, owl]    # names in the order of the head's outputs; or a file, a name per line;
                            # or {bird: [crow, owl], cat: }, which merges classes
    separator: ";"          # an image may have several labels, with this text between them
    encoding: gb18030       # of the lists and of the class names (default: by the files' bytes)
    val_fraction: 0.1       # of the training images, if there are no validation images
    group: patient          # a column of the lists, or a regular expression: see `splits`
    exclude: bad.txt        # a file with the paths of images to leave out: see `exclude`
    image: photo            # the columns of parquet files with the images and with the labels,
    label: species          # if there are several
    subset: plain_text      # of the parquet files, if there are several
    window: 8               # of shards at an address: how many are shuffled together
    several: true           # of shards: an image may have several labels, or none
    flip: false             # a mirrored image would have another label
    random_crop: false      # a part of an image would have another label
    resolution: small       # small or large of BiT-HyperRule (default: by the images' sizes)
    pixel_range: [0, 4095]  # of 32-bit pixels alone: the values that become black and white
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from bit_paddle.data.classes import Classes, parsed
from bit_paddle.data.pixels import PixelRange
from bit_paddle.data.readers.archives import is_archive, stem
from bit_paddle.data.text import is_encoding
from bit_paddle.errors import ConfigError, MissingFileError, did_you_mean
from bit_paddle.system import files
from bit_paddle.system.hub import PREFIX, DataRepository

VAL_FRACTION = 0.1  # the default if neither the data set nor the user sets it


_TEXTS = (
    *("datadir", "train", "val", "test", "encoding", "separator", "group", "exclude"),
    *("image", "label", "subset"),
)

# Readers of the user's own images, which have the name of --datadir
_OF_A_FOLDER = ("folder", "list", "table", "coco", "hf", "shards", "unlabelled")

# Inside an installed package; next to the package in a clone.
_HOMES = [Path(__file__).parents[1] / "configs/data", Path(__file__).parents[2] / "configs/data"]


@dataclass(frozen=True)
class DataSpec:
    """A data set's description; None stands for the reader's default."""

    reader: str
    datadir: str | None = None
    train: str | None = None
    val: str | None = None
    test: str | None = None
    classes: Classes | None = None
    separator: str | None = None
    encoding: str | None = None
    val_fraction: float | None = None
    group: str | None = None
    exclude: str | None = None
    several: bool | None = None  # whether an image may have several labels, or none
    fold: tuple[int, int] | None = None  # (k, K): fold k of K validates; a setting, not a key
    measured: bool = False  # by a trained model: no class needs two images; not a key
    repository: str | None = None  # hf:OWNER/NAME of a data set on the hub; part of `reader`
    image: str | None = None
    label: str | None = None
    subset: str | None = None
    window: int | None = None
    flip: bool = True
    random_crop: bool = True
    resolution: str | None = None
    pixel_range: PixelRange | None = None

    @property
    def folder(self) -> Path:
        """``datadir`` as a path. Raises `MissingFileError` if it does not exist."""
        path = Path(self.datadir or ".")
        if not path.exists():
            raise MissingFileError(f"--datadir {path}: no such folder or archive")
        return path


def described() -> dict[str, Path]:
    """Return the files of configs/data by their names for --dataset, such as ``vtab/dtd``."""
    return {
        path.relative_to(home).with_suffix("").as_posix(): path
        for home in _HOMES
        for path in sorted(home.rglob("*.yaml"))
    }


def find(dataset: str, readers: Collection[str]) -> DataSpec:
    """Return the description of ``dataset``: a YAML file, a name of `described`, or a reader.

    Errors: `ConfigError` (all faults of a file at once), `MissingFileError`.
    """
    if dataset.lower().endswith((".yaml", ".yml")):
        return _load(Path(files.expanded(dataset)), readers)
    if dataset in described():
        return _load(described()[dataset], readers)
    if dataset in readers:
        return DataSpec(dataset)
    if dataset.startswith(PREFIX):
        return DataSpec("hf", repository=str(DataRepository.parse(dataset)))
    if dataset.endswith(".parquet"):
        raise ConfigError(f"--dataset: write --dataset hf --datadir {dataset}")
    if Path(dataset).is_dir() or is_archive(Path(dataset)):
        kind = "a folder of files" if Path(dataset).is_dir() else "an archive"
        raise ConfigError(
            f"--dataset: {dataset} is {kind}; write --dataset folder --datadir {dataset}"
        )
    raise ConfigError(
        f"--dataset: is {dataset!r}, neither a .yaml file nor a known name: "
        f"{did_you_mean(dataset, dict.fromkeys([*readers, *described()]))}"
    )


def short_name(dataset: str, datadir: str | None) -> str:
    """Return the name of ``dataset`` for a run's folder; for own images the folder's name."""
    if dataset.startswith(PREFIX):
        return DataRepository.parse(dataset).name
    if dataset in _OF_A_FOLDER and datadir:
        path = Path(datadir).resolve()
        return stem(path.name) if is_archive(path) else path.stem
    if dataset.lower().endswith((".yaml", ".yml")):
        return Path(dataset).stem
    return dataset.replace("/", "-")


def overridden(spec: DataSpec, **values: Any) -> DataSpec:
    """Return ``spec`` with the ``values`` that are not None in place of its own."""
    values = {key: value for key, value in values.items() if value is not None}
    for key in values.keys() & {"datadir", "exclude"}:
        values[key] = files.expanded(os.fspath(values[key]))
    return replace(spec, **values)


def _load(path: Path, readers: Collection[str]) -> DataSpec:
    content = files.read_yaml(path, f"--dataset {path}", "reader: folder")
    internal = {"fold", "measured", "repository"}
    expected = {field.name for field in fields(DataSpec)} - internal
    faults = [
        f"{key!r} is not a known key; {did_you_mean(str(key), expected)}"
        for key in content
        if key not in expected
    ]
    content = {key: value for key, value in content.items() if value is not None}
    reader = content.get("reader")
    if reader is None:
        faults.append("reader: is missing")
    elif isinstance(reader, str) and reader.startswith(PREFIX):
        try:
            content["repository"] = str(DataRepository.parse(reader))
        except ConfigError as error:
            faults.append(f"reader: {error}")
        content["reader"] = "hf"
    elif not isinstance(reader, str) or reader not in readers:
        faults.append(f"reader: is {reader!r}: {did_you_mean(str(reader), readers)}")
    faults += [
        f"{key}: is {content[key]!r}, expected a text"
        for key in _TEXTS
        if not isinstance(content.get(key, ""), str)
    ]
    faults += [
        f"{key}: is {content[key]!r}, expected true or false"
        for key in ("flip", "random_crop", "several")
        if not isinstance(content.get(key, True), bool)
    ]
    if isinstance(separator := content.get("separator", ";"), str) and not separator.strip():
        faults.append(f"separator: is {separator!r}, expected a text such as ';'")
    if "test" in content and content["test"] in (content.get("train"), content.get("val")):
        faults.append(f"test: {content['test']!r} is also train or val; name other images")
    if content.get("resolution", "small") not in ("small", "large"):
        faults.append(f"resolution: is {content['resolution']!r}, expected small or large")
    window = content.get("window", 1)
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        faults.append(f"window: is {window!r}, expected a number of shards")
    fraction = content.get("val_fraction", VAL_FRACTION)
    if isinstance(fraction, bool) or not isinstance(fraction, float) or not 0 < fraction < 1:
        faults.append(f"val_fraction: is {fraction!r}, expected a number between 0 and 1")
    if "pixel_range" in content:
        content["pixel_range"], fault = _range(content["pixel_range"])
        faults += fault
    encoding = content.get("encoding")
    if not isinstance(encoding, str):
        encoding = None
    elif not is_encoding(encoding):
        faults.append(f"encoding: is {encoding!r}, expected a name such as utf-8 or gb18030")
        encoding = None
    for key in {"datadir", "train", "val", "test", "exclude", "classes"} & set(content):
        if isinstance(content[key], str):
            content[key] = files.expanded(content[key])
    if "classes" in content:
        try:
            content["classes"] = parsed(content["classes"], path.parent, encoding)
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError(f"--dataset {path}: " + "; ".join(faults))
    if "datadir" in content and "://" not in content["datadir"]:
        content["datadir"] = os.path.join(path.parent, content["datadir"])
    if "exclude" in content:
        content["exclude"] = os.path.join(path.parent, content["exclude"])
    return DataSpec(**content)


def _range(value: Any) -> tuple[PixelRange | None, list[str]]:
    """Return a ``pixel_range``, or None and its fault."""
    numbers = value if isinstance(value, list) else []
    known = [type(number) in (int, float) and math.isfinite(number) for number in numbers]
    if known != [True, True] or not numbers[0] < numbers[1]:
        return None, [f"pixel_range: is {value!r}, expected two numbers, [low, high]"]
    return (float(numbers[0]), float(numbers[1])), []
