"""The images that a trained model is given: files, folders, web addresses, pictures in memory."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bit_paddle.data.images import SUFFIXES, FileImages, to_rgb
from bit_paddle.errors import (
    BitPaddleError,
    ConfigError,
    DataError,
    DownloadError,
    MissingFileError,
)
from bit_paddle.system import fetch

WEB = ("http://", "https://")


class GivenImages:
    """Images to the loader, from a list of paths, web addresses, PIL images and arrays."""

    def __init__(self, given: Sequence[Any]):
        self.given, self.classes = list(given), ["?"]
        self.labels = np.zeros(len(self.given), np.int64)

    def __len__(self) -> int:
        return len(self.given)

    def image(self, index: int) -> Image.Image:
        return read_image(self.given[index])

    def name(self, index: int) -> str:
        return str(self.given[index])


class ReadableImages(FileImages):
    """Files; one that cannot be read is noted in ``broken`` {index: fault}, and is blank."""

    def __init__(self, paths: Sequence[str]):
        super().__init__(paths, np.zeros(len(paths), np.int64), ["?"])
        self.broken: dict[int, str] = {}

    def image(self, index: int) -> Image.Image:
        try:
            return super().image(index)
        except BitPaddleError as error:
            self.broken[int(index)] = str(error)
            return Image.new("RGB", (1, 1))


def read_image(given: Any) -> Image.Image:
    """Return an image as RGB from a path, a web address, a PIL image or uint8 [H, W, 3].

    Errors: `MissingFileError`, `DataError` (not an image), `DownloadError`.
    """
    if isinstance(given, Image.Image):
        try:
            return to_rgb(given)
        except (ValueError, OSError) as error:  # the latter of a file that is read only now
            raise DataError(f"a PIL image of mode {given.mode}: {error}") from error
    if isinstance(given, np.ndarray):
        if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3 or not given.size:
            raise DataError(
                f"an array of {given.dtype} {list(given.shape)}: expected uint8 [H, W, 3], RGB"
            )
        return Image.fromarray(np.ascontiguousarray(given))
    if not isinstance(given, (str, os.PathLike)):
        raise DataError(
            f"an image of type {type(given).__name__}: expected a path, a web address, a PIL image "
            "or an array uint8 [H, W, 3]"
        )
    path = os.fspath(given)
    if path.startswith(WEB):
        with tempfile.TemporaryDirectory() as folder:
            fetched = fetch.fetch(path, Path(folder, "image"), temporary=True)
            return _file(str(fetched))
    if not os.path.isfile(path):
        kind = "is a folder; give a list of images" if os.path.isdir(path) else "no such image"
        raise MissingFileError(f"{path}: {kind}")
    return _file(path)


def _file(path: str) -> Image.Image:
    return FileImages([path], np.zeros(1, np.int64), ["?"]).image(0)


def find_images(words: Sequence[str], temporary: Path) -> tuple[list[str], list[str], list[str]]:
    """Return (names to show, paths, faults) of the images that ``words`` name.

    Web addresses are downloaded into ``temporary``; the faults are failed downloads. Errors:
    `MissingFileError`; `ConfigError` where there is no image at all.
    """
    names, paths, faults = [], [], []
    for word in words:
        if word.startswith(WEB):
            try:
                place = temporary / str(len(paths))
                paths.append(str(fetch.fetch(word, place, temporary=True)))
                names.append(word)
            except DownloadError as error:
                faults.append(str(error))
        elif Path(word).is_dir():
            found = _images_below(word)
            names += found
            paths += found
        elif Path(word).is_file():
            names.append(word)
            paths.append(word)
        else:
            raise MissingFileError(f"{word}: no such image or folder")
    if not paths and not faults:
        raise ConfigError(
            f"no images in {', '.join(words)}; their extensions are {' '.join(sorted(SUFFIXES))}"
        )
    return names, paths, faults


def _images_below(root: str) -> list[str]:
    """Return the image files in ``root`` and all folders below it; report how many others."""
    found, others = [], 0
    for folder, inner, entries in os.walk(root):
        inner.sort()
        seen = [entry for entry in sorted(entries) if entry[0] != "."]
        images = [one for one in seen if os.path.splitext(one)[1].lower() in SUFFIXES]
        others += len(seen) - len(images)
        found += [os.path.join(folder, entry) for entry in images]
    if others:
        print(
            f"note: {others:,} files in {root} have no known image extension and are skipped",
            file=sys.stderr,
        )
    return found
