"""Images with boxes, whatever the format of their files, and all faults of those at once.

A reader fills a `Collector`: it names an image, then its boxes, and `Collector.finished` returns
the images, or raises one `DataError` with every fault. Boxes are x1, y1, x2, y2 in pixels of the
upright image; a box of x1 = 0 and x2 = 2 is 2 pixels wide.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from bit_paddle.data.images import FileImages
from bit_paddle.errors import DataError, did_you_mean

ON_BAD_BOX = ("error", "skip")

_LARGEST_SIDE = 1_000_000  # pixels of an image: more is a fault of the file

_SHOWN = 5  # faults of each kind in a message


@dataclass(frozen=True)
class BoxedImages:
    """N images below ``root`` with their boxes.

    ``boxes`` are float32 [B, 4], ``labels`` int64 [B], indices of ``classes``, and ``crowd`` bool
    [B], one array per image; a crowd is a region with several objects, which counts neither as
    found nor as missed. ``sizes`` are int [N, 2], height and width. ``ids`` and ``category_ids``
    are COCO's numbers of images and classes, for files of results.
    """

    root: Path
    paths: list[str]
    sizes: np.ndarray
    boxes: list[np.ndarray]
    labels: list[np.ndarray]
    crowd: list[np.ndarray]
    classes: list[str]
    ids: list[Any]
    category_ids: list[int | None]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def files(self) -> FileImages:
        """Return the image files in this order; their labels are 0.

        An image whose size is not that of the annotations raises `DataError`: its boxes would be
        at wrong places.
        """
        return _SizedImages(self)


class _SizedImages(FileImages):
    def __init__(self, boxed: BoxedImages):
        super().__init__(boxed.paths, np.zeros(len(boxed), np.int64), boxed.classes, boxed.root)
        self._sizes = boxed.sizes

    def image(self, index: int) -> Image.Image:
        image, (height, width) = super().image(index), self._sizes[index].tolist()
        if image.size != (width, height):
            raise DataError(
                f"{self.name(index)}: has {image.width} x {image.height} pixels upright, but its "
                f"annotations were made for {width} x {height}; correct them or remove the image"
            )
        return image


@dataclass
class _Entry:
    path: str
    height: int
    width: int
    id: Any
    boxes: list[list[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)


class Collector:
    """The images and boxes that a reader has found so far, and what was wrong with them.

    ``title`` names the annotations in messages; ``root`` is the folder of the images.
    """

    def __init__(self, title: str, root: Path, classes: Sequence[str]):
        self.title, self.root, self.classes = title, root, list(classes)
        self._labels = {name: label for label, name in enumerate(self.classes)}
        self._entries: list[_Entry] = []
        self._faults: dict[str, list[str]] = {}
        self._cut = 0

    def fault(self, kind: str, text: str) -> None:
        """Record a fault; faults of one ``kind`` stand together in the message."""
        self._faults.setdefault(kind, []).append(text)

    def image(self, path: str, height: Any, width: Any, id: Any, where: str) -> _Entry | None:
        """Add an image; return it for `box`, or None if it cannot be used."""
        inner = PurePosixPath(path.replace("\\", "/"))
        if inner.is_absolute() or ".." in inner.parts or not inner.name or "\0" in path:
            self.fault("names of images outside the folder", f"{where}: {path!r}")
        elif not (is_number(height) and is_number(width) and _is_side(height) and _is_side(width)):
            self.fault("sizes that no image has", f"{where}: {width!r} x {height!r} pixels")
        elif not os.path.isfile(self.root / inner):
            self.fault("missing images", f"{where}: {self.root / inner}")
        else:
            self._entries.append(_Entry(str(inner), int(height), int(width), id))
            return self._entries[-1]
        return None

    def box(
        self, image: _Entry, corners: Sequence[Any], name: Any, crowd: bool, where: str
    ) -> None:
        """Add a box x1, y1, x2, y2 of the class ``name``; cut it at the edges of its image."""
        if not isinstance(name, str) or name not in self._labels:
            hint = did_you_mean(str(name), self.classes) if self.classes else "there is no class"
            self.fault("unknown classes", f"{where}: {name!r}; {hint}")
            return
        if not all(map(is_number, corners)):
            self.fault("numbers that are not finite", f"{where}: {_shown(corners)}")
            return
        x1, y1, x2, y2 = map(float, corners)
        if x2 <= x1 or y2 <= y1:
            self.fault("boxes without area", f"{where}: {_shown(corners)}")
            return
        inside = [max(x1, 0.0), max(y1, 0.0), min(x2, image.width), min(y2, image.height)]
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            size = f"an image of {image.width} x {image.height} pixels"
            self.fault("boxes outside their image", f"{where}: {_shown(corners)} of {size}")
            return
        self._cut += inside != [x1, y1, x2, y2]
        image.boxes.append(inside)
        image.labels.append(self._labels[name])
        image.crowd.append(crowd)

    def finished(
        self,
        on_bad_box: str,
        category_ids: Sequence[int | None] | None = None,
        notes: Sequence[str] = (),
    ) -> BoxedImages:
        """Return all usable images and boxes.

        If there are faults, ``on_bad_box`` "error" raises `DataError` with all of them, "skip"
        leaves these boxes and images out and counts them in the notes. Data without any image or
        box raise `DataError` in any case.
        """
        counts = [f"{kind} ({len(texts):,})" for kind, texts in self._faults.items()]
        if self._faults and on_bad_box == "error":
            lines = [f"{self.title}: {sum(map(len, self._faults.values())):,} faults"]
            for count, texts in zip(counts, self._faults.values()):
                lines += [f"{count}:", *(f"  {text}" for text in texts[:_SHOWN])]
                lines += [f"  and {len(texts) - _SHOWN:,} more"] if len(texts) > _SHOWN else []
            lines.append('Correct these, or leave the boxes and images out by on_bad_box "skip".')
            raise DataError("\n".join(lines))
        if not any(entry.boxes for entry in self._entries):
            raise DataError(
                f"{self.title}: has {len(self._entries):,} usable images, but no usable box"
                + (f"; found {', '.join(counts)}" if counts else "")
            )
        notes = [*notes, *(f"{self.title}: skipped {count}" for count in counts)]
        if self._cut:
            notes.append(f"{self.title}: cut boxes at the edge of their image ({self._cut:,})")
        entries = self._entries
        return BoxedImages(
            self.root,
            [entry.path for entry in entries],
            np.array([(entry.height, entry.width) for entry in entries]),
            [np.array(entry.boxes, np.float32).reshape(-1, 4) for entry in entries],
            [np.array(entry.labels, np.int64) for entry in entries],
            [np.array(entry.crowd, bool) for entry in entries],
            self.classes,
            [entry.id for entry in entries],
            list(category_ids or range(1, len(self.classes) + 1)),
            tuple(notes),
        )


def is_number(value: Any) -> bool:
    """Return whether ``value`` is a finite number, and no truth value."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def number_of(text: str | None) -> float | str | None:
    """Return ``text`` as a number, or unchanged for a message if it is none."""
    try:
        return float(text or "")
    except ValueError:
        return text


def _is_side(value: float) -> bool:
    return 1 <= value <= _LARGEST_SIDE and value == int(value)


def _shown(corners: Sequence[Any]) -> str:
    return ", ".join(f"{one:g}" if is_number(one) else repr(one)[:40] for one in corners)
