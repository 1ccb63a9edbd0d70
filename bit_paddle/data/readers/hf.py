"""Data sets of the Hugging Face hub, ``hf:OWNER/NAME``, and local parquet files of such data sets.

At the first use the images are unpacked to plain files in the cache of this package. So they are
read, shown, audited and left out like any other images.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from bit_paddle.data.classes import are_labels, labels_of
from bit_paddle.data.images import FileImages, Parts
from bit_paddle.data.readers import folders, hub_layout, hub_sources, parquet
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import BitPaddleError, ConfigError, DataError, WriteError, did_you_mean
from bit_paddle.system import files
from bit_paddle.system.fetch import cache_dir
from bit_paddle.system.text import plural

ABOUT = "about.json"

_PARTS = {"train": "train", "val": "validation", "test": "test"}


def located(spec: DataSpec) -> DataSpec:
    """Return ``spec`` with the folder of its unpacked images as ``datadir``; unpack at first use.

    Errors: `ConfigError` (also for a missing package), `DataError`, `MissingFileError`,
    `DownloadError`, `WriteError`.
    """
    if spec.repository is None and (spec.folder / ABOUT).is_file():
        return spec
    parquet.check_installed()
    address = spec.repository
    source = hub_sources.local(spec) if address is None else hub_sources.on_hub(address)
    try:
        folder = _unpacked(source, spec)
    except BitPaddleError as error:
        if source.title in str(error):
            raise
        raise type(error)(f"{source.title}: {error}") from error
    return replace(spec, datadir=str(folder), repository=None)


# --- Unpacking ----------------------------------------------------------------------------------


def _unpacked(source: hub_sources.Source, spec: DataSpec) -> Path:
    """Return the folder of the cache with the images of ``source``."""
    if source.converted:
        subset = hub_layout.converted_subset(source.files, spec.subset)
    else:
        subset = hub_layout.find_subset(source.files, source.card, spec.subset)
    splits, notes = _splits(subset.splits, spec)
    described = hub_layout.class_names(source.card, subset.name)
    names = {part: subset.splits[split] for part, split in splits.items()}
    marks = {part: [(name, source.files[name]) for name in every] for part, every in names.items()}
    key = json.dumps([marks, described, spec.image, spec.label])
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:16]
    folder = cache_dir() / "parquet" / f"{source.name[:60]}-{digest}"
    if folder.is_dir() and not _is_complete(folder):
        shutil.rmtree(folder, ignore_errors=True)
    if folder.is_dir():
        return folder
    paths = {part: [source.path(name) for name in every] for part, every in names.items()}
    columns = parquet.find_columns(paths["train"][0], described, spec.image, spec.label)

    def fill(partial: Path) -> None:
        sizes = {}
        for part, every in paths.items():
            table = partial / f"{part}.csv"
            sizes[part] = parquet.unpack(every, columns, partial / part, table)._asdict()
            if empty := sizes[part]["empty"]:
                notes.append(f"{plural(empty, f'{part} image')} without content")
        about = {"splits": splits, "sizes": sizes, "columns": columns._asdict(), "notes": notes}
        files.write_text(partial / ABOUT, json.dumps(about))

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        files.fill_folder(folder, fill)
    except BitPaddleError:
        raise
    except OSError as error:
        raise WriteError(
            f"{folder.parent}: cannot be written ({error.strerror}); BIT_PADDLE_HOME names another "
            "cache"
        ) from error
    return folder


def _splits(found: Mapping[str, Sequence[str]], spec: DataSpec) -> tuple[dict[str, str], list[str]]:
    """Return {part: split} for the parts train, val and test, and notes on the other splits."""
    splits: dict[str, str] = {}
    usual = {part: name for part, name in _PARTS.items() if part != "test" or not spec.val}
    chosen = [getattr(spec, part) for part in _PARTS]
    for part, given in zip(_PARTS, chosen):
        if given is not None and given not in found:
            raise ConfigError(f"{part}: is {given!r}; {did_you_mean(given, found)}")
        if given is not None and chosen.count(given) > 1:
            raise ConfigError(f"{part}: the split {given!r} is named twice")
        words = hub_layout.KEYWORDS[usual[part]] if part in usual else ()
        words = (*words, *(f"partial-{word}" for word in words))
        free = (word for word in words if word in found and word not in chosen)
        split = given or next(free, None)
        if split is None and part == "train" and len(found) == 1:
            split = next(iter(found))
        if split is not None and split not in splits.values():
            splits[part] = split
    if "train" not in splits:
        raise ConfigError(
            f"no split is called train; it has {', '.join(found)}. Choose one with the key train "
            "in a data set's .yaml file"
        )
    notes = []
    others = [split for split in found if split not in splits.values()]
    if others:
        notes.append(f"splits that are not read: {', '.join(others[:8])}")
    for split in splits.values():
        if split.startswith("partial-"):
            notes.append(f"{split}: the hub has converted the first 5 GB only")
    return splits, notes


def _is_complete(folder: Path) -> bool:
    """Return whether all unpacked files are there, by their number and their length."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        for part, sizes in about["sizes"].items():
            found = [0, 0]
            _count(folder / part, found)
            if found != [sizes["images"], sizes["bytes"]] or not (folder / f"{part}.csv").is_file():
                return False
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return True


