"""Scores of predictions in NumPy: per class, of ranking, of calibration, and their intervals.

All functions give what scikit-learn gives. Probability means what the model's loss means by it: the
softmax over all classes, or one sigmoid per class. Sigmoids do not add up to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bit_paddle.data.labels import Labels, holders
from bit_paddle.data.labels import counts as of_labels
from bit_paddle.models.losses import LOSSES

BINS = 15  # of the calibration error, as in arXiv 1706.04599

RESAMPLES, SEED = 1000, 0  # of the bootstrap

_BLOCK = 1 << 24  # numbers in a block of probabilities: 128 MB


def probabilities(logits: np.ndarray, loss: str, temperature: float = 1.0) -> np.ndarray:
    """Return the probabilities of ``logits`` [N, K] by the ``loss`` of the model, float64.

    ``temperature`` divides the logits.
    """
    return LOSSES[loss].probabilities(logits.astype(np.float64) / temperature)


def blocks(logits: np.ndarray) -> Iterator[slice]:
    """Yield slices of images that are small enough to be computed in float64 at once."""
    rows = max(1, _BLOCK // max(1, logits.shape[1]))
    return (slice(start, start + rows) for start in range(0, len(logits), rows))


class PerImage(NamedTuple):
    """The scores of each image, arrays [N]; their means are the scores of the data set."""

    labels: np.ndarray  # int64
    predictions: np.ndarray  # int64: the class with the highest logit
    confidences: np.ndarray  # the highest probability
    brier: np.ndarray  # the sum over classes of (probability - 1 or 0)^2
    nll: np.ndarray  # -log(probability of the label)

    @property
    def right(self) -> np.ndarray:
        """Whether each prediction is right, bool [N]; logits that are not finite are wrong."""
        return (self.predictions == self.labels) & ~np.isnan(self.confidences)


def per_image(
    logits: np.ndarray, labels: np.ndarray, loss: str, temperature: float = 1.0
) -> PerImage:
    """Return the scores of each image from ``logits`` [N, K] and ``labels`` [N].

    ``temperature`` divides the logits. It changes no prediction.
    Images with a logit that is not finite have NaN as confidence, Brier score and likelihood.
    """
    confidences, brier, nll = np.empty((3, len(labels)))
    for rows in blocks(logits):
        with np.errstate(invalid="ignore"):
            block = logits[rows].astype(np.float64) / temperature
            shares = LOSSES[loss].probabilities(block)
            nll[rows] = -LOSSES[loss].log_probabilities(block, labels[rows])
        confidences[rows] = np.where(np.isfinite(block).all(axis=1), shares.max(axis=1), np.nan)
        shares[np.arange(len(shares)), labels[rows]] -= 1
        brier[rows] = np.square(shares).sum(axis=1)
    return PerImage(labels, logits.argmax(axis=1), confidences, brier, nll)


# --- Per class ----------------------------------------------------------------------------------


class PerClass(NamedTuple):
    """Scores of each class, float64 [K]; NaN where they are undefined.

    Recall, AUC and average precision need an image of the class, AUC also one of another class,
    precision a prediction, and F1 an image or a prediction.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    auc: np.ndarray
    average_precision: np.ndarray


def per_class(logits: np.ndarray, images: PerImage, loss: str, classes: int) -> PerClass:
    """Return the scores of each class from ``logits`` [N, K] and the results of `per_image`."""
    found = precision_recall_f1(*counts(images, classes))
    return PerClass(*found, *ranking(logits, images.labels, loss))


