"""Scores with several labels per image against scikit-learn, with ties and without labels."""

import warnings

import numpy as np
import pytest

from bit_paddle.data.labels import LabelSets
from bit_paddle.inference import label_scores, scores
from bit_paddle.models.losses import LOSSES


def cases(count):
    """Few images and rounded logits: ties, labels without images, images without labels."""
    random = np.random.default_rng(0)
    for _ in range(count):
        images, classes = random.integers(2, 25), random.integers(2, 7)
        logits = random.normal(size=(images, classes)) * random.choice([0.5, 2, 8])
        logits = np.round(logits, random.integers(0, 3)).astype(np.float32)
        dense = random.random((images, classes)) < random.random(classes) * random.choice([1, 0.3])
        yield logits, dense, LabelSets.of([np.flatnonzero(row).tolist() for row in dense])


def same(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.filterwarnings("ignore")
def test_all_scores_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    empty = 0
    for logits, dense, labels in cases(80):
        found = label_scores.measure(logits, labels, "sigmoid")
        shares = scores.probabilities(logits, "sigmoid")
        decided = (shares >= 0.5).astype(int)
        theirs = sklearn.precision_recall_fscore_support(dense, decided, zero_division=np.nan)
        same([found.precision, found.recall, found.f1], theirs[:3])
        assert np.array_equal(found.own, theirs[3])
        micro = sklearn.f1_score(dense, decided, average="micro", zero_division=np.nan)
        same(found.micro_f1, micro)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            same(found.macro_f1, np.nanmean(theirs[2]) if len(theirs[2]) else np.nan)
        present = np.flatnonzero(dense.any(axis=0))
        precisions = [sklearn.average_precision_score(dense[:, k], shares[:, k]) for k in present]
        same(found.average_precision[present], precisions)
        assert np.isnan(np.delete(found.average_precision, present)).all()
        same(found.mean_average_precision, np.mean(precisions) if precisions else np.nan)
        if len(present):
            macro = sklearn.average_precision_score(dense[:, present], shares[:, present])
            same(found.mean_average_precision, macro)
        for k in present:
            if not dense[:, k].all():
                same(found.auc[k], sklearn.roc_auc_score(dense[:, k], shares[:, k]))
        empty += len(present) < dense.shape[1] and not dense.any(axis=1).all()
    assert empty > 5


def test_the_loss_is_that_of_scipy():
    from scipy.special import log_expit

    for logits, dense, labels in cases(50):
        wide = logits.astype(np.float64)
        expected = -(np.where(dense, log_expit(wide), log_expit(-wide))).sum(axis=1)
        same(label_scores.measure(logits, labels, "sigmoid").loss, expected.mean())
        same(LOSSES["sigmoid"].per_image(wide, dense), expected)


def test_thresholds_and_temperature():
    for logits, dense, labels in cases(20):
        thresholds = np.linspace(0.1, 0.9, logits.shape[1])
        found = label_scores.measure(logits, labels, "sigmoid", thresholds, 2.0)
        decided = 1 / (1 + np.exp(-logits.astype(np.float64) / 2)) >= thresholds
        assert np.array_equal(found.predicted, decided.sum(axis=0))
        total = dense.sum() + decided.sum()
        same(found.micro_f1, 2 * (dense & decided).sum() / total if total else np.nan)


def test_outputs_that_are_not_numbers_give_no_score():
    labels = LabelSets.of([[0], [1]])
    found = label_scores.measure(np.array([[np.nan, 0.0], [0.0, 1.0]]), labels, "sigmoid")
    assert np.isnan(found.mean_average_precision) and np.isnan(found.score)


# --- Thresholds ---------------------------------------------------------------------------------


def test_the_best_thresholds_are_the_best():
    """Of all thresholds that could be chosen, by trying each."""
    for logits, dense, labels in cases(100):
        shares = scores.probabilities(logits, "sigmoid")
        best = label_scores.best_thresholds(shares, labels)
        for k, threshold in enumerate(best):
            if not dense[:, k].any():
                assert threshold == label_scores.THRESHOLD
                continue

            def f1(least, own=dense[:, k], column=shares[:, k]):
                return 2 * (own & (column >= least)).sum() / (own.sum() + (column >= least).sum())

            every = [f1(value) for value in np.unique(shares[:, k])]
            assert f1(threshold) == max(every) and 0 <= threshold <= 1


# --- Intervals ----------------------------------------------------------------------------------


def intervals(logits, labels):
    found = label_scores.resampled(logits, labels, "sigmoid")
    return {name: scores.interval(values) for name, values in found.items()}


def test_intervals_are_those_of_resampled_images():
    """The same draws by hand: the scores of the drawn images."""
    random = np.random.default_rng(1)
    dense = random.random((30, 4)) < [0.5, 0.3, 0.1, 0.7]
    logits = np.round(random.normal(size=(30, 4)) + dense, 1)  # some ties
    labels = LabelSets.of([np.flatnonzero(row).tolist() for row in dense])
    found = intervals(logits, labels)
    draws, means = np.random.default_rng(scores.SEED), []
    for _ in range(scores.RESAMPLES):
        drawn = np.bincount(draws.integers(0, 30, 30), minlength=30)
        some = np.repeat(np.arange(30), drawn)
        means.append(label_scores.measure(logits[some], labels[some], "sigmoid"))
    for name, ends in found.items():
        same(ends, scores.interval([getattr(one, name) for one in means]))
    assert set(found) == {"mean_average_precision", "macro_f1", "micro_f1"}


def test_intervals_hold_the_score():
    random = np.random.default_rng(2)
    dense = random.random((200, 5)) < 0.4
    logits = random.normal(size=(200, 5)) + 2 * dense
    labels = LabelSets.of([np.flatnonzero(row).tolist() for row in dense])
    found = label_scores.measure(logits, labels, "sigmoid")
    for name, (low, high) in intervals(logits, labels).items():
        assert low < getattr(found, name) < high < low + 0.3
