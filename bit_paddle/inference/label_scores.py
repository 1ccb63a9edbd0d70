"""Scores of predictions where an image has any number of labels, and their intervals.

All functions give what scikit-learn gives. A label is predicted if its probability reaches a
threshold. The labels of an image are `LabelSets`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Union

import numpy as np

from bit_paddle.data.labels import LabelSets, counts, holders
from bit_paddle.inference import scores
from bit_paddle.models.losses import LOSSES

THRESHOLD = 0.5  # the probability from which on a label is predicted, unless others are chosen

Thresholds = Union[float, np.ndarray]  # one for all labels, or float64 [K]

_BOOTSTRAPPED = 1 << 24  # outputs, up to which the mean average precision gets an interval

_BLOCK = 1 << 22  # numbers of a block of resamples


@dataclass(frozen=True)
class LabelScores:
    """The scores of N images with K labels, from 0 to 1, and the mean loss per image.

    ``mean_average_precision`` is the mean over the labels that have images. ``macro_f1`` is the
    mean of F1 over the labels that have images or predictions; ``micro_f1`` counts all pairs of
    image and label together. ``precision``, ``recall``, ``f1``, ``auc`` and ``average_precision``
    are float64 [K], NaN where they are undefined; ``own`` and ``predicted`` are the numbers of
    images, int64 [K].
    """

    loss: float
    images: int
    own: np.ndarray
    predicted: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    auc: np.ndarray
    average_precision: np.ndarray
    micro_f1: float

    @property
    def mean_average_precision(self) -> float:
        """The mean of the average precision; NaN without labels, or if an output is NaN."""
        found = self.average_precision[self.own > 0]
        return float(found.mean()) if len(found) else float("nan")

    @property
    def macro_f1(self) -> float:
        """The mean of F1 over the labels that have images or predictions."""
        return scores.macro(self.f1)

    @property
    def score(self) -> float:
        """The mean average precision, by which the best model of a run is chosen."""
        return self.mean_average_precision

    def summary(self) -> dict[str, float]:
        """Return the loss, the three means and the number of images."""
        names = ("loss", "mean_average_precision", "macro_f1", "micro_f1", "images")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        return (
            f"mean average precision {self.mean_average_precision:.2%}, macro F1 "
            f"{self.macro_f1:.2%}, micro F1 {self.micro_f1:.2%}, loss {self.loss:.4f} "
            f"({self.images:,} images)"
        )


class LabelAnalysis(NamedTuple):
    """The names of the labels, and a model's scores on images that may have several of them."""

    classes: Sequence[str]
    scores: LabelScores


def measure(
    logits: np.ndarray,
    labels: LabelSets,
    loss: str,
    thresholds: Thresholds = THRESHOLD,
    temperature: float = 1.0,
) -> LabelScores:
    """Return the scores of ``logits`` [N, K], whose ``loss`` is a name in `LOSSES`.

    ``temperature`` divides the logits before they become probabilities. All is computed in float64.
    """
    classes = logits.shape[1]
    own = counts(labels, classes)
    right, predicted = np.zeros((2, classes), np.int64)
    total = 0.0
    for rows in scores.blocks(logits):
        block, targets = logits[rows].astype(np.float64), labels[rows].dense(classes)
        with np.errstate(invalid="ignore"):
            total += float(LOSSES[loss].per_image(block, targets).sum())
            decided = scores.probabilities(block, loss, temperature) >= thresholds
        right += (decided & targets).sum(axis=0)
        predicted += decided.sum(axis=0)
    auc, average_precision = scores.ranking(logits, labels, loss, temperature)
    return LabelScores(
        total / len(labels),
        len(labels),
        own,
        predicted,
        *scores.precision_recall_f1(right, own, predicted),
        auc,
        average_precision,
        _micro(right.sum(), own.sum(), predicted.sum()),
    )


def _micro(right: float, own: float, predicted: float) -> float:
    return float(2 * right / (own + predicted)) if own + predicted else float("nan")


# --- Thresholds ---------------------------------------------------------------------------------


