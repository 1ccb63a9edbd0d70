"""Judge features by simple classifiers: ridge regression, nearest neighbours, logistic regression.

The ridge regression is that of big_vision's evaluator ``fewshot_lsr``: features standardized by the
training images, targets 1 and -1, and a constant feature of 100 for the bias, which the penalty
hardly touches. The evaluator takes one fixed strength, or the best on the test images. Here the
training images choose it: each is judged by all the others. Images with several labels have ridge
regression alone, with a target per label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import numpy as np

from bit_paddle.data import fewshot
from bit_paddle.data.labels import Labels, LabelSets, counts, holders
from bit_paddle.errors import DataError
from bit_paddle.inference import logistic, scores
from bit_paddle.system import environment

STRENGTHS = 2.0 ** np.arange(-10, 20)  # of the ridge penalty

FIXED = 2.0**10  # taken if a class has one image, which the others cannot judge

NEIGHBOURS = (1, 5, 10, 20)

SHOTS: tuple[int | None, ...] = (1, 5, 10, 25, None)  # images per class; None: all

METHODS = ("ridge", "k-NN", "logistic")

_BIAS, _SMALLEST_STD = 100.0, 1e-5

_ROWS = 1024  # of similarities in memory at once

_DECIMALS = 12  # of a cosine: the rest depends on the order of the additions


class Fit:
    """Linear classifiers on training ``features`` [N, C] with ``labels`` of N images, in float64.

    A classifier is (weights [C, K], bias [K]) for the features as they are: the standardization is
    part of it.
    """

    def __init__(self, features: np.ndarray, labels: Labels, classes: int):
        values = features.astype(np.float64)
        self.labels, self.classes = labels, classes
        self.mean, self.std = values.mean(axis=0), values.std(axis=0) + _SMALLEST_STD
        self._left, self._singular, self._right = np.linalg.svd(
            (values - self.mean) / self.std, full_matrices=False
        )
        several = isinstance(labels, LabelSets)
        self._targets = 2.0 * (labels.dense(classes) if several else np.eye(classes)[labels]) - 1.0
        self._inner = self._left.T @ self._targets

    def ridge(self, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the classifier of ridge regression."""
        scale = self._singular / (self._singular**2 + strength)
        weights = self._right.T @ (scale[:, None] * self._inner)
        return self._unstandardized(weights, self._targets.mean(axis=0) * self._kept_bias(strength))

    def logistic(self, tolerance: float = 1e-2) -> tuple[np.ndarray, np.ndarray]:
        """Return the classifier of `logistic.fit` with a penalty of 1.

        The features are rotated into their own subspace, which changes nothing in the result and
        makes it quick.
        """
        inputs = self._left * self._singular
        weights, bias = logistic.fit(inputs, self.labels, self.classes, tolerance=tolerance)
        return self._unstandardized(self._right.T @ weights, bias)

    @cached_property
    def strength(self) -> float:
        """The strength with the most right answers if each image is judged by all the others.

        Equal ones are told apart by the squared error, then the smaller wins. With several labels
        per image the squared error decides. The mean and standard deviation stay those of all
        images.
        """
        several = isinstance(self.labels, LabelSets)
        if (len(self.labels) if several else counts(self.labels, self.classes).min()) < 2:
            return FIXED
        return max(STRENGTHS.tolist(), key=lambda each: (*self._judged(each), -each))

    def left_one_out(self, strength: float) -> np.ndarray:
        """Return the scores of each image by a classifier of all the others, float64 [N, K].

        The solution is exact and in closed form: nothing is fitted again. The mean and standard
        deviation stay those of all images.
        """
        kept = self._singular**2 / (self._singular**2 + strength)
        bias = self._kept_bias(strength)
        fitted = self._left @ (kept[:, None] * self._inner)
        fitted += self._targets.mean(axis=0) * bias
        leverage = (self._squares @ kept + bias / len(self.labels))[:, None]
        apart = np.maximum(1 - leverage, 1e-12)
        return (fitted - leverage * self._targets) / apart

    @cached_property
    def _squares(self) -> np.ndarray:
        return self._left**2

    def _judged(self, strength: float) -> tuple[int, float]:
        """Return the number of right answers and minus the mean squared error, leave-one-out."""
        found = self.left_one_out(strength)
        several = isinstance(self.labels, LabelSets)
        right = 0 if several else int((found.argmax(axis=1) == self.labels).sum())
        return right, -float(((found - self._targets) ** 2).mean())

    def _kept_bias(self, strength: float) -> float:
        # the standardized features have the mean 0: the constant feature is orthogonal to them
        size = len(self.labels) * _BIAS**2
        return size / (size + strength)

    def _unstandardized(self, weights: np.ndarray, bias: np.ndarray) -> tuple:
        weights = weights / self.std[:, None]
        return weights, bias - self.mean @ weights


def predict(classifier: tuple[np.ndarray, np.ndarray], features: np.ndarray) -> np.ndarray:
    """Return the class of each row of ``features``, int64 [N]; equal scores: the first class."""
    weights, bias = classifier
    return (features.astype(np.float64) @ weights + bias).argmax(axis=1)


def mean_average_precision(
    classifier: tuple[np.ndarray, np.ndarray], features: np.ndarray, labels: LabelSets
) -> float:
    """Return the mean average precision on ``features`` [N, C]; see `label_scores.LabelScores`."""
    weights, bias = classifier
    values = features.astype(np.float64) @ weights + bias
    present = np.flatnonzero(counts(labels, len(bias))).tolist()
    found = [scores.rank(values[:, label], holders(labels, label))[1] for label in present]
    return scores.macro(np.array(found))