def _count(folder: Path, found: list[int]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _count(Path(entry.path), found)
            else:
                found[0] += 1
                found[1] += entry.stat().st_size


# --- Reading ------------------------------------------------------------------------------------


def open_hf(spec: DataSpec) -> Parts:
    """Open the parts of a data set that `located` has unpacked.

    Without validation images a part is held out, or test images validate, as in `open_folder`.
    Errors: `DataError`, `ConfigError`.
    """
    root = spec.folder
    about = json.loads((root / ABOUT).read_text(encoding="utf-8"))
    columns, notes = parquet.Columns(**about["columns"]), list(about["notes"])
    tables = {part: _table(root / f"{part}.csv", columns) for part in about["splits"]}
    if "test" in tables and (missing := tables["test"].missing):
        fault = f"{plural(missing, 'test image')} without a label"
        notes.append(folders.not_measured(fault))
        del tables["test"]
    for part, table in tables.items():
        if table.missing:
            raise DataError(
                f"{root / part}: {plural(table.missing, 'image')} of the split "
                f"{about['splits'][part]} have no label (null or -1) in the column "
                f"{columns.label!r}, such as {table.paths[table.labels.index(None)]}"
            )
        if not table.paths:
            raise DataError(f"{root / part}: the split {about['splits'][part]} has no images")
    classes, numbers = _classes(tables, columns, spec)
    parts = {part: _images(root / part, table, classes, numbers) for part, table in tables.items()}
    places = {part: PurePosixPath(about["splits"][part]) for part in parts}
    val, test, more = folders.roles(spec, places.get("val"), places.get("test"))
    notes += more
    held_for = parts.get("test") if test else None
    if val is None:
        return folders.held_out(parts["train"], spec, notes, held_for)
    folders.check_fraction_is_needed(spec, f"the split {val} exists")
    return Parts(parts["train"], parts.get("val", parts.get("test")), tuple(notes), held_for)


class _Table(NamedTuple):
    """Paths and labels of a part; a label is None, a number, or the name of a class."""

    paths: list[str]
    labels: list[Any]

    @property
    def missing(self) -> int:
        return self.labels.count(None)


def _table(path: Path, columns: parquet.Columns) -> _Table:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as stream:
        rows = list(csv.reader(stream))
    read: Callable[[str], Any] = int if columns.are_numbers else str
    none = ("", "-1") if columns.are_numbers else ("",)
    labels = [None if text in none else read(text) for _, text in rows]
    return _Table([name for name, _ in rows], labels)


def _classes(
    tables: Mapping[str, _Table], columns: parquet.Columns, spec: DataSpec
) -> tuple[list[str], dict[Any, int]]:
    """Return the names of the labels, and {label in a table: place of its name}.

    A list of names that are no labels stands for the numbers from 0 on.
    """
    given, found = labels_of(spec.classes), sorted(set(tables["train"].labels))
    if columns.names:
        named = dict(enumerate(columns.names))
    else:
        known = are_labels(spec.classes, list(map(str, found)))
        if isinstance(spec.classes, tuple) and columns.are_numbers and not known:
            return given, {number: number for number in range(len(given))}
        if given:  # labels that they do not name are left out, also those that training lacks
            found = sorted({label for table in tables.values() for label in table.labels})
        named = {label: str(label) for label in found}
    names = list(dict.fromkeys([*named.values(), *given]))
    places = {name: place for place, name in enumerate(names)}
    return names, {label: places[name] for label, name in named.items()}


def _images(
    folder: Path, table: _Table, classes: Sequence[str], numbers: Mapping[Any, int]
) -> FileImages:
    """Return the images of a part; a label becomes its number in ``classes``."""
    labels = [numbers.get(label) for label in table.labels]
    if None in labels:
        row = labels.index(None)
        raise DataError(
            f"{folder / table.paths[row]}: has the label {table.labels[row]!r}, which is no class; "
            f"{did_you_mean(str(table.labels[row]), classes)}"
        )
    return FileImages(table.paths, np.array(labels, np.int64), classes, folder)
