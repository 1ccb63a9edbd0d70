"""Class names beside lists with numbers: PaddleClas' label_list.txt, PaddleX' labels.txt."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from bit_paddle.data.decoding import HEIF_SUFFIXES, SUFFIXES
from bit_paddle.data.text import Text, read_text
from bit_paddle.errors import DataError

FILES = ("label_list.txt", "labels.txt", "label.txt")

_ORDERS = (
    re.compile(r"(?P<number>\d{1,9})[\s,;:]+(?P<name>.+)"),  # 0 cat
    re.compile(r"(?P<name>.+?)\s*[,;\t]\s*(?P<number>\d{1,9})"),  # cat,0
)


class ClassNames(NamedTuple):
    """The content of a file of class names."""

    file: Path
    text: Text
    names: dict[int, str]  # by the number in the lists, in the order of the numbers


def find_class_names(folder: Path, encoding: str | None) -> ClassNames | None:
    """Return the class names of a file in ``folder``: one of `FILES`, or ``*_label_list.txt``.

    A line is a number and a name, or a name alone; names alone count from 0. A file that names
    images is no such file. Raises `DataError`.
    """
    files = [folder / name for name in FILES if (folder / name).is_file()]
    files += sorted(folder.glob("*_label_list.txt"))
    if not files:
        return None
    text = read_text(files[0], encoding)
    if any(Path(w).suffix.lower() in SUFFIXES | HEIF_SUFFIXES for w in text.text.split()):
        return None
    lines = text.text.rstrip().splitlines()
    if len(lines) == 1:
        lines = re.split(r"[,;\t]", lines[0])
    lines = [line.strip() for line in lines]
    numbered = _numbered([line for line in lines if line], files[0])
    if numbered is None:
        if "" in lines:
            raise DataError(f"{files[0]}:{lines.index('') + 1}: is empty, expected a class name")
        numbered = dict(enumerate(lines))
    return ClassNames(files[0], text, _distinct(dict(sorted(numbered.items()))))


def _numbered(lines: list[str], file: Path) -> dict[int, str] | None:
    """Return {number: name} if every line has both, else None.

    If all names are the same, as in "3 objects", "4 objects", the number is a part of the name.
    """
    for order in _ORDERS:
        matches = [match for match in map(order.fullmatch, lines) if match]
        if len(matches) < len(lines) or not lines:
            continue
        if len(matches) > 1 and len({match["name"] for match in matches}) == 1:
            continue
        counts = Counter(int(match["number"]) for match in matches)
        number, times = counts.most_common(1)[0]
        if times > 1:
            raise DataError(f"{file}: {times} lines have the number {number}, expected one")
        return {int(match["number"]): match["name"] for match in matches}
    return None


def _distinct(names: dict[int, str]) -> dict[int, str]:
    """Return ``names`` with the number behind those that occur twice (ImageNet has two cranes)."""
    counts = Counter(names.values())
    return {k: f"{name} ({k})" if counts[name] > 1 else name for k, name in names.items()}