def nearest(
    features: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    classes: int,
    counts: Sequence[int] = NEIGHBOURS,
    own: bool = False,
) -> np.ndarray:
    """Return the classes that the k nearest images elect, int64 [len(counts), Q].

    Near is a large cosine. Of equally near images the first count; of classes with equally many
    votes the first wins. Cosines are equal if they agree to 12 decimals. ``own``: the queries are
    the training images, and none votes for itself.
    """
    known, asked = _unit(features), _unit(queries)
    result = np.empty((len(counts), len(asked)), np.int64)
    most = min(max(counts), len(known) - own)
    for start in range(0, len(asked), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(asked)))
        cosines = asked[rows] @ known.T
        if own:
            cosines[np.arange(len(rows)), rows] = -np.inf
        order = labels[_largest(cosines, most)]
        for place, count in enumerate(counts):
            votes = np.zeros((len(rows), classes), np.int64)
            for column in order[:, :count].T:
                votes[np.arange(len(rows)), column] += 1
            result[place, rows] = votes.argmax(axis=1)
    return result


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the columns of the ``count`` largest values in each row, int64 [N, count]."""
    least = np.partition(values, -count, axis=1)[:, -count] - 0.1**_DECIMALS
    result = np.empty((len(values), count), np.int64)
    for row, line in enumerate(values):
        candidates = np.flatnonzero(line >= least[row])
        order = np.argsort(-line[candidates].round(_DECIMALS), kind="stable")
        result[row] = candidates[order[:count]]
    return result


def _unit(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(length, length, 1)


def choose_neighbours(features: np.ndarray, labels: np.ndarray, classes: int) -> int:
    """Return the k of `NEIGHBOURS` with the most right answers, leave-one-out; 1 for one image."""
    if np.bincount(labels, minlength=classes).min() < 2:
        return 1
    right = (nearest(features, labels, features, classes, own=True) == labels).sum(axis=1)
    return NEIGHBOURS[int(right.argmax())]


# --- The table ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """The ``scores``, one per seed, of a classifier on ``shots`` images per class (None: all).

    They are top-1 accuracies, or with several labels per image mean average precisions. ``layer``
    is "features", or "block1" to "block4".
    """

    layer: str
    shots: int | None
    method: str
    scores: list[float]

    @property
    def spread(self) -> tuple[float, float, float]:
        """Minimum, median and maximum."""
        return min(self.scores), median(self.scores), max(self.scores)


def table(
    layer: str,
    train: tuple[np.ndarray, Labels],
    val: tuple[np.ndarray, Labels],
    classes: int,
    seeds: int,
    done: Callable[[], object] = lambda: None,
) -> list[Row]:
    """Return the rows of one layer. ``train`` and ``val`` are features [N, C] and labels of N.

    A class with fewer images gives all it has. If no class has more, the number is left out: it
    would repeat "all", which is measured once. Each core makes another fit; ``done()`` is called
    after each.
    """
    (features, labels), most = train, counts(train[1], classes).max()
    used = [shots for shots in SHOTS if shots is None or shots < most]
    jobs = [(shots, seed) for shots in reversed(used) for seed in range(seeds if shots else 1)]

    def fit(job: tuple[int | None, int]) -> dict[str, float]:
        chosen = some_of_each(labels, *job, classes)
        given = features[chosen], labels[chosen]
        if isinstance(val[1], LabelSets):
            one = Fit(*given, classes)
            return {"ridge": mean_average_precision(one.ridge(one.strength), *val)}
        answers = _answers(*given, val[0], classes)
        return {method: float((found == val[1]).mean()) for method, found in answers.items()}

    results: dict[tuple[int | None, str], list[float]] = {}
    with ThreadPoolExecutor(environment.cpu_count()) as pool:
        for (shots, _), found in zip(jobs, pool.map(fit, jobs)):  # the largest come first
            for method, score in found.items():
                results.setdefault((shots, method), []).append(score)
            done()
    cells = ((shots, method) for shots in used for method in METHODS)
    return [Row(layer, *cell, results[cell]) for cell in cells if cell in results]


def _answers(
    features: np.ndarray, labels: np.ndarray, queries: np.ndarray, classes: int
) -> dict[str, np.ndarray]:
    fit = Fit(features, labels, classes)
    count = choose_neighbours(features, labels, classes)
    return {
        "ridge": predict(fit.ridge(fit.strength), queries),
        "k-NN": nearest(features, labels, queries, classes, [count])[0],
        "logistic": predict(fit.logistic(), queries),
    }


def some_of_each(labels: Labels, shots: int | None, seed: int, classes: int) -> np.ndarray:
    """Return the ascending indices of ``shots`` images per class; fewer if a class has fewer.

    They are the images of ``--examples_per_class`` with this seed, for classes with enough.
    """
    if shots is None:
        return np.arange(len(labels))
    if isinstance(labels, LabelSets):
        return fewshot.of_sets(labels, shots, seed, counts(labels, classes))
    chosen = []
    for label in range(classes):
        own = np.flatnonzero(labels == label)
        generator = np.random.default_rng([seed, label])
        chosen.append(generator.choice(own, min(shots, len(own)), replace=False))
    return np.sort(np.concatenate(chosen))


def check(labels: Labels, classes: Sequence[str], images: int) -> None:
    """Raise `DataError` unless every class has training images, and others measure them."""
    if len(classes) < 2 and not isinstance(labels, LabelSets):
        raise DataError(f"probe: the data have {len(classes)} class; expected 2 or more")
    if not images:
        raise DataError("probe: there are no validation images, which measure the classifiers")
    found = counts(labels, len(classes))
    missing = [name for name, count in zip(classes, found) if not count]
    if missing:
        raise DataError(
            f"probe: classes without training images: {len(missing)}, the first is "
            f"{missing[0]!r}; add images, or remove the class"
        )
