"""Images with several labels: separated in a cell, as columns of 0 and 1, or COCO's categories."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bit_paddle.data.boxes import coco
from bit_paddle.data.classes import labels_of
from bit_paddle.data.images import FileImages, Parts
from bit_paddle.data.labels import LabelSets
from bit_paddle.data.readers import folders, lists, nesting
from bit_paddle.data.readers.class_names import ClassNames
from bit_paddle.data.spec import DataSpec
from bit_paddle.data.text import Text, read_text
from bit_paddle.errors import DataError, MissingFileError

LABELS = ("labels.csv", "labels.tsv", "labels.txt")  # beside the folders of the images

_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True}

_PARTS = {"train": "train", **dict.fromkeys(folders.VALIDATION, "val"), folders.TEST: "test"}


class Listed(NamedTuple):
    """The content of a list: pairs (image, label) by number, and the names of both."""

    images: list[str]  # paths
    lines: list[str]  # "list:line" of each image
    owners: np.ndarray  # int64 [M]: the image of each label
    labels: list[str]  # [M]
    classes: list[str] | None = None  # all labels, where the list itself names them
    groups: list[str] | None = None

    def rows(self) -> list[lists.Row]:
        """Return (path, "", line) of each image."""
        return [(path, "", line) for path, line in zip(self.images, self.lines)]

    def pairs(self) -> list[lists.Row]:
        """Return (path, label, line) of each label of each image."""
        return [
            (self.images[k], label, self.lines[k])
            for k, label in zip(self.owners.tolist(), self.labels)
        ]


# --- Lists --------------------------------------------------------------------------------------


def open_lists(spec: DataSpec) -> Parts:
    """Open the lists of `lists.open_list`, with any number of labels per image.

    A list has a column of labels, separated by ``spec.separator``, where an empty cell is an image
    without a label. Or it has a header with a column per label, whose cells are 0 or 1.
    """
    root, *paths = lists.find_lists(spec)
    notes = lists.entered_note(root, spec)
    train, val, test = paths
    read = {path: _read_list(path, spec) for path in (train, val) if path}
    if test:
        try:
            read[test] = _read_list(test, spec)
            if not read[test].labels:
                raise DataError(f"{test}: no image has a label")
        except DataError as error:
            if spec.test:
                raise
            test, notes = None, [*notes, folders.not_measured(str(error))]
    val, test, more = folders.roles(spec, val, test)
    kept = {path: read[path] for path in (train, val, test) if path}
    return _parts(spec, root, kept, (train, val, test), [*notes, *more])


def open_labels_file(spec: DataSpec) -> Parts:
    """Open the images that ``labels.csv`` in --datadir names, a list as for `open_lists`.

    If all paths start with train/, val/ or test/, these folders are the parts; else a part of the
    images is held out for validation.
    """
    home = folders.folder_of(spec)
    root, notes = nesting.entered(home, lambda folder: _labels_file(folder) is not None)
    path = _labels_file(root)
    if path is None:
        raise MissingFileError(
            f"--datadir {root}: has no {LABELS[0]}, which --separator needs: a line per image with "
            f"its path and its labels; found {folders.content_of(root)}"
        )
    found = _read_list(path, spec)
    parts = [_PARTS.get(image.replace("\\", "/").split("/")[0]) for image in found.images]
    if None in parts:
        return _parts(spec, root, {path: found}, (path, None, None), notes)
    names = [part for part in ("train", "val", "test") if part in parts]
    if "train" not in names:
        raise DataError(f"{path}: names no image in train/; found {', '.join(names)}")
    kept = {root / name: _chosen(found, [part == name for part in parts]) for name in names}
    val, test, more = folders.roles(
        spec, *(root / name if name in names else None for name in ("val", "test"))
    )
    kept = {place: kept[place] for place in (root / "train", val, test) if place}
    return _parts(spec, root, kept, (root / "train", val, test), [*notes, *more])


def _labels_file(folder: Path) -> Path | None:
    return next((folder / name for name in LABELS if (folder / name).is_file()), None)


def _chosen(found: Listed, where: Sequence[bool]) -> Listed:
    stays = np.array(where, bool)
    number = np.cumsum(stays) - 1
    kept = stays[found.owners]

    def some(values: list[str]) -> list[str]:
        return [value for value, stay in zip(values, where) if stay]

    labels = [label for label, stay in zip(found.labels, kept.tolist()) if stay]
    groups = found.groups and some(found.groups)
    owners = number[found.owners[kept]]
    return Listed(some(found.images), some(found.lines), owners, labels, found.classes, groups)


def _read_list(path: Path, spec: DataSpec) -> Listed:
    text = read_text(path, spec.encoding)
    head = next((cells for _, cells in lists.cells_of(path, text)), [])
    words = {cell.lower() for cell in head}
    paths, labels = lists.HEADERS
    if words & paths and not words & labels and len(head) > 1:
        return _read_table(path, text, head, spec)
    if spec.separator is None:
        raise DataError(
            f"{path}: found the first line {', '.join(head)[:80]!r}, expected a header with a "
            f"column of paths ({', '.join(sorted(paths)[:4])} …) and a column per label, whose "
            "cells are 0 or 1"
        )
    rows = list(lists.rows_of(path, text, unlabelled=True))
    if not rows:
        raise DataError(f"{path}: names no images; expected a path and labels per line")
    groups = lists.groups_of(path, text, rows, spec)
    first: dict[str, int] = {}  # the first line of each image; other lines add labels
    owners, labels = [], []
    for number, (image, cell, _) in enumerate(rows):
        first.setdefault(image, number)
        own = [part.strip() for part in cell.split(spec.separator) if part.strip()]
        owners += [image] * len(own)
        labels += own
    place = {image: k for k, image in enumerate(first)}
    return Listed(
        list(first),
        [rows[number][2] for number in first.values()],
        np.array([place[image] for image in owners], np.int64),
        labels,
        groups=groups and [groups[number] for number in first.values()],
    )


def _read_table(path: Path, text: Text, head: list[str], spec: DataSpec) -> Listed:
    """Return the content of a table with a column of 0 and 1 per label.

    With ``spec.classes`` the other columns are not read.
    """
    column = next(k for k, cell in enumerate(head) if cell.lower() in lists.HEADERS[0])
    wanted = set(labels_of(spec.classes)) or set(head)
    columns = [
        k for k, name in enumerate(head) if k != column and name in wanted and name != spec.group
    ]
    twice = next((head[k] for k in columns if head.count(head[k]) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: has several columns {twice!r}, expected one per label")
    rows, lines, owners, places = [], [], [], []
    for number, cells in lists.cells_of(path, text):
        if number == 1 or not any(cells):
            continue
        if len(cells) < len(head) or not cells[column]:
            raise DataError(
                f"{path}:{number}: has {len(cells)} cells, expected {len(head)} and a path"
            )
        for k in columns:
            flag = _FLAGS.get(cells[k])
            if flag is None:
                raise DataError(
                    f"{path}:{number}: found {cells[k][:40]!r} in the column {head[k]}, expected 0 "
                    "or 1. If the column is no label, name the labels in a data set's .yaml file "
                    "(classes: …)"
                )
            if flag:
                owners.append(len(rows))
                places.append(k)
        rows.append((cells[column], "", f"{path}:{number}"))
        lines.append(f"{path}:{number}")
    if not rows:
        raise DataError(f"{path}: names no images; expected a path and 0 or 1 per label in a line")
    return Listed(
        [image for image, _, _ in rows],
        lines,
        np.array(owners, np.int64),
        [head[k] for k in places],
        [head[k] for k in columns],
        lists.groups_of(path, text, rows, spec),
    )


# --- COCO ---------------------------------------------------------------------------------------


def open_coco(spec: DataSpec) -> Parts:
    """Open the images of COCO's JSON files; the labels of an image are the categories in it.

    The files are ``train``, ``val`` and ``test``, else train.json, annotations.json or COCO's own
    annotations/instances_train2017.json and so on. Regions with ``iscrowd`` count too. A file_name
    is relative to --datadir, or to a folder in it: images, the part, or COCO's train2017 and so on.
    """
    root = folders.folder_of(spec)
    train, val, test = (
        _coco_file(root, given, part)
        for part, given in (("train", spec.train), ("val", spec.val), ("test", spec.test))
    )
    if train is None:
        raise MissingFileError(
            f"--datadir {root}: has no train.json, no annotations.json and no "
            f"annotations/instances_train*.json; found {folders.content_of(root)}"
        )
    val, test, notes = folders.roles(spec, val, test)
    kept = {path: _read_coco(path, root) for path in (train, val, test) if path}
    return _parts(spec, root, kept, (train, val, test), notes)


def _coco_file(root: Path, given: str | None, part: str) -> Path | None:
    if given:
        if not (root / given).is_file():
            raise MissingFileError(f"--datadir {root}: has no {given}")
        return root / given
    usual = [root / f"{part}.json", *sorted(root.glob(f"annotations/instances_{part}*.json"))]
    usual += [root / "annotations.json"] if part == "train" else []
    return next((path for path in usual if path.is_file()), None)


def _read_coco(path: Path, root: Path) -> Listed:
    content = coco.load(path)
    names = coco.categories(content, path)
    number: dict[Any, int] = {}
    files: list[str] = []
    for place, entry in enumerate(_entries(content, "images", path)):
        key, name = entry.get("id"), entry.get("file_name")
        if not coco.is_id(key) or key in number or not isinstance(name, str):
            raise DataError(
                f"{path}: images[{place}]: has id {key!r:.60} and file_name {name!r:.60}; expected "
                "a number of its own and the path of an image"
            )
        number[key] = len(files)
        files.append(name)
    if not files:
        raise DataError(f"{path}: has no images")
    pairs: dict[tuple[int, str], None] = {}
    for place, entry in enumerate(_entries(content, "annotations", path)):
        key, category = entry.get("image_id"), entry.get("category_id")
        if not (coco.is_id(key) and key in number and coco.is_id(category) and category in names):
            raise DataError(
                f"{path}: annotations[{place}]: has image_id {key!r:.60} and category_id "
                f"{category!r:.60}; expected an image and a category of the file"
            )
        pairs[number[key], names[category]] = None
    folder = _image_folder(root, path, files[0])
    return Listed(
        [os.path.join(folder, name) for name in files],
        [f"{path}: images[{place}]" for place in range(len(files))],
        np.array([image for image, _ in pairs], np.int64),
        [label for _, label in pairs],
        list(names.values()),
    )


def _entries(content: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    entries = content[key]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path}: {key}: expected a list of objects")
    return entries


def _image_folder(root: Path, path: Path, first: str) -> str:
    """Return the folder of the images of ``path`` relative to ``root``, by its ``first`` image."""
    part = path.stem.rpartition("_")[2]  # of instances_train2017
    for folder in ("", "images", part, f"images/{part}"):
        if (root / folder / first).is_file():
            return folder
    raise MissingFileError(
        f"{path}: its first image, {first}, is neither in {root} nor in images/, {part}/ or "
        f"images/{part}/"
    )


# --- Parts --------------------------------------------------------------------------------------


def _parts(
    spec: DataSpec,
    root: Path,
    found: dict[Path, Listed],
    places: Sequence[Path | None],
    notes: list[str],
) -> Parts:
    """Return the images of ``places``: training, validation and test. The first has the classes."""
    train, val, test = places
    classes, number_of, named = _classes(spec, root, found, found[train])
    notes = [*notes, *([f"{named.file} names {len(classes)} classes"] if named else [])]
    images = {}
    for place, listed in found.items():
        rows, count = lists.with_slashes(listed.rows(), root)
        notes += [f"{place}: {count:,} paths have \\, which was read as /"] if count else []
        numbers = lists.numbers_of(listed.pairs(), classes, number_of, named or spec.classes)
        sets = LabelSets.of_pairs(listed.owners, np.array(numbers, np.int64), len(rows))
        paths = [path for path, _, _ in rows]
        images[place] = FileImages(paths, sets, classes, root, listed.groups)
    parts = {"train": train, "validation": val, "test": test}
    notes += lists.repetitions({part: found[path].rows() for part, path in parts.items() if path})
    if val is None:
        return folders.held_out(images[train], spec, notes, images.get(test))
    folders.check_fraction_is_needed(spec, f"{val} exists")
    return folders.with_notes(images[train], images[val], notes, str(val), images.get(test))


def _classes(
    spec: DataSpec, root: Path, found: dict[Path, Listed], train: Listed
) -> tuple[list[str], dict[str, int], ClassNames | None]:
    """Return what `lists.classes_of` does; a table and COCO name their labels themselves."""
    if not train.labels:
        raise DataError(f"--datadir {spec.datadir}: no training image has a label")
    if train.classes is not None:
        return train.classes, {name: k for k, name in enumerate(train.classes)}, None
    classes, number_of, named = lists.classes_of(train.pairs(), spec, root)
    if spec.classes and list(number_of) == classes:  # labels that they do not name are left out
        for label in itertools.chain(*(listed.labels for listed in found.values())):
            number_of.setdefault(label, len(number_of))
        classes = list(number_of)
    return classes, number_of, named
