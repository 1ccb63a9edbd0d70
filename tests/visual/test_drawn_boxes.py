"""Boxes in pictures, and the sections of a page on a detector; by their pixels and texts."""

import base64
import io
import json
import re

import numpy as np
import pytest
from helpers.detections import found_of, images_of
from PIL import Image, ImageColor

from bit_paddle.inference import average_precision, misses
from bit_paddle.inference.average_precision import CROWD, MISSED, Outcome
from bit_paddle.inference.detecting import Measured
from bit_paddle.visual import box_results, boxes, detection, figures
from bit_paddle.visual.boxes import Mark

BLUE, ORANGE = (ImageColor.getrgb(color) for color in figures.COLORS[:2])
GREY = (90, 90, 90)


def grey(width, height):
    return Image.new("RGB", (width, height), GREY)


def test_a_detection_has_a_solid_line_and_a_true_box_dashes():
    """On all four sides, at the pixels of the box; nothing else changes."""
    picture = boxes.marked(grey(200, 160), [Mark((20, 30, 120, 110), "", figures.COLORS[0])])
    pixels = np.asarray(picture)
    for row, column in ((30, slice(20, 120)), (109, slice(20, 120))):
        assert (pixels[row, column] == BLUE).all() and (pixels[29, 19:121] == 0).all()
    for column in (20, 119):
        assert (pixels[30:110, column] == BLUE).all()
    assert (pixels[40:100, 30:110] == GREY).all() and (pixels[:28] == GREY).all()
    pixels = np.asarray(boxes.marked(grey(200, 160), [Mark((20, 30, 120, 110), "", None)]))
    for line in (pixels[30, 20:120], pixels[109, 20:120], pixels[30:110, 20], pixels[30:110, 119]):
        assert set(map(tuple, line.tolist())) == {(0, 0, 0), (255, 255, 255)}
        white = (line == 255).all(axis=1)
        assert 0.4 < white.mean() < 0.65 and np.diff(white.astype(int)).any()
    assert (pixels[40:100, 30:110] == GREY).all() and (pixels[:30] == GREY).all()


def test_labels_stay_within_the_picture():
    """Above the box where there is room, else within; a box may reach over the edge."""
    for box in ((20, 60, 120, 110), (150, 0, 199, 50), (-30, -20, 260, 200), (190, 150, 230, 190)):
        plain = np.asarray(boxes.marked(grey(200, 160), [Mark(box, "", figures.COLORS[1])]))
        labelled = np.asarray(boxes.marked(grey(200, 160), [Mark(box, "owl", figures.COLORS[1])]))
        rows, columns = np.nonzero((plain != labelled).any(axis=2))
        assert np.ptp(rows) >= 10 and np.ptp(columns) >= 15
        changed = labelled[rows.min() : rows.max(), columns.min() : columns.max()].reshape(-1, 3)
        assert (changed == ORANGE).all(axis=1).mean() > 0.4  # the ground of the letters


