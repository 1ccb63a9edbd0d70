"""Classifiers on features, against independent solutions and scikit-learn; the cache."""

import os

import numpy as np
import PIL
import pytest
from PIL import Image

import bit_paddle
from bit_paddle import errors
from bit_paddle.data.images import ArrayImages, FileImages
from bit_paddle.inference import features as cached
from bit_paddle.inference import probing
from bit_paddle.inference.model import TrainedModel
from bit_paddle.inference.trained import find_trained
from bit_paddle.models.native import build


def problem(images: int, width: int, classes: int, seed: int = 0):
    """Features that tell the classes apart, but not wholly; every class has two images or more."""
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), np.arange(classes)])
    labels = np.concatenate([labels, random.integers(0, classes, images - len(labels))])
    centres = random.normal(size=(classes, width))
    values = centres[labels] + 2 * random.normal(size=(images, width)) + 3
    return values.astype(np.float32), labels


@pytest.mark.parametrize("images, width", [(90, 12), (12, 40)])
@pytest.mark.parametrize("strength", [2.0**-10, 1.0, 2.0**10])
def test_ridge_is_the_solution_of_the_normal_equations(images, width, strength):
    features, labels = problem(images, width, 5)
    x = features.astype(np.float64)
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-5)
    x = np.hstack([x, np.full((images, 1), 100.0)])
    y = np.where(np.arange(5) == labels[:, None], 1.0, -1.0)
    rows = np.vstack([x, np.sqrt(strength) * np.eye(width + 1)])  # least squares, no inverse
    solution = np.linalg.lstsq(rows, np.vstack([y, np.zeros((width + 1, 5))]), rcond=None)[0]
    weights, bias = probing.Fit(features, labels, 5).ridge(strength)
    np.testing.assert_allclose(
        features.astype(np.float64) @ weights + bias, x @ solution, rtol=0, atol=1e-8
    )


def test_the_strength_is_the_best_when_each_image_is_left_out():
    features, labels = problem(40, 10, 4)
    fit = probing.Fit(features, labels, 4)
    x = (features - fit.mean) / fit.std
    x = np.hstack([x, np.full((40, 1), 100.0)])
    y = np.where(np.arange(4) == labels[:, None], 1.0, -1.0)
    scored = []
    for strength in probing.STRENGTHS.tolist():
        scores = []
        for k in range(40):
            rest = np.arange(40) != k
            gram = x[rest].T @ x[rest] + strength * np.eye(11)
            scores.append(x[k] @ np.linalg.solve(gram, x[rest].T @ y[rest]))
        right = (np.argmax(scores, axis=1) == labels).sum()
        scored.append((right, -((np.array(scores) - y) ** 2).mean(), -strength))
    assert fit.strength == -max(scored)[2]
    assert len({right for right, _, _ in scored}) > 1  # the strengths differ in this problem


def test_one_image_per_class_takes_the_fixed_strength():
    features, _ = problem(10, 6, 5)
    assert probing.Fit(features[:5], np.arange(5), 5).strength == probing.FIXED
    assert probing.choose_neighbours(features[:5], np.arange(5), 5) == 1


@pytest.mark.parametrize("count", [1, 2, 4, 10, 200])
def test_neighbours_are_those_of_scikit_learn(count):
    sklearn = pytest.importorskip("sklearn.neighbors")
    features, labels = problem(80, 8, 6)
    queries, _ = problem(300, 8, 6, seed=1)
    features[3] = 0  # its cosine with everything counts as 0
    own = sklearn.KNeighborsClassifier(min(count, 80), metric="cosine", algorithm="brute")
    expected = own.fit(features.astype(float), labels).predict(queries.astype(float))
    found = probing.nearest(features, labels, queries, 6, [count])[0]
    np.testing.assert_array_equal(found, expected)


