"""Images named in list files, a path and a label a line: one's own, and VTAB-1k's (``list``)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bit_paddle.data import folders
from bit_paddle.data.images import Dataset, FileImages, check_labels
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import DataError, MissingFileError

SUFFIXES = (".csv", ".tsv", ".txt")
_HEADERS = ({"path", "file", "filename", "image", "name"}, {"label", "class", "category", "target"})

Row = tuple[str, str, str]  # path, label, where it stands


def open_list(spec: DataSpec) -> Dataset:
    """``--datadir`` holds ``train`` and ``val`` lists (.csv, .tsv, .txt), or is the one list.

    Of .txt the last word of a line is the label. Paths are relative to the list's folder. Labels
    are names, or numbers from 0 on, which ``spec.classes`` may name. Without a validation list a
    part of the training images is held out.
    """
    place = spec.folder
    if place.is_file():
        train_list, val_list, place = place, None, place.parent
    else:
        train_list = _find(place, spec.train, "train")
        val_list = _find(place, spec.val, *folders.VALIDATION)
    if train_list is None:
        found = ", ".join(sorted(entry.name for entry in place.iterdir())[:8]) or "nothing"
        raise MissingFileError(
            f"--datadir {place}: has no {_either(spec.train or 'train')}; found {found}"
        )
    if val_list is None and spec.val:
        raise MissingFileError(f"--datadir {place}: has no {spec.val}")
    lists = [list(_rows(path)) for path in (train_list, val_list) if path]
    numbered = all(label.isdecimal() for rows in lists for _, label, _ in rows)
    if numbered:
        highest = max((int(label) for rows in lists for _, label, _ in rows), default=0)
        if highest > 1_000_000:
            raise DataError(f"{train_list}: label {highest} is too high to count classes by")
        classes = spec.classes or [str(number) for number in range(highest + 1)]
    else:
        classes = spec.classes or sorted({label for _, label, _ in lists[0]})
    labels = {name: label for label, name in enumerate(classes)}

    def images(rows: list[Row], path: Path) -> FileImages:
        strange = [row for row in rows if not numbered and row[1] not in labels]
        if strange:
            raise DataError(
                f"{strange[0][2]}: class {strange[0][1]!r} is "
                f"{'none of the classes given' if spec.classes else 'not in training'}; the head "
                "has an output for each training class alone"
            )
        if not rows:
            raise DataError(f"{path}: names no images; expected a path and a label a line")
        values = [int(label) if numbered else labels[label] for _, label, _ in rows]
        check_labels(np.array(values), classes, str(path))
        return FileImages([row[0] for row in rows], values, classes, path.parent)

    train = images(lists[0], train_list)
    folders.check_no_class_is_empty(train, str(train_list))
    if val_list is None:
        return folders.held_out(train, spec)
    folders.check_fraction_is_needed(spec, f"{val_list} is there")
    return folders.with_notes(train, images(lists[1], val_list), spec)


def _find(folder: Path, name: str | None, *usual: str) -> Path | None:
    names = [name] if name else [stem + suffix for stem in usual for suffix in SUFFIXES]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _either(stem: str) -> str:
    return stem if Path(stem).suffix in SUFFIXES else " or ".join(stem + end for end in SUFFIXES)


def _rows(path: Path) -> Iterator[Row]:
    """Yield (path, label, "list:line") of each line. Raises `DataError`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from error
    lines = text.splitlines()
    columns = (0, 1)
    if path.suffix.lower() == ".txt":
        cells = ([part.strip() for part in line.rsplit(None, 1)] for line in lines)
    else:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        cells = ([cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter))
    for number, row in enumerate(cells, 1):
        if not any(row):
            continue
        words = [cell.lower() for cell in row]
        if number == 1 and all(known & set(words) for known in _HEADERS):
            columns = tuple(
                next(place for place, word in enumerate(words) if word in known)
                for known in _HEADERS
            )
        elif len(row) <= max(columns) or not all(row[column] for column in columns):
            raise DataError(
                f"{path}:{number}: found {' '.join(row)!r}, expected a path and a label"
            )
        else:
            yield row[columns[0]], row[columns[1]], f"{path}:{number}"
