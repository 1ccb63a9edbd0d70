"""Anchors, overlaps, matching and the box code, against the reference code and torchvision."""

import dataclasses

import numpy as np
import paddle
import pytest
from helpers.places import GOLDEN

from bit_paddle.models.detection import anchors, boxes
from bit_paddle.models.detection.anchors import IGNORED, MATCHINGS, NEGATIVE, SHAPES

YX = [1, 0, 3, 2]  # the reference code has y before x


@pytest.fixture(scope="module")
def reference():
    return dict(np.load(GOLDEN / "detection_reference.npz"))


@pytest.fixture(scope="module")
def torchvision():
    return dict(np.load(GOLDEN / "detection_torchvision.npz"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_anchors_and_targets_are_those_of_the_reference_code(reference, dtype):
    found = anchors.anchors_of(256, 256, SHAPES["tpu"], dtype)
    assert found.dtype == dtype and len(found) == 12_276
    np.testing.assert_allclose(found[::11], reference["anchors"][:, YX], atol=4e-5)
    target = anchors.targets_of(
        reference["gt"][:, YX].astype(dtype), reference["labels"] - 1, found, MATCHINGS["tpu"]
    )
    expected = np.full(len(found), NEGATIVE)
    expected[reference["matched"]] = reference["classes"]
    assert (target.classes == expected).all() and (expected >= 0).sum() == 326
    codes = np.zeros((len(found), 4))
    codes[reference["matched"]] = reference["codes"][:, YX]
    np.testing.assert_allclose(target.codes, codes, atol=1e-6)


def test_anchors_of_an_odd_size_are_as_many_as_the_heads_have():
    found = anchors.anchors_of(300, 65, SHAPES["detectron"], np.float64)
    sides = [(38, 9), (19, 5), (10, 3), (5, 2), (3, 1)]
    assert anchors.map_sides(300, 65) == sides
    assert len(found) == 9 * sum(rows * columns for rows, columns in sides)
    # Detectron's have their first centre at 0, and one area per scale: 32², 40.3², 50.8².
    np.testing.assert_allclose((found[:9, :2] + found[:9, 2:]) / 2, 0, atol=1e-12)
    expected = np.repeat(32**2 * 2.0 ** np.array([0, 2 / 3, 4 / 3]), 3)
    np.testing.assert_allclose(boxes.areas(found[:9]), expected)
    widths, heights = found[:3, 2] - found[:3, 0], found[:3, 3] - found[:3, 1]
    np.testing.assert_allclose(heights / widths, [0.5, 1, 2])


def test_the_base_of_the_anchors_is_a_setting():
    half = dataclasses.replace(SHAPES["tpu"], base=2.0)
    whole, found = (anchors.anchors_of(64, 64, shapes) for shapes in (SHAPES["tpu"], half))
    np.testing.assert_allclose(boxes.areas(found) * 4, boxes.areas(whole), rtol=1e-5)
    assert half.per_place == 9


def test_overlaps(torchvision):
    found = boxes.iou(torchvision["nms_boxes"][:20], torchvision["nms_boxes"][20:50])
    np.testing.assert_allclose(found, torchvision["iou"], atol=1e-12)


def test_overlaps_without_boxes_or_area():
    none, box = np.zeros((0, 4)), np.array([[0.0, 0, 10, 10]])
    assert boxes.iou(none, box).shape == (0, 1) and boxes.iou(box, none).shape == (1, 0)
    point = np.array([[5.0, 5, 5, 5]])
    assert boxes.iou(point, point) == 0 and boxes.iou(point, box) == 0


def test_box_code(torchvision):
    one, many = torchvision["code_anchors"], torchvision["code_boxes"]
    code = boxes.encode(many, one)
    np.testing.assert_allclose(code, torchvision["code"], atol=1e-9)
    for given, expected in ((code, many), (torchvision["code_with_large"], torchvision["decoded"])):
        decoded = boxes.decode(paddle.to_tensor(given), paddle.to_tensor(one)).numpy()
        np.testing.assert_allclose(decoded, expected, atol=1e-9)


def test_matching_of_detectron(torchvision):
    found = anchors.assign(
        torchvision["match_boxes"], torchvision["match_anchors"], MATCHINGS["detectron"]
    )
    assert (found == torchvision["matches"]).all()


@pytest.mark.parametrize("recipe", SHAPES)
def test_the_best_anchor_of_each_box(recipe):
    """The nearest places are enough: the same as the best of all anchors."""
    random = np.random.default_rng(6)
    starts = random.uniform(-20, 190, (300, 2))
    many = np.concatenate([starts, starts + np.exp(random.uniform(0, 5.5, (300, 2)))], axis=1)
    every = anchors.anchors_of(200, 150, SHAPES[recipe], np.float64)
    found = anchors.reach(many, 200, 150, SHAPES[recipe])
    np.testing.assert_allclose(found, boxes.iou(many, every).max(axis=1), rtol=1e-9)
    assert found.min() < 0.2 and found.max() > 0.8
    assert anchors.reach(many[:0], 200, 150, SHAPES[recipe]).shape == (0,)


def squares(*starts, side=10.0):
    return np.array([[start, 0, start + side, side] for start in starts])


def test_two_boxes_that_share_their_best_anchor():
    """The first of them gets it (tpu), or the nearest (detectron); both are below 0.5."""
    found, pair = squares(0, 100), squares(6, 5.5)
    assert anchors.assign(pair, found, MATCHINGS["tpu"]).tolist() == [0, NEGATIVE]
    assert anchors.assign(pair, found, MATCHINGS["detectron"]).tolist() == [1, NEGATIVE]


def test_ties_and_the_ignored_band():
    found = squares(-6, 6, 4)  # overlaps 0.25, 0.25 and 0.43 with the box at 0
    box = squares(0)
    detectron, tpu = MATCHINGS["detectron"], MATCHINGS["tpu"]
    assert anchors.assign(box, found, tpu).tolist() == [NEGATIVE, NEGATIVE, 0]
    assert anchors.assign(box, found[:2], tpu).tolist() == [0, NEGATIVE]
    assert anchors.assign(box, found[:2], detectron).tolist() == [0, 0]
    better = np.concatenate([found, squares(1)])
    assert anchors.assign(box, better, tpu).tolist() == [NEGATIVE] * 3 + [0]
    assert anchors.assign(box, better, detectron).tolist() == [NEGATIVE] * 2 + [IGNORED, 0]


@pytest.mark.parametrize("recipe", MATCHINGS)
def test_no_boxes_and_boxes_without_area(recipe):
    found = anchors.anchors_of(64, 64, SHAPES[recipe])
    none = anchors.targets_of(np.zeros((0, 4), np.float32), np.zeros(0), found, MATCHINGS[recipe])
    assert (none.classes == NEGATIVE).all() and not none.codes.any()
    flat = np.array([[9, 9, 9, 30], [1000, 1000, 1010, 1010]], np.float32)
    target = anchors.targets_of(flat, np.array([0, 1]), found, MATCHINGS[recipe])
    assert (target.classes == NEGATIVE).all() and not target.codes.any()
