"""Decoding, suppression, merged views and regions, against torchvision and by hand."""

import numpy as np
import paddle
import pytest
from helpers.places import GOLDEN

from bit_paddle.data.boxes import views
from bit_paddle.models.detection import anchors, detections
from bit_paddle.models.detection.boxes import encode, iou
from bit_paddle.models.detection.detections import Detections
from bit_paddle.models.detection.regions import METHODS, regions


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "detection_torchvision.npz"))


def places_of(found, every):
    """The indices in ``every`` of the detections in ``found``; all scores differ."""
    return [int(np.flatnonzero(every.scores == score)[0]) for score in found.scores]


@pytest.mark.parametrize("classes, expected", [(0, "nms_keep"), (1, "batched_keep")])
def test_suppression_of_torchvision(golden, classes, expected):
    """The same indices in the same order, without classes and per class."""
    every = Detections(golden["nms_boxes"], golden["nms_scores"], golden["nms_classes"] * classes)
    found = detections.nms(every, 0.5, most=500)
    assert places_of(found, every) == golden[expected].tolist()
    assert places_of(detections.nms(every), every) == golden[expected][:100].tolist()
    assert np.array_equal(found.boxes, every.boxes[golden[expected]])


def test_soft_suppression_by_the_definition(golden):
    """Step by step over all boxes, with the products written out."""
    boxes, scores = golden["nms_boxes"][:60].copy(), golden["nms_scores"][:60]
    boxes[:, 2:] += 40
    classes = golden["nms_classes"][:60]
    expected = []
    for label in range(3):
        left = {k: scores[k] for k in np.flatnonzero(classes == label)}
        while left:
            best = max(left, key=left.get)
            score = left.pop(best)
            if score < detections.LEAST:
                continue
            expected.append((score, best))
            for k in left:
                left[k] *= np.exp(-(iou(boxes[[best]], boxes[[k]])[0, 0] ** 2) / 0.5)
    expected.sort(reverse=True)
    assert min(score / scores[k] for score, k in expected) < 0.2  # some are much lower than before
    found = detections.soft_nms(Detections(boxes, scores, classes), most=60)
    assert found.classes.tolist() == [classes[k] for _, k in expected]
    np.testing.assert_allclose(found.scores, [score for score, _ in expected], rtol=1e-12)
    np.testing.assert_allclose(found.boxes, boxes[[k for _, k in expected]])
    fewer = detections.soft_nms(Detections(boxes, scores, classes), most=7)
    assert np.array_equal(fewer.scores, found.scores[:7])


@pytest.mark.parametrize("suppress", [detections.nms, detections.soft_nms])
def test_nothing_to_suppress(suppress):
    none = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    found = suppress(none)
    assert found.boxes.shape == (0, 4) and found.scores.shape == found.classes.shape == (0,)
    assert found.scores.dtype == np.float32


def test_candidates_are_decoded_cut_and_sorted():
    """Two boxes are found exactly; one is cut at the edge, one lies in the padding."""
    found = anchors.anchors_of(64, 64, anchors.SHAPES["tpu"])
    boxes = np.array([[4, 6, 40, 50], [50, 2, 75, 30], [52, 52, 62, 62]], np.float32)
    logits, codes = np.full((len(found), 2), -9.0, np.float32), np.zeros_like(found)
    for box, anchor, label, score in zip(boxes, (100, 300, 500), (1, 0, 1), (2.0, 3.0, 4.0)):
        codes[anchor] = encode(box[None], found[[anchor]])[0]
        logits[anchor, label] = score
    tensors = [paddle.to_tensor(one) for one in (logits, codes, found)]
    result = detections.candidates(*tensors, height=48, width=60, most=5)
    assert result.classes[:2].tolist() == [0, 1]
    np.testing.assert_allclose(result.boxes[:2], [[50, 2, 60, 30], [4, 6, 40, 48]], atol=1e-4)
    np.testing.assert_allclose(result.scores[:2], 1 / (1 + np.exp([-3.0, -2.0])), rtol=1e-6)
    assert len(result.scores) <= 4  # of five pairs; a box in the padding is left out
    every = detections.candidates(*tensors, height=64, width=64, most=10**9)
    assert every.scores[0] == pytest.approx(1 / (1 + np.exp(-4.0)))
    assert (np.diff(every.scores) <= 0).all()


def test_views_are_merged_in_the_original_image():
    """The same box in a view of twice the size, and in a mirrored one of half the size."""
    box, score, label = np.array([[10.0, 20, 50, 40]]), np.array([0.5]), np.array([3])
    found = []
    for place, view in enumerate(
        (views.whole((80, 100), (160, 256)), views.whole((80, 100), (40, 64), flip=True))
    ):
        seen = Detections(view.boxes(box)[0], score + place / 10, label)
        found.append(seen._replace(boxes=view.restored(seen.boxes)))
    both = detections.merged(found)
    np.testing.assert_allclose(both.boxes, np.concatenate([box, box]))
    found = detections.nms(both)
    assert found.scores.tolist() == [0.6] and found.classes.tolist() == [3]


@pytest.mark.parametrize("method", METHODS)
def test_regions_of_torchvision(golden, method):
    rng = np.random.default_rng(0)
    rng.random(2500), rng.integers(0, 3, 500), rng.normal(size=(60, 5)), rng.random((60, 5))
    rng.random((12, 40)), rng.random((407, 4))
    x = paddle.to_tensor(rng.normal(size=(2, 8, 25, 25)), stop_gradient=False)
    boxes = golden["roi_boxes"]
    per_image = [boxes[boxes[:, 0] == image, 1:] for image in (0, 1)]
    found = regions(x, per_image, 8, method)
    np.testing.assert_allclose(found.numpy(), golden[f"roi_{method}"], rtol=0, atol=1e-9)
    found.square().sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), golden[f"roi_{method}_grad"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_regions_of_images_without_boxes(method):
    """In one of two images, and in all of them; boxes without area and outside give numbers."""
    x = paddle.ones([2, 4, 8, 8])
    x.stop_gradient = False
    none, some = np.zeros((0, 4)), np.array([[0.0, 0, 31, 31]])
    assert regions(x, [none, none], 8, method).shape == [0, 4, 7, 7]
    result = regions(x, [none, some], 8, method)
    assert result.shape == [1, 4, 7, 7] and (result.numpy() == 1).all()
    result.sum().backward()
    assert not x.grad.numpy()[0].any() and x.grad.numpy()[1].any()
    odd = np.array([[20.0, 20, 20, 20], [-90, -90, -50, -50], [40, 40, 10, 10]])
    assert np.isfinite(regions(x, [odd, none], 8, method).numpy()).all()