def counts(images: PerImage, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the numbers of right predictions, images and predictions of each class, int64 [K]."""
    right = images.labels[images.right]
    chosen = (right, images.labels, images.predictions)
    right, own, predicted = (np.bincount(each, minlength=classes) for each in chosen)
    return right, own, predicted


def precision_recall_f1(
    right: np.ndarray, images: np.ndarray, predicted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return precision, recall and F1 of each class from its counts [K]; 0/0 is NaN."""
    with np.errstate(invalid="ignore"):
        return right / predicted, right / images, 2 * right / (images + predicted)


def kappa(right: np.ndarray, images: np.ndarray, predicted: np.ndarray) -> float:
    """Return Cohen's kappa from the counts per class [K]: agreement beyond chance.

    It is (accuracy - expected) / (1 - expected), where expected is the accuracy of predictions
    that are drawn at random with the same frequencies. NaN if expected is 1: one class only. The
    score is -1 or more; predictions from logits that are not finite could give less, as they have
    a class, but are always wrong.
    """
    total = float(images.sum())
    chance = float((images / total) @ (predicted / total))
    if chance >= 1:
        return float("nan")
    return max(-1.0, (float(right.sum()) / total - chance) / (1 - chance))


def ranking(
    logits: np.ndarray, labels: Labels, loss: str, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the AUC and the average precision of each class against the rest, float64 [K].

    The images are ranked by the probability of the class. AUC is the chance that an image of the
    class has a higher probability than another image; equal ones count half. Average precision is
    the mean, over the images of the class, of the precision among all images that rank as high.
    Both are NaN for a class without images. ``temperature`` divides the logits.
    """
    auc, average_precision = np.full((2, logits.shape[1]), np.nan)
    present = np.flatnonzero(of_labels(labels, logits.shape[1]))
    width = max(1, 2 * _BLOCK // max(1, len(labels)))
    for start in range(0, len(present), width):
        chosen = present[start : start + width]
        columns = np.empty((len(chosen), len(labels)))
        for rows in blocks(logits):
            with np.errstate(invalid="ignore"):
                columns[:, rows] = probabilities(logits[rows], loss, temperature)[:, chosen].T
        for label, column in zip(chosen, columns):
            auc[label], average_precision[label] = rank(column, holders(labels, label))
    return auc, average_precision


def rank(values: np.ndarray, own: np.ndarray) -> tuple[float, float]:
    """Return the AUC and the average precision of ``values`` [N] for the images ``own``, bool [N].

    See `ranking`. Both are NaN if a value is NaN.
    """
    if np.isnan(values).any():
        return float("nan"), float("nan")
    positives, everything = np.sort(values[own]), np.sort(values)
    below = np.searchsorted(everything, positives, "left")
    not_above = np.searchsorted(everything, positives, "right")
    own_below = np.searchsorted(positives, positives, "left")
    own_not_above = np.searchsorted(positives, positives, "right")
    others = len(everything) - len(positives)
    wins = int((below - own_below + not_above - own_not_above).sum())  # twice their number
    auc = wins / (2 * len(positives) * others) if others else float("nan")
    precisions = (len(positives) - own_below) / (len(everything) - below)
    return auc, float(precisions.mean())


# --- Calibration --------------------------------------------------------------------------------


class Reliability(NamedTuple):
    """Images in `BINS` bins of equal width by their highest probability p: low < p <= high."""

    images: np.ndarray  # int64 [BINS]
    confidence: np.ndarray  # sum of the highest probabilities [BINS]
    right: np.ndarray  # number of right predictions [BINS]

    @property
    def error(self) -> float:
        """The expected calibration error (ECE, arXiv 1706.04599), from 0 to 1.

        It is the sum over the bins of |accuracy - mean highest probability|, each weighted by the
        bin's share of the images.
        """
        return float(np.abs(self.right - self.confidence).sum() / self.images.sum())


def bins_of(confidences: np.ndarray) -> np.ndarray:
    """Return the number of the bin of each probability, int64 [N]."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidences)


def reliability(confidences: np.ndarray, right: np.ndarray) -> Reliability:
    """Return the bins of the highest probabilities [N] and of whether they are right, bool [N]."""
    bins = bins_of(confidences)
    sums = (np.bincount(bins, weights, BINS) for weights in (confidences, right.astype(float)))
    return Reliability(np.bincount(bins, minlength=BINS), *sums)


# --- Of the data set ----------------------------------------------------------------------------


def summary(images: PerImage, classes: int) -> dict[str, float]:
    """Return macro F1, kappa, ECE, Brier score and negative log-likelihood.

    Macro F1 is the mean of F1 over the classes that have images or predictions. Brier score and
    likelihood are means over the images; the Brier score sums over the classes, from 0 to 2 with
    softmax.
    """
    return {name: values[0] for name, values in _summaries(images, classes, [None]).items()}


def bootstrap(images: PerImage, classes: int) -> dict[str, tuple[float, float]]:
    """Return the 95% interval of balanced accuracy and of each score of `summary`.

    Percentile bootstrap: the 2.5% and 97.5% quantiles over `RESAMPLES` draws of N images with
    replacement, from the fixed `SEED`.
    """
    random, count = np.random.default_rng(SEED), len(images.labels)
    draws = (
        np.bincount(random.integers(0, count, count), minlength=count) for _ in range(RESAMPLES)
    )
    found = _summaries(images, classes, draws)
    return {name: interval(values) for name, values in found.items()}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 2.5% and 97.5% quantiles of the ``values`` that are defined, or NaN."""
    defined = [value for value in values if not np.isnan(value)]
    low, high = np.quantile(defined, (0.025, 0.975)) if defined else (np.nan, np.nan)
    return float(low), float(high)


def _summaries(images: PerImage, classes: int, draws: Iterable) -> dict[str, list[float]]:
    """Return the scores for each of the ``draws``: how often each image is drawn, or None."""
    right = images.right
    bins, hits = bins_of(images.confidences), images.labels[right]
    gaps = images.confidences - right
    found: dict[str, list[float]] = {}
    for drawn in draws:
        weights = np.ones(len(right)) if drawn is None else drawn.astype(float)
        total = weights.sum()
        counted = (
            np.bincount(hits, weights[right], classes),
            np.bincount(images.labels, weights, classes),
            np.bincount(images.predictions, weights, classes),
        )
        _, recall, f1 = precision_recall_f1(*counted)
        values = {
            "balanced_accuracy": macro(recall),
            "macro_f1": macro(f1),
            "kappa": kappa(*counted),
            "ece": float(np.abs(np.bincount(bins, weights * gaps, BINS)).sum() / total),
            "brier": float(weights @ images.brier / total),
            "nll": float(weights @ images.nll / total),
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return found


def macro(values: np.ndarray) -> float:
    """Return the mean over the classes where ``values`` is defined; NaN if there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
