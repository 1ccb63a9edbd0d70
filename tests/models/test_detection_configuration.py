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
