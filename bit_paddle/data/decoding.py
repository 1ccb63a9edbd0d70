"""From an image file, on the disk or in memory, to RGB pixels; and what is wrong with it."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import struct
from typing import BinaryIO, Union

import numpy as np
from PIL import Image, UnidentifiedImageError

from bit_paddle.errors import DataError, MissingFileError, install_hint

Source = Union[str, bytes]  # the path of an image file, or its content

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
    *(".avif", ".jp2", ".tga", ".pbm", ".pgm", ".pnm", ".ppm"),
}

HEIF_SUFFIXES = {".heic", ".heif", ".hif"}  # of telephones and cameras; need pillow-heif

GET_HEIF = f"HEIC images need pillow-heif: {install_hint('heic')}"

JPEG_START = b"\xff\xd8\xff"

JPEG_END = b"\xff\xd9"

MOST_MISSING = 1 / 8  # of the rows: a truncated JPEG with more missing rows is a fault


# Pillow's exceptions depend on the format and the damage; `DataError` is a `ValueError`
_FAULTS = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, struct.error),
    *(RuntimeError, ArithmeticError),  # AVIF and DDS, which may be called .jpg
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),  # the latter with -W error
)

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


def to_rgb(image: Image.Image) -> Image.Image:
    """Return ``image`` as upright RGB; transparent pixels become white.

    EXIF's orientation is applied, 16-bit values are scaled to 8 bits, and an animation gives its
    first frame. Raises `ValueError` for pixels without a known range.
    """
    if image.format == "TIFF":
        image.filename = ""  # Pillow 11 to 13 maps a rotated file with width and height swapped
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        values, tags = np.asarray(image).astype(np.uint32), getattr(image, "tag_v2", {})
        highest = 2 ** tags.get(_BITS, (16,))[0] - 1  # a TIFF may have 12 bits
        if tags.get(_PHOTOMETRIC) == 0:  # 0 is white; Pillow inverts only 1 to 8 bits itself
            values = highest - values
        values = (values * 255 + highest // 2) // highest
        rgb = Image.fromarray(values.astype(np.uint8)).convert("RGB")
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"32-bit pixels ({image.mode}) have no known range; save it with 8 or 16 bits"
        )
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        rgb = Image.alpha_composite(white, layer).convert("RGB")
    else:
        image.load()
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    # Pillow rotates a TIFF itself while it loads it
    turn = None if image.format == "TIFF" else _TURNS.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC = 256, 257, 258, 262  # tags of TIFF


# The inverse of each value of EXIF's tag Orientation (TIFF 6.0, page 36); 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except _FAULTS:
        return 1  # the pixels are usable even if EXIF is damaged


# --- Files --------------------------------------------------------------------------------------


def decoded(source: Source, name: str) -> Image.Image:
    """Return the image in ``source`` as RGB; ``name`` is for messages, and tells HEIC files.

    Errors: `DataError` if it cannot be decoded, `MissingFileError`.
    """
    with _opened(source, name) as image:
        try:
            return to_rgb(image)
        except _FAULTS as error:
            fault = error
            if image.format in ("JPEG", "MPO") and not _is_whole_jpeg(source):
                try:
                    return _mended(source)
                except _FAULTS as worse:
                    fault = worse
    raise DataError(f"{name}: cannot be decoded ({fault}); repair or remove the file")


def size_of(source: Source, name: str) -> tuple[int, int]:
    """Return the (height, width) in pixels of the upright image; it is not decoded.

    Errors: as of `decoded`.
    """
    with _opened(source, name) as image:
        width, height = image.size
        if image.format == "TIFF":  # some versions of Pillow have swapped the sides already
            width, height = image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
        turned = _orientation(image) in (5, 6, 7, 8)
        return (width, height) if turned else (height, width)


def fault_of(source: Source, name: str, thorough: bool = False) -> str | None:
    """Return the reason why the image in ``source`` cannot be used; None if no fault was found.

    The quick check reads a JPEG's start and end, and a PNG's checksums; it decodes files that fail,
    and all other formats. ``thorough`` decodes every image.
    """
    try:
        if not thorough:
            if _is_whole_jpeg(source):
                return None
            with _opened(source, name) as image:
                if image.format == "PNG":
                    with contextlib.suppress(*_FAULTS):
                        image.verify()
                        return None
        decoded(source, name)
    except FileNotFoundError:
        return f"{name}: the image file is missing"
    except _FAULTS as error:
        return str(error) if name in str(error) else f"{name}: {error}"
    return None


def _opened(source: Source, name: str) -> Image.Image:
    try:
        if os.path.splitext(name)[1].lower() in HEIF_SUFFIXES:
            heif_is_installed()
        try:
            return Image.open(_file(source))
        except UnidentifiedImageError as error:
            if not _is_heif(source):  # a telephone's HEIC may be called .jpg
                if isinstance(source, bytes):  # the message of Pillow has an address in memory
                    raise ValueError("cannot identify image file") from error
                raise
            if not heif_is_installed():
                raise DataError(f"{name}: {GET_HEIF}") from error
            return Image.open(_file(source))
    except FileNotFoundError as error:
        raise MissingFileError(f"{name}: the image is not there") from error
    except DataError:
        raise
    except (*_FAULTS, AttributeError) as error:  # of damaged SPIDER files
        raise DataError(
            f"{name}: not an image that can be read ({error}); repair or remove the file"
        ) from error


def _file(source: Source) -> str | BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _stream(source: Source) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _mended(source: Source) -> Image.Image:
    """Return a truncated JPEG as RGB; libjpeg fills the missing rows.

    Raises `ValueError` if more than an eighth of the rows is missing. A truncated progressive JPEG
    lacks detail instead of rows.
    """
    with _stream(source) as stream:
        image = Image.open(io.BytesIO(stream.read() + JPEG_END))
    rows = np.asarray(image).reshape(image.height, -1)
    # libjpeg fills missing rows with middle grey
    decoded = np.flatnonzero(((rows != 127) & (rows != 128)).any(axis=1))
    missing = 1 - (decoded[-1] + 1 if len(decoded) else 0) / len(rows)
    if missing > MOST_MISSING:
        raise ValueError(f"truncated: {missing:.0%} of its rows are missing")
    return to_rgb(image)


def _is_whole_jpeg(source: Source) -> bool:
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
