"""Sets of labelled images: the interface that the loader uses, and its two implementations."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from bit_paddle.data.labels import Labels, as_labels, members
from bit_paddle.errors import DataError, MissingFileError, install_hint

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


def _is_heif(path: str) -> bool:
    """Return whether a file starts like HEIC, whatever its extension (ISO/IEC 23008-12)."""
    with open(path, "rb") as stream:
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


def _mended(path: str) -> Image.Image:
    """Return a truncated JPEG as RGB; libjpeg fills the missing rows.

    Raises `ValueError` if more than an eighth of the rows is missing. A truncated progressive JPEG
    lacks detail instead of rows.
    """
    with open(path, "rb") as stream:
        image = Image.open(io.BytesIO(stream.read() + JPEG_END))
    rows = np.asarray(image).reshape(image.height, -1)
    # libjpeg fills missing rows with middle grey
    decoded = np.flatnonzero(((rows != 127) & (rows != 128)).any(axis=1))
    missing = 1 - (decoded[-1] + 1 if len(decoded) else 0) / len(rows)
    if missing > MOST_MISSING:
        raise ValueError(f"truncated: {missing:.0%} of its rows are missing")
    return to_rgb(image)


class FileImages:
    """Image files below ``root``, decoded at each access; ``paths`` are relative to ``root``.

    ``groups`` are the names of the images' groups (see `splits`), None if they are not known.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int] | Labels,
        classes: Sequence[str],
        root: str | os.PathLike = "",
        groups: Sequence[str] | None = None,
    ):
        self.paths, self.classes, self.root, self.groups = list(paths), list(classes), root, groups
        self.labels = as_labels(labels)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        path = self.name(index)
        with self._open(path) as image:
            try:
                return to_rgb(image)
            except _FAULTS as error:
                fault = error
                if image.format in ("JPEG", "MPO") and not _is_whole_jpeg(path):
                    try:
                        return _mended(path)
                    except _FAULTS as worse:
                        fault = worse
        raise DataError(f"{path}: cannot be decoded ({fault}); repair or remove the file")

    def size(self, index: int) -> tuple[int, int]:
        with self._open(self.name(index)) as image:
            width, height = image.size
            if image.format == "TIFF":  # some versions of Pillow have swapped the sides already
                width, height = image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
            turned = _orientation(image) in (5, 6, 7, 8)
            return (width, height) if turned else (height, width)

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
        )

    def fault(self, index: int, thorough: bool = False) -> str | None:
        """Return the reason why image ``index`` cannot be used; None if no fault was found.

        The quick check reads a JPEG's start and end, and a PNG's checksums; it decodes files that
        fail, and all other formats. ``thorough`` decodes every image.
        """
        path = self.name(index)
        try:
            if not thorough:
                if _is_whole_jpeg(path):
                    return None
                with self._open(path) as image:
                    if image.format == "PNG":
                        with contextlib.suppress(*_FAULTS):
                            image.verify()
                            return None
            self.image(index)
        except FileNotFoundError:
            return f"{path}: the image file is missing"
        except _FAULTS as error:
            return str(error) if path in str(error) else f"{path}: {error}"
        return None

    def _open(self, path: str) -> Image.Image:
        try:
            if os.path.splitext(path)[1].lower() in HEIF_SUFFIXES:
                heif_is_installed()
            try:
                return Image.open(path)
            except UnidentifiedImageError as error:
                if not _is_heif(path):  # a telephone's HEIC may be called .jpg
                    raise
                if not heif_is_installed():
                    raise DataError(f"{path}: {GET_HEIF}") from error
                return Image.open(path)
        except FileNotFoundError as error:
            raise MissingFileError(f"{path}: the image is not there") from error
        except DataError:
            raise
        except (*_FAULTS, AttributeError) as error:  # of damaged SPIDER files
            raise DataError(
                f"{path}: not an image that can be read ({error}); repair or remove the file"
            ) from error


def _is_whole_jpeg(path: str) -> bool:
    """Return whether a file starts and ends like a JPEG; eight times as fast as to open it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if os.read(descriptor, len(JPEG_START)) != JPEG_START:
            return False
        os.lseek(descriptor, -len(JPEG_END), os.SEEK_END)
        return os.read(descriptor, len(JPEG_END)) == JPEG_END
    finally:
        os.close(descriptor)


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
