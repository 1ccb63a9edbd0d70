"""Few-shot subsets: the same number of images per class, selected by a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bit_paddle.data.labels import Labels, LabelSets, counts
from bit_paddle.errors import DataError


def select(
    labels: Labels, examples_per_class: int, seed: int, classes: Sequence[str]
) -> np.ndarray:
    """Return the ascending indices of ``examples_per_class`` images per class.

    With several labels per image, each label has at least so many images. The selection depends
    only on ``labels`` and ``seed``. Raises one `DataError` that lists the classes with too few
    images.
    """
    found = counts(labels, len(classes))
    short = [
        f"{name} has {count}" for name, count in zip(classes, found) if count < examples_per_class
    ]
    if short:
        more = f" and {len(short) - 5} more classes" if len(short) > 5 else ""
        raise DataError(
            f"--examples_per_class {examples_per_class}: not every class has that many "
            f"training images: {', '.join(short[:5])}{more}; the largest possible number is "
            f"{found.min()}"
        )
    if isinstance(labels, LabelSets):
        return of_sets(labels, examples_per_class, seed, found)
    small = labels.astype(np.min_scalar_type(len(classes)))  # which sorts three times as fast
    order = np.argsort(small, kind="stable")  # the images of each class follow each other
    ends = np.cumsum(found)
    return np.sort(
        np.concatenate(
            [
                np.random.default_rng([seed, label]).choice(
                    order[end - count : end], examples_per_class, replace=False
                )
                for label, (end, count) in enumerate(zip(ends.tolist(), found.tolist()))
            ]
        )
    )


def of_sets(labels: LabelSets, least: int, seed: int, found: np.ndarray) -> np.ndarray:
    """Return images so that each label has ``least`` of them or more, chosen greedily.

    They are ascending indices. ``found`` are the numbers of images of all labels; a label with
    fewer than ``least`` gives all. Labels come from the rarest to the most frequent. For each one,
    random images of it are added until it has enough; images that were added for a rarer label
    count too.
    """
    by_label = labels.by_label(len(found))
    place = np.random.default_rng(seed).permutation(len(labels))
    chosen, has = np.zeros(len(labels), bool), np.zeros(len(found), np.int64)
    for label in np.argsort(found, kind="stable").tolist():
        images = by_label.labels[by_label.starts[label] : by_label.starts[label + 1]]
        images = images[~chosen[images]]
        added = images[np.argsort(place[images])][: max(0, least - int(has[label]))]
        chosen[added] = True
        has += counts(labels[added], len(found))
    return np.flatnonzero(chosen)
