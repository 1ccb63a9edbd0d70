"""The loop learns any task, and knows nothing of classification."""

import json
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT
from helpers.boxes import AreasPlan, plan_of
from helpers.runs import assert_same, lines_of, state_of

from bit_paddle.runs import logbook, results
from bit_paddle.runs.checkpoints import checkpoint_files, open_checkpoint
from bit_paddle.system import processes
from bit_paddle.system.signals import Interrupt
from bit_paddle.training import run as training_run


@pytest.fixture(scope="module")
def float64():
    before = paddle.get_default_dtype()
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype(before)


@pytest.fixture(scope="module")
def carried_out(tmp_path_factory, float64):
    """Carry out a run in this process; return its folder, its result, and the task."""
    logdir, tasks = tmp_path_factory.mktemp("logs"), []

    def carry_out(name, **changes):
        plan = plan_of(logdir, name, **changes)
        plan.start.folder.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch, logbook.Logbook(plan.start.folder) as log:
            task = AreasPlan.task
            patch.setattr(AreasPlan, "task", lambda *given: tasks.append(task(*given)) or tasks[-1])
            patch.setenv("BIT_PADDLE_NATIVE", "0")
            status, result = training_run.run(plan, log, Interrupt())
        assert status == 0
        return plan.start.folder, result, tasks[-1]

    return carry_out


@pytest.fixture(scope="module")
def whole(carried_out):
    return carried_out("whole", batch_split=1)


def test_a_run_has_the_metrics_of_its_task(whole, capsys):
    folder, result, task = whole
    assert result.keys() == {"steps", "error", "test"} and task.prepared == 1
    assert json.loads((folder / "result.json").read_text()) == result
    assert results.result(folder, plan_of(folder.parent, "whole").settings) == result
    errors = {line["step"]: line["error"] for line in lines_of(folder, "val")}
    assert errors.keys() == {2, 4} and errors[4] == result["error"] != errors[2]
    best = min(errors, key=errors.get)
    progress = open_checkpoint(folder / "checkpoints/best.npz").progress
    assert (progress.step, progress.best) == (best, 1 / (1 + errors[best]))
    assert {name: found["step"] for name, found in result["test"].items()} == {
        "best": best,
        "last": 4,
    }
    assert result["test"]["best"]["error"] == pytest.approx(errors[best], rel=1e-5)
    assert f"step 4: validation: error {result['error']:.4f}" in (folder / "train.log").read_text()


def test_the_loss_is_divided_by_the_boxes_of_the_whole_batch(whole):
    """Not by images, nor by the boxes of a micro-batch."""
    _, _, task = whole
    batches = task.batches(0)
    boxes = [sum(map(len, next(batches).part.boxes)) for _ in range(4)]
    assert task.normalizers == boxes and len(set(boxes)) > 1


@pytest.mark.parametrize("split", [2, 4, 6])
def test_a_run_is_the_same_however_its_batches_are_split(split, whole, carried_out):
    folder, result, _ = carried_out(f"split-{split}", batch_split=split)
    assert result["error"] == pytest.approx(whole[1]["error"], rel=1e-9)
    losses = [[line["loss"] for line in lines_of(each, "train")] for each in (folder, whole[0])]
    np.testing.assert_allclose(*losses, rtol=1e-9)


def test_a_run_resumes_to_the_same_bits(carried_out):
    folder, _, _ = carried_out("resumed")
    expected = state_of(folder)
    (folder / "result.json").unlink()
    (folder / "checkpoints/step-00000004.npz").unlink()
    (newest,) = checkpoint_files(folder)
    step = open_checkpoint(newest).progress.step
    again, _, task = carried_out("resumed")
    assert task.prepared == 1 and len(task.normalizers) == 4 - step > 0
    assert_same(state_of(again), expected)


@pytest.mark.slow
def test_processes_sum_the_boxes(whole):
    folder, result, _ = whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
        patch.setenv("BIT_PADDLE_NATIVE", "0")
        words = [ROOT / "tests/workers/areas.py", folder.parent, "pair", 2]
        command = [sys.executable, "-W", "ignore", *map(str, words)]
        assert processes.launch(command, 2) == 0
    found = json.loads((folder.parent / "pair/result.json").read_text())
    assert found["error"] == pytest.approx(result["error"], rel=1e-9)
