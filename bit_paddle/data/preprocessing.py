"""How a model wants its images: `Preprocessing`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from bit_paddle.errors import ConfigError, did_you_mean

_MOST = 1 << 12  # pixels of a side; 50 MB an image

CENTRES = ("down", "even")

ZOOM = 8 / 7  # of an image whose corners are cut: 256 pixels for a crop of 224

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a square of ``crop`` pixels, by one of Pillow's `FILTERS`.

    ``resize`` None squashes the image, as BiT does. A number of pixels scales the shorter side to
    that, and then crops the centre. ``centre`` decides if the rest is odd: its half is rounded
    "down" (TensorFlow, transformers) or to an "even" number (torchvision, timm). A pixel from 0 to
    1 becomes (pixel - ``mean``) / ``std``, with one number for each of red, green and blue; BiT's
    own is -1 to 1. Raises `ConfigError` for numbers that make no image.
    """

    crop: int
    resize: int | None = None
    filter: str = "bilinear"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    centre: str = "down"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # lists, where they were read from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        crop, side = self.crop, self.crop if self.resize is None else self.resize
        if not (isinstance(crop, int) and isinstance(side, int) and 0 < crop <= side <= _MOST):
            raise ConfigError(
                f"a crop of {crop!r} pixels from {side!r}: expected whole numbers up to {_MOST:,}, "
                "and no crop that is larger than the image"
            )
        if self.filter not in FILTERS:
            raise ConfigError(f"filter {self.filter!r}: {did_you_mean(self.filter, FILTERS)}")
        if self.centre not in CENTRES:
            raise ConfigError(f"centre {self.centre!r}: {did_you_mean(self.centre, CENTRES)}")
        if not all(map(math.isfinite, self.mean + self.std)) or min(self.std) <= 0:
            raise ConfigError(f"mean {self.mean}, std {self.std}: expected finite numbers, std > 0")

    def geometry(
        self, width: int, height: int, corner: tuple[int, int] | None = None
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (width, height) of a resized image, and (left, top) of the crop in it.

        ``width`` and ``height`` are those of the image. The longer side is rounded down, as
        torchvision's Resize and transformers do. (TensorFlow's code for BiT rounds it to the
        nearest.) ``corner`` is that of a `Look`.
        """
        crop, side = self.crop, self.resize
        if corner is not None and (side is None or side == crop):
            enlarged = round(ZOOM * crop)  # else all corners are one, at least of a square image
        else:
            enlarged = side or crop
        size = (enlarged, enlarged)
        if side is not None:
            shorter = min(width, height)
            size = (enlarged * width // shorter, enlarged * height // shorter)
        if corner is not None:
            bottom, right = corner
            return size, (right * (size[0] - crop), bottom * (size[1] - crop))
        half = round if self.centre == "even" else int
        return size, (half((size[0] - crop) / 2), half((size[1] - crop) / 2))

    def seen(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return (left, top, right, bottom) of the part of an image that is in the crop, in pixels.

        ``width`` and ``height`` are those of the image.
        """
        size, (left, top) = self.geometry(width, height)
        across, down = width / size[0], height / size[1]
        right, bottom = left + self.crop, top + self.crop
        return left * across, top * down, right * across, bottom * down

    @property
    def is_scaled_as_bit(self) -> bool:
        """Whether pixels become -1 to 1, as the network's own input does it."""
        return set(self.mean) == set(self.std) == {0.5}

    def __str__(self) -> str:
        text = (
            f"squash {self.crop}" if self.resize is None else f"{self.resize}, centre {self.crop}"
        )
        return text if self.filter == "bilinear" else f"{text}, {self.filter}"


class Look(NamedTuple):
    """One of several views of an image, for predictions that are averaged.

    ``corner`` (bottom, right) of zeros and ones cuts the crop from a corner instead of the centre;
    an image that has just the size of the crop, or is squashed, is enlarged by `ZOOM` for that.
    """

    preprocessing: Preprocessing
    corner: tuple[int, int] | None = None
    mirrored: bool = False
