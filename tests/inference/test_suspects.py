"""Labels that the other images contradict."""

import numpy as np
import pytest

from bit_paddle.inference import suspects


def blobs(count, classes=4, width=12, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    centres = random.normal(size=(classes, width))
    features = suspects._centred(centres[labels] + 0.4 * random.normal(size=(count, width)))
    return features, labels


@pytest.mark.parametrize("count", [9, 60], ids=["fewer-than-features", "more-than-features"])
def test_scores_are_those_of_regressions_without_the_image(count, monkeypatch):
    """For each image a ridge regression on all others, solved by itself."""
    features, labels = blobs(count)
    monkeypatch.setattr(suspects, "PENALTIES", [0.7])
    monkeypatch.setattr(suspects, "TEMPERATURES", [0.3])
    found = suspects.probabilities(features, labels, 4)
    targets = np.eye(4)[labels]
    mean, expected = targets.mean(axis=0), np.zeros((count, 4))
    for index in range(count):
        rest = np.arange(count) != index
        inner = features[rest].T @ features[rest] + 0.7 * np.eye(12)
        weights = np.linalg.solve(inner, features[rest].T @ (targets[rest] - mean))
        expected[index] = features[index] @ weights + mean
    expected = np.exp(expected / 0.3) / np.exp(expected / 0.3).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_planted_labels_have_the_lowest_probabilities():
    features, labels = blobs(400)
    wrong = np.random.default_rng(1).choice(400, 20, replace=False)
    planted = labels.copy()
    planted[wrong] = (labels[wrong] + 1) % 4
    found = suspects.probabilities(features, planted, 4)
    assert found.sum(axis=1) == pytest.approx(np.ones(400))
    order = np.argsort(found[np.arange(400), planted])
    assert len(set(order[:20]) & set(wrong)) >= 17
    assert (found[wrong].argmax(axis=1) == labels[wrong]).mean() > 0.8


def test_one_image_per_class_and_equal_images():
    """No class can be judged, but nothing fails either."""
    found = suspects.probabilities(np.ones((3, 2), np.float32), np.array([0, 1, 2]), 3)
    assert found.shape == (3, 3) and np.isfinite(found).all()


def test_the_nearest_image_of_a_class():
    features = np.array([[1, 0], [0.9, 0.1], [0.7, 0.7], [0, 1]], np.float32)
    labels = np.array([0, 1, 1, 0])
    assert suspects.nearest_of_class(features, labels, 0, 1) == 1
    assert suspects.nearest_of_class(features, labels, 3, 1) == 2