def test_ties_of_neighbours():
    """Many equal distances; a plain loop has the rule, and scikit-learn agrees where it has one.

    scikit-learn takes any of the equally near images when some of them are beyond the k-th place.
    """
    sklearn = pytest.importorskip("sklearn.neighbors")
    random, count = np.random.default_rng(0), 7
    features, queries = (random.integers(0, 4, (n, 3)).astype(float) for n in (120, 200))
    labels = random.integers(0, 5, 120)
    exact = [
        [float(one @ two) ** 2 / max(1, (one @ one) * (two @ two)) for two in features]
        for one in queries
    ]
    expected, clear = [], []
    for line in np.round(exact, 9):
        order = sorted(range(120), key=lambda k: (-line[k], k))
        votes = np.bincount(labels[order[:count]], minlength=5)
        expected.append(int(votes.argmax()))
        clear.append(line[order[count - 1]] != line[order[count]])
    found = probing.nearest(features, labels, queries, 5, [count])[0]
    assert found.tolist() == expected
    own = sklearn.KNeighborsClassifier(count, metric="cosine", algorithm="brute")
    theirs = own.fit(features, labels).predict(queries)
    np.testing.assert_array_equal(found[clear], theirs[clear])
    assert 20 < sum(clear) < 180 and (found != theirs).any()


@pytest.mark.parametrize("images, width, classes", [(90, 12, 5), (12, 40, 5), (60, 8, 2)])
def test_logistic_regression_is_that_of_scikit_learn(images, width, classes):
    sklearn = pytest.importorskip("sklearn.linear_model")
    features, labels = problem(images, width, classes)
    fit = probing.Fit(features, labels, classes)
    x = (features.astype(np.float64) - fit.mean) / fit.std
    strength = 2.0 if classes == 2 else 1.0  # scikit-learn then has one vector, not two
    other = sklearn.LogisticRegression(C=strength, tol=1e-10, max_iter=100_000, solver="newton-cg")
    other.fit(x, labels)
    expected = np.vstack([other.coef_.T, other.intercept_])
    for tolerance, error in ((1e-7, 1e-6), (1e-2, 1e-2)):  # the second is that of the table
        weights, bias = fit.logistic(tolerance)
        found = np.vstack([weights * fit.std[:, None], bias + fit.mean @ weights])  # for x
        if classes == 2:
            found = found[:, 1:] - found[:, :1]
        else:
            found[-1] += expected[-1].mean() - found[-1].mean()  # any number may be added
        np.testing.assert_allclose(found, expected, rtol=0, atol=error)


def test_table_leaves_out_numbers_that_no_class_has():
    features, labels = problem(60, 8, 6)
    rows = probing.table("features", (features, labels), (features, labels), 6, seeds=2)
    most = np.bincount(labels).max()
    shots = [each for each in (1, 5, 10, 25) if each < most]
    assert [row.shots for row in rows] == [each for each in [*shots, None] for _ in range(3)]
    assert all(len(row.scores) == (2 if row.shots else 1) for row in rows)
    chosen = probing.some_of_each(labels, 10, 0, 6)
    counts = np.bincount(labels)
    assert np.bincount(labels[chosen]).tolist() == np.minimum(counts, 10).tolist()


def test_checks():
    with pytest.raises(errors.DataError, match="1 class; expected 2"):
        probing.check(np.zeros(1, np.int64), ["a"], 1)
    with pytest.raises(errors.DataError, match="classes without training images: 1, .* 'b'"):
        probing.check(np.array([0, 2]), ["a", "b", "c"], 1)
    with pytest.raises(errors.DataError, match="no validation images"):
        probing.check(np.array([0, 1]), ["a", "b"], 0)


# --- The cache ----------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(cached, "cache_folder", lambda file: tmp_path / "features")
    random, paths = np.random.default_rng(0), []
    for k in range(3):
        paths.append(str(tmp_path / f"{k}.png"))
        Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(paths[-1])
    return FileImages(paths, np.arange(3), ["a", "b", "c"])


