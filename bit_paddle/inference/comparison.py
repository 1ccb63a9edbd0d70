"""Compare two models on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Union

import numpy as np

from bit_paddle.data.labels import named
from bit_paddle.errors import ConfigError, did_you_mean
from bit_paddle.inference import scores
from bit_paddle.inference.evaluation import Evaluation
from bit_paddle.inference.label_evaluation import LabelEvaluation


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


@dataclass(frozen=True)
class LabelComparison:
    """Two evaluations, ``a`` and ``b``, on the same images, which may have several labels.

    Labels are paired by their names.
    """

    a: LabelEvaluation
    b: LabelEvaluation

    @property
    def differences(self) -> dict[str, float]:
        """The mean average precision, macro F1 and micro F1 of ``b`` minus those of ``a``."""
        return {name: getattr(self.b, name) - getattr(self.a, name) for name in self.a.resampled}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95% intervals of `differences`.

        Paired percentile bootstrap: an image is drawn with the predictions of both models. 1,000
        resamples, seed 0.
        """
        pairs = (
            (name, self.a.resampled[name], self.b.resampled[name]) for name in self.differences
        )
        return {name: scores.interval(b - a) for name, a, b in pairs}

    @cached_property
    def average_precision(self) -> dict[str, tuple[float, float]]:
        """The average precision of ``a`` and of ``b`` for each label that has images."""
        places = {name: place for place, name in enumerate(self.b.classes)}
        first, second = (each.scores.average_precision.tolist() for each in (self.a, self.b))
        found = enumerate(zip(self.a.classes, self.a.scores.own.tolist()))
        return {name: (first[k], second[places[name]]) for k, (name, own) in found if own}

    def __str__(self) -> str:
        parts = []
        for name, (low, high) in self.intervals.items():
            values = f"{getattr(self.a, name):.2%} and {getattr(self.b, name):.2%}"
            title = name.replace("_f1", " F1").replace("_", " ")
            parts.append(
                f"{title} {values}, difference {self.differences[name]:+.2%} (95% interval "
                f"{low:+.2%} to {high:+.2%})"
            )
        pairs = self.average_precision.values()
        better, worse = sum(b > a for a, b in pairs), sum(b < a for a, b in pairs)
        return (
            f"{'; '.join(parts)}; the second has the higher average precision for {better:,} of "
            f"{len(pairs):,} labels, the lower for {worse:,}; {self.a.images:,} images"
        )


AnyComparison = Union[Comparison, LabelComparison]


def checked(options: dict[str, Any]) -> dict[str, Any]:
    """Return ``options`` of an evaluation. Raises `ConfigError` for ``calibrate``."""
    if options.get("calibrate"):
        raise ConfigError("calibrate: takes one model; calibrate each of them by evaluate()")
    return options


def compare(a: Evaluation | LabelEvaluation, b: Evaluation | LabelEvaluation) -> AnyComparison:
    """Return the comparison of two evaluations of the same images.

    It is a `LabelComparison` if an image may have several labels. Raises `ConfigError` if the
    models' class names differ, or the images or their labels.
    """
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
    if isinstance(a, LabelEvaluation) and isinstance(b, LabelEvaluation):
        return LabelComparison(a, b)
    assert isinstance(a, Evaluation)
    assert isinstance(b, Evaluation)
    return Comparison(a, b)


def _require_same_classes(a: Evaluation | LabelEvaluation, b: Evaluation | LabelEvaluation) -> None:
    for one, other in ((a, b), (b, a)):
        known = set(other.classes)
        unknown = [name for name in one.classes if name not in known]
        if unknown:
            raise ConfigError(
                f"{other.model}: has no class {unknown[0]!r}, which {one.model} has; "
                f"{did_you_mean(unknown[0], other.classes)}. Only models with the same class "
                "names are compared"
            )


def _label_names(result: Evaluation | LabelEvaluation) -> list[tuple[str, ...]]:
    return [tuple(sorted(row)) for row in named(result.outputs.labels, result.classes)]
