"""Images named in list files, a path and a label per line: the user's own, and VTAB-1k's."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from bit_paddle.data.images import FileImages, Parts
from bit_paddle.data.readers import folders
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import DataError, MissingFileError

SUFFIXES = (".csv", ".tsv", ".txt")

_HEADERS = (
    {"path", "file", "filename", "filepath", "image", "image_path", "image_id", "img", "name"},
    {"label", "class", "class_name", "category", "target"},
)

_SHOWN = 80  # characters of a bad line


Row = tuple[str, str, str]  # path, label, "list:line"


def open_list(spec: DataSpec) -> Parts:
    """Open the ``train`` and ``val`` lists (.csv, .tsv, .txt) in --datadir, or the list --datadir.

    In a .txt list the last word of a line is the label. Paths are relative to --datadir, or to the
    folder of the list --datadir. Labels are names, or numbers from 0 on, which ``spec.classes`` may
    name. Without a validation list a part of the training images is held out.
    """
    root = spec.folder
    if root.is_file():
        if spec.train or spec.val:
            raise DataError(
                f"--datadir {root}: is a list, but the data set's .yaml file names lists too"
            )
        train_list, val_list, root = root, None, root.parent
    else:
        train_list = _find(root, spec.train, "train")
        val_list = _find(root, spec.val, *folders.VALIDATION)
    if train_list is None:
        names = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
        raise MissingFileError(
            f"--datadir {root}: has no {_either(spec.train or 'train')}; found {names}"
        )
    if val_list is None and spec.val:
        raise MissingFileError(f"--datadir {root}: has no {spec.val}")
    lists = [list(_rows(path)) for path in (train_list, val_list) if path]
    for rows, path in zip(lists, (train_list, val_list)):
        if not rows:
            raise DataError(f"{path}: names no images; expected a path and a label per line")
    labels = [label for rows in lists for _, label, _ in rows]
    classes, number_of = _classes(labels[: len(lists[0])], spec)
    if not all(label in number_of for label in labels):
        _, unknown, line = next(row for rows in lists for row in rows if row[1] not in number_of)
        raise DataError(
            f"{line}: class {unknown!r} is not in "
            f"{'the given classes' if spec.classes else 'training'}; the head has one output for "
            f"each of {len(classes)} classes ({', '.join(classes[:4])} …)"
        )
    train, *val = (
        FileImages(
            [path for path, _, _ in rows],
            [number_of[label] for _, label, _ in rows],
            classes,
            root,
        )
        for rows in lists
    )
    notes = _repetitions(lists)
    if not val:
        return folders.held_out(train, spec, notes)
    folders.check_fraction_is_needed(spec, f"{val_list} exists")
    return folders.with_notes(train, val[0], notes, str(val_list))


def _classes(labels: Sequence[str], spec: DataSpec) -> tuple[list[str], dict[str, int]]:
    """Return the classes' names, and {label: class number} of all labels that may occur.

    With ``spec.classes`` the labels are its names, or their numbers from 0 on. Without it, labels
    are any names, or numbers from 0 on without a gap in training. Raises `DataError`.
    """
    distinct = set(labels)
    short = (word for word in distinct if word.isdecimal() and len(word) < 10)
    numbers = sorted(int(word) for word in short if str(int(word)) == word)
    if spec.classes:
        classes = list(spec.classes)
        by_name = {name: number for number, name in enumerate(classes)}
        if len(numbers) == len(distinct) and not distinct <= set(by_name):
            return classes, {str(number): number for number in range(len(classes))}
        return classes, by_name
    if len(distinct) < 2:
        raise DataError(f"--datadir {spec.datadir}: all training images are of class {labels[0]!r}")
    if len(numbers) < len(distinct):
        classes = sorted(distinct)
    else:
        missing = next((k for k, number in enumerate(numbers) if number != k), None)
        if missing is not None:
            raise DataError(
                f"--datadir {spec.datadir}: no training image has label {missing}, but the labels "
                f"go up to {numbers[-1]}; labels count from 0: renumber them, or name the classes "
                "in a data set's .yaml file"
            )
        classes = [str(number) for number in numbers]
    return classes, {name: number for number, name in enumerate(classes)}


def _repetitions(lists: Sequence[Sequence[Row]]) -> list[str]:
    """Return notes on images that the lists name more than once."""
    notes = []
    for rows in lists:
        labels: dict[str, set[str]] = {}
        for path, label, _ in rows:
            labels.setdefault(path, set()).add(label)
        several = sum(len(different) > 1 for different in labels.values())
        if len(rows) > len(labels):
            notes.append(f"{len(rows) - len(labels):,} lines repeat an image of an earlier line")
        if several:
            notes.append(f"{several:,} images have two labels or more")
    if len(lists) == 2:
        both = {path for path, _, _ in lists[0]} & {path for path, _, _ in lists[1]}
        if both:
            notes.append(f"{len(both):,} images are in both lists: validation is not independent")
    return notes


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
    for number, row in enumerate(_caught(cells, path), 1):
        if not any(row):
            continue
        words = [cell.lower() for cell in row]
        if number == 1 and all(known & set(words) for known in _HEADERS):
            columns = tuple(
                next(column for column, word in enumerate(words) if word in known)
                for known in _HEADERS
            )
        elif len(row) <= max(columns) or not all(row[column] for column in columns):
            raise DataError(
                f"{path}:{number}: found {' '.join(row)[:_SHOWN]!r}, expected a path and a label"
            )
        else:
            yield row[columns[0]], row[columns[1]], f"{path}:{number}"


def _caught(cells: Iterator[list[str]], path: Path) -> Iterator[list[str]]:
    try:
        yield from cells
    except csv.Error as error:
        raise DataError(f"{path}: is not a table ({error}); is a quote not closed?") from error