def test_features_are_cached_and_verified(pictures, small_checkpoint, monkeypatch):
    model = TrainedModel(find_trained(str(small_checkpoint), crop=32))
    first = cached.features(model, pictures, 2, 0)
    np.testing.assert_array_equal(first, model.features([pictures.name(k) for k in range(3)]))
    calls = []
    compute = model.function(head=False)
    monkeypatch.setattr(
        TrainedModel, "function", lambda *_, **__: lambda x: calls.append(1) or compute(x)
    )
    np.testing.assert_array_equal(cached.features(model, pictures, 2, 0), first)
    assert not calls
    (place,) = cached.cache_folder(model.file).glob("*.npz")
    content = bytearray(place.read_bytes())
    content[200] ^= 1
    place.write_bytes(content)
    np.testing.assert_array_equal(cached.features(model, pictures, 2, 0), first)
    assert len(calls) == 2  # computed anew, in two batches
    Image.new("RGB", (40, 40)).save(pictures.name(1))
    changed = cached.features(model, pictures, 2, 0)
    assert len(calls) == 4 and not np.array_equal(changed[1], first[1])
    assert len(list(place.parent.iterdir())) == 2


def test_what_changes_the_numbers_changes_the_key(pictures, small_checkpoint, tmp_path):
    def key(model, *arguments):
        return cached._key(model, model.file.preprocessing, *arguments)

    model = TrainedModel(find_trained(str(small_checkpoint), crop=32))
    keys = [key(model, pictures, False), key(model, pictures, True)]
    keys.append(key(model, pictures.subset(np.array([0, 2, 1])), False))
    keys.append(key(TrainedModel(find_trained(str(small_checkpoint), crop=48)), pictures, False))
    keys.append(key(TrainedModel(model.file, amp="bf16"), pictures, False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(build.SWITCH, "0")  # Paddle's own operators
        keys.append(key(TrainedModel(model.file), pictures, False))
    for module, name in ((bit_paddle, "__version__"), (PIL, "__version__"), (cached, "_VERSION")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, "99")
            keys.append(key(model, pictures, False))
    other = tmp_path / "other.npz"
    other.write_bytes(small_checkpoint.read_bytes())
    same = TrainedModel(find_trained(str(other), crop=32))
    assert key(same, pictures, False) == keys[0]  # the same weights in another file
    with open(other, "ab") as stream:
        stream.write(b"\0")
    keys.append(key(same, pictures, False))
    assert len(set(keys)) == len(keys)


def test_the_oldest_cached_features_leave(pictures, small_checkpoint, monkeypatch):
    model = TrainedModel(find_trained(str(small_checkpoint), crop=32))
    cached.features(model, pictures, 2, 0)
    (old,) = cached.cache_folder(model.file).glob("*.npz")
    os.utime(old, (1, 1))
    monkeypatch.setattr(cached, "_MOST_BYTES", old.stat().st_size)
    cached.features(model, pictures.subset(np.array([0, 1])), 2, 0)
    assert not old.exists() and len(list(old.parent.iterdir())) == 1


def test_layers_and_features_that_are_not_finite(pictures, small_checkpoint):
    model = TrainedModel(find_trained(str(small_checkpoint), crop=32))
    features = cached.features(model, pictures, 2, 0)
    layers = cached.features(model, pictures, 2, 0, layers=True)
    np.testing.assert_allclose(layers[:, -features.shape[1] :], features, rtol=1e-6)
    assert layers.shape[1] == features.shape[1] * (1 + 1 + 1 / 2 + 1 / 4 + 1 / 8)
    features[1, 0] = np.nan
    pixels = ArrayImages(np.zeros((3, 4, 4, 3), np.uint8), np.zeros(3), ["a"], "mine")
    with pytest.raises(errors.DataError, match="mine image 1: .* not finite, .* 1 of 3 images"):
        cached.require_finite(features, pixels)
