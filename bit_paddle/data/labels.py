"""The labels of images: one number per image, int64 [N], or any number of them (`LabelSets`)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Union

import numpy as np

_BLOCK = 1 << 20  # labels that are counted at once


class LabelSets:
    """The labels of N images, any number per image, as a compressed row index (CSR).

    Image i has ``labels[starts[i] : starts[i + 1]]``, in rising order and each once. ``starts`` is
    int64 [N + 1] and ``labels`` an integer array [M]; both may be mapped from a file.
    """

    def __init__(self, starts: np.ndarray, labels: np.ndarray):
        self.starts, self.labels = starts, labels

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> LabelSets:
        """Return the labels of images from a group of numbers per image, in any order."""
        images = np.repeat(np.arange(len(rows)), list(map(len, rows)))
        labels = np.fromiter(itertools.chain.from_iterable(rows), np.int64, len(images))
        return cls.of_pairs(images, labels, len(rows))

    @classmethod
    def of_pairs(cls, images: np.ndarray, labels: np.ndarray, count: int) -> LabelSets:
        """Return the labels of ``count`` images from (image, label) pairs, two arrays [M]."""
        width = int(labels.max(initial=0)) + 1
        pairs = np.unique(images.astype(np.int64) * width + labels)
        starts = np.searchsorted(pairs, width * np.arange(count + 1)).astype(np.int64)
        return cls(starts, (pairs % width).astype(np.int32))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, indices: np.ndarray | slice) -> LabelSets:
        """Return the labels of the images ``indices``, int64 [n]."""
        if isinstance(indices, slice):
            indices = np.arange(*indices.indices(len(self)))
        if len(indices) == len(self) and _is_every(indices):
            return self  # whose arrays may be mapped
        first = self.starts[indices]
        lengths = self.starts[np.add(indices, 1)] - first
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        places = np.arange(starts[-1]) + np.repeat(first - starts[:-1], lengths)
        return LabelSets(starts, self.labels[places])

    @property
    def lengths(self) -> np.ndarray:
        """The number of labels of each image, int64 [N]."""
        return np.diff(self.starts)

    @property
    def images(self) -> np.ndarray:
        """The image of each of `labels`, int64 [M]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def dense(self, classes: int) -> np.ndarray:
        """Return whether each image has each label, bool [N, ``classes``]; for a few images."""
        result = np.zeros((len(self), classes), bool)
        result[self.images, self.labels] = True
        return result

    def by_label(self, classes: int) -> LabelSets:
        """Return the transposed index: the images of each of ``classes`` labels."""
        starts = np.concatenate([[0], np.cumsum(counts(self, classes))]).astype(np.int64)
        return LabelSets(starts, self.images[np.argsort(self.labels, kind="stable")])

    def renumbered(self, numbers: np.ndarray) -> LabelSets:
        """Return the sets with ``numbers[label]`` for each label, left out if that is negative.

        Several labels may get one number.
        """
        found = numbers[self.labels]
        kept = found >= 0
        return LabelSets.of_pairs(self.images[kept], found[kept], len(self))

    def tolist(self) -> list[tuple[int, ...]]:
        """Return the labels of each image as a tuple."""
        flat, starts = self.labels.tolist(), self.starts.tolist()
        return [tuple(flat[low:high]) for low, high in zip(starts, starts[1:])]


Labels = Union[np.ndarray, LabelSets]


def every(count: int) -> np.ndarray:
    """Return the numbers from 0 to ``count`` - 1, in 4 bytes each if these suffice."""
    return np.arange(count, dtype=np.int32 if count < 2**31 else np.int64)


def _is_every(indices: np.ndarray) -> bool:
    """Return whether ``indices`` are 0, 1, 2 …; it takes little memory."""
    return all(
        np.array_equal(part, np.arange(start, start + len(part)))
        for start in range(0, len(indices), _BLOCK)
        for part in [indices[start : start + _BLOCK]]
    )


def as_labels(labels: Sequence[int] | Labels) -> Labels:
    """Return ``labels`` as int64 [N]; `LabelSets` stay themselves."""
    return labels if isinstance(labels, LabelSets) else np.asarray(labels, np.int64)


def members(labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Return (image, label) of each pair as two arrays [M]; with one label per image M is N."""
    if isinstance(labels, LabelSets):
        return labels.images, labels.labels
    return np.arange(len(labels)), labels


def counts(labels: Labels, classes: int) -> np.ndarray:
    """Return the number of images of each of ``classes`` labels, int64 [K]."""
    numbers = labels.labels if isinstance(labels, LabelSets) else labels
    result = np.zeros(classes, np.int64)
    for start in range(0, len(numbers), _BLOCK):  # bincount copies what is not int64
        result += np.bincount(numbers[start : start + _BLOCK], minlength=classes)
    return result


def holders(labels: Labels, label: int) -> np.ndarray:
    """Return whether each image has ``label``, bool [N]."""
    if isinstance(labels, LabelSets):
        result = np.zeros(len(labels), bool)
        result[labels.images[labels.labels == label]] = True
        return result
    return labels == label


def targets(labels: Labels, classes: int) -> np.ndarray:
    """Return what a loss takes: labels int64 [N], or for `LabelSets` bool [N, ``classes``]."""
    return labels.dense(classes) if isinstance(labels, LabelSets) else labels


def joined(parts: Sequence[Labels]) -> Labels:
    """Return the labels of all ``parts`` in one row; all are of one kind."""
    if not all(isinstance(part, LabelSets) for part in parts):
        return np.concatenate(parts)
    lengths = np.concatenate([part.lengths for part in parts])
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return LabelSets(starts, np.concatenate([part.labels for part in parts]))


def named(labels: Labels, classes: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the names of the labels of each image."""
    rows = labels.tolist() if isinstance(labels, LabelSets) else ((label,) for label in labels)
    return [tuple(classes[label] for label in row) for row in rows]
