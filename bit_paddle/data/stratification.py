"""Split images with several labels so that each part has its share of every label.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-label
Data", ECML PKDD 2011): the rarest label is dealt out first, each image to the part that lacks most
images of it. The paper breaks ties at random; here the order of parts and images breaks them, so
that the result depends on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bit_paddle.data.labels import LabelSets, counts


def parts_of(
    labels: LabelSets, sizes: np.ndarray, shares: Sequence[float], classes: int
) -> np.ndarray:
    """Return the part of each unit by number, int64 [U].

    A unit is an image, or a group that stays whole: it has ``labels``, and is ``sizes`` [U] images.
    ``shares`` are the shares of the parts, which add up to 1.
    """
    of_label = labels.by_label(classes)
    left = counts(labels, classes)
    wanted = np.outer(shares, left)  # [parts, K]: how many more units of each label a part lacks
    room = np.multiply(shares, sizes.sum())  # how many more images a part lacks
    result = np.full(len(labels), -1)

    def put(unit: int, part: int) -> None:
        own = labels.labels[labels.starts[unit] : labels.starts[unit + 1]]
        result[unit] = part
        wanted[part, own] -= 1
        left[own] -= 1
        room[part] -= sizes[unit]

    while left.any():
        label = int(np.where(left > 0, left, left.max() + 1).argmin())
        units = of_label.labels[of_label.starts[label] : of_label.starts[label + 1]]
        units = units[result[units] < 0]
        for unit in units.tolist():
            most = np.flatnonzero(wanted[:, label] == wanted[:, label].max())
            put(unit, int(most[room[most].argmax()]))
    for unit in np.flatnonzero(result < 0).tolist():  # without any label
        put(unit, int(room.argmax()))
    return result
