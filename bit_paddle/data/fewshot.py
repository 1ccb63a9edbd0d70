"""Few-shot subsets: the same number of images of each class, chosen by a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bit_paddle.errors import DataError


def select(
    labels: np.ndarray, examples_per_class: int, seed: int, classes: Sequence[str]
) -> np.ndarray:
    """Return the indices, ascending, of ``examples_per_class`` images of each of ``classes``.

    Reads ``labels`` [N] alone. The choice within a class depends on its labels' positions and
    ``seed``. Raises `DataError` that lists every class with too few images.
    """
    counts = np.bincount(labels, minlength=len(classes))
    short = [
        f"{name} has {count}" for name, count in zip(classes, counts) if count < examples_per_class
    ]
    if short:
        more = f" and {len(short) - 5} more classes" if len(short) > 5 else ""
        raise DataError(
            f"--examples_per_class {examples_per_class}: not every class has that many "
            f"training images: {', '.join(short[:5])}{more}; the most that works is "
            f"{counts.min()}"
        )
    return np.sort(
        np.concatenate(
            [
                np.random.default_rng([seed, label]).choice(
                    np.flatnonzero(labels == label), examples_per_class, replace=False
                )
                for label in range(len(classes))
            ]
        )
    )
