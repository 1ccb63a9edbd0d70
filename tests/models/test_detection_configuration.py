"""The description of a detector in the file of a model."""

import json

import pytest

from bit_paddle.errors import CheckpointError
from bit_paddle.models.detection.configuration import Detector

DETECTOR = Detector(("cat", "dog"), (17, 18), recipe="detectron", base=2.0, p6_from_c5=True)


def test_notes_come_back():
    notes = json.loads(json.dumps(DETECTOR.notes()))
    assert Detector.from_notes(notes) == DETECTOR
    assert DETECTOR.shapes.base == 2.0 and DETECTOR.shapes.offset == 0.0
    assert DETECTOR.matching.negative == 0.4


def test_two_stages():
    """Its smallest square anchor is as large in pixels, on a map twice as fine."""
    notes = json.loads(json.dumps({**DETECTOR.notes(), "kind": "faster_rcnn", "regions": "pool"}))
    detector = Detector.from_notes(notes)
    assert detector.kind == "faster_rcnn" and detector.regions == "pool"
    assert (detector.matching.positive, detector.matching.negative) == (0.7, 0.3)
    shapes = detector.shapes
    assert [*shapes.levels] == [2, 3, 4, 5, 6] and shapes.per_place == 3 and shapes.offset == 0
    smallest = [
        one.shapes.sides().prod(axis=1).min() ** 0.5 * 2 ** one.shapes.levels[0]
        for one in (detector, DETECTOR)
    ]
    assert smallest == pytest.approx([16, 16])


@pytest.mark.parametrize(
    "change",
    [
        {"classes": []},
        {"classes": ["cat", 3]},
        {"classes": ["cat"]},
        {"category_ids": "17"},
        {"category_ids": [True, 18]},
        {"recipe": "rcnn"},
        {"recipe": ["tpu"]},
        {"base": float("nan")},
        {"base": -1},
        {"box_loss": None},
        {"p6_from_c5": 1},
        {"channels": 100},
        {"channels": 1 << 40},
        {"depth": True},
        {"side": 0},
        {"kind": "yolo"},
        {"regions": ["pool"]},
        {"more": 1},
    ],
)
def test_damaged_notes(change):
    with pytest.raises(CheckpointError):
        Detector.from_notes({**DETECTOR.notes(), **change})


@pytest.mark.parametrize("notes", [None, [], "x", {}])
def test_notes_that_describe_no_detector(notes):
    with pytest.raises(CheckpointError, match="no|not"):
        Detector.from_notes(notes)
