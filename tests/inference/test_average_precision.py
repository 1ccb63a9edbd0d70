"""Average precision: COCO's numbers from files, cases by hand, and what is right and wrong."""

import contextlib
import io
import json
import math
import sys

import numpy as np
import pytest
from helpers.detections import NOTHING, found_of, images_of

from bit_paddle.errors import ConfigError
from bit_paddle.inference import average_precision as ap
from bit_paddle.models.detection.boxes import iou


@pytest.fixture(scope="module")
def case():
    """Crowds, empty images, a class without boxes, gaps in all numbers, 150 detections."""
    random = np.random.default_rng(5)
    every_box, every_label, every_crowd, every_found = [], [], [], []
    for place in range(12):
        count = 0 if place == 3 else 60 if place == 5 else int(random.integers(1, 9))
        starts = random.uniform(0, 400, (count, 2))
        sides = np.exp(random.uniform(np.log(8), np.log(230), (count, 2)))
        boxes = np.concatenate([starts, np.minimum(starts + sides, (640, 480))], axis=1)
        labels = random.choice([0, 1, 3], count)
        near = boxes[random.integers(0, max(1, count), 150 if place == 5 else 2 * count)]
        shifted = near + random.normal(0, 4, near.shape)
        shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2] + 1)
        classes = random.choice([0, 1, 2, 3], len(shifted))
        every_box.append(boxes)
        every_label.append(labels)
        every_crowd.append(random.random(count) < 0.15)
        every_found.append(found_of(shifted, random.random(len(shifted)), classes))
    numbers = [7 * k + 11 for k in range(12)]
    images = images_of(every_box, every_label, every_crowd, 4, numbers[::-1], [3, 18, 44, 90])
    return images, every_found


