"""Predictions: a CSV file with one line per image.

Of ``--folds``: path, label, fold, prediction, then the probability of each class in the order of
the model's outputs, ``p(<class>)``. Of `evaluate`: path, label, prediction, its probability, then
the class and the probability of the following ranks, up to the fifth.
"""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bit_paddle.data.exclude import paths_below
from bit_paddle.data.images import Images
from bit_paddle.errors import DataError, MissingFileError
from bit_paddle.inference import scores
from bit_paddle.inference.evaluation import Outputs
from bit_paddle.system import files
from bit_paddle.system.files import csv_line

PREDICTIONS = "predictions.csv"

_FIRST = ("path", "label", "fold", "prediction")


def write(
    path: Path, images: Images, logits: np.ndarray, loss: str, fold: int, datadir: str | None
) -> None:
    """Write the predictions of a fold's model; ``logits`` is [N, K]. Raises `WriteError`.

    Paths are those of `exclude.paths_below`.
    """
    probabilities = scores.probabilities(logits, loss)
    classes, names = images.classes, paths_below(images, datadir)

    def fill(stream: BinaryIO) -> None:
        _write_line(stream, [*_FIRST, *(f"p({name})" for name in classes)])
        for index, row in enumerate(probabilities):
            best = classes[int(logits[index].argmax())]
            cells = [names[index], classes[images.labels[index]], fold, best]
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


def join(path: Path, parts: Iterable[Path]) -> list[tuple[str, str]]:
    """Write the lines of all ``parts`` into ``path``; return (label, prediction) of each image.

    Errors: `MissingFileError`, `WriteError`.
    """
    pairs: list[tuple[str, str]] = []

    def fill(stream: BinaryIO) -> None:
        for number, part in enumerate(parts):
            for line, cells in enumerate(_rows(part)):
                if line:
                    pairs.append((cells[1], cells[3]))
                if line or not number:
                    _write_line(stream, cells)

    files.write(path, fill)
    return pairs


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
    stream.write(csv_line(cells).encode(errors="surrogateescape"))
