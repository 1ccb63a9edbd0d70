"""The input images of a trained model: files, folders, web addresses, images in memory."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bit_paddle.data.images import GET_HEIF, HEIF_SUFFIXES, FileImages, readable_suffixes, to_rgb
from bit_paddle.data.readers.listing import is_left_out
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
    """Images for the loader, from a list of paths, web addresses, PIL images and arrays."""

    def __init__(self, images: Sequence[Any]):
        self.images, self.classes = list(images), ["?"]
        self.labels = np.zeros(len(self.images), np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        return read_image(self.images[index])

    def name(self, index: int) -> str:
        return str(self.images[index])


class ReadableImages(FileImages):
    """Image files. An unreadable file becomes a blank image; ``broken`` is {index: fault}."""

    def __init__(self, paths: Sequence[str]):
        super().__init__(paths, np.zeros(len(paths), np.int64), ["?"])
        self.broken: dict[int, str] = {}

    def image(self, index: int) -> Image.Image:
        try:
            return super().image(index)
        except BitPaddleError as error:
            self.broken[int(index)] = str(error)
            return Image.new("RGB", (1, 1))


def read_image(source: Any) -> Image.Image:
    """Return an RGB image from a path, a web address, a PIL image or an array uint8 [H, W, 3].

    Errors: `MissingFileError`, `DataError` (not an image), `DownloadError`.
    """
    if isinstance(source, Image.Image):
        try:
            return to_rgb(source)
        except (ValueError, OSError) as error:  # OSError: Pillow reads a file only when it is used
            raise DataError(f"a PIL image of mode {source.mode}: {error}") from error
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            raise DataError(
                f"an array of {source.dtype} {list(source.shape)}: expected uint8 [H, W, 3], RGB"
            )
        return Image.fromarray(np.ascontiguousarray(source))
    if not isinstance(source, (str, os.PathLike)):
        raise DataError(
            f"an image of type {type(source).__name__}: expected a path, a web address, a PIL "
            "image or an array uint8 [H, W, 3]"
        )
    path = os.fspath(source)
    if path.startswith(WEB):
        with tempfile.TemporaryDirectory() as folder:
            file = fetch.fetch(path, Path(folder, "image"), temporary=True)
            return _file(str(file))
    if not os.path.isfile(path):
        kind = "is a folder; give a list of images" if os.path.isdir(path) else "no such image"
        raise MissingFileError(f"{path}: {kind}")
    return _file(path)


def _file(path: str) -> Image.Image:
    return FileImages([path], np.zeros(1, np.int64), ["?"]).image(0)


def find_images(words: Sequence[str], temporary: Path) -> tuple[list[str], list[str], list[str]]:
    """Return (names to show, paths, faults) for files, folders and web addresses in ``words``.

    Web addresses are downloaded into ``temporary``; the faults are failed downloads. Errors:
    `MissingFileError`; `ConfigError` if there is no image at all.
    """
    names, paths, faults = [], [], []
    for word in words:
        if word.startswith(WEB):
            try:
                path = temporary / str(len(paths))
                paths.append(str(fetch.fetch(word, path, temporary=True)))
                names.append(word)
            except DownloadError as error:
                faults.append(str(error))
        elif Path(word).is_dir():
            files = _images_below(word)
            names += files
            paths += files
        elif Path(word).is_file():
            names.append(word)
            paths.append(word)
        else:
            raise MissingFileError(f"{word}: no such image or folder")
    if not paths and not faults:
        raise ConfigError(
            f"no images in {', '.join(words)}; image extensions are "
            f"{' '.join(sorted(readable_suffixes()))}"
        )
    return names, paths, faults


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _images_below(root: str) -> list[str]:
    """Return the image files in ``root`` and all folders below it; report skipped files."""
    images, skipped, suffixes = [], [], readable_suffixes()
    for folder, inner, entries in os.walk(root):
        inner[:] = sorted(name for name in inner if not is_left_out(name))
        visible = [entry for entry in sorted(entries) if not is_left_out(entry)]
        files = [entry for entry in visible if _suffix(entry) in suffixes]
        skipped += [_suffix(entry) for entry in visible if _suffix(entry) not in suffixes]
        images += [os.path.join(folder, entry) for entry in files]
    if skipped:
        heif = f". {GET_HEIF}" if HEIF_SUFFIXES & set(skipped) else ""
        print(
            f"note: {len(skipped):,} files in {root} have no known image extension and are "
            f"skipped{heif}",
            file=sys.stderr,
        )
    return images
