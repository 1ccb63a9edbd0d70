"""Predictions: a CSV file with one line per image.

Of ``--folds``: path, label, fold, prediction, then the probability of each class in the order of
the model's outputs, ``p(<class>)``. If an image may have several labels: path, fold, then 0 or 1
for each class, ``y(<class>)``, and ``p(<class>)``. Of `evaluate`: path, label, prediction, its
probability, then the class and the probability of the following ranks, up to the fifth.
"""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from bit_paddle.data.exclude import paths_below
from bit_paddle.data.images import Images
from bit_paddle.data.labels import LabelSets
from bit_paddle.errors import DataError, MissingFileError
from bit_paddle.inference import scores
from bit_paddle.inference.evaluation import Outputs
from bit_paddle.system import files
from bit_paddle.system.files import csv_line

PREDICTIONS = "predictions.csv"

_FIRST = ("path", "label", "fold", "prediction")

_SETS = ("path", "fold")  # the first columns if an image may have several labels

_Kept = TypeVar("_Kept")


def write(
    path: Path, images: Images, logits: np.ndarray, loss: str, fold: int, datadir: str | None
) -> None:
    """Write the predictions of a fold's model; ``logits`` is [N, K]. Raises `WriteError`.

    Paths are those of `exclude.paths_below`.
    """
    probabilities = scores.probabilities(logits, loss)
    classes, names = images.classes, paths_below(images, datadir)
    labels = images.labels
    if isinstance(labels, LabelSets):
        head = (*_SETS, *(f"{letter}({name})" for letter in "yp" for name in classes))
        truths = (labels[k : k + 1].dense(len(classes))[0] for k in range(len(labels)))
        rows = (
            (name, fold, *truth.astype(int).tolist(), *(f"{value:.6g}" for value in row))
            for name, truth, row in zip(names, truths, probabilities.tolist())
        )
        lines = map(files.csv_line, itertools.chain([head], rows))
        files.write(path, lambda stream: stream.writelines(map(_encoded, lines)))
        return

    def fill(stream: BinaryIO) -> None:
        _write_line(stream, [*_FIRST, *(f"p({name})" for name in classes)])
        for index, row in enumerate(probabilities):
            best = classes[int(logits[index].argmax())]
            cells = [names[index], classes[labels[index]], fold, best]
            _write_line(stream, [*cells, *(f"{value:.6g}" for value in row)])

    files.write(path, fill)


def write_first(
    path: Path, outputs: Outputs, classes: Sequence[str], datadir: str | None, first: int = 5
) -> None:
    """Write the ``first`` classes of each image with their probabilities. Raises `WriteError`.

    Paths are relative to ``datadir`` where they lie below it. Equal logits rank by class number.
    """
    first = min(first, len(classes))
    more = [cell for rank in range(2, first + 1) for cell in (f"class_{rank}", f"p_{rank}")]

    def fill(stream: BinaryIO) -> None:
        _write_line(stream, ["path", "label", "prediction", "p", *more])
        names = relative(outputs.names, datadir)
        for rows in scores.blocks(outputs.logits):
            logits = outputs.logits[rows]
            best = np.argsort(-logits, axis=1, kind="stable")[:, :first]
            shares = scores.probabilities(logits, outputs.loss)
            shares = np.take_along_axis(shares, best, axis=1)
            for label, ranks, row in zip(outputs.labels[rows], best, shares):
                pairs = ((classes[k], f"{share:.6g}") for k, share in zip(ranks, row))
                _write_line(stream, [next(names), classes[label], *itertools.chain(*pairs)])

    files.write(path, fill)


def relative(names: Iterable[str], datadir: str | None) -> Iterator[str]:
    """Yield paths: relative to ``datadir``, or to the folder of that file, if they lie below it."""
    root = os.path.abspath(datadir or "")
    root = os.path.dirname(root) if os.path.isfile(root) else root
    for name in map(os.path.abspath, names):
        inside = name.startswith(os.path.join(root, ""))
        yield os.path.relpath(name, root) if inside else name


def _columns(letter: str, classes: Iterable[str]) -> list[str]:
    return [f"{letter}({name})" for name in classes]


def join(path: Path, parts: Sequence[Path], keep: Callable[[list[str]], _Kept]) -> list[_Kept]:
    """Write the lines of all ``parts`` into ``path``; return ``keep(cells)`` of each image.

    Errors: `MissingFileError`, `WriteError`.
    """
    kept: list[_Kept] = []

    def fill(stream: BinaryIO) -> None:
        for number, part in enumerate(parts):
            for line, cells in enumerate(_rows(part)):
                if line:
                    kept.append(keep(cells))
                if line or not number:
                    _write_line(stream, cells)

    files.write(path, fill)
    return kept


def join_sets(path: Path, parts: Sequence[Path]) -> tuple[list[str], LabelSets, np.ndarray] | None:
    """Do as `join`; return the classes, the labels and the probabilities [N, K].

    If the images have one label each, it returns None and writes nothing. Errors: as of `join`.
    """
    head = next(_rows(parts[0]), [])
    if tuple(head[: len(_SETS)]) != _SETS:
        return None
    values = np.stack(join(path, parts, lambda cells: np.array(cells[len(_SETS) :], np.float64)))
    truths, shares = np.hsplit(values, 2)
    classes = [name[2:-1] for name in head[len(_SETS) : len(_SETS) + truths.shape[1]]]
    return classes, LabelSets.of_pairs(*np.nonzero(truths), len(truths)), shares


def read(path: str | os.PathLike, names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Return the probabilities of images by their paths, [N, K]; NaN for an image not in the file.

    Raises `DataError` if the file's classes are not ``classes``; `MissingFileError`.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f"{path}: no such file; train with --folds writes predictions.csv")
    result = np.full((len(names), len(classes)), np.nan)
    row_of = {name: row for row, name in enumerate(names)}
    lines = _rows(Path(path))
    head = next(lines, [])
    if tuple(head[: len(_FIRST)]) != _FIRST or head[len(_FIRST) :] != [f"p({c})" for c in classes]:
        raise DataError(f"{path}: is no predictions.csv of --folds with the classes of the data")
    for number, cells in enumerate(lines, 2):
        try:
            if cells[0] in row_of:
                result[row_of[cells[0]]] = [*map(float, cells[len(_FIRST) :])]
        except (ValueError, IndexError) as error:
            raise DataError(f"{path}:{number}: cannot be read ({error})") from error
    if np.isnan(result).all():
        raise DataError(f"{path}: has none of the images; expected paths such as {names[0]}")
    return result


def _rows(path: Path) -> Iterator[list[str]]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as stream:
            yield from csv.reader(stream)
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path}: is missing; remove the folder {path.parent}, and the same command repeats "
            "this fold"
        ) from error


def _write_line(stream: BinaryIO, cells: Iterable[object]) -> None:
    stream.write(_encoded(csv_line(cells)))


def _encoded(line: str) -> bytes:
    return line.encode(errors="surrogateescape")
