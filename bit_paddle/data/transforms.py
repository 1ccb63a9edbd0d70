"""From an image to the network's pixels; the caller passes in everything random.

Views ignore the aspect ratio and resize to a square with Pillow's antialiased bilinear filter, as
BiT does. Pixels are uint8 [3, height, width]; `device.to_device` scales them to [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from bit_paddle.data.preprocessing import Preprocessing


def resized(image: Image.Image, side: int) -> list[np.ndarray]:
    """Return RGB ``image`` as its three bands [side, side]."""
    return _bands(image.resize((side, side), Image.Resampling.BILINEAR))


def training_view(
    bands: Sequence[np.ndarray], top: int, left: int, flip: bool, out: np.ndarray
) -> np.ndarray:
    """Write the crop of ``bands`` at (``top``, ``left``) into ``out``, mirrored if ``flip``."""
    height, width = out.shape[1:]
    for plane, band in zip(out, bands):
        plane[:] = band[top : top + height, left : left + width]
    if flip and width % 8 == 0:  # eight bytes at once: two to ten times as fast as single bytes
        words = out.view(np.uint64)
        words[:] = words[:, :, ::-1].byteswap()
    elif flip:
        out[:] = out[:, :, ::-1].copy()
    return out


def inception_box(
    width: int, height: int, random: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of an Inception-style crop of ``width`` x ``height``.

    The crop has 5 to 100 % of the area. Width / height is drawn from 0.75 to 1.33, then the height,
    then the position, each uniformly. This is TensorFlow's SampleDistortedBoundingBox, with which
    BiT was trained (google-research/big_vision, pp/ops_image.py); torchvision draws differently.
    The whole image is returned if 100 draws fail, as for a very long image.
    """
    least, whole = 0.05 * width * height, width * height
    for _ in range(100):
        aspect = random.uniform(0.75, 1.33)
        low = round((least / aspect) ** 0.5)
        high = min(round((whole / aspect) ** 0.5), height, int((width + 0.5) / aspect))
        rows = int(random.integers(min(low, high), high + 1))
        columns = round(rows * aspect)
        if least <= rows * columns and 0 < columns <= width and rows:
            left, top = (int(random.integers(0, n + 1)) for n in (width - columns, height - rows))
            return left, top, left + columns, top + rows
    return 0, 0, width, height


def inception_view(
    image: Image.Image, random: np.random.Generator, flip: bool, out: np.ndarray
) -> np.ndarray:
    """Write an Inception-style crop of RGB ``image``, resized to ``out``'s size, into ``out``."""
    height, width = out.shape[1:]
    box = inception_box(*image.size, random)
    view = image.crop(box).resize((width, height), Image.Resampling.BILINEAR)
    return training_view(_bands(view), 0, 0, flip, out)


def evaluation_view(
    image: Image.Image, view: Preprocessing, corner: tuple[int, int] | None = None
) -> np.ndarray:
    """Return RGB ``image`` as ``view`` wants it, uint8 [3, crop, crop].

    ``corner`` is that of a `Look`.
    """
    size, (left, top) = view.geometry(*image.size, corner)
    pixels = np.stack(_bands(image.resize(size, Image.Resampling[view.filter.upper()])))
    return pixels[:, top : top + view.crop, left : left + view.crop]


def _bands(image: Image.Image) -> list[np.ndarray]:
    """Return the bands of RGB ``image``; five times as fast as `numpy.asarray` of all at once."""
    return [np.asarray(band) for band in image.split()]