def test_the_numbers_of_files(case, tmp_path, capsys):
    """COCO's own way from a file of annotations and a file of results gives the same."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images, found = case
    assert max(len(one.scores) for one in found) == 150 and sum(map(np.sum, images.crowd)) > 3
    boxes = [
        {"image_id": number, "category_id": images.category_ids[label], "iscrowd": int(crowd),
         "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
        for number, *columns in zip(images.ids, images.boxes, images.labels, images.crowd)
        for (x1, y1, x2, y2), label, crowd in zip(columns[0].astype(float), *columns[1:])
    ]  # fmt: skip
    truth = {
        "images": [{"id": number} for number in images.ids],
        "categories": [{"id": number, "name": str(number)} for number in images.category_ids],
        "annotations": [{"id": place, **box} for place, box in enumerate(boxes, 1)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(ap.results_json(images, found)))
    with contextlib.redirect_stdout(io.StringIO()):
        table = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(table, table.loadRes(str(tmp_path / "results.json")), "bbox")
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    scores = ap.scores_of(images, found)
    assert list(scores.summary()) == list(ap.NAMES) and capsys.readouterr().out == ""
    assert 0.05 < scores.ap < scores.ap50 < 0.9
    np.testing.assert_allclose(list(scores.summary().values()), evaluation.stats, rtol=1e-12)
    assert scores.score == scores.ap
    assert np.isnan(scores.class_ap).tolist() == [False, False, True, False]
    assert np.nanmean(scores.class_ap) == pytest.approx(scores.ap, abs=1e-12)
    assert np.nanmean(scores.class_ap50) == pytest.approx(scores.ap50, abs=1e-12)
    assert scores.per_class["class 3"] == (scores.class_ap[3], scores.class_ap50[3])


def test_outcomes_add_up(case):
    """Every box that is no crowd is found by one right detection, or missed."""
    images, found = case
    outcomes = ap.scores_of(images, found).outcomes
    missed = [one.finders == ap.MISSED for one in outcomes]
    assert 0 < sum(map(np.sum, missed)) < sum(map(len, images.boxes))
    for one, each, boxes, labels, crowd in zip(
        outcomes, found, images.boxes, images.labels, images.crowd
    ):
        assert len(one.right) == len(one.wrong) == len(each.scores)
        assert len(one.finders) == len(boxes) and not (one.right & one.wrong).any()
        assert np.array_equal(one.finders == ap.CROWD, crowd)
        hit = one.finders >= 0
        assert np.array_equal(np.sort(one.finders[hit]), np.flatnonzero(one.right))
        assert np.array_equal(each.classes[one.finders[hit]], labels[hit])
        overlaps = iou(each.boxes[one.finders[hit]], boxes[hit]).diagonal()
        assert (overlaps >= 0.5).all()


def test_by_hand():
    """Two boxes; a right, a wrong and a right detection; one in a crowd, one of another class."""
    images = images_of(
        [[[0, 0, 50, 50], [100, 0, 200, 100], [300, 200, 600, 400]]], [[1, 1, 1]], [[0, 0, 1]]
    )
    boxes = [[100, 0, 200, 100], [0, 200, 50, 250], [0, 0, 50, 40], [310, 210, 350, 260]]
    found = [found_of([*boxes, [0, 0, 50, 50]], [0.9, 0.8, 0.7, 0.85, 0.95], [1, 1, 1, 1, 0])]
    scores = ap.scores_of(images, found)
    assert scores.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)
    # the third has an overlap of 0.8 with its box: found up to 0.8, seven of ten
    expected = (7 * scores.ap50 + 3 * 51 / 101) / 10
    assert scores.ap == pytest.approx(expected, abs=1e-12) and scores.ar_1 == 0.5
    assert scores.ar_100 == pytest.approx((7 + 3 * 0.5) / 10)
    # 50 x 50 is of middle size, 100 x 100 is large
    assert math.isnan(scores.ap_small) and scores.ar_medium == pytest.approx(0.7)
    assert scores.ap_large == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(scores.precisions[1], [1.0] * 51 + [2 / 3] * 50)
    assert np.isnan(scores.precisions[[0, 2]]).all()
    (outcome,) = scores.outcomes
    assert outcome.right.tolist() == [True, False, True, False, False]
    assert outcome.wrong.tolist() == [False, True, False, False, True]
    assert outcome.finders.tolist() == [2, 0, ap.CROWD]
    assert str(scores).startswith("AP 73.60%, AP50 83.50%")
    assert "small, medium, large -, " in str(scores)


def test_nothing_and_nonsense():
    """No detection scores 0; detections that are not finite are wrong nowhere, and never right."""
    images = images_of([[[0, 0, 50, 50]], []], [[0], []])
    scores = ap.scores_of(images, [NOTHING, NOTHING])
    assert scores.ap == scores.ar_100 == 0 and scores.outcomes[0].finders.tolist() == [ap.MISSED]
    bad = found_of([[np.nan] * 4, [0, 0, 50, 50], [0, 0, 50, 50]], [0.9, np.nan, 0.5], [0, 0, 0])
    (outcome, _) = ap.scores_of(images, [bad, NOTHING]).outcomes
    assert outcome.right.tolist() == [False, False, True] and not outcome.wrong.any()
    scores = ap.scores_of(images_of([[[0, 0, 9, 9]]], [[0]], [[True]]), [NOTHING])
    assert math.isnan(scores.ap) and scores.score == 0
    with pytest.raises(ValueError, match="1 detections"):
        ap.scores_of(images, [NOTHING])


def test_results_without_a_number_of_the_class():
    images = images_of([[]], [[]], classes=2, ids=["a"], category_ids=[-5, None])
    found = [found_of([[1, 2, 4, 8], [0, 0, 1, 1]], [0.5, 0.75], [0, 1])]
    assert ap.results_json(images, found) == [
        {"image_id": "a", "category_id": -5, "bbox": [1, 2, 3, 6], "score": 0.5}
    ]


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(ConfigError, match=r"pycocotools.*\[detect\]"):
        ap.scores_of(images_of([[]], [[]]), [NOTHING])
