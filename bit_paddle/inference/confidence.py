"""How sure a model is: scores that are higher for images of its classes than for strangers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bit_paddle.inference import scores
from bit_paddle.models.losses import LOSSES

TPR = 0.95  # the share of the known images that is accepted where the false ones are counted


def _max_probability(logits: np.ndarray, loss: str) -> np.ndarray:
    return LOSSES[loss].probabilities(logits).max(axis=1)


def _max_logit(logits: np.ndarray, loss: str) -> np.ndarray:
    return logits.max(axis=1)


def _energy(logits: np.ndarray, loss: str) -> np.ndarray:
    return LOSSES[loss].energy(logits)


SCORES: dict[str, Callable[[np.ndarray, str], np.ndarray]] = {
    "max_probability": _max_probability,  # arXiv 1610.02136
    "max_logit": _max_logit,  # arXiv 1911.11132
    "energy": _energy,  # arXiv 2010.03759
}

UNKNOWN = "energy"  # the score of ``predict --unknown``


def score(name: str, logits: np.ndarray, loss: str) -> np.ndarray:
    """Return the score ``name`` of each image, float64 [N], from ``logits`` [N, K].

    It is NaN, or infinite, for an image with such logits.
    """
    with np.errstate(invalid="ignore"):
        parts = [SCORES[name](logits[k].astype(np.float64), loss) for k in scores.blocks(logits)]
    return np.concatenate([np.zeros(0), *parts])


class Separation(NamedTuple):
    """How well a score separates known images from strangers.

    ``auroc`` is the chance that a known image has a higher score than a stranger; equal ones count
    half. ``fpr95`` is the share of the strangers that are accepted by the highest threshold that
    accepts at least `TPR` of the known images: score >= threshold. Both are NaN if a score is NaN.
    """

    auroc: float
    fpr95: float


def separation(known: np.ndarray, strangers: np.ndarray) -> Separation:
    """Return how well a score separates ``known`` [N] from ``strangers`` [M]."""
    values = np.concatenate([known, strangers])
    auroc, _ = scores.rank(values, np.arange(len(values)) < len(known))
    if np.isnan(auroc):
        return Separation(auroc, auroc)
    accepted = np.argmax(np.arange(1, len(known) + 1) / len(known) >= TPR)
    threshold = np.sort(known)[::-1][accepted]
    return Separation(auroc, float((strangers >= threshold).mean()))
