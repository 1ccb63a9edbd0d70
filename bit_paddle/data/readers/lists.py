"""Images named in list files, a path and a label per line: the user's own, and VTAB-1k's."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from bit_paddle.data.classes import are_labels, labels_of
from bit_paddle.data.images import FileImages, Parts
from bit_paddle.data.readers import folders, nesting
from bit_paddle.data.readers.class_names import ClassNames, find_class_names
from bit_paddle.data.readers.separators import check_single
from bit_paddle.data.spec import DataSpec
from bit_paddle.data.text import Text, read_text
from bit_paddle.errors import ConfigError, DataError, MissingFileError

SUFFIXES = (".csv", ".tsv", ".txt")

ENDS = (*SUFFIXES, "_list.txt")  # train_list.txt is PaddleClas' and PaddleX' name

HEADERS = (
    {"path", "file", "filename", "filepath", "image", "image_path", "image_id", "img", "name"},
    {"label", "class", "class_name", "category", "target", "labels", "categories", "tags"},
)

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # C:\images, or \\server\images

_SHOWN = 80  # characters of a bad line


Row = tuple[str, str, str]  # path, label, "list:line"


def open_list(spec: DataSpec) -> Parts:
    """Open the ``train``, ``val`` and ``test`` lists (.csv, .tsv, .txt) of --datadir, or one list.

    In a .txt list the last word of a line is the label. Paths are relative to --datadir, or to the
    folder of the list --datadir. Labels are names, or numbers from 0 on, which ``spec.classes`` or
    a file beside the lists (`find_class_names`) may name. Without a validation list a part of the
    training images is held out.
    """
    root, train_list, val_list, test_list = find_lists(spec)
    lists = [path for path in (train_list, val_list, test_list) if path]
    texts = {path: read_text(path, spec.encoding) for path in lists}
    rows = {train_list: _all_rows(train_list, texts[train_list])}
    check_single(rows[train_list], spec)
    classes, number_of, named = classes_of(rows[train_list], spec, train_list.parent)
    notes = entered_note(root, spec)
    fault = None
    if test_list and not spec.test:
        fault = _unlabelled(test_list, texts[test_list], number_of)
    if fault:
        test_list, notes = None, [*notes, folders.not_measured(fault)]
    val_list, test_list, more = folders.roles(spec, val_list, test_list)
    rows.update({path: _all_rows(path, texts[path]) for path in (val_list, test_list) if path})
    if spec.classes and list(number_of) == classes:  # labels that they do not name are left out
        for _, label, _ in itertools.chain(*rows.values()):
            number_of.setdefault(label, len(number_of))
        classes = list(number_of)
    notes += _names_and_encodings(classes, named, texts, spec)
    for path, content in rows.items():
        rows[path], count = with_slashes(content, root)
        notes += [f"{path}: {count:,} paths have \\, which was read as /"] if count else []
    images = {
        path: FileImages(
            [image for image, _, _ in content],
            numbers_of(content, classes, number_of, named or spec.classes),
            classes,
            root,
            groups_of(path, texts[path], content, spec),
        )
        for path, content in rows.items()
    }
    train, test = images[train_list], images.get(test_list)
    parts = {"train": train_list, "validation": val_list, "test": test_list}
    notes += [*more, *repetitions({part: rows[path] for part, path in parts.items() if path})]
    if val_list is None:
        return folders.held_out(train, spec, notes, test)
    folders.check_fraction_is_needed(spec, f"{val_list} exists")
    return folders.with_notes(train, images[val_list], notes, str(val_list), test)


def find_lists(spec: DataSpec) -> tuple[Path, Path, Path | None, Path | None]:
    """Return the folder of the images, and the lists of training, validation and test images."""
    root = spec.folder
    if root.is_file():
        if spec.train or spec.val or spec.test:
            raise DataError(
                f"--datadir {root}: is a list, but the data set's .yaml file names lists too"
            )
        return root.parent, root, None, None
    root, _ = nesting.entered(root, lambda folder: _find(folder, spec.train, "train") is not None)
    train = _find(root, spec.train, "train")
    if train is None:
        names = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
        raise MissingFileError(
            f"--datadir {root}: has no {_either(spec.train or 'train')}; found {names}"
        )
    val = _find(root, spec.val, *folders.VALIDATION)
    test = _find(root, spec.test, *([] if spec.val else [folders.TEST]))
    for name, path in ((spec.val, val), (spec.test, test)):
        if name and path is None:
            raise MissingFileError(f"--datadir {root}: has no {name}")
    return root, train, val, test


def entered_note(root: Path, spec: DataSpec) -> list[str]:
    if root == spec.folder or spec.folder.is_file():
        return []
    return [nesting.note(spec.folder, root)]


def _names_and_encodings(
    classes: Sequence[str], named: ClassNames | None, texts: Mapping[Path, Text], spec: DataSpec
) -> list[str]:
    """Return notes on the file of the class names, and on encodings that the bytes suggested."""
    first = ", ".join(classes[:4]) + (" …" if len(classes) > 4 else "")
    notes = [f"{named.file} names {len(classes)} classes: {first}"] if named else []
    texts = {**texts, named.file: named.text} if named else texts
    for encoding in dict.fromkeys(text.encoding for text in texts.values()):
        if encoding and not spec.encoding:
            files = ", ".join(path.name for path in texts if texts[path].encoding == encoding)
            notes.append(
                f"{files}: not UTF-8, read as {encoding}; the first classes are {first}. If these "
                "are wrong, name the encoding in a data set's .yaml file (encoding: …)"
            )
    return notes


def with_slashes(rows: list[Row], root: Path) -> tuple[list[Row], int]:
    """Return ``rows`` with / for \\ in paths of no file, as of Windows, and the number of these.

    Raises `DataError` for a path on a drive of Windows.
    """
    result, count = [], 0
    if not any("\\" in path or path[1:2] == ":" for path, _, _ in rows):
        return rows, 0
    for path, label, line in rows:
        if _DRIVE.match(path) and not (root / path).exists():
            raise DataError(
                f"{line}: {path!r} is a path on a drive of Windows, which does not exist here; "
                f"write paths relative to {root}"
            )
        if "\\" in path and not (root / path).exists():
            path, count = path.replace("\\", "/"), count + 1
        result.append((path, label, line))
    return result, count


def _all_rows(path: Path, text: Text) -> list[Row]:
    rows = list(rows_of(path, text))
    if not rows:
        raise DataError(f"{path}: names no images; expected a path and a label per line")
    return rows


def numbers_of(
    rows: Sequence[Row],
    classes: Sequence[str],
    number_of: Mapping[str, int],
    given: ClassNames | Sequence[str] | None,
) -> list[int]:
    """Return the class numbers of ``rows``. Raises `DataError` for a label without a class."""
    for _, label, line in rows:
        if label not in number_of and isinstance(given, ClassNames):
            named = f", {min(given.names)} to {max(given.names)}" if given.names else ""
            raise DataError(
                f"{line}: the class is {label}, but {given.file} has no line for it; it names "
                f"{len(classes)} classes{named}"
            )
        if label not in number_of:
            raise DataError(
                f"{line}: class {label!r} is not in {'the given classes' if given else 'training'};"
                f" the head has one output for each of {len(classes)} classes "
                f"({', '.join(classes[:4])} …)"
            )
    return [number_of[label] for _, label, _ in rows]


def _unlabelled(path: Path, text: Text, known: Collection[str]) -> str | None:
    """Return why a test list has no labels, as in competitions; None if it has some."""
    rows = rows_of(path, text)
    try:
        rows = itertools.chain([next(rows)], rows)
    except StopIteration:
        return f"{path}: names no images"
    except DataError as error:
        return str(error)
    return None if any(label in known for _, label, _ in rows) else f"{path}: no label is a class"


def classes_of(
    rows: Sequence[Row], spec: DataSpec, folder: Path
) -> tuple[list[str], dict[str, int], ClassNames | None]:
    """Return the classes' names, {label: class number} of all labels, and the file of the names.

    Labels are any names, or numbers that a file in ``folder`` names, or numbers from 0 on without a
    gap in training. With ``spec.classes`` they may also be any numbers; or a list of names stands
    for the numbers from 0 on, unless these names are in that file. Raises `DataError`.
    """
    distinct = {label for _, label, _ in rows}
    short = (word for word in distinct if word.isdecimal() and len(word) < 10)
    numbers = sorted(int(word) for word in short if str(int(word)) == word)
    if len(distinct) < 2 and not spec.classes and not spec.measured:
        raise DataError(
            f"--datadir {spec.datadir}: all training images are of class {rows[0][1]!r}"
        )
    unnamed = len(numbers) == len(distinct) and not are_labels(spec.classes, distinct)
    named = _named(folder, spec) if unnamed else None
    if named:
        places = {str(number): place for place, number in enumerate(named.names)}
        return list(named.names.values()), places, named
    if unnamed and isinstance(spec.classes, tuple):
        return list(spec.classes), {str(k): k for k in range(len(spec.classes))}, None
    if spec.classes or len(numbers) < len(distinct):
        classes = list(dict.fromkeys([*labels_of(spec.classes), *sorted(distinct)]))
    else:
        missing = next((k for k, number in enumerate(numbers) if number != k), None)
        if missing is not None:
            raise DataError(
                f"--datadir {spec.datadir}: no training image has label {missing}, but the labels "
                f"go up to {numbers[-1]}; labels count from 0: renumber them, or name the classes "
                "in a data set's .yaml file"
            )
        classes = [str(number) for number in numbers]
    return classes, {name: number for number, name in enumerate(classes)}, None


def _named(folder: Path, spec: DataSpec) -> ClassNames | None:
    """Return the file of the class names, if ``spec.classes`` name no others."""
    try:
        named = find_class_names(folder, spec.encoding)
    except DataError:
        if spec.classes:
            return None
        raise
    given = set(labels_of(spec.classes))
    return named if named and given <= set(named.names.values()) else None


def repetitions(lists: Mapping[str, Sequence[Row]]) -> list[str]:
    """Return notes on images that ``lists``, by their parts, name more than once."""
    notes, images = [], {}
    for part, rows in lists.items():
        labels: dict[str, set[str]] = {}
        for path, label, _ in rows:
            labels.setdefault(path, set()).add(label)
        several = sum(len(different) > 1 for different in labels.values())
        if len(rows) > len(labels):
            notes.append(f"{len(rows) - len(labels):,} lines repeat an image of an earlier line")
        if several:
            notes.append(f"{several:,} images have two labels or more")
        images[part] = labels.keys()
    for one, other in itertools.combinations(images, 2):
        both = images[one] & images[other]
        if both:
            where = "in both lists" if len(lists) == 2 else f"in the lists of {one} and {other}"
            notes.append(f"{len(both):,} images are {where}: {other} is not independent")
    return notes


def _find(folder: Path, name: str | None, *usual: str) -> Path | None:
    names = [name] if name else [stem + end for stem in usual for end in ENDS]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _either(stem: str) -> str:
    return stem if Path(stem).suffix in SUFFIXES else " or ".join(stem + end for end in ENDS)


def cells_of(path: Path, text: Text) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of each line. Raises `DataError`."""
    lines = text.text.splitlines()
    if path.suffix.lower() == ".txt":
        cells = ([part.strip() for part in _split(line.strip())] for line in lines)
    else:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        cells = ([cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter))
    yield from enumerate(_caught(cells, path), 1)


