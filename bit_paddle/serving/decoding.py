"""Decode images that somebody else has sent: the pixels of `predict`, within limits."""

from __future__ import annotations

import threading

from PIL import Image, UnidentifiedImageError

from bit_paddle.data import decoding
from bit_paddle.errors import DataError
from bit_paddle.serving.bodies import TooLarge

_SCAN = b"\xff\xda"  # starts each scan of a JPEG

_MOST_WORK = 1000  # megapixels of all scans of a JPEG: each scan visits every pixel

_LARGE = 12  # megapixels: larger images are decoded one at a time, with up to 12 bytes per pixel

_one_large = threading.Lock()


def decode(content: bytes, name: str, megapixels: int) -> Image.Image:
    """Return an image file as RGB, as `data.decoding` decodes it.

    Raises `DataError`, and `TooLarge` for more than ``megapixels`` million pixels.
    """
    locked = False

    def check(image: Image.Image) -> None:
        nonlocal locked
        size = image.width * image.height / 1e6
        if size > megapixels:
            raise TooLarge(f"{name}: has {size:,.1f} megapixels, more than {megapixels}")
        if image.format in ("JPEG", "MPO") and size * content.count(_SCAN) > _MOST_WORK:
            raise TooLarge(f"{name}: has so many scans that decoding would take too long")
        if size > _LARGE:
            locked = _one_large.acquire()

    try:
        return decoding.decode(content, name, check)
    except DataError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise TooLarge(f"{name}: has more than {megapixels} megapixels") from error
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise DataError(f"{name}: is not an image that can be read") from error
        raise
    finally:
        if locked:
            _one_large.release()
