"""Images and their boxes as a detector sees them: scaled, cropped, mirrored, padded.

An image keeps its shape. It lies in the upper left corner of its view; the rest is grey. The caller
passes in everything random. Pixels are uint8 [3, height, width].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

GREY = 128  # of the padding: 0 after the scaling to [-1, 1], but for a rounding

MULTIPLE = 128  # of a view's sides: the stride of the pyramid's coarsest map


class View(NamedTuple):
    """How an image of ``original`` (height, width) becomes a view of ``sides`` (height, width).

    The image is resized to ``scaled`` (height, width), and the part from ``top`` and ``left`` on is
    shown, mirrored if ``flip``.
    """

    original: tuple[int, int]
    scaled: tuple[int, int]
    sides: tuple[int, int]
    top: int = 0
    left: int = 0
    flip: bool = False

    @property
    def shown(self) -> tuple[int, int]:
        """The (height, width) of the view that is not padding."""
        (height, width), (rows, columns) = self.scaled, self.sides
        return min(rows, height - self.top), min(columns, width - self.left)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Return the view of RGB ``image``, uint8 [3, height, width].

        Pillow's antialiased bilinear filter resizes it.
        """
        rows, columns = self.shown
        down, right = self._scale()
        part = (
            self.left / right,
            self.top / down,
            (self.left + columns) / right,
            (self.top + rows) / down,
        )
        small = image.resize((columns, rows), Image.Resampling.BILINEAR, box=part)
        pixels = np.asarray(small).transpose(2, 0, 1)
        view = np.full((3, *self.sides), GREY, np.uint8)
        view[:, :rows, :columns] = pixels[:, :, ::-1] if self.flip else pixels
        return view

    def boxes(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the ``boxes`` [N, 4] of the image in the view, and the indices of those shown.

        A box is cut at the edges of what is shown; without area there, it is not shown.
        """
        rows, columns = self.shown
        down, right = self._scale()
        x = (boxes[:, [0, 2]] * right - self.left).clip(0, columns)
        y = (boxes[:, [1, 3]] * down - self.top).clip(0, rows)
        if self.flip:
            x = columns - x[:, ::-1]
        shown = np.flatnonzero((x[:, 0] < x[:, 1]) & (y[:, 0] < y[:, 1]))
        found = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)
        return found[shown].astype(np.float32), shown

    def restored(self, boxes: np.ndarray) -> np.ndarray:
        """Return ``boxes`` [N, 4] of the view in pixels of the image."""
        down, right = self._scale()
        x, y = boxes[:, [0, 2]], boxes[:, [1, 3]]
        if self.flip:
            x = self.shown[1] - x[:, ::-1]
        x, y = (x + self.left) / right, (y + self.top) / down
        return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)

    def _scale(self) -> tuple[float, float]:
        return self.scaled[0] / self.original[0], self.scaled[1] / self.original[1]


def whole(original: tuple[int, int], sides: tuple[int, int], flip: bool = False) -> View:
    """Return the view of ``sides`` in which an image of ``original`` (height, width) just fits."""
    return View(original, _scaled(original, sides, 1.0), sides, flip=flip)


def jittered(
    original: tuple[int, int],
    sides: tuple[int, int],
    scales: tuple[float, float],
    flip: bool,
    random: np.random.Generator,
    longest: int | None = None,
) -> View:
    """Return a random view of ``sides`` of an image of ``original`` (height, width).

    The longer side of the image is ``longest`` pixels (None: as large as just fits), times a factor
    drawn uniformly between ``scales``. What is
    then too large is cropped at a random place. With ``flip`` every second view is mirrored. This
    is the augmentation of the code that the paper names, with scales (1, 1) by default.
    """
    factor, down, right, coin = random.uniform(size=4)
    square = sides if longest is None else (longest, longest)
    scaled = _scaled(original, square, scales[0] + factor * (scales[1] - scales[0]))
    top, left = (
        int(share * (max(0, size - side) + 1))
        for share, size, side in zip((down, right), scaled, sides)
    )
    return View(original, scaled, sides, top, left, flip and coin < 0.5)


def fitting_sides(
    original: tuple[int, int], longest: int, multiple: int = MULTIPLE
) -> tuple[int, int]:
    """Return the least sides of a view for an image whose longer side becomes ``longest`` pixels.

    Both are multiples of ``multiple``, so that all maps of the pyramid fit each other.
    """
    height, width = _scaled(original, (longest, longest), 1.0)
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def common_sides(originals: np.ndarray, longest: int) -> tuple[int, int]:
    """Return the least sides of a view for images of ``originals`` [N, 2]; see `fitting_sides`.

    They are equal, unless all images are wide, or all are high.
    """
    shapes = np.unique(originals, axis=0).tolist()
    every = [fitting_sides((height, width), longest) for height, width in shapes]
    return max(height for height, _ in every), max(width for _, width in every)


def _scaled(original: tuple[int, int], sides: tuple[int, int], factor: float) -> tuple[int, int]:
    ratio = factor * min(side / size for side, size in zip(sides, original))
    height, width = (max(1, round(size * ratio)) for size in original)
    return height, width
