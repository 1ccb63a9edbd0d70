"""Few-shot subsets: the same number of images per class, selected by a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bit_paddle.errors import DataError


def select(
    labels: np.ndarray, examples_per_class: int, seed: int, classes: Sequence[str]
) -> np.ndarray:
    """Return the ascending indices of ``examples_per_class`` images per class.

    The selection depends only on ``labels`` [N] and ``seed``. Raises one `DataError` that lists the
    classes with too few images.
    """
    counts = np.bincount(labels, minlength=len(classes))
    short = [
        f"{name} has {count}" for name, count in zip(classes, counts) if count < examples_per_class
    ]
    if short:
        more = f" and {len(short) - 5} more classes" if len(short) > 5 else ""
        raise DataError(
            f"--examples_per_class {examples_per_class}: not every class has that many "
            f"training images: {', '.join(short[:5])}{more}; the largest possible number is "
            f"{counts.min()}"
        )
    small = labels.astype(np.min_scalar_type(len(classes)))  # which sorts three times as fast
    order = np.argsort(small, kind="stable")  # the images of each class follow each other
    ends = np.cumsum(counts)
    return np.sort(
        np.concatenate(
            [
                np.random.default_rng([seed, label]).choice(
                    order[end - count : end], examples_per_class, replace=False
                )
                for label, (end, count) in enumerate(zip(ends.tolist(), counts.tolist()))
            ]
        )
    )
