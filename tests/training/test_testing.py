"""The third part of the data: measured once, at the end, with the best and the last model."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from helpers.runs import assert_same, lines_of, state_of

import bit_paddle as bit
from bit_paddle import errors
from bit_paddle.config.settings import Settings
from bit_paddle.inference.metrics import Tally
from bit_paddle.runs import history
from bit_paddle.runs.logbook import Logbook
from bit_paddle.system import environment
from bit_paddle.system.signals import Interrupted
from bit_paddle.training import testing
from bit_paddle.training.classification import validation
from bit_paddle.training.classification.plan import make_plan

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


@pytest.mark.slow
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
    log = (run.folder / "train.log").read_text()
    assert "12 test images are copies of training or validation images: the test" in log


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("which", [1, 2])
def test_a_run_that_ends_in_the_test_resumes(which, fine_tune, monkeypatch):
    """Interrupted while the best (1) or the last model (2) is measured, it repeats the test."""
    whole = fine_tune(name="whole", **WORSE)
    calls, measure = [], validation.measure

    def interrupted(*arguments, **options):
        calls.append(arguments[-1])
        if calls.count("test") == which:
            raise Interrupted
        return measure(*arguments, **options)

    monkeypatch.setattr(validation, "measure", interrupted)
    with pytest.raises(errors.PeerError):  # it stopped without a signal of its own
        fine_tune(name="run", **WORSE)
    assert not os.path.exists("bit_logs/run/result.json")
    monkeypatch.setattr(validation, "measure", measure)
    again = fine_tune(name="run", **WORSE)
    assert again.result == whole.result
    assert_same(state_of(again.folder), state_of(whole.folder))


KILLED = """
import os, signal
import bit_paddle as bit
from bit_paddle.training import testing
from bit_paddle.training.classification import validation

measure = validation.measure


def killed(*arguments, **options):
    tally = measure(*arguments, **options)
    if arguments[-1] == "test":
        os.kill(os.getpid(), signal.SIGKILL)
    return tally


