"""Compare two models on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bit_paddle.errors import ConfigError, did_you_mean
from bit_paddle.inference import scores
from bit_paddle.inference.evaluation import Evaluation
from bit_paddle.inference.label_evaluation import LabelEvaluation

SEVERAL = (
    "--compare: counts the images that one model alone gets right, which needs exactly one label "
    "per image; evaluate each model, and compare their intervals"
)


@dataclass(frozen=True)
class Comparison:
    """Two evaluations, ``a`` and ``b``, on the same images. Classes are paired by their names."""

    a: Evaluation
    b: Evaluation

    @cached_property
    def _right(self) -> tuple[np.ndarray, np.ndarray]:
        return self.a.per_image.right, self.b.per_image.right

    @cached_property
    def only_a(self) -> np.ndarray:
        """The numbers of the images that only ``a`` predicts right, int64."""
        return np.flatnonzero(self._right[0] & ~self._right[1])

    @cached_property
    def only_b(self) -> np.ndarray:
        """The numbers of the images that only ``b`` predicts right, int64."""
        return np.flatnonzero(self._right[1] & ~self._right[0])

    @property
    def p_value(self) -> float:
        """The p-value of McNemar's exact test, two-sided.

        It is the probability of so unequal or more unequal ``only_a`` and ``only_b``, if each of
        these images were as likely to be right for either model. 1 if there are none.
        """
        from scipy.stats import binomtest

        count = len(self.only_a) + len(self.only_b)
        return float(binomtest(len(self.only_a), count).pvalue) if count else 1.0

    @property
    def difference(self) -> float:
        """Top-1 of ``b`` minus top-1 of ``a``."""
        return (len(self.only_b) - len(self.only_a)) / self.a.images

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of `difference`.

        Paired percentile bootstrap: an image is drawn with the predictions of both models. 10,000
        resamples, seed 0.
        """
        random, images = np.random.default_rng(scores.SEED), self.a.images
        gained, lost = len(self.only_b) / images, len(self.only_a) / images
        rest = max(0.0, 1 - gained - lost)
        draws = random.multinomial(images, (gained, lost, rest), 10_000)
        return scores.interval((draws[:, 0] - draws[:, 1]) / images)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"top-1 {self.a.top1:.2%} and {self.b.top1:.2%}, difference {self.difference:+.2%} "
            f"(95% interval {low:+.2%} to {high:+.2%}); only the first is right: "
            f"{len(self.only_a):,}, only the second: {len(self.only_b):,} of {self.a.images:,} "
            f"images; McNemar's exact test: p = {self.p_value:.2g}"
        )


def checked(options: dict[str, Any]) -> dict[str, Any]:
    """Return ``options`` of an evaluation. Raises `ConfigError` for ``calibrate``."""
    if options.get("calibrate"):
        raise ConfigError("calibrate: takes one model; calibrate each of them by evaluate()")
    return options


def compare(a: Evaluation | LabelEvaluation, b: Evaluation | LabelEvaluation) -> Comparison:
    """Return the comparison of two evaluations of the same images.

    Raises `ConfigError` if the models' class names differ, or the images or their labels, or if an
    image may have several labels.
    """
    if not (isinstance(a, Evaluation) and isinstance(b, Evaluation)):
        raise ConfigError(SEVERAL)
    _require_same_classes(a, b)
    for name, one, other in (
        ("images", a.outputs.names, b.outputs.names),
        ("labels", _label_names(a), _label_names(b)),
    ):
        if one != other:
            raise ConfigError(
                f"{name}: the two models were measured on different {name} ({len(one):,} and "
                f"{len(other):,}); expected the same data set and split for both"
            )
    return Comparison(a, b)


def _require_same_classes(a: Evaluation, b: Evaluation) -> None:
    for one, other in ((a, b), (b, a)):
        known = set(other.classes)
        unknown = [name for name in one.classes if name not in known]
        if unknown:
            raise ConfigError(
                f"{other.model}: has no class {unknown[0]!r}, which {one.model} has; "
                f"{did_you_mean(unknown[0], other.classes)}. Only models with the same class "
                "names are compared"
            )


def _label_names(result: Evaluation) -> list[str]:
    return [result.classes[label] for label in result.outputs.labels]
