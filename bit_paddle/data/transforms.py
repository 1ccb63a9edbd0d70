"""From an image to the pixels that the network sees; whatever is random is passed in.

Both views resize to a square and ignore the aspect ratio, with Pillow's antialiased bilinear
filter, as BiT does. Results are uint8 [3, crop, crop]; `parallel.to_device` scales them to [-1,
1].
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def training_view(
    image: Image.Image, precrop: int, crop: int, top: int, left: int, flip: bool
) -> np.ndarray:
    """Resize to ``precrop``, cut the ``crop`` at (``top``, ``left``), and ``flip`` it or not."""
    pixels = _resized(image, precrop)[top : top + crop, left : left + crop]
    return (pixels[:, ::-1] if flip else pixels).transpose(2, 0, 1)


def evaluation_view(image: Image.Image, crop: int, resize: int | None = None) -> np.ndarray:
    """Resize straight to ``crop``; or the shorter side to ``resize``, and cut the centre out."""
    if resize is None:
        return _resized(image, crop).transpose(2, 0, 1)
    scale = resize / min(image.size)
    width, height = (max(resize, round(side * scale)) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    top, left = (height - crop) // 2, (width - crop) // 2
    return pixels[top : top + crop, left : left + crop].transpose(2, 0, 1)


def _resized(image: Image.Image, side: int) -> np.ndarray:
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