validation.measure = killed
bit.fine_tune("R14x0.5", {folder!r}, name="run", **{settings})
"""


@pytest.mark.slow
def test_a_run_that_is_killed_in_the_test_resumes(fine_tune, three_parts):
    whole = fine_tune(name="whole", **WORSE)
    program = KILLED.format(folder=str(three_parts), settings={**SETTINGS, **WORSE})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        env={**environment.share(1), "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = fine_tune(name="run", **WORSE)
    assert again.result == whole.result
    assert_same(state_of(again.folder), state_of(whole.folder))


@pytest.mark.slow
def test_several_processes_share_the_test_images(fine_tune, three_parts):
    """And all of them get the best model, which the first one has read."""
    one, two = fine_tune(name="one", **WORSE), fine_tune(name="two", nproc=2, **WORSE)
    for name in ("best", "last"):
        expected, found = one.result["test"][name], two.result["test"][name]
        assert found["images"] == 12 and found["step"] == expected["step"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert one.result["test"]["best"]["loss"] != one.result["test"]["last"]["loss"]
    measured = bit.evaluate(two.best, three_parts, "test")
    assert measured.top1 == two.result["test"]["best"]["top1"]
    assert bit.evaluate(two.model, three_parts, "test").loss != measured.loss


def test_repeats_report_the_spread_of_the_test(fine_tune, capsys):
    run = fine_tune(repeats=3, steps=2, name="three")
    each = [one["test"] for one in run.result["runs"]]
    for name in ("best", "last"):
        values = sorted(one[name]["top1"] for one in each)
        assert run.result["test"][name]["top1"] == {
            "min": values[0], "median": values[1], "max": values[2]}  # fmt: skip
    head, *rows = (run.folder / "repeats.txt").read_text().splitlines()
    assert head.endswith("test top-1, best  test top-1, last")
    assert rows[0].split()[-1] == f"{each[0]['last']['top1']:.2%}" and len(head) == len(rows[5])
    assert "median test top-1" in repr(run)
    capsys.readouterr()
    assert fine_tune(repeats=3, steps=2, name="three").result == run.result
    assert "test top-1, best" in capsys.readouterr().out


def test_a_complete_run_names_its_test_results(fine_tune, capsys):
    run = fine_tune(name="run")
    capsys.readouterr()
    assert fine_tune(name="run").result == run.result
    best = run.result["test"]["best"]
    assert f"test images, best model: step {best['step']}, loss {best['loss']:.4g}, top1" in (
        capsys.readouterr().out
    )


@pytest.mark.slow
def test_test_images_that_are_added_later_are_noted(image_folder, three_parts, fine_tune, tmp_path):
    """The run resumes, as they decide nothing, and ends as one that had them from the start."""
    whole = fine_tune(name="whole")
    shutil.copytree(image_folder, tmp_path / "data")
    stopped = fine_tune(tmp_path / "data", name="run", steps=6)
    (stopped.folder / "result.json").unlink()
    shutil.copytree(three_parts / "test", tmp_path / "data/test")
    again = fine_tune(tmp_path / "data", name="run")
    log = (again.folder / "train.log").read_text()
    assert "the test images have changed since the run's checkpoint (0 -> 12)" in log
    assert again.result == whole.result
    (stopped.folder / "result.json").unlink()
    (tmp_path / "data/test/blue/0.png").unlink()
    again = fine_tune(tmp_path / "data", name="run")
    assert "since the run's checkpoint (12 -> 11)" in (again.folder / "train.log").read_text()
    assert again.result["test"]["last"]["images"] == 11


def plan_of(folder, **settings):
    return make_plan(Settings("R14x0.5", "folder", str(folder), from_scratch=True, **settings))


def test_test_images_are_checked_before_training(three_parts, tmp_path):
    shutil.copytree(three_parts, tmp_path / "data")
    (tmp_path / "data/test/blue/0.png").write_bytes(b"no image")
    with pytest.raises(errors.DataError, match="1 of 63 images cannot be used(.|\n)*test/blue/0"):
        plan_of(tmp_path / "data")
    plan = plan_of(tmp_path / "data", on_bad_image="skip")
    assert len(plan.data.test) == 11 and "test/blue/0.png" in plan.skipped[0]
    assert "11 test images, 3 classes" in plan.describe()


def test_few_shot_selection_leaves_the_test_alone(three_parts):
    plan = plan_of(three_parts, examples_per_class=2)
    assert (len(plan.subset), len(plan.data.test)) == (6, 12)


def test_the_plan_has_three_parts(three_parts, image_folder):
    rows = dict(plan_of(three_parts).rows())
    assert "36 training images, 15 validation images, 12 test images, 3 classes" in rows["data"]
    assert "on all test images, with the best and the last model;" in rows["test"]
    assert "with the last model;" in dict(plan_of(three_parts, save=False).rows())["test"]
    plain = plan_of(image_folder)
    assert "test" not in dict(plain.rows()) and plain.to_dict()["test_images"] == 0
    assert plain.data_identity == plan_of(three_parts).data_identity


def test_a_damaged_best_model_is_reported(tmp_path, capsys):
    """The last model is measured all the same."""
    (tmp_path / "best.npz").write_bytes(b"PK no archive")
    log = Logbook(tmp_path)
    log.rewind(0, 0)
    model = bit.create_model("R14x0.5", 3)
    tally = Tally.of_sums([2.0, 4, 3, 1, 0, 2, 1, 0])  # 2 of 3 and 1 of 1 images are right
    measured = testing.measure(model, 6, tmp_path / "best.npz", lambda: tally, log)
    (last,) = measured.values()
    assert last.pop("balanced_accuracy") == pytest.approx(5 / 6)
    assert last == {"step": 6, "loss": 0.5, "top1": 0.75, "top5": 1.0, "images": 4}
    assert "last" in measured
    assert "not measured with the best model" in capsys.readouterr().out
