"""`bit_paddle.train_detector` and `open_detector`: the command's run, from a program."""

import numpy as np
import pytest
from helpers.runs import assert_same, state_of
from helpers.squares import make_squares

import bit_paddle as bit
from bit_paddle import detect
from bit_paddle.errors import BitPaddleError, ConfigError

SETTINGS = {"from_scratch": True, "side": 128, "batch": 4, "channels": 32, "depth": 1, "steps": 2}


def test_is_the_run_of_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    boxes = make_squares(tmp_path / "squares", 8) / "boxes.json"
    run = bit.train_detector("R14x0.5", boxes, name="ours", flip=False, **SETTINGS)
    words = [f"--{name}={value}" for name, value in SETTINGS.items() if value is not True]
    words += ["--model", "R14x0.5", "--from_scratch", "--boxes", str(boxes), "--no-flip"]
    assert detect.main(["train", *words, "--name", "command"]) == 0
    assert_same(state_of(run.folder), state_of(tmp_path / "bit_logs/command"))
    assert run.complete and 0 <= run.result["ap"] <= run.result["ap50"] <= 1
    assert "AP " in repr(run) and repr(run).startswith("DetectorRun(")
    assert len(run.metrics) == 2 and run.metrics[-1]["val_ap50"] == run.result["ap50"]
    assert "val_ap50" in repr(run.metrics)
    again = bit.train_detector("R14x0.5", boxes, name="ours", flip=False, **SETTINGS)
    assert again.result == run.result  # it is complete: nothing is trained again
    image = boxes.parent / "images/3.png"
    (found,) = run.best.detect(image, least_score=0.0)
    (other,) = bit.open_detector(run.folder / "model.npz").detect(image, least_score=0.0)
    assert run.model.classes == ("blue", "red") and len(found.scores)
    assert np.isfinite(found.boxes).all() and np.isfinite(other.boxes).all()
    with pytest.raises(BitPaddleError):
        bit.load(run.folder)  # a detector is no classifier


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"boxs": 1}, "boxs: no such setting; did you mean boxes"),
        ({"batch": -1, "depth": "x"}, "2 faults"),
    ],
)
def test_wrong_settings_are_an_error_of_the_package(settings, message, tmp_path):
    (tmp_path / "boxes.json").write_text("{}")
    with pytest.raises(ConfigError, match=message):
        bit.train_detector("R14x0.5", tmp_path / "boxes.json", from_scratch=True, **settings)


def test_missing_boxes():
    with pytest.raises(ConfigError, match=r"nowhere\.json: no such file or folder"):
        bit.train_detector("R14x0.5", "nowhere.json", from_scratch=True)
