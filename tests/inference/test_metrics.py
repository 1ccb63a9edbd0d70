"""Loss and accuracies, against scikit-learn, and where counting is easily wrong."""

import numpy as np
import pytest

from bit_paddle.inference.metrics import Tally


def test_against_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(101, 12)), random.integers(0, 12, 101)
    whole, parts = Tally(12), Tally(12)
    whole.add(logits, labels)
    for start in range(0, 101, 25):
        parts.add(logits[start : start + 25], labels[start : start + 25])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    every = range(12)
    assert whole.loss == pytest.approx(
        sklearn.log_loss(labels, probabilities, labels=every), rel=1e-12
    )
    assert whole.top1 == sklearn.accuracy_score(labels, logits.argmax(axis=1))
    assert whole.balanced_accuracy == pytest.approx(
        sklearn.balanced_accuracy_score(labels, logits.argmax(axis=1)), rel=1e-14
    )
    assert parts.balanced_accuracy == whole.balanced_accuracy
    assert whole.top5 == pytest.approx(
        sklearn.top_k_accuracy_score(labels, logits, k=5, labels=every)
    )
    assert (parts.images, parts.top1, parts.top5) == (101, whole.top1, whole.top5)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-14)


def test_balanced_accuracy_leaves_out_classes_without_images():
    """Of 20 : 4 images, 90 % and a half are right; class 2 is predicted, but has no image."""
    sklearn = pytest.importorskip("sklearn.metrics")
    labels, predicted = np.repeat([0, 1], [20, 4]), np.repeat([0, 2, 1, 2], [18, 2, 2, 2])
    tally = Tally(4)
    tally.add(np.eye(4)[predicted], labels)
    assert tally.balanced_accuracy == pytest.approx((0.9 + 0.5) / 2, rel=1e-15)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = sklearn.balanced_accuracy_score(labels, predicted)
    assert tally.balanced_accuracy == pytest.approx(expected, rel=1e-15)
    assert tally.top1 == 20 / 24


def test_sums_of_parts_are_those_of_the_whole():
    random = np.random.default_rng(1)
    logits, labels = random.normal(size=(30, 6)), random.integers(0, 6, 30)
    whole, parts = Tally(6), [Tally(6), Tally(6), Tally(6)]  # the last has no image
    whole.add(logits, labels)
    parts[0].add(logits[:11], labels[:11])
    parts[1].add(logits[11:], labels[11:])
    found = Tally.of_sums(np.sum([part.sums() for part in parts], axis=0).tolist())
    assert found.loss == pytest.approx(whole.loss, rel=1e-14)
    assert {**found.summary(), "loss": 0} == {**whole.summary(), "loss": 0}


def test_a_zero_head_is_guessing():
    """Equal logits are not all right at once: class 0 ranks first, as argmax has it."""
    tally = Tally(10)
    tally.add(np.zeros((20, 10)), np.arange(20) % 10)
    assert (tally.top1, tally.top5) == (0.1, 0.5)
    assert tally.loss == pytest.approx(np.log(10))


def test_not_a_number_is_wrong():
    tally = Tally(3)
    tally.add(np.array([[np.nan, 1, 2], [np.inf, 1, 2], [3.0, 1, 2]]), np.array([0, 0, 0]))
    assert tally.top1 == 1 / 3 and not np.isfinite(tally.loss)


def test_fewer_than_five_classes():
    tally = Tally(3)
    tally.add(np.array([[1.0, 2.0, 3.0]]), np.array([0]))
    assert (tally.top1, tally.top5) == (0.0, 1.0)


def test_large_logits_do_not_overflow():
    tally = Tally(2)
    tally.add(np.array([[1000.0, 0.0]], np.float32), np.array([1]))
    assert tally.loss == 1000.0
