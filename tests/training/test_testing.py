"""The third part of the data: measured once, at the end, with the best and the last model."""

import json
import os
import shutil

import pytest
from helpers.runs import assert_same, lines_of, state_of

import bit_paddle as bit
from bit_paddle import errors
from bit_paddle.runs import history
from bit_paddle.system.signals import Interrupted
from bit_paddle.training import validation

SETTINGS = {
    "from_scratch": True, "steps": 6, "batch": 6, "precrop": 36, "crop": 32, "workers": 1,
    "eval_every": 2, "save_every": "2",
}  # fmt: skip


@pytest.fixture(scope="module")
def three_parts(image_folder, tmp_path_factory):
    """train/ and val/ of `image_folder`, and test/ with 4 images per class."""
    root = tmp_path_factory.mktemp("parts") / "data"
    shutil.copytree(image_folder, root)
    for name in ("amber", "blue", "coral"):
        (root / "test" / name).mkdir(parents=True)
        for k in range(4):
            shutil.copy(root / "train" / name / f"{k}.png", root / "test" / name / f"{k}.png")
    return root


@pytest.fixture
def fine_tune(three_parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda data=three_parts, **settings: bit.fine_tune(
        "R14x0.5", data, **{**SETTINGS, **settings}
    )


#: A rate at which the first validation is the best one: the run diverges later.
WORSE = {"base_lr": 3.0, "seed": 1}


def test_best_and_last_are_measured_once(fine_tune, three_parts):
    """By the right values: those of `evaluate` on the files that the run has left."""
    run = fine_tune(name="run", **WORSE)
    measured = run.result["test"]
    lines = lines_of(run.folder, "test")
    steps = [line["step"] for line in lines]
    assert len(steps) == 2 and steps[0] < steps[1] == 6
    assert [line["best"] for line in lines] == [True, False]
    for name, model, line in (("best", run.best, lines[0]), ("last", run.model, lines[1])):
        expected = bit.evaluate(model, three_parts, "test")
        assert measured[name]["step"] == line["step"] and measured[name]["images"] == 12
        assert (measured[name]["top1"], line["top1"]) == (expected.top1, expected.top1)
        assert measured[name]["loss"] == pytest.approx(expected.loss, rel=1e-5) == line["loss"]
    assert measured["best"]["loss"] != measured["last"]["loss"]
    rows = {row["step"]: row for row in run.metrics}
    assert rows[6]["test_top1"] == measured["last"]["top1"] and "test_top1" not in rows[5]
    assert f"test top-1 {measured['best']['top1']:.2%}" in repr(run)
    assert json.loads((run.folder / "result.json").read_text())["test"] == measured
    page = run.report().read_text()
    assert f"<th>test top-1, best model</th><td>{measured['best']['top1']:.2%} (step" in page
    assert f"<th>test top-1, last model</th><td>{measured['last']['top1']:.2%} (step 6)" in page
    plan = json.loads((run.folder / "plan.json").read_text())
    assert (plan["training_images"], plan["validation_images"], plan["test_images"]) == (36, 15, 12)
    log = (run.folder / "train.log").read_text()
    assert "15 validation images, 12 test images, 3 classes" in log
    assert "test images, best model (after step" in log and "test 0." in log.splitlines()[-2]


def test_a_last_model_that_is_the_best_is_measured_once(fine_tune, capsys):
    run = fine_tune(eval_every=None)
    (line,) = lines_of(run.folder, "test")
    assert line["best"] is True and line["step"] == 6
    assert run.result["test"]["best"] == run.result["test"]["last"]
    assert "test images, best and last model (after step 6)" in capsys.readouterr().out


def test_it_changes_nothing_else(fine_tune, image_folder):
    """A run without the part has the same bits; without --save the best model is not there."""
    run, plain = fine_tune(name="with"), fine_tune(image_folder, name="without")
    (arrays, lines), (expected, others) = state_of(run.folder), state_of(plain.folder)
    lines = [line for line in lines if line["kind"] != "test"]
    assert_same((arrays, lines), (expected, others))
    assert "test" not in plain.result and not history.read(plain.folder)[0].test
    assert "test_images" in (plain.folder / "plan.json").read_text()
    unsaved = fine_tune(name="unsaved", save=False, **WORSE)
    assert unsaved.result["test"].keys() == {"last"}
    assert "best model: " in (unsaved.folder / "train.log").read_text()
    assert "test top-1, best" not in unsaved.report().read_text()


@pytest.mark.parametrize("which", [1, 2])
def test_a_run_that_ends_in_the_test_resumes(which, fine_tune, monkeypatch):
    """Interrupted while the best (1) or the last model (2) is measured, it repeats the test."""
    whole = fine_tune(name="whole", **WORSE)
    calls, measure = [], validation.measure

    def interrupted(*arguments):
        calls.append(arguments[-1])
        if calls.count("test") == which:
            raise Interrupted
        return measure(*arguments)

    monkeypatch.setattr(validation, "measure", interrupted)
    with pytest.raises(errors.PeerError):  # it stopped without a signal of its own
        fine_tune(name="run", **WORSE)
    assert not os.path.exists("bit_logs/run/result.json")
    monkeypatch.setattr(validation, "measure", measure)
    again = fine_tune(name="run", **WORSE)
    assert again.result == whole.result
    assert_same(state_of(again.folder), state_of(whole.folder))