def best_thresholds(probabilities: np.ndarray, labels: LabelSets) -> np.ndarray:
    """Return the threshold of each label with the highest F1, float64 [K].

    It lies halfway between two of ``probabilities`` [N, K]; of equal F1, the highest threshold is
    taken. A label without images gets `THRESHOLD`.
    """
    result = np.full(probabilities.shape[1], THRESHOLD)
    for label in np.flatnonzero(counts(labels, len(result))).tolist():
        values, own = probabilities[:, label], holders(labels, label)
        order = np.argsort(-values, kind="stable")
        values, found = values[order], np.cumsum(own[order])
        last = np.append(values[1:] < values[:-1], True)  # of equal probabilities
        f1 = np.where(last, 2 * found / (np.arange(1, len(values) + 1) + found[-1]), -1)
        best = int(f1.argmax())
        above, below = values[best], values[best + 1] if best + 1 < len(values) else 0.0
        middle = (above + below) / 2
        result[label] = middle if middle > below else above
    return result


# --- Intervals ----------------------------------------------------------------------------------


def resampled(
    logits: np.ndarray, labels: LabelSets, loss: str, thresholds: Thresholds = THRESHOLD
) -> dict[str, np.ndarray]:
    """Return mean average precision, macro F1 and micro F1 of each resample of the images.

    They are the draws of a percentile bootstrap, as `scores.bootstrap` has it: for the same N
    images the same ones. Resamples without any label are left out of the mean average precision.
    It is empty for more than 16.8 million outputs (N x K), where it would take minutes.
    """
    from scipy import sparse

    count, classes = logits.shape
    ones = np.ones(len(labels.labels))
    own = sparse.csr_array((ones, labels.labels, labels.starts), (count, classes))
    decided = sparse.vstack(
        [
            sparse.csr_array(scores.probabilities(logits[rows], loss) >= thresholds, dtype=float)
            for rows in scores.blocks(logits)
        ],
        "csr",
    )
    right = own.multiply(decided).tocsr()
    ranked = count * classes <= _BOOTSTRAPPED
    found: dict[str, list[float]] = {name: [] for name in _INTERVALS}
    for weights in _resamples(count):
        per_label = [weights @ each for each in (right, own, decided)]
        _, _, f1 = scores.precision_recall_f1(*per_label)
        found["macro_f1"] += [scores.macro(row) for row in f1]
        found["micro_f1"] += [_micro(*sums) for sums in zip(*(p.sum(axis=1) for p in per_label))]
        if ranked:
            found["mean_average_precision"] += _mean_precisions(logits, labels, loss, weights)
    return {name: np.array(values) for name, values in found.items()}


_INTERVALS = ("mean_average_precision", "macro_f1", "micro_f1")


def _resamples(count: int) -> Iterator[np.ndarray]:
    """Yield how often each image is drawn, float64 [r, N], until there are `scores.RESAMPLES`."""
    random, rows = np.random.default_rng(scores.SEED), max(1, _BLOCK // count)
    for start in range(0, scores.RESAMPLES, rows):
        yield np.stack(
            [
                np.bincount(random.integers(0, count, count), minlength=count).astype(float)
                for _ in range(min(rows, scores.RESAMPLES - start))
            ]
        )


def _mean_precisions(
    logits: np.ndarray, labels: LabelSets, loss: str, weights: np.ndarray
) -> list[float]:
    """Return the mean average precision of each resample; ``weights`` is [r, N]."""
    total, defined = np.zeros((2, len(weights)))
    for label in np.flatnonzero(counts(labels, logits.shape[1])).tolist():
        values = scores.probabilities(logits[:, label : label + 1], loss)[:, 0]
        order = np.argsort(-values, kind="stable")
        falling, places = -values[order], np.flatnonzero(holders(labels, label)[order])
        drawn = weights[:, order[places]]
        with_ties = np.searchsorted(falling, falling[places], "right") - 1
        own_with_ties = np.searchsorted(falling[places], falling[places], "right") - 1
        everything = np.cumsum(weights[:, order], axis=1)[:, with_ties]
        own = np.cumsum(drawn, axis=1)[:, own_with_ties]
        positives = drawn.sum(axis=1)
        has = positives > 0
        sums = (drawn * own / np.maximum(everything, 1)).sum(axis=1)
        total[has] += sums[has] / positives[has]
        defined += has
    return (total / np.maximum(defined, 1))[defined > 0].tolist()
