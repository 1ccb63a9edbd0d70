"""The input images of a trained model: files, folders, patterns, web addresses, memory."""

from __future__ import annotations

import glob
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bit_paddle.data.decoding import GET_HEIF, HEIF_SUFFIXES, readable_suffixes
from bit_paddle.data.images import FileImages
from bit_paddle.data.pixels import to_rgb
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

STDIN = "-"  # stands for an image on the standard input


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
    """Return (names to show, paths, faults) for the images that ``words`` name.

    A word is a file, a folder, a pattern such as ``photos/*.jpg``, a web address, or ``-``, the
    standard input. Web addresses and the standard input are stored in ``temporary``; the faults
    are failed downloads. Errors: `MissingFileError`; `DataError` if the standard input is not an
    image; `ConfigError` if there is no image at all.
    """
    if words.count(STDIN) > 1:
        raise ConfigError(f"{STDIN}: is given twice, but the standard input can be read only once")
    names, paths, faults = [], [], []
    for word in words:
        if word.startswith(WEB):
            try:
                path = temporary / str(len(paths))
                paths.append(str(fetch.fetch(word, path, temporary=True)))
                names.append(word)
            except DownloadError as error:
                faults.append(str(error))
        elif word == STDIN:
            paths.append(_stored_stdin(temporary / str(len(paths))))
            names.append(word)
        else:
            files = _local(word)
            names += files
            paths += files
    if not paths and not faults:
        raise ConfigError(
            f"no images in {', '.join(words)}; image extensions are "
            f"{' '.join(sorted(readable_suffixes()))}"
        )
    return names, paths, faults


def _stored_stdin(path: Path) -> str:
    """Write the standard input to ``path`` and return it. Raises `DataError`: not an image."""
    example = "expected an image, as in: cat cat.jpg | bit_paddle predict - --model …"
    if sys.stdin is not None and sys.stdin.isatty():
        raise DataError(f"{STDIN}: the standard input is a terminal; {example}")
    content = sys.stdin.buffer.read() if sys.stdin is not None else b""
    if not content:
        raise DataError(f"{STDIN}: the standard input is empty; {example}")
    path.write_bytes(content)
    try:
        _file(str(path))
    except DataError as error:
        fault = GET_HEIF if GET_HEIF in str(error) else example
        raise DataError(
            f"{STDIN}: the {len(content):,} bytes of the standard input are not an image that can "
            f"be read; {fault}"
        ) from error
    return str(path)


def _local(word: str) -> list[str]:
    """Return the image files of a file, a folder or a pattern. Raises `MissingFileError`."""
    if os.path.isdir(word):
        return _images_below(word)
    if os.path.isfile(word):  # also if its name has the signs of a pattern
        return [word]
    if not glob.has_magic(word):
        raise MissingFileError(f"{word}: no such image or folder")
    named, found = set(Path(word).parts), {}
    for match in sorted(glob.glob(word, recursive=True)):
        if any(is_left_out(part) for part in Path(match).parts if part not in named):
            continue
        for file in _images_below(match) if os.path.isdir(match) else [match]:
            found[os.path.normpath(file)] = file  # ** names a folder and what is in it
    if not found:
        raise MissingFileError(f"{word}: no image matches this pattern")
    return list(found.values())


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
