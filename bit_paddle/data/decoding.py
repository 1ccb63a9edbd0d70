"""From an image file, or its content, to RGB pixels."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Callable
from typing import BinaryIO, Union

import numpy as np
from PIL import Image, UnidentifiedImageError

from bit_paddle.data.pixels import FAULTS, HEIGHT, WIDTH, PixelRange, orientation, to_rgb
from bit_paddle.errors import DataError, MissingFileError, install_hint

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
    *(".avif", ".jp2", ".tga", ".pbm", ".pgm", ".pnm", ".ppm"),
}

HEIF_SUFFIXES = {".heic", ".heif", ".hif"}  # of telephones and cameras; need pillow-heif

# Pillow's names. It knows others too, such as EPS, for which it would start another program.
_FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "TGA"),
    "PPM",
)

GET_HEIF = f"HEIC images need pillow-heif: {install_hint('heic')}"

JPEG_START = b"\xff\xd8\xff"

JPEG_END = b"\xff\xd9"

MOST_MISSING = 1 / 8  # of the rows: a truncated JPEG with more missing rows is a fault


Source = Union[str, bytes]  # the path of an image file, or its content


def _stream(source: Source) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


# --- HEIC ---------------------------------------------------------------------------------------


@functools.cache
def heif_is_installed() -> bool:
    """Return whether HEIC files can be decoded; if so, Pillow knows the format from now on."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener(decode_threads=1)  # the loader has threads of its own
    return True


def _known_formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.ID]


def readable_suffixes() -> set[str]:
    """Return the extensions of the image files that can be decoded here, in lower case."""
    return SUFFIXES | HEIF_SUFFIXES if heif_is_installed() else SUFFIXES


def _is_heif(source: Source) -> bool:
    """Return whether a file starts like HEIC, whatever its extension (ISO/IEC 23008-12)."""
    with _stream(source) as stream:
        start = stream.read(12)
    brands = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
    return start[4:8] == b"ftyp" and start[8:] in brands


# --- From a file to RGB -------------------------------------------------------------------------


def decode(
    source: Source,
    name: str,
    check: Callable[[Image.Image], object] = lambda image: None,
    pixel_range: PixelRange | None = None,
) -> Image.Image:
    """Return an image file as RGB. ``name`` is its name in messages.

    ``check`` sees the opened image before its pixels are decoded, and may raise an error.
    ``pixel_range`` is that of `to_rgb`. Errors: `MissingFileError`, and `DataError` for what cannot
    be decoded.
    """
    with opened(source, name) as image:
        check(image)
        try:
            return to_rgb(image, pixel_range)
        except FAULTS as error:
            fault = error
            if image.format in ("JPEG", "MPO") and not is_whole_jpeg(source):
                try:
                    return _mended(source)
                except FAULTS as worse:
                    fault = worse
    raise DataError(f"{name}: cannot be decoded ({fault}); repair or remove the file")


def opened(source: Source, name: str) -> Image.Image:
    """Return an image file opened by Pillow, before its pixels are decoded; see `decode`.

    Its content tells its format, whatever its name; only the formats of `SUFFIXES` are accepted.
    """

    def attempt() -> Image.Image:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        return Image.open(file, formats=_known_formats())

    try:
        if os.path.splitext(name)[1].lower() in HEIF_SUFFIXES:
            heif_is_installed()
        try:
            return attempt()
        except UnidentifiedImageError as error:
            if not _is_heif(source):  # a telephone's HEIC may be called .jpg
                raise
            if not heif_is_installed():
                raise DataError(f"{name}: {GET_HEIF}") from error
            return attempt()
    except FileNotFoundError as error:
        raise MissingFileError(f"{name}: the image is not there") from error
    except DataError:
        raise
    except (*FAULTS, AttributeError) as error:  # of damaged SPIDER files
        raise DataError(
            f"{name}: not an image that can be read ({error}); repair or remove the file"
        ) from error


def size_of(source: Source, name: str) -> tuple[int, int]:
    """Return the (height, width) of an upright image in pixels, without decoding it."""
    with opened(source, name) as image:
        width, height = image.size
        if image.format == "TIFF":  # some versions of Pillow have swapped the sides already
            width, height = image.tag_v2[WIDTH], image.tag_v2[HEIGHT]
        turned = orientation(image) in (5, 6, 7, 8)
        return (width, height) if turned else (height, width)


def fault_of(
    source: Source, name: str, thorough: bool = False, pixel_range: PixelRange | None = None
) -> str | None:
    """Return the reason why an image file cannot be used; None if no fault was found.

    The quick check reads a JPEG's start and end, and a PNG's checksums; it decodes files that fail,
    and all other formats. ``thorough`` decodes every image. The arguments are those of `decode`.
    """
    try:
        if not thorough:
            if is_whole_jpeg(source):
                return None
            with opened(source, name) as image:
                if image.format == "PNG":
                    with contextlib.suppress(*FAULTS):
                        image.verify()
                        return None
        decode(source, name, pixel_range=pixel_range)
    except FileNotFoundError:
        return f"{name}: the image file is missing"
    except FAULTS as error:
        return str(error) if name in str(error) else f"{name}: {error}"
    return None


def _mended(source: Source) -> Image.Image:
    """Return a truncated JPEG as RGB; libjpeg fills the missing rows.

    Raises `ValueError` if more than an eighth of the rows is missing. A truncated progressive JPEG
    lacks detail instead of rows.
    """
    with _stream(source) as stream:
        image = Image.open(io.BytesIO(stream.read() + JPEG_END), formats=["JPEG"])
    rows = np.asarray(image).reshape(image.height, -1)
    # libjpeg fills missing rows with middle grey
    decoded = np.flatnonzero(((rows != 127) & (rows != 128)).any(axis=1))
    missing = 1 - (decoded[-1] + 1 if len(decoded) else 0) / len(rows)
    if missing > MOST_MISSING:
        raise ValueError(f"truncated: {missing:.0%} of its rows are missing")
    return to_rgb(image)


def is_whole_jpeg(source: Source) -> bool:
    """Return whether a file starts and ends like a JPEG; eight times as fast as to open it."""
    if isinstance(source, bytes):
        return source.startswith(JPEG_START) and source.endswith(JPEG_END)
    descriptor = os.open(source, os.O_RDONLY)
    try:
        if os.read(descriptor, len(JPEG_START)) != JPEG_START:
            return False
        os.lseek(descriptor, -len(JPEG_END), os.SEEK_END)
        return os.read(descriptor, len(JPEG_END)) == JPEG_END
    finally:
        os.close(descriptor)