def rows_of(path: Path, text: Text, unlabelled: bool = False) -> Iterator[Row]:
    """Yield (path, label, "list:line") of each line. Raises `DataError`.

    With ``unlabelled`` the label may be empty.
    """
    columns = (0, 1)
    for number, row in cells_of(path, text):
        if not any(row):
            continue
        words = [cell.lower() for cell in row]
        if number == 1 and all(known & set(words) for known in HEADERS):
            columns = tuple(
                next(column for column, word in enumerate(words) if word in known)
                for known in HEADERS
            )
        elif len(row) <= max(columns) or not row[columns[0]] or not (unlabelled or row[columns[1]]):
            raise DataError(
                f"{path}:{number}: found {' '.join(row)[:_SHOWN]!r}, expected a path and a label"
            )
        else:
            yield row[columns[0]], row[columns[1]], f"{path}:{number}"


def _split(line: str) -> list[str]:
    """Return path and label of a line: what is behind the last tab, else the last word."""
    return line.rsplit("\t" if "\t" in line else None, 1)


def groups_of(path: Path, text: Text, rows: Sequence[Row], spec: DataSpec) -> list[str] | None:
    """Return the group of each row of a list by the column --group; None if that is no column.

    A row with an empty cell is a group of its own, named by its path. Raises `ConfigError` for an
    unknown column.
    """
    if spec.group is None:
        return None
    cells = dict(cells_of(path, text))
    head = next(iter(cells.values()), [])
    if spec.group in head and not any(line == f"{path}:1" for _, _, line in rows):
        column = head.index(spec.group)
    elif spec.group.isdecimal():
        column = int(spec.group) - 1
    elif "(" in spec.group:
        return None  # a regular expression, for `splits.group_names`
    else:
        raise ConfigError(
            f"--group: {spec.group!r} is neither a column of {path} ({', '.join(head)}), nor a "
            r"regular expression with one group in ( ), such as '(patient\d+)_'"
        )
    widest = max(map(len, cells.values()), default=0)
    if not 0 <= column < widest:
        raise ConfigError(f"--group: is {spec.group}, but {path} has the columns 1 to {widest}")
    lines = ((image, cells[int(line.rsplit(":", 1)[1])]) for image, _, line in rows)
    return [(row[column] if column < len(row) else "") or image for image, row in lines]


def _caught(cells: Iterator[list[str]], path: Path) -> Iterator[list[str]]:
    try:
        yield from cells
    except csv.Error as error:
        raise DataError(f"{path}: is not a table ({error}); is a quote not closed?") from error
