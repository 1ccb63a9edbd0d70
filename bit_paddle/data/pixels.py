"""From an opened image file of any mode to upright RGB."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image

# Pillow's exceptions depend on the format and the damage; `DataError` is a `ValueError`
FAULTS = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, struct.error),
    *(RuntimeError, ArithmeticError),  # AVIF and DDS, which may be called .jpg
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),  # the latter with -W error
)

PixelRange = tuple[float, float]  # the values that become 0 and 255

# Tags of TIFF
WIDTH, HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 256, 257, 258, 262, 339

_UNSIGNED = 1  # a value of `_SAMPLE_FORMAT`

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


def to_rgb(image: Image.Image, pixel_range: PixelRange | None = None) -> Image.Image:
    """Return ``image`` as upright RGB; transparent pixels become white.

    EXIF's orientation is applied, 16-bit values are scaled to 8 bits, and an animation gives its
    first frame. 32-bit values are scaled to 8 bits by ``pixel_range``, and clipped; it has no
    effect on other images. Raises `ValueError` for 32-bit pixels without a range, and for NaN.
    """
    if image.format == "TIFF":
        image.filename = ""  # Pillow 11 to 13 maps a rotated file with width and height swapped
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        values, tags = np.asarray(image).astype(np.uint32), getattr(image, "tag_v2", {})
        highest = 2 ** tags.get(_BITS, (16,))[0] - 1  # a TIFF may have 12 bits
        if _zero_is_white(image):
            values = highest - values
        values = (values * 255 + highest // 2) // highest
        rgb = Image.fromarray(values.astype(np.uint8)).convert("RGB")
    elif image.mode in ("I", "F"):
        rgb = Image.fromarray(_scaled(image, pixel_range)).convert("RGB")
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        rgb = Image.alpha_composite(white, layer).convert("RGB")
    else:
        image.load()
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    # Pillow rotates a TIFF itself while it loads it
    turn = None if image.format == "TIFF" else _TURNS.get(orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _scaled(image: Image.Image, pixel_range: PixelRange | None) -> np.ndarray:
    """Return 32-bit pixels as uint8 [H, W]. Raises `ValueError`: see `to_rgb`."""
    if pixel_range is None:
        raise ValueError(
            f"32-bit pixels ({image.mode}) have no known range; save it with 8 or 16 bits, or "
            "write pixel_range: [low, high] into the data set's .yaml file"
        )
    values = np.asarray(image)
    if image.mode == "I" and getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, (0,))[0] == _UNSIGNED:
        values = values.view(np.uint32)  # Pillow reads them as signed
    values = values.astype(np.float64)
    if np.isnan(values).any():
        raise ValueError(f"{np.isnan(values).sum():,} of its 32-bit pixels are NaN")
    low, high = pixel_range
    values = np.rint((np.clip(values, low, high) - low) * (255 / (high - low)))
    return (255 - values if _zero_is_white(image) else values).astype(np.uint8)


def _zero_is_white(image: Image.Image) -> bool:
    """Return whether a TIFF's lowest value is white; Pillow inverts only 1 to 8 bits itself."""
    return getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0


def orientation(image: Image.Image) -> int:
    """Return the value of EXIF's tag Orientation, from 1 (upright) to 8."""
    try:
        return image.getexif().get(0x0112, 1)
    except FAULTS:
        return 1  # the pixels are usable even if EXIF is damaged
