"""scikit-learn's handwritten digits."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from bit_paddle.data.images import ArrayImages, Parts
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import ConfigError, install_hint

_DATA = Path("datasets", "data", "digits.csv.gz")  # rows of 64 grey values and the label


def open_digits(spec: DataSpec) -> Parts:
    """Open scikit-learn's 1,797 digits of 8 x 8 pixels; every fifth of a class validates.

    Reads its file: ``sklearn.datasets.load_digits`` does no more, but takes a second to import.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise ConfigError(
            f"--dataset digits needs scikit-learn, which is not installed: {install_hint('digits')}"
        )
    path = Path(found.origin).parent / _DATA
    try:
        table = np.loadtxt(path, delimiter=",")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--dataset digits: {path}: {error}") from error
    labels, classes = table[:, 64].astype(np.int64), [str(digit) for digit in range(10)]
    grey = np.round(table[:, :64] * (255 / 16)).astype(np.uint8)  # 17 levels, 0 … 16
    pixels = np.repeat(grey.reshape(-1, 8, 8, 1), 3, axis=3)
    held_out = np.zeros(len(pixels), bool)
    for label in range(len(classes)):
        held_out[np.flatnonzero(labels == label)[4::5]] = True
    return Parts(
        ArrayImages(pixels[~held_out], labels[~held_out], classes, "digits train"),
        ArrayImages(pixels[held_out], labels[held_out], classes, "digits val"),
    )
