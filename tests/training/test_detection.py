"""The training of a detector: the loop's guarantees hold for it as for a classification."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import paddle
import pytest
from conftest import ROOT
from helpers.runs import assert_same, state_of
from helpers.squares import make_squares

from bit_paddle.config.detection_settings import DetectionSettings
from bit_paddle.data.boxes import loader
from bit_paddle.models.detection.weights import load_detector
from bit_paddle.models.weights import create_model
from bit_paddle.runs import folder, logbook
from bit_paddle.runs.checkpoints import readable
from bit_paddle.system import processes
from bit_paddle.system.signals import Interrupt
from bit_paddle.training import run
from bit_paddle.training.detection.plan import make_plan

SMALL = {"side": 128, "batch": 4, "steps": 3, "channels": 32, "depth": 1, "val_fraction": 0.25,
         "scale_min": 0.8, "scale_max": 1.3, "base_lr": 0.01, "warmup": 0, "from_scratch": True,
         "workers": 2, "device": "cpu", "amp": "off"}  # fmt: skip
KINDS = ("retinanet", "faster_rcnn")


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return make_squares(tmp_path_factory.mktemp("squares"), 12)


@pytest.fixture(scope="module")
def float64():
    before = paddle.get_default_dtype()
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype(before)


def plan_of(squares, logdir, name, **changes):
    values = {**SMALL, "logdir": str(logdir), "name": name, **changes}
    settings = DetectionSettings("R14x0.5", str(squares / "boxes.json"), **values)
    place = logdir / name
    return make_plan(settings, folder.Start(place, tuple(readable(place)[0])))


def carry_out(plan):
    """Carry out ``plan`` in this process; return the folder and the result."""
    plan.start.folder.mkdir(exist_ok=True, parents=True)
    with pytest.MonkeyPatch.context() as patch, logbook.Logbook(plan.start.folder) as log:
        patch.setenv("BIT_PADDLE_NATIVE", "0")
        status, result = run.run(plan, log, Interrupt())
    assert status == 0
    return plan.start.folder, result


@pytest.fixture(scope="module")
def whole(squares, tmp_path_factory, float64):
    """The folder of a run of each kind in one part, in float64."""
    logdir = tmp_path_factory.mktemp("logs")
    return {
        kind: carry_out(plan_of(squares, logdir, kind, detector=kind, batch_split=1))[0]
        for kind in KINDS
    }


def assert_close(one, other):
    """Compare what runs leave: weights, momentum and losses, to 1e-9."""
    (arrays, lines), (expected, expected_lines) = state_of(one), state_of(other)
    assert arrays.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_allclose(arrays[key], array, rtol=1e-9, atol=1e-12, err_msg=key)
    losses = [[line["loss"] for line in each if "loss" in line] for each in (lines, expected_lines)]
    np.testing.assert_allclose(*losses, rtol=1e-9)
    assert len(losses[0]) == SMALL["steps"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", [2, 4])
def test_a_run_is_the_same_however_its_batches_are_split(kind, split, whole, squares):
    logdir, name = whole[kind].parent, f"{kind}-split-{split}"
    plan = plan_of(squares, logdir, name, detector=kind, batch_split=split)
    assert_close(carry_out(plan)[0], whole[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one(kind, whole, squares, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    monkeypatch.setenv("BIT_PADDLE_NATIVE", "0")
    logdir, name = whole[kind].parent, f"{kind}-two"
    settings = json.dumps({**SMALL, "detector": kind, "batch_split": 1})
    words = [ROOT / "tests/workers/detection.py", squares / "boxes.json", logdir, name, settings]
    command = [sys.executable, "-W", "ignore", *map(str, words)]
    assert processes.launch(command, 2) == 0
    assert_close(logdir / name, whole[kind])


def test_the_file_of_a_detector_is_one_of_its_backbone_too(whole):
    for kind, place in whole.items():
        network, detector = load_detector(place / "model.npz")
        assert detector.kind == kind and detector.classes == ("blue", "red")
        backbone = create_model(place / "model.npz", 0)
        arrays = dict(network.backbone.named_parameters())
        for name, one in backbone.named_parameters():
            assert np.array_equal(one.numpy(), arrays[name].numpy())


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(squares, tmp_path):
    words = [sys.executable, "-W", "ignore", "-m", "bit_paddle.detect", "train"]
    words += ["--model", "R14x0.5", "--boxes", str(squares / "boxes.json"), "--logdir", tmp_path]
    given = {**SMALL, "steps": 12, "save_every": 1}
    for name, value in given.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    words = [*map(str, words)]
    place = {**os.environ, "BIT_PADDLE_NATIVE": "0"}
    subprocess.run([*words, "--name", "whole"], cwd=ROOT, env=place, check=True)
    process = subprocess.Popen([*words, "--name", "killed"], cwd=ROOT, env=place)
    saved = tmp_path / "killed" / "checkpoints"
    while len(list(saved.glob("*.npz"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run([*words, "--name", "killed"], cwd=ROOT, env=place, check=True)
    assert "resumes after step" in (tmp_path / "killed" / "train.log").read_text()
    assert_same(*(state_of(tmp_path / name) for name in ("whole", "killed")))


# --- The batches --------------------------------------------------------------------------------


def batches_of(squares, count, workers=0, memory=0, **more):
    plan = plan_of(squares, squares, "batches")
    views = loader.Views(plan.sides, plan.settings.side, plan.scales, plan.flip)
    stream = loader.training_batches(
        plan.data.train, views, lambda boxes, labels: (labels[:1].sum(keepdims=True),), 4, 0,
        workers, memory, **more)  # fmt: skip
    return [next(stream) for _ in range(count)]


def same(first, second):
    return all(
        np.array_equal(one.pixels, other.pixels)
        and np.array_equal(one.boxes, other.boxes)
        and (one.shown, one.seed) == (other.shown, other.seed)
        for one, other in zip(first, second)
    ) and len(first) == len(second)


def test_batches_depend_only_on_seed_and_step(squares):
    expected = batches_of(squares, 4)
    for options in ({"workers": 3}, {"memory": 10**9}):
        for one, other in zip(expected, batches_of(squares, 4, **options)):
            assert np.array_equal(one.indices, other.indices) and same(one.share, other.share)
    (later,) = batches_of(squares, 1, start=3)
    assert same(expected[3].share, later.share) and not same(expected[2].share, later.share)
    halves = [batches_of(squares, 1, rank=rank, world_size=2)[0] for rank in range(2)]
    assert same(expected[0].share, [*halves[0].share, *halves[1].share])


def test_boxes_lie_on_their_squares(squares):
    """In every view, however it is scaled, cropped and mirrored."""
    shown, flipped = 0, 0
    for batch in batches_of(squares, 8):
        for one in batch.share:
            assert len(one.labels) == len(one.boxes)
            for (x1, y1, x2, y2), label in zip(one.boxes, one.labels):
                middle = one.pixels[:, int((y1 + y2) / 2), int((x1 + x2) / 2)]
                own, other = middle[2 - 2 * label], middle[2 * label]  # blue or red
                shown, flipped = shown + 1, flipped + (own > 150 and other < 110)
    assert shown > 30 and flipped >= 0.9 * shown  # a later square may cover the middle
