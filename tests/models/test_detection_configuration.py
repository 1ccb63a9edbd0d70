"""The description of a detector in the file of a model."""

import dataclasses
import json

import numpy as np
import pytest

from bit_paddle import create_model
from bit_paddle.errors import CheckpointError
from bit_paddle.models import npz
from bit_paddle.models.detection import configuration, weights
from bit_paddle.models.detection.configuration import Detector
from bit_paddle.models.weights import save_npz

DETECTOR = Detector(("cat", "dog"), recipe="detectron", base=2.0, p6_from_c5=True)


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


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The file of a small detector without training, and its arrays."""
    detector = dataclasses.replace(DETECTOR, channels=32, depth=1)
    model = configuration.network(detector, create_model("R14x0.5", 0))
    path = tmp_path_factory.mktemp("detector") / "model.npz"
    save_npz(model, path, {"detector": detector.notes()})
    with np.load(path) as arrays:
        return detector, dict(arrays)


@pytest.mark.parametrize("change", [{"depth": 1 << 16}, {"channels": 1 << 16}])
def test_no_network_is_made_that_the_file_does_not_hold(change, file, tmp_path, monkeypatch):
    """A few letters of a description could ask for more memory than there is."""
    detector, arrays = file
    monkeypatch.setattr(weights, "network", lambda *_: pytest.fail("a network was made"))
    notes = {"detector": {**detector.notes(), **change}}
    arrays = {key: array for key, array in arrays.items() if key != npz.NOTES}
    npz.write(tmp_path / "model.npz", arrays.items(), notes)
    with pytest.raises(CheckpointError, match="weights beside its backbone's, but the detector"):
        weights.load_detector(tmp_path / "model.npz")


@pytest.mark.parametrize(
    "name, change",
    [
        ("bit_paddle/detector/conv2d_1/weight", lambda array: array),
        ("bit_paddle/detector/pyramid/p6/weight", lambda array: array.astype(complex)),
        ("bit_paddle/detector/pyramid/p6/weight", lambda array: array.astype(str)),
    ],
)
def test_foreign_arrays_of_a_detector(name, change, file, tmp_path):
    _, arrays = file
    arrays = dict(arrays)
    arrays[name] = change(arrays.pop("bit_paddle/detector/pyramid/p6/weight"))
    np.savez(tmp_path / "model.npz", **arrays)
    with pytest.raises(CheckpointError, match="arrays are not those of this detector"):
        weights.load_detector(tmp_path / "model.npz")
