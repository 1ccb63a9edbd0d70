"""YOLO's text files: one file per image, a line per box: class, centre x and y, width, height.

The class is a number from 0, the others are shares of the image's sides. A line with more numbers
is an outline: class, x, y, x, y, …; its box is the smallest around it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bit_paddle.data.boxes.annotations import BoxedImages, Collector, is_number, number_of
from bit_paddle.data.decoding import readable_suffixes
from bit_paddle.data.images import FileImages
from bit_paddle.data.text import read_text
from bit_paddle.errors import DataError, MissingFileError
from bit_paddle.system import files


def read_yolo(
    folder: Path, root: Path, classes: Sequence[str], on_bad_box: str = "error"
) -> BoxedImages:
    """Return the images in ``root``; the text files of their boxes are in ``folder``.

    An image without text file has no boxes. ``classes`` are the names of the classes 0, 1, …; see
    `class_names`. ``on_bad_box``: see `Collector.finished`. Errors: `MissingFileError`,
    `DataError`.
    """
    for one, content in ((folder, "text files"), (root, "images")):
        if not one.is_dir():
            raise MissingFileError(f"{one}: no such folder of {content}")
    suffixes = readable_suffixes()
    names = sorted(
        name for name in os.listdir(root) if os.path.splitext(name)[1].lower() in suffixes
    )
    stems = {os.path.splitext(name)[0] for name in names}
    found = Collector(str(folder), root, classes)
    for path in sorted(folder.glob("*.txt")):
        if path.stem not in stems and path.name != "classes.txt":
            found.fault("missing images", f"{path.name}: {root} has no image {path.stem}")
    sizes = FileImages(names, [0] * len(names), [""], root)
    for index, name in enumerate(names):
        path = folder / f"{os.path.splitext(name)[0]}.txt"
        try:
            lines = read_text(path).text.splitlines() if path.exists() else []
            image = found.image(name, *sizes.size(index), id=Path(name).stem, where=name)
        except DataError as error:
            found.fault("files that cannot be read", str(error))
            continue
        for number, line in enumerate(lines if image else (), start=1):
            if line.split():
                _add(found, image, line.split(), f"{path.name}, line {number}")
    return found.finished(on_bad_box)


def _add(found: Collector, image: Any, words: list[str], where: str) -> None:
    numbers = [number_of(word) for word in words]
    if len(words) < 5 or len(words) % 2 == 0:
        found.fault("incomplete entries", f"{where}: has {len(words)} numbers, expected 5")
        return
    label, rest = numbers[0], numbers[1:]
    if is_number(label) and 0 <= label < len(found.classes) and label == int(label):
        label = found.classes[int(label)]
    elif is_number(label):
        label = f"{label:g}"
    if not all(map(is_number, rest)):
        corners = rest[:4]
    elif len(rest) == 4:
        x, y, width, height = rest
        corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    else:
        corners = [min(rest[::2]), min(rest[1::2]), max(rest[::2]), max(rest[1::2])]
    sides = (image.width, image.height, image.width, image.height)
    corners = [one * side if is_number(one) else one for one, side in zip(corners, sides)]
    found.box(image, [_nearly_whole(one) for one in corners], label, False, where)


def _nearly_whole(value: Any) -> Any:
    """Return ``value`` rounded if it is a rounding error away: files have six decimals."""
    return round(value) if is_number(value) and abs(value - round(value)) < 1e-3 else value


def class_names(path: Path) -> list[str]:
    """Return the names of the classes: of a data.yaml (``names``), or of a list, one per line.

    Errors: `MissingFileError`, `ConfigError` and `DataError`.
    """
    if path.suffix.lower() not in (".yaml", ".yml"):
        names: Any = [line.strip() for line in read_text(path).text.splitlines() if line.strip()]
    else:
        names = files.read_yaml(path, str(path), "names: [crow, owl]").get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(f"{path}: names must have the numbers 0, 1, …, found {list(names)[:8]}")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or len(set(map(str, names))) < len(names):
        raise DataError(f"{path}: names is {names!r:.60}, expected a list of different names")
    return [str(name) for name in names]
