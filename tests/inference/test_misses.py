"""The worst mistakes of a detector, and why they are mistakes."""

import numpy as np
import pytest
from helpers.detections import NOTHING, found_of, images_of

from bit_paddle.inference import average_precision, misses
from bit_paddle.inference.detecting import Measured


@pytest.fixture(scope="module")
def measured():
    """Two images with mistakes of every kind, and one without anything."""
    images = images_of(
        [
            [[0, 0, 100, 100], [200, 0, 300, 100], [400, 300, 440, 340], [0, 300, 300, 480]],
            [[50, 50, 150, 150], [300, 300, 400, 420]],
            [],
        ],
        [[0, 1, 2, 0], [1, 2], []],
        [[0, 0, 0, 1], [0, 0], []],
    )
    found = [
        found_of(
            [
                *([0, 0, 100, 100], [0, 0, 100, 90], [200, 0, 300, 100], [200, 0, 300, 40]),
                *([500, 400, 600, 470], [10, 320, 90, 400], [410, 310, 460, 350]),
            ],
            [0.9, 0.8, 0.7, 0.95, 0.6, 0.99, 0.5],
            [0, 0, 0, 1, 2, 0, 2],
        ),
        found_of([[50, 50, 150, 150], [300, 300, 400, 410]], [0.3, 0.2], [1, 2]),
        NOTHING,
    ]
    return Measured(images, found, average_precision.scores_of(images, found))


def test_wrong_detections(measured):
    """The highest score first; in a crowd there is no mistake."""
    wrong = misses.analysis_of(measured, 10).wrong
    assert [(one.title, one.reason) for one in wrong] == [
        ("class 1 95%", "overlap of 0.40 only"),
        ("class 0 80%", "found twice"),
        ("class 0 70%", "is class 1"),
        ("class 2 60%", "no true box there"),
        ("class 2 50%", "overlap of 0.33 only"),
    ]
    assert {one.image for one in wrong} == {0} and not any(one.missed for one in wrong)
    assert wrong[3].box == (500, 400, 600, 470) and wrong[3].label == 2
    assert misses.analysis_of(measured, 2).wrong == wrong[:2]


def test_missed_boxes(measured):
    """The largest box without a detection first, then those with the lowest scores."""
    missed = misses.analysis_of(measured, 10).missed
    assert [(one.image, one.box, one.reason) for one in missed] == [
        (0, (200, 0, 300, 100), "missed"),
        (0, (400, 300, 440, 340), "missed"),
        (1, (300, 300, 400, 420), "found at 20.0% only"),
        (1, (50, 50, 150, 150), "found at 30.0% only"),
    ]
    assert [one.title for one in missed] == ["class 1", "class 2", "class 2", "class 1"]
    assert all(one.missed for one in missed)


def test_shown_images(measured):
    """As many as asked for, from the first to the last, each once."""
    assert [misses.analysis_of(measured, count).shown for count in (0, 1, 2, 9)] == [
        [],
        [0],
        [0, 2],
        [0, 1, 2],
    ]


def test_without_any_mistake():
    images = images_of([[[0, 0, 50, 50]]], [[0]])
    found = [found_of([[0, 0, 50, 50]], [0.9], [0])]
    analysis = misses.analysis_of(
        Measured(images, found, average_precision.scores_of(images, found)), 5
    )
    assert analysis.wrong == analysis.missed == [] and analysis.shown == [0]
    assert np.array_equal(analysis.measured.found[0].boxes, [[0, 0, 50, 50]])
