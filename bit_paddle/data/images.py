"""Sets of labelled images: the interface that the loader uses, and its two implementations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from bit_paddle.data import decoding
from bit_paddle.data.labels import Labels, as_labels, members
from bit_paddle.data.pixels import PixelRange
from bit_paddle.errors import DataError


class Images(Protocol):
    """The interface of a set of images, as the loader uses it."""

    labels: Labels  # int64 [N], or `LabelSets` if an image may have several
    classes: Sequence[str]  # names, in the order of the head's outputs

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Return image ``index`` as RGB. Raises `DataError` if it cannot be decoded."""

    def size(self, index: int) -> tuple[int, int]:
        """Return the (height, width) of image ``index`` in pixels, without decoding it."""

    def name(self, index: int) -> str:
        """Return the name of image ``index`` for messages: its path, if it has one."""

    def chosen(self, indices: np.ndarray, labels: Labels, classes: Sequence[str]) -> Images:
        """Return only the images of ``indices``, with other ``labels`` and ``classes``."""


class Parts(NamedTuple):
    """Result of a reader: training, validation and test images, and notes for the user."""

    train: Images
    val: Images
    notes: tuple[str, ...] = ()
    test: Images | None = None  # never used for choosing; None: the data have no test images
    folds: tuple[int, ...] = ()  # the number of images in each fold of a cross-validation


class Dataset(NamedTuple):
    """Training, validation and test images, their augmentation, and notes for the user."""

    train: Images
    val: Images
    flip: bool = True  # False: a mirrored image would have another label
    random_crop: bool = True  # False: a part of an image would have another label
    resolution: str | None = None  # "small" or "large"; None: the rule measures the images
    test: Images | None = None  # measured once, at the end of a run; None: there are none
    folds: tuple[int, ...] = ()  # the number of images in each fold of a cross-validation
    datadir: str | None = None  # the unpacked folder of an archive; paths of images start there
    notes: tuple[str, ...] = ()


class ArrayImages:
    """Images of one size, held in memory as ``pixels`` uint8 [N, H, W, 3]."""

    def __init__(self, pixels: np.ndarray, labels: Labels, classes: Sequence[str], title: str):
        self.pixels, self.classes, self.title = pixels, list(classes), title
        self.labels = as_labels(labels)
        if len(pixels) != len(self.labels):
            raise DataError(f"{title}: {len(pixels)} images, but {len(self.labels)} labels")
        check_labels(self.labels, self.classes, title)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def size(self, index: int) -> tuple[int, int]:
        return self.pixels.shape[1:3]

    def name(self, index: int) -> str:
        return f"{self.title} image {index}"

    def chosen(
        self, indices: np.ndarray, labels: Sequence[int] | Labels, classes: Sequence[str]
    ) -> ArrayImages:
        """Return only the images of ``indices``, with other ``labels`` and ``classes``."""
        return ArrayImages(self.pixels[indices], labels, classes, self.title)


class FileImages:
    """Image files below ``root``, decoded at each access; ``paths`` are relative to ``root``.

    ``groups`` are the names of the images' groups (see `splits`), None if they are not known.
    ``pixel_range`` is that of `to_rgb`.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int] | Labels,
        classes: Sequence[str],
        root: str | os.PathLike = "",
        groups: Sequence[str] | None = None,
        pixel_range: PixelRange | None = None,
    ):
        self.paths, self.classes, self.root, self.groups = list(paths), list(classes), root, groups
        self.pixel_range = pixel_range
        self.labels = as_labels(labels)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        path = self.name(index)
        return decoding.decode(path, path, pixel_range=self.pixel_range)

    def size(self, index: int) -> tuple[int, int]:
        path = self.name(index)
        return decoding.size_of(path, path)

    def name(self, index: int) -> str:
        return os.path.join(self.root, self.paths[index])

    def subset(self, indices: np.ndarray) -> FileImages:
        """Return only the images of ``indices``, with the same classes."""
        return self.chosen(indices, self.labels[indices], self.classes)

    def chosen(
        self, indices: np.ndarray, labels: Sequence[int] | Labels, classes: Sequence[str]
    ) -> FileImages:
        """Return only the images of ``indices``, with other ``labels`` and ``classes``."""
        return FileImages(
            [self.paths[index] for index in indices],
            labels,
            classes,
            self.root,
            self.groups and [self.groups[index] for index in indices],
            self.pixel_range,
        )

    def fault(self, index: int, thorough: bool = False) -> str | None:
        """Return the reason why image ``index`` cannot be used; see `decoding.fault_of`."""
        path = self.name(index)
        return decoding.fault_of(path, path, thorough, self.pixel_range)


# --- Labels -------------------------------------------------------------------------------------


def check_labels(labels: Labels, classes: Sequence[str], title: str) -> None:
    """Raise `DataError` if a label has no class."""
    images, numbers = members(labels)
    outside = np.flatnonzero((numbers < 0) | (numbers >= len(classes)))
    if len(outside):
        raise DataError(
            f"{title}: {len(outside)} labels are outside 0 … {len(classes) - 1}; the first is "
            f"{numbers[outside[0]]}, of image {images[outside[0]]}; the head has {len(classes)} "
            "outputs, one per class"
        )
