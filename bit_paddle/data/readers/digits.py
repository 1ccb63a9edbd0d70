"""scikit-learn's handwritten digits."""

from __future__ import annotations

import numpy as np

from bit_paddle.data.images import ArrayImages, Parts
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import ConfigError, install_hint


def open_digits(spec: DataSpec) -> Parts:
    """Open scikit-learn's 1,797 digits of 8 x 8 pixels; every fifth of a class validates."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            f"--dataset digits needs scikit-learn, which is not installed: {install_hint('digits')}"
        ) from error
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 17 levels, 0 … 16
    pixels = np.repeat(grey[..., None], 3, axis=3)
    classes = [str(digit) for digit in digits.target_names]
    held_out = np.zeros(len(pixels), bool)
    for label in range(len(classes)):
        held_out[np.flatnonzero(digits.target == label)[4::5]] = True
    return Parts(
        ArrayImages(pixels[~held_out], digits.target[~held_out], classes, "digits train"),
        ArrayImages(pixels[held_out], digits.target[held_out], classes, "digits val"),
    )
