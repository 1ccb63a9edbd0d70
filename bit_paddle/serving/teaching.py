"""Teach a network new classes from a few images each: ridge regression on its features."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from bit_paddle.errors import DataError
from bit_paddle.inference import probing_models, scores
from bit_paddle.inference.probing import Fit
from bit_paddle.inference.trained import TrainedFile
from bit_paddle.models import losses

MOST_IMAGES, MOST_CLASSES, MOST_QUERIES = 2000, 200, 500

LONGEST_NAME = 200  # characters of the name of a class

_SCALES = (0.01, 1000.0)  # bounds of the factor of the scores


@dataclass(frozen=True)
class Taught:
    """The head that was taught, and what each image is called when all the others teach.

    The head is ``weights`` float32 [C, K] and ``bias`` float32 [K] on features as they are.
    ``strength`` is the penalty of the ridge regression. ``predicted`` int64 [N] are the classes of
    the images by the others (leave-one-out). ``judged`` bool [N]: an image that is alone in its
    class cannot be judged. ``queries`` float64 [M, K] are the probabilities of other images.
    """

    classes: list[str]
    labels: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    strength: float
    predicted: np.ndarray
    judged: np.ndarray
    queries: np.ndarray

    def leave_one_out(self) -> dict:
        """Return the accuracy of the judged images, of all and per class; None without any."""
        right = self.judged & (self.predicted == self.labels)
        per_class = []
        for label, name in enumerate(self.classes):
            own = self.labels == label
            per_class.append({"name": name, **_accuracy(right[own], self.judged[own])})
        return {**_accuracy(right, self.judged), "per_class": per_class}


def _accuracy(right: np.ndarray, judged: np.ndarray) -> dict:
    count, images = int(right.sum()), int(judged.sum())
    return {"accuracy": count / images if images else None, "right": count, "images": images}


def teach(
    features: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    queries: np.ndarray | None = None,
) -> Taught:
    """Return the head that ``features`` [N, C] with ``labels`` int [N] teach, for ``classes``.

    It is the head of `probe`: ridge regression, whose strength is chosen by leave-one-out. One
    factor then scales its scores, so that their softmax gives useful probabilities; see `_scale`.
    ``queries`` [M, C] are features of other images. Raises `DataError`.
    """
    queries = np.zeros((0, features.shape[-1]), np.float32) if queries is None else queries
    check(features, labels, classes, queries)
    fit = Fit(features, labels, len(classes))
    left_out = fit.left_one_out(fit.strength)
    judged = np.bincount(labels, minlength=len(classes))[labels] > 1
    factor = _scale(left_out[judged], labels[judged])
    weights, bias = ((factor * part).astype(np.float32) for part in fit.ridge(fit.strength))
    logits = queries.astype(np.float64) @ weights + bias
    return Taught(
        classes=list(classes),
        labels=labels,
        weights=weights,
        bias=bias,
        strength=fit.strength,
        predicted=left_out.argmax(axis=1),
        judged=judged,
        queries=scores.probabilities(logits, losses.DEFAULT),
    )


def save(file: TrainedFile, taught: Taught, path: str | os.PathLike) -> None:
    """Write the network of ``file`` with the taught head. Errors: `WriteError`, `CheckpointError`.

    `predict` with the written file gives the probabilities of `teach`.
    """
    probing_models.write_head(file, (taught.weights, taught.bias), taught.classes, path)


def _scale(left_out: np.ndarray, labels: np.ndarray) -> float:
    """Return the factor that makes probabilities of ``left_out`` scores [N, K]; 1 without images.

    Scores of ridge regression lie near -1 and 1, so that their softmax is too equal. The factor has
    the lowest mean negative log-likelihood of the images. If all n are right, it would be
    infinite. So the target is not 1: by Laplace's rule of succession, n right answers of n give
    the next one the probability (n + 1) / (n + 2). The other classes share the rest.
    """
    images, classes = left_out.shape
    if not images:
        return 1.0
    targets = np.full(left_out.shape, 1 / (images + 2) / (classes - 1))
    targets[np.arange(images), labels] = (images + 1) / (images + 2)

    def loss(logarithm: float) -> float:
        logits = np.exp(logarithm) * left_out
        logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        return -float((targets * logs).sum())

    best = minimize_scalar(loss, bounds=np.log(_SCALES), method="bounded", options={"xatol": 1e-9})
    return float(np.exp(best.x))


# --- What is refused ----------------------------------------------------------------------------


def check(
    features: np.ndarray, labels: np.ndarray, classes: Sequence[str], queries: np.ndarray
) -> None:
    """Raise `DataError` unless these can be taught; see `teach`."""
    _check_classes(classes)
    for name, rows, most in (
        ("features", features, MOST_IMAGES),
        ("queries", queries, MOST_QUERIES),
    ):
        if len(rows) > most:
            raise DataError(f"{name}: has {len(rows):,} images; at most {most:,} are possible")
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise DataError(
                f"{name}: image {bad[0]} (counted from 0) has numbers that are not finite"
            )
    if labels.shape != (len(features),):
        raise DataError(f"labels: there are {labels.size}, for {len(features)} images in features")
    outside = labels[(labels < 0) | (labels >= len(classes))]
    if len(outside):
        raise DataError(f"labels: {outside[0]} is not one of 0 to {len(classes) - 1}")
    counts = np.bincount(labels, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts) if not count]
    if empty:
        raise DataError(f"classes: {empty[0]!r} has no image; add one, or remove the class")


def _check_classes(classes: Sequence[str]) -> None:
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise DataError(f"classes: there are {len(classes)}; expected 2 to {MOST_CLASSES}")
    for number, name in enumerate(classes):
        if not name.strip():
            raise DataError(f"classes: class {number} (counted from 0) has no name")
        if len(name) > LONGEST_NAME:
            raise DataError(
                f"classes: the name {name[:20]!r}… has {len(name)} characters; at most "
                f"{LONGEST_NAME} are possible"
            )
        if name in classes[:number]:
            raise DataError(f"classes: {name!r} is there twice; names must differ")
