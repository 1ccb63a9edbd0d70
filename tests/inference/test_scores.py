"""Scores of predictions against scikit-learn, on random cases with ties and empty classes."""

import warnings

import numpy as np
import pytest

from bit_paddle.inference import metrics, scores


def cases(count):
    """Few images and rounded logits: ties, classes without images, and without predictions."""
    random = np.random.default_rng(0)
    for _ in range(count):
        images, classes = random.integers(1, 25), random.integers(2, 7)
        logits = random.normal(size=(images, classes)) * random.choice([0.5, 2, 8])
        logits = np.round(logits, random.integers(0, 3)).astype(np.float32)
        present = random.choice(classes, random.integers(1, classes + 1), replace=False)
        yield logits, random.choice(present, images), random.choice(["softmax", "sigmoid"])


def same(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_per_class_and_summary():
    sklearn = pytest.importorskip("sklearn.metrics")
    for logits, labels, loss in cases(1000):
        classes = logits.shape[1]
        images = scores.per_image(logits, labels, loss)
        found, total = scores.summary(images, classes), scores.counts(images, classes)
        ours, best = scores.precision_recall_f1(*total), logits.argmax(axis=1)
        theirs = sklearn.precision_recall_fscore_support(
            labels, best, labels=range(classes), zero_division=np.nan
        )
        same(ours, theirs[:3])
        same(found["macro_f1"], np.nanmean(theirs[2]))
        same(found["balanced_accuracy"], sklearn.balanced_accuracy_score(labels, best))
        same(found["kappa"], sklearn.cohen_kappa_score(labels, best))
        shares = scores.probabilities(logits, loss)
        one_hot = np.eye(classes)[labels]
        squares = sklearn.brier_score_loss(one_hot.ravel(), shares.ravel())  # mean over classes
        same(found["brier"], squares * classes)
        own = shares[np.arange(len(labels)), labels]
        least = -np.log(np.finfo(float).eps)  # scikit-learn's log_loss clips probabilities to it
        expected = sklearn.log_loss(np.ones(len(own)), own, labels=[0, 1])
        same(np.minimum(images.nll, least).mean(), expected)
        same(found["nll"], images.nll.mean())


@pytest.mark.slow
def test_ranking():
    sklearn = pytest.importorskip("sklearn.metrics")
    for logits, labels, loss in cases(1000):
        auc, precision = scores.ranking(logits, labels, loss)
        shares = scores.probabilities(logits, loss)
        for k in range(logits.shape[1]):
            own = labels == k
            if not own.any():
                assert np.isnan(auc[k]) and np.isnan(precision[k])
                continue
            same(precision[k], sklearn.average_precision_score(own, shares[:, k]))
            expected = np.nan if own.all() else sklearn.roc_auc_score(own, shares[:, k])
            same(auc[k], expected)


def test_calibration_error():
    calibration = pytest.importorskip("sklearn.calibration")
    for logits, labels, loss in cases(1000):
        images = scores.per_image(logits, labels, loss)
        right = images.predictions == labels
        bins = scores.reliability(images.confidences, right)
        same(bins.error, scores.summary(images, logits.shape[1])["ece"])
        shares, means = calibration.calibration_curve(right, images.confidences, n_bins=15)
        used = bins.images > 0
        same(bins.right[used] / bins.images[used], shares)
        same(bins.confidence[used] / bins.images[used], means)
        same(bins.error, bins.images[used] @ np.abs(shares - means) / len(labels))


def test_blocks_do_not_matter(monkeypatch):
    random = np.random.default_rng(1)
    logits, labels = random.normal(size=(40, 6)).astype(np.float32), random.integers(0, 6, 40)
    whole = scores.per_image(logits, labels, "softmax"), scores.ranking(logits, labels, "softmax")
    monkeypatch.setattr(scores, "_BLOCK", 30)
    parts = scores.per_image(logits, labels, "softmax"), scores.ranking(logits, labels, "softmax")
    for one, other in zip(whole, parts):
        np.testing.assert_array_equal(np.array(one), np.array(other))


def test_bootstrap_covers_the_score_and_is_repeatable():
    random = np.random.default_rng(2)
    labels = random.integers(0, 4, 300)
    logits = (random.normal(size=(300, 4)) + 1.5 * np.eye(4)[labels]).astype(np.float32)
    images = scores.per_image(logits, labels, "softmax")
    found, again = scores.bootstrap(images, 4), scores.bootstrap(images, 4)
    assert found == again
    for name, value in scores.summary(images, 4).items():
        low, high = found[name]
        assert low < high and (low < value < high or name == "ece")  # resamples raise the ECE
    deviation = images.brier.std() / np.sqrt(300)  # of the mean, by the central limit theorem
    assert np.diff(found["brier"]) == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_kappa_of_a_diverged_model_is_not_below_its_range():
    """Its predictions are all of one class, and all wrong, although most labels are of it."""
    logits = np.full((20, 2), np.nan, np.float32)
    images = scores.per_image(logits, np.array([0] * 19 + [1]), "softmax")
    assert scores.summary(images, 2)["kappa"] == -1
    assert scores.bootstrap(images, 2)["kappa"] == (-1, -1)


def test_likelihood_of_a_certain_mistake_is_finite():
    logits = np.array([[1000.0, 0.0]], np.float32)
    for loss in ("softmax", "sigmoid"):
        found = scores.per_image(logits, np.array([1]), loss)
        assert found.nll[0] == pytest.approx(1000 if loss == "softmax" else np.log(2))


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_wrong_in_every_score(loss, fault):
    logits, labels = np.array([[fault, 0], [0, 1]], np.float32), np.array([0, 1])
    images = scores.per_image(logits, labels, loss)
    tally = metrics.Tally(2)
    tally.add(logits, labels, loss)
    right, _, _ = scores.counts(images, 2)
    assert right.tolist() == tally.right_per_class.tolist() == [0, 1]
    assert scores.bootstrap(images, 2)["balanced_accuracy"][0] == 0


def test_logits_that_are_not_finite_give_undefined_scores():
    logits = np.array([[np.nan, 1], [0, 1]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = scores.per_image(logits, np.array([0, 1]), "softmax")
        auc, _ = scores.ranking(logits, np.array([0, 1]), "softmax")
        assert np.isnan(scores.summary(images, 2)["brier"]) and np.isnan(auc).all()
        assert np.isnan(scores.bootstrap(images, 2)["nll"]).sum() in (0, 2)
