"""A set of labelled images: what the loader asks of it, and the two kinds there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from bit_paddle.errors import DataError, MissingFileError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


class Images(Protocol):
    """What the loader needs to know of a set of images."""

    labels: np.ndarray  # int64 [N]
    classes: Sequence[str]  # names, in the order of the head's outputs

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Return image ``index`` as RGB; raise `DataError` if it cannot be decoded."""

    def size(self, index: int) -> tuple[int, int]:
        """Return the (height, width) of image ``index`` in pixels, without decoding it."""

    def name(self, index: int) -> str:
        """Return what to call image ``index`` in a message: its path, where it has one."""


class Dataset(NamedTuple):
    """Training and validation images."""

    train: Images
    val: Images


class ArrayImages:
    """Images of one size, held in memory as ``pixels`` uint8 [N, H, W, 3]."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str], title: str):
        self.pixels, self.classes, self.title = pixels, list(classes), title
        self.labels = np.asarray(labels, np.int64)
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


def to_rgb(image: Image.Image) -> Image.Image:
    """Return ``image`` as RGB; 16 bits become 8 by their range. Raises `ValueError` for others."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 -> 255
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"32-bit pixels ({image.mode}) have no known range; save it with 8 or 16 bits"
        )
    return image.convert("RGB")


class FileImages:
    """Images in files, decoded when they are asked for."""

    def __init__(self, paths: Sequence[str], labels: Sequence[int], classes: Sequence[str]):
        self.paths, self.classes = list(paths), list(classes)
        self.labels = np.asarray(labels, np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        with self._open(index) as image:
            try:
                return to_rgb(image)
            except (OSError, ValueError, SyntaxError) as error:
                raise DataError(
                    f"{self.paths[index]}: cannot be decoded ({error}); repair or remove the file"
                ) from error

    def size(self, index: int) -> tuple[int, int]:
        with self._open(index) as image:
            return image.height, image.width

    def name(self, index: int) -> str:
        return self.paths[index]

    def _open(self, index: int) -> Image.Image:
        try:
            return Image.open(self.paths[index])
        except FileNotFoundError as error:
            raise MissingFileError(
                f"{self.paths[index]}: the image has gone since the start"
            ) from error
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{self.paths[index]}: not an image that can be read ({error}); "
                "repair or remove the file"
            ) from error


def check_labels(labels: np.ndarray, classes: Sequence[str], title: str) -> None:
    """Raise `DataError` if a label has no class."""
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        raise DataError(
            f"{title}: {len(outside)} labels are outside 0 … {len(classes) - 1}, the first "
            f"is {labels[outside[0]]} of image {outside[0]}; the head has an output for "
            f"each of {len(classes)} classes"
        )
