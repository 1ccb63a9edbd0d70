"""Loss, top-1, top-5 and balanced accuracy over all images of a data set, counted exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from bit_paddle.models.losses import DEFAULT, LOSSES


class Measured(Protocol):
    """The result of a measurement: accuracies from 0 to 1, and the mean loss."""

    top1: float
    top5: float
    balanced_accuracy: float
    loss: float
    images: int


def in_words(measured: Measured) -> str:
    """Return a measurement as a line of text."""
    return (
        f"top-1 {measured.top1:.2%}, top-5 {measured.top5:.2%}, balanced accuracy "
        f"{measured.balanced_accuracy:.2%}, loss {measured.loss:.4f} ({measured.images:,} images)"
    )


class Tally:
    """Sums over images of K ``classes``, to which `add` adds one batch after another.

    ``per_class`` and ``right_per_class``, int64 [K], count images and right predictions by label.
    """

    def __init__(self, classes: int):
        self.loss_sum, self.top5_count = 0.0, 0
        self.per_class, self.right_per_class = np.zeros((2, classes), np.int64)

    def add(self, logits: np.ndarray, labels: np.ndarray, loss: str = DEFAULT) -> None:
        """Add ``logits`` [N, K] and ``labels`` [N]; ``loss`` is a name in `LOSSES`.

        All is computed in float64. Equal logits rank by class number, as in a stable sort. An image
        with a logit that is not finite counts as wrong.
        """
        logits = logits.astype(np.float64)
        true = np.take_along_axis(logits, labels[:, None], axis=1)  # [N, 1]
        ahead = (logits > true) | (
            (logits == true) & (np.arange(logits.shape[1]) < labels[:, None])
        )
        rank = np.where(np.isfinite(logits).all(axis=1), ahead.sum(axis=1), logits.shape[1])
        with np.errstate(invalid="ignore"):  # the loss of infinite logits may be NaN
            losses = LOSSES[loss].per_image(logits, labels)
        self.loss_sum += float(losses.sum())
        self.top5_count += int((rank < min(5, logits.shape[1])).sum())
        classes = len(self.per_class)
        self.per_class += np.bincount(labels, minlength=classes)
        self.right_per_class += np.bincount(labels[rank < 1], minlength=classes)

    def sums(self) -> list[float]:
        """Return all sums, which add up over the parts of a data set; see `of_sums`."""
        return [self.loss_sum, self.top5_count, *self.per_class, *self.right_per_class]

    @classmethod
    def of_sums(cls, sums: Sequence[float]) -> Tally:
        """Return the tally whose `sums` are ``sums``."""
        loss_sum, top5_count, *counts = sums
        tally = cls(len(counts) // 2)
        tally.loss_sum, tally.top5_count = loss_sum, int(top5_count)
        tally.per_class, tally.right_per_class = np.array(counts, np.int64).reshape(2, -1)
        return tally

    def __str__(self) -> str:
        return in_words(self)

    def summary(self) -> dict[str, float]:
        """Return loss, top-1, top-5, balanced accuracy and the number of images."""
        names = ("loss", "top1", "top5", "balanced_accuracy", "images")
        return {name: getattr(self, name) for name in names}

    @property
    def images(self) -> int:
        """The number of images."""
        return int(self.per_class.sum())

    @property
    def loss(self) -> float:
        """The mean loss."""
        return self.loss_sum / self.images

    @property
    def score(self) -> float:
        """The top-1 accuracy, by which the best model of a run is chosen."""
        return self.top1

    @property
    def top1(self) -> float:
        """The share of images whose own class ranks first."""
        return int(self.right_per_class.sum()) / self.images

    @property
    def top5(self) -> float:
        """The share of images whose own class ranks among the first five, or among all if fewer."""
        return self.top5_count / self.images

    @property
    def balanced_accuracy(self) -> float:
        """The mean of the top-1 accuracies per class (recalls), over the classes with images."""
        present = self.per_class > 0
        return float((self.right_per_class[present] / self.per_class[present]).mean())


def interval(top1: float, images: int) -> tuple[float, float]:
    """Return the 95% interval (Wilson's) of an accuracy that was measured on so many images."""
    from scipy.stats import binomtest

    bounds = binomtest(round(top1 * images), images).proportion_ci(0.95, "wilson")
    return float(bounds.low), float(bounds.high)
