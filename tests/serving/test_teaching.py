"""Teaching: against independent solutions, what is refused, and the two routes."""

import base64

import numpy as np
import pytest
from helpers.serving import running
from PIL import Image

import bit_paddle
from bit_paddle.errors import DataError
from bit_paddle.inference import probing
from bit_paddle.serving.teaching import teach


def problem(counts, width=24, seed=0, spread=1.5):
    """Features of so many images per class, and labels; the classes overlap."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = np.random.default_rng(99).normal(size=(len(counts), width))
    values = centres[labels] + spread * random.normal(size=(len(labels), width)) + 2
    return values.astype(np.float32), labels


def standardized(features):
    values = features.astype(np.float64)
    return values.mean(axis=0), values.std(axis=0) + 1e-5


def solved(features, labels, classes, strength, mean, std):
    """Ridge regression by plain least squares: coefficients of [standardized features, 100]."""
    x = (features.astype(np.float64) - mean) / std
    x = np.hstack([x, np.full((len(x), 1), 100.0)])
    y = np.where(np.arange(classes) == labels[:, None], 1.0, -1.0)
    rows = np.vstack([x, np.sqrt(strength) * np.eye(x.shape[1])])
    zeros = np.zeros((x.shape[1], classes))
    return np.linalg.lstsq(rows, np.vstack([y, zeros]), rcond=None)[0]


def scores_of(solution, features, mean, std):
    x = (features.astype(np.float64) - mean) / std
    return np.hstack([x, np.full((len(x), 1), 100.0)]) @ solution


def left_out_by_hand(features, labels, classes, strength):
    """Every image is scored by a solution of all the others, one after the other."""
    mean, std = standardized(features)
    scores = []
    for k in range(len(features)):
        rest = np.arange(len(features)) != k
        solution = solved(features[rest], labels[rest], classes, strength, mean, std)
        scores.append(scores_of(solution, features[[k]], mean, std)[0])
    return np.array(scores)


@pytest.mark.parametrize("counts", [(9, 6, 7), (4, 4), (12, 2, 2, 5)])
def test_leave_one_out_is_exact(counts):
    features, labels = problem(counts)
    fit = probing.Fit(features, labels, len(counts))
    for strength in (2.0**-10, 1.0, 2.0**10, fit.strength):
        expected = left_out_by_hand(features, labels, len(counts), strength)
        np.testing.assert_allclose(fit.left_one_out(strength), expected, rtol=0, atol=1e-8)
    taught = teach(features, labels, [f"class {k}" for k in range(len(counts))])
    expected = left_out_by_hand(features, labels, len(counts), taught.strength).argmax(axis=1)
    assert taught.predicted.tolist() == expected.tolist() and taught.judged.all()
    found = taught.leave_one_out()
    right = expected == labels
    assert (found["right"], found["images"]) == (right.sum(), len(labels))
    assert found["accuracy"] == pytest.approx(right.mean())
    rows = [(row["right"], row["images"]) for row in found["per_class"]]
    assert rows == [(right[labels == k].sum(), count) for k, count in enumerate(counts)]


def test_leave_one_out_is_that_of_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    selection = pytest.importorskip("sklearn.model_selection")
    features, labels = problem((9, 6, 7))
    mean, std = standardized(features)
    x = np.hstack([(features - mean) / std, np.full((len(features), 1), 100.0)])
    y = np.where(np.arange(3) == labels[:, None], 1.0, -1.0)
    ridge = linear.Ridge(alpha=8.0, fit_intercept=False, solver="svd")
    expected = selection.cross_val_predict(ridge, x, y, cv=selection.LeaveOneOut())
    found = probing.Fit(features, labels, 3).left_one_out(8.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("counts", [(9, 6, 7), (4, 4), (40, 40)])
def test_probabilities_are_the_softmax_of_scaled_ridge_scores(counts):
    """The scale has the lowest loss, found here on a grid; the scores are solved independently."""
    features, labels = problem(counts)
    queries, _ = problem((30,) * len(counts), seed=1)
    taught = teach(features, labels, [str(k) for k in range(len(counts))], queries)
    left_out = left_out_by_hand(features, labels, len(counts), taught.strength)
    images = len(labels)
    share = (images + 1) / (images + 2)
    targets = np.where(
        np.arange(len(counts)) == labels[:, None], share, (1 - share) / (len(counts) - 1)
    )
    grid = np.geomspace(0.1, 100, 2_001)
    losses = []
    for scale in grid:
        powers = np.exp(scale * (left_out - left_out.max(axis=1, keepdims=True)))
        losses.append(-(targets * np.log(powers / powers.sum(axis=1, keepdims=True))).sum())
    scale = grid[np.argmin(losses)]
    assert grid[0] < scale < grid[-1]
    mean, std = standardized(features)
    solution = solved(features, labels, len(counts), taught.strength, mean, std)
    powers = np.exp(scale * scores_of(solution, queries, mean, std))
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(taught.queries, expected, rtol=0, atol=5e-3)


def test_probabilities_tell_how_often_the_answer_is_right():
    """On images of which nothing was learned; a softmax of the plain scores is far too careful."""
    counts = (30,) * 6
    features, labels = problem(counts, spread=2.0)
    queries, truth = problem((80,) * 6, seed=1, spread=2.0)
    taught = teach(features, labels, list("abcdef"), queries)
    right = (taught.queries.argmax(axis=1) == truth).mean()
    assert 0.6 < right < 0.98
    assert abs(taught.queries.max(axis=1).mean() - right) < 0.05
    fit = probing.Fit(features, labels, 6)
    weights, bias = fit.ridge(taught.strength)
    plain = np.exp(queries @ weights + bias)
    assert (plain / plain.sum(axis=1, keepdims=True)).max(axis=1).mean() < right - 0.2


def test_all_right_does_not_make_it_certain():
    features, labels = problem((5, 5), spread=0.01)
    taught = teach(features, labels, ["a", "b"], features)
    assert taught.leave_one_out()["accuracy"] == 1
    assert taught.queries.max() < 0.95  # of ten images all are right: 11 / 12


def test_one_image_per_class_has_no_accuracy():
    features, labels = problem((1, 1, 1))
    taught = teach(features, labels, ["a", "b", "c"], features)
    found = taught.leave_one_out()
    assert found["accuracy"] is None and found["images"] == 0 and not taught.judged.any()
    assert taught.strength == probing.FIXED
    assert taught.queries.argmax(axis=1).tolist() == [0, 1, 2]


def test_a_class_with_one_image_is_not_judged_and_others_are():
    features, labels = problem((1, 6, 6))
    found = teach(features, labels, ["a", "b", "c"]).leave_one_out()
    assert found["images"] == 12
    assert found["per_class"][0] == {"name": "a", "accuracy": None, "right": 0, "images": 0}
    assert [row["images"] for row in found["per_class"]] == [0, 6, 6]


def test_the_same_image_many_times():
    features = np.ones((6, 4), np.float32)
    taught = teach(features, np.array([0, 0, 0, 1, 1, 1]), ["a", "b"], features[:1])
    np.testing.assert_allclose(taught.queries, 0.5)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"classes": ["a"]}, "there are 1; expected 2 to 200"),
        ({"classes": ["a", "b", "c"]}, "'c' has no image; add one, or remove the class"),
        ({"classes": ["a", "a"]}, "'a' is there twice"),
        ({"classes": ["a", " "]}, r"class 1 \(counted from 0\) has no name"),
        ({"classes": ["a", "b" * 201]}, "has 201 characters"),
        ({"labels": np.array([0, 0, 1])}, "there are 3, for 4 images"),
        ({"labels": np.array([0, 0, 1, 2])}, "2 is not one of 0 to 1"),
        ({"labels": np.array([0, 0, 1, -1])}, "-1 is not one of 0 to 1"),
        ({"features": np.float32([[1], [2], [np.nan], [3]])}, "image 2 .* not finite"),
        ({"queries": np.float32([[np.inf]])}, "queries: image 0 .* not finite"),
        ({"features": np.zeros((2001, 1), np.float32)}, "2,001 images; at most 2,000"),
        ({"queries": np.zeros((501, 1), np.float32)}, "501 images; at most 500"),
    ],
)
def test_what_cannot_be_taught(change, words):
    given = {
        "features": np.float32([[1], [2], [3], [4]]),
        "labels": np.array([0, 0, 1, 1]),
        "classes": ["a", "b"],
    }
    teach(**given)
    with pytest.raises(DataError, match=words):
        teach(**{**given, **change})


# --- The routes, and the model that they give ---------------------------------------------------


@pytest.fixture(scope="module")
def mini():
    return bit_paddle.load("BiT-Mini")


@pytest.fixture(scope="module")
def server(mini):
    for name in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        pytest.importorskip(name)
    with running(model=mini.file.path) as server:
        yield server


def encoded(values) -> str:
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


def pictures(count: int, seed: int) -> list[Image.Image]:
    """Noise of three colours in turn."""
    noise = np.random.default_rng(seed).integers(0, 120, (count, 40, 50, 3))
    for k in range(count):
        noise[k, ..., k % 3] += 120
    return [Image.fromarray(pixels) for pixels in noise.astype(np.uint8)]


def test_the_saved_model_predicts_what_the_route_told(mini, server, tmp_path):
    queries = pictures(4, 1)
    body = {
        "features": encoded(mini.features(pictures(9, 0))),
        "labels": [0, 1, 2] * 3,
        "classes": ["猫", "a dog", "c,d"],
    }
    told = server.post("/teach", json={**body, "queries": encoded(mini.features(queries))})
    assert told.status_code == 200, told.text
    found = told.json()
    assert found["leave_one_out"]["images"] == 9 and len(found["predicted"]) == 9
    saved = server.post("/teach/save", json=body)
    assert saved.headers["content-disposition"] == 'attachment; filename="model.npz"'
    assert int(saved.headers["content-length"]) == len(saved.content)
    (tmp_path / "model.npz").write_bytes(saved.content)
    model = bit_paddle.load(tmp_path / "model.npz")
    assert model.classes == body["classes"] and model.preprocessing == mini.preprocessing
    for row, answer in zip(found["queries"], model(queries, top=3)):
        expected = dict(answer)
        for name, probability in zip(body["classes"], row):
            assert probability == pytest.approx(expected[name], abs=2e-6)
    spread = np.array(found["queries"])
    assert spread.max() - spread.min() > 0.2  # the probabilities differ: the test can fail


def test_an_image_alone_in_its_class_has_no_answer_by_the_others(mini, server):
    body = {
        "features": encoded(mini.features(pictures(3, 0))),
        "labels": [0, 1, 1],
        "classes": ["a", "b"],
    }
    found = server.post("/teach", json=body).json()
    assert found["predicted"][0] is None and None not in found["predicted"][1:]
    assert found["queries"] == []


@pytest.mark.parametrize(
    "change, words",
    [
        ({"features": "?"}, "features: is not base64"),
        ({"features": "AAAA"}, "features: has 3 bytes; expected float32 [N, "),
        ({"features": "", "labels": []}, "'a' has no image"),
        ({"queries": "AAAA"}, "queries: has 3 bytes"),
        ({"labels": [0, 0.5]}, "labels.1: "),
        ({"labels": [0, 200]}, "labels.1: "),
        ({"labels": [0, -1]}, "labels.1: "),
        ({"labels": [0, 10**30]}, "labels.1: "),
        ({"labels": [0]}, "there are 1, for 2 images"),
        ({"classes": ["a", 2]}, "classes.1: "),
        ({"classes": ["a", "b", "c"]}, "'c' has no image"),
        ({"features": None}, "features: "),
    ],
)
@pytest.mark.parametrize("route", ["/teach", "/teach/save"])
def test_wrong_lessons_are_refused_in_words(mini, server, change, words, route):
    body = {
        "features": encoded(np.eye(2, mini.file.features)),
        "labels": [0, 1],
        "classes": ["a", "b"],
    }
    answer = server.post(route, json={**body, **change})
    assert answer.status_code == 422
    assert list(answer.json()) == ["error"] and words in answer.json()["error"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"null"])
def test_bodies_that_are_no_lesson(server, body):
    answer = server.post("/teach", data=body)
    assert answer.status_code == 422 and list(answer.json()) == ["error"]