def test_a_large_image_is_shrunk_with_its_boxes():
    picture = boxes.marked(grey(2000, 1000), [Mark((500, 250, 1500, 750), "", figures.COLORS[0])],
                           200)  # fmt: skip
    assert picture.size == (200, 100)
    rows, columns = np.nonzero((np.asarray(picture) == BLUE).all(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (25, 74, 50, 149)


def test_marks():
    """Wrong detections have a cross; missed boxes and crowds a label; low scores no mark."""
    found = found_of([[0, 0, 9, 9], [0, 0, 8, 8], [0, 0, 7, 7]], [0.9, 0.5, 0.1], [0, 1, 0])
    outcome = Outcome(
        np.array([True, False, True]),
        np.array([False, True, False]),
        np.array([0, MISSED, CROWD, 2]),
    )
    names = ["owl", "crow"]
    marks = boxes.found_marks(found, names, outcome)
    assert [mark.text for mark in marks] == ["✗ crow 50%", "owl 90%"]
    assert [mark.color for mark in marks] == [figures.COLORS[1], figures.COLORS[0]]
    assert [mark.text for mark in boxes.found_marks(found, names, least_score=0.6)] == ["owl 90%"]
    truth = boxes.true_marks(np.ones((4, 4)), np.array([0, 1, 1, 0]), names, outcome, found)
    assert [mark.text for mark in truth] == ["", "missed crow", "crowd", "missed owl"]
    assert {mark.color for mark in truth} == {None}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two grey images; a red square and a right detection, a green one that is missed."""
    root = tmp_path_factory.mktemp("images")
    squares = [[[100, 100, 180, 180], [300, 200, 400, 300]], [[40, 40, 90, 90]]]
    for number, each in enumerate(squares):
        picture = grey(640, 480)
        for box, color in zip(each, ("red", "lime")):
            picture.paste(color, tuple(box))
        picture.save(root / f"{number}.png")
    images = images_of(squares, [[0, 1], [0]], root=root)
    found = [
        found_of([[104, 100, 184, 180], [500, 50, 600, 150]], [0.9, 0.8], [0, 1]),
        found_of([[40, 40, 90, 90]], [0.95], [0]),
    ]
    return Measured(images, found, average_precision.scores_of(images, found))


def share(picture, color):
    return (
        np.abs(np.asarray(picture).astype(int) - ImageColor.getrgb(color)).max(axis=2) < 40
    ).mean()


def test_tiles_show_their_mistake(measured):
    """In the middle, twice as large as its box: a quarter is the object."""
    analysis = misses.analysis_of(measured, 5)
    ((missed, text),) = detection.tiles_of(analysis, "missed")
    assert text == ("class 1: missed", "0.png") and missed.size == (detection.TILE,) * 2
    assert share(missed, "lime") == pytest.approx(0.25, abs=0.03)
    middle = np.asarray(missed)[detection.TILE // 2, detection.TILE // 2]
    assert tuple(middle) == (0, 255, 0)
    ((wrong, text),) = detection.tiles_of(analysis, "wrong")
    assert text == ("class 1 80%: no true box there", "0.png") and share(wrong, "lime") == 0
    rows, columns = np.nonzero((np.asarray(wrong) == ORANGE).all(axis=2))
    quarter = detection.TILE // 4
    assert columns.min() == quarter and rows.max() == 3 * quarter - 1
    pictures = list(detection.tiles_of(analysis, "images"))
    assert [text for _, text in pictures] == [
        ("0.png", "1 of 2 boxes found, 1 wrong detections, at scores from 30% on"),
        ("1.png", "1 of 1 boxes found, 0 wrong detections, at scores from 30% on"),
    ]
    assert share(pictures[0][0], "lime") > 0.02 and share(pictures[1][0], "lime") == 0


def test_sections_of_the_page(measured):
    """Tables, curves and pictures are in the page; the pictures are also files."""
    pictures = {}
    text = "".join(detection.sections(misses.analysis_of(measured, 5), "-2", pictures))
    assert list(pictures) == ["precision-2", "wrong-2", "missed-2", "images-2"]
    table = re.findall(r"<tr><th>([^<]*)</th><td>(\d*)</td><td>([^<]*)</td><td>([^<]*)", text)
    assert table == [
        ("class 0", "2", "95.05%", "100.00%"), ("class 1", "1", "0.00%", "0.00%"),
        ("class 2", "0", "", ""),
    ]  # fmt: skip
    assert ">class 0 1.00<" in text and ">class 1 0.00<" in text and "class 2 " not in text
    assert "class 1 80%: no true box there" in text and "class 1: missed" in text
    shown = re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    assert len(shown) == 4
    first = Image.open(io.BytesIO(base64.b64decode(shown[1])))
    assert share(first, "lime") == pytest.approx(0.25, abs=0.03)
    stream = io.BytesIO()
    pictures["missed-2"](stream)
    assert share(Image.open(stream), "lime") > 0.15


def test_files_of_an_evaluation(measured, tmp_path):
    box_results.write_results(measured, tmp_path, {"model": "m.npz", "scales": [1.0]})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("detections.json", "images.png", "metrics.json", "missed.png", "per_class.csv"),
        *("precision.png", "wrong.png"),
    ]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["model"] == "m.npz" and metrics["ap"] == measured.scores.ap
    assert metrics["ap_small"] is None and (metrics["images"], metrics["boxes"]) == (2, 3)
    lines = (tmp_path / "per_class.csv").read_text().splitlines()
    assert lines[0] == "class,boxes,ap,ap50" and lines[2:] == [
        "class 1,1,0.0000,0.0000",
        "class 2,0,,",
    ]
    results = json.loads((tmp_path / "detections.json").read_text())
    assert results[0] == {"image_id": 0, "category_id": 1, "bbox": [104, 100, 80, 80],
                          "score": pytest.approx(0.9)}  # fmt: skip
    white = (np.asarray(Image.open(tmp_path / "precision.png").convert("RGB")) == 255).mean()
    assert 0.5 < white < 0.99


def test_curves_of_many_classes():
    """Their mean and the three worst; a name is no formula."""
    classes = 12
    images = images_of(
        [[[0, 60 * k % 420, 50, 60 * k % 420 + 50] for k in range(classes)]] * 2,
        [range(classes)] * 2, classes=classes,
    )  # fmt: skip
    every = [
        found_of(images.boxes[k][3 * k :], [0.5] * (classes - 3 * k), range(3 * k, classes))
        for k in (0, 1)
    ]
    images.classes[1] = "a$b$_x"
    scores = average_precision.scores_of(images, every)
    axes = figures.draw_precision(scores).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["all classes 0.88", "class 0 0.50", r"a\$b\$_x 0.50", "class 2 0.50"]
    assert len({(line.get_linestyle(), line.get_color()) for line in axes.lines}) == 4
    np.testing.assert_allclose(axes.lines[1].get_ydata()[[0, 50, 51]], [1, 1, 0])
    assert "a$b$_x" in figures.to_svg(axes.figure)
