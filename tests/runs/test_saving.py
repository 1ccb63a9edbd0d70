"""Checkpoints: when and how they are saved, and that a run goes on from them as if nothing was."""

import errno
import os
import resource
import tempfile
import threading
import time
import zipfile

import numpy as np
import pytest
from conftest import update

from bit_paddle import create_model
from bit_paddle.data import loader
from bit_paddle.errors import CheckpointError, WriteError
from bit_paddle.inference.trained import find_trained
from bit_paddle.models import npz
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.runs import checkpoints, logbook, snapshot
from bit_paddle.training.optimizer import Momentum


@pytest.fixture
def log(tmp_path):
    with logbook.Logbook(tmp_path) as log:
        log.rewind(0, -1)
        yield log


@pytest.fixture
def saver_of(tmp_path, log, monkeypatch):
    """Make a Saver of the run in tmp_path; the temp folder is in it too."""
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    made = []

    def make(keep=2, interval=(5, np.inf), step=0):
        made.append(checkpoints.Saver(tmp_path, keep, interval, log, step))
        return made[-1]

    yield make
    for saver in made:
        saver.wait()


def writer(text):
    return lambda path: path.write_text(text)


def names(folder):
    return sorted(path.name for path in (folder / checkpoints.CHECKPOINTS).glob("*"))


# --- When and how -------------------------------------------------------------------------------


def test_its_thread_has_started_before_memory_can_run_out(saver_of):
    before = set(threading.enumerate())
    saver_of()
    assert [thread.name for thread in set(threading.enumerate()) - before] == ["save_0"]


def test_due_after_so_many_steps(saver_of):
    saver = saver_of(step=10)
    assert [saver.due(step) for step in (10, 14, 15, 16)] == [False, False, True, True]
    saver.save(16, writer("x"))
    saver.wait()
    assert [saver.due(step) for step in (16, 20, 21)] == [False, False, True]


def test_due_after_so_much_time(saver_of, monkeypatch):
    clock = [100.0]  # a save may take long, and the interval counts from its beginning
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    saver = saver_of(interval=(np.inf, 60))
    for step in (0, 10**9):
        clock[0] += 59
        assert not saver.due(10**9)
        clock[0] += 1
        assert saver.due(0)
        saver.save(step, writer("x"))
        saver.wait()


def test_not_due_while_a_save_is_under_way_and_training_goes_on(saver_of, tmp_path):
    saver, go = saver_of(), threading.Event()

    def write(path):
        assert go.wait(30)
        path.write_text("x")

    saver.save(5, write)  # returns before it is written
    assert not saver.due(500) and names(tmp_path) == []
    go.set()
    deadline = time.monotonic() + 30
    while not saver.due(500) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert saver.due(500) and names(tmp_path) == ["step-00000005.npz"]


def test_one_writer_at_a_time_in_order(saver_of, tmp_path):
    saver, at_work, order = saver_of(keep=9), [], []

    def write(path):
        at_work.append(path)
        time.sleep(0.05)
        order.append((path.name, len(at_work)))
        path.write_text("x")
        at_work.remove(path)

    for step in range(4):
        saver.save(step, write)
    saver.close()
    assert order == [(f"step-0000000{step}.npz", 1) for step in range(4)]
    assert names(tmp_path) == [name for name, _ in order]


def test_close_waits_for_what_is_being_written(saver_of, tmp_path):
    saver, go = saver_of(), threading.Event()
    threading.Timer(0.2, go.set).start()

    def write(path):
        assert go.wait(30)
        path.write_text("whole")

    saver.save(1, write)
    saver.close()
    assert go.is_set() and checkpoints.checkpoint_path(tmp_path, 1).read_text() == "whole"


@pytest.mark.parametrize("keep", [1, 3])
def test_older_ones_go_only_when_the_new_one_is_complete(keep, saver_of, tmp_path):
    saver, seen = saver_of(keep=keep), []

    def write(path):
        seen.append(names(tmp_path))
        path.write_text("x")

    for step in range(1, 6):
        saver.save(step, write)
    saver.wait()
    expected = [f"step-0000000{step}.npz" for step in range(1, 6)]
    assert seen == [expected[max(0, k - keep) : k] for k in range(5)]
    assert names(tmp_path) == expected[-keep:]


def test_a_damaged_one_of_a_later_step_does_not_cost_the_new_one(saver_of, tmp_path):
    """It was passed over, and the run has begun again before it."""
    (tmp_path / checkpoints.CHECKPOINTS).mkdir()
    for step, text in ((100, "good"), (200, "damaged")):
        checkpoints.checkpoint_path(tmp_path, step).write_text(text)
    saver = saver_of(keep=1)
    saver.save(110, writer("good"))
    saver.wait()
    assert checkpoints.checkpoint_path(tmp_path, 110).exists()


@pytest.mark.parametrize("links", [True, False])
def test_the_best_is_kept_beyond_its_turn(links, saver_of, tmp_path, monkeypatch):
    if not links:  # no file system without them is at hand

        def link(*_, **__):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    saver, best = saver_of(keep=1), tmp_path / checkpoints.CHECKPOINTS / checkpoints.BEST
    for step, is_best, expected in (
        (1, True, "1"),
        (2, False, "1"),
        (3, True, "3"),
        (4, False, "3"),
        (5, False, "3"),
    ):
        saver.save(step, writer(str(step)), is_best)
        saver.wait()
        assert best.read_text() == expected
        assert names(tmp_path) == ["best.npz", f"step-0000000{step}.npz"]


def test_the_metrics_are_on_the_disk_before_the_checkpoint(saver_of, log, tmp_path):
    seen = []
    log.metrics("train", 1, loss=0.5)
    saver_of().save(1, lambda path: seen.append((tmp_path / "metrics.jsonl").read_text()))
    deadline = time.monotonic() + 30
    while not seen and time.monotonic() < deadline:
        time.sleep(0.01)
    assert '"loss": 0.5' in seen[0]


# --- Faults -------------------------------------------------------------------------------------


def fails(error):
    def write(path):
        raise error

    return write


@pytest.mark.parametrize(
    "error",
    [
        WriteError("x.npz: cannot be written (No space left on device)"),
        OSError(errno.EIO, "Input/output error"),
        MemoryError("out of it"),
    ],
)
def test_a_save_that_fails_costs_nothing_but_itself(error, saver_of, tmp_path):
    saver = saver_of(keep=1)
    saver.save(1, writer("old"))
    saver.wait()
    assert saver.failure is None
    saver.save(2, fails(error))
    saver.wait()
    assert "step 2" in saver.failure and str(error) in saver.failure
    text = (tmp_path / "train.log").read_text()
    assert f"warning: not saved: {saver.failure}" in text and text.count("warning") == 1
    assert names(tmp_path) == ["step-00000001.npz"]
    assert not saver.due(6) and saver.due(7)  # the next one has its turn, not at once
    saver.save(7, writer("new"))
    saver.wait()
    assert saver.failure is None and names(tmp_path) == ["step-00000007.npz"]


def test_a_failure_is_found_without_waiting_too(saver_of, tmp_path):
    saver = saver_of()
    saver.save(1, fails(WriteError("full")))
    deadline = time.monotonic() + 30
    while saver.failure is None and time.monotonic() < deadline:
        saver.due(1)
        time.sleep(0.01)
    assert "full" in saver.failure
    saver.save(2, fails(WriteError("fuller")))
    saver.close()
    assert "fuller" in saver.failure and "fuller" in (tmp_path / "train.log").read_text()


def test_a_full_disk(saver_of, tmp_path):
    """A limit to the size of files is as real, and every user may set one."""
    arrays = [("resnet/x", np.arange(100_000.0))]
    saver = saver_of(keep=1)

    def write(path):
        npz.write(path, arrays, {"a": 1})

    saver.save(1, write, best=True)
    saver.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
    try:
        saver.save(2, write, best=True)
        saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be written (File too large)" in saver.failure
    assert names(tmp_path) == ["best.npz", "step-00000001.npz"]  # and nothing half written
    for name in names(tmp_path):
        with CheckpointFile(tmp_path / checkpoints.CHECKPOINTS / name) as file:
            assert np.array_equal(file.array("resnet/x"), arrays[0][1])
    saver.save(3, write, best=True)
    saver.close()
    assert saver.failure is None and names(tmp_path) == ["best.npz", "step-00000003.npz"]


def test_a_folder_that_cannot_be_made(saver_of, tmp_path):
    place = tmp_path / checkpoints.CHECKPOINTS
    place.touch()
    saver = saver_of()
    saver.save(1, writer("x"))
    saver.wait()
    assert str(place) in saver.failure
    place.unlink()
    saver.save(2, writer("x"))
    saver.wait()
    assert saver.failure is None and names(tmp_path) == ["step-00000002.npz"]


def test_the_last_one_is_put_elsewhere_if_its_place_is_full(saver_of, log, tmp_path):
    (tmp_path / checkpoints.CHECKPOINTS).touch()
    saver = saver_of()
    log.metrics("train", 12, loss=0.5)
    saver.save(12, writer("all there is"))
    saver.close()
    (path,) = (tmp_path / "temp").rglob("*.npz")
    assert path.name == "step-00000012.npz" and path.read_text() == "all there is"
    assert (path.parent / "metrics.jsonl").read_text() == (tmp_path / "metrics.jsonl").read_text()
    text = (tmp_path / "train.log").read_text()
    assert f"saved in {path.parent}" in text and str(tmp_path / checkpoints.CHECKPOINTS) in text


def test_no_trace_of_a_last_one_that_has_no_place_at_all(saver_of, tmp_path):
    saver = saver_of()
    saver.save(12, fails(WriteError("full")))
    saver.close()
    assert "full" in saver.failure and list((tmp_path / "temp").iterdir()) == []


# --- What is in it ------------------------------------------------------------------------------

CLASSES = ["amber", "blue", "coral"]
NOTES = {"classes": CLASSES, "crop": 32}


def batch(step):
    random = np.random.default_rng(step)
    images = random.integers(0, 256, (4, 3, 32, 32)).astype(np.uint8)
    return [loader.MicroBatch(images, random.integers(0, 3, 4), np.arange(4))]


def fresh(seed=1, classes=3):
    model = create_model("R14x0.5", classes, seed=seed)
    return model, Momentum(0.1, 0.9, model.parameters())


def trained(*steps):
    model, optimizer = fresh()
    for step in steps:
        update(model, optimizer, batch(step), 0.05)
    return model, optimizer


def snapshot_of(model, optimizer):
    return snapshot.snapshot(model, optimizer.state())


def state(model, optimizer):
    """Return copies of the weights, and of the velocities, by name of the parameter."""
    names = [name for name, _ in model.named_parameters()]
    weights = {name: one.numpy().copy() for name, one in model.named_parameters()}
    velocities = [one.numpy().copy() for one in optimizer.velocities() if one is not None]
    assert len(velocities) in (0, len(names))
    return {**weights, **{f"v {name}": one for name, one in zip(names, velocities)}}


def assert_same(one, other):
    """Bit for bit, and of the same type."""
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert one[name].tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize("steps", [0, 2])
def test_a_run_goes_on_bit_for_bit(steps, dtype, tmp_path):
    """From its first step on too, when there are no velocities yet."""
    model, optimizer = trained(*range(steps))
    before = state(model, optimizer)
    assert any(name.startswith("v ") for name in before) == bool(steps)
    assert all(array.dtype == dtype for array in before.values())
    arrays = snapshot_of(model, optimizer)
    losses = [update(model, optimizer, batch(step), 0.05) for step in (7, 8)]
    after = state(model, optimizer)
    assert not np.array_equal(after["head.weight"], before["head.weight"])
    snapshot.write_snapshot(tmp_path / "x.npz", arrays, NOTES)  # of the time before
    model, optimizer = fresh(seed=2)
    snapshot.restore(model, optimizer, tmp_path / "x.npz")
    assert_same(state(model, optimizer), before)
    # Saved again before another step, it is the same checkpoint.
    again = snapshot_of(model, optimizer)
    assert_same(dict(again), dict(arrays))
    assert [update(model, optimizer, batch(step), 0.05) for step in (7, 8)] == losses
    assert_same(state(model, optimizer), after)


def test_a_checkpoint_is_a_model_too(tmp_path):
    model, optimizer = trained(0)
    path = tmp_path / "x.npz"
    snapshot.write_snapshot(path, snapshot_of(model, optimizer), NOTES)
    loaded = create_model(path)
    for (name, one), (other, two) in zip(model.named_parameters(), loaded.named_parameters()):
        assert name == other and np.array_equal(one.numpy(), two.numpy())
    found = find_trained(str(path))
    assert (found.classes, found.outputs, found.preprocessing.crop) == (CLASSES, 3, 32)
    assert found.trained_here


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file of a checkpoint with velocities, its arrays and its notes."""
    path = tmp_path_factory.mktemp("written") / "x.npz"
    snapshot.write_snapshot(path, snapshot_of(*trained(0, 1)), NOTES)
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files if key != npz.NOTES}
    return path, arrays, {**NOTES, "momentum": True}


BIAS, KERNEL = (
    snapshot.MOMENTUM + name
    for name in (npz.HEAD_BIAS, "resnet/block1/unit01/a/standardized_conv2d/kernel")
)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({BIAS: None}, f"has no {BIAS}"),
        ({BIAS: np.zeros(4, np.float32)}, BIAS),
        ({BIAS: np.zeros(3, np.int32)}, BIAS),
        ({KERNEL: np.zeros((3, 1, 32, 32), np.float32)}, KERNEL),
        ({npz.HEAD_BIAS: np.zeros(4, np.float32)}, npz.HEAD_BIAS),
        ({npz.HEAD_BIAS: None}, npz.HEAD_BIAS),
    ],
)
def test_arrays_that_are_missing_or_do_not_fit_are_refused(changes, words, written, tmp_path):
    _, arrays, notes = written
    content = {key: array for key, array in {**arrays, **changes}.items() if array is not None}
    npz.write(tmp_path / "x.npz", content.items(), notes)
    with pytest.raises(CheckpointError) as caught:
        snapshot.restore(*fresh(), tmp_path / "x.npz")
    assert words in str(caught.value) and "x.npz" in str(caught.value)
    npz.write(tmp_path / "x.npz", arrays.items(), notes)
    snapshot.restore(*fresh(), tmp_path / "x.npz")  # the control: without the changes it fits


def test_a_model_of_other_classes_is_refused(written):
    with pytest.raises(CheckpointError, match="outputs"):
        snapshot.restore(*fresh(classes=4), written[0])


def test_flipped_bits_are_noticed_or_change_nothing(written, tmp_path):
    """Half of them anywhere, which is in arrays; half in the list of arrays and the notes."""
    path, damaged = written[0], tmp_path / "damaged.npz"
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        last = archive.getinfo(npz.NOTES + ".npy").header_offset
    random = np.random.default_rng(0)
    places = [*random.integers(0, len(content), 15), *random.integers(last, len(content), 15)]
    model, optimizer = fresh()
    snapshot.restore(model, optimizer, path)
    expected, noticed = state(model, optimizer), 0
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(random.integers(8))
        damaged.write_bytes(flipped)
        model, optimizer = fresh(seed=2)
        try:
            snapshot.restore(model, optimizer, damaged)
        except CheckpointError:
            noticed += 1
        else:
            assert_same(state(model, optimizer), expected)
    assert noticed >= 15


def test_the_best_is_there_before_a_checkpoint_says_how_good_it_is(tmp_path):
    """A kill between the two would else leave an older best for good."""
    order = []

    def write(path):
        order.append(path.name)
        path.write_bytes(b"best")

    with logbook.Logbook(tmp_path) as log:
        log.rewind(0, -1)
        saver = checkpoints.Saver(tmp_path, 2, (1, float("inf")), log)
        saver.save(7, write, best=True)
        saver.close()
    assert order == [checkpoints.BEST]  # and a link
    assert checkpoints.checkpoint_path(tmp_path, 7).samefile(
        tmp_path / checkpoints.CHECKPOINTS / checkpoints.BEST
    )


def test_a_best_that_could_not_be_saved_is_saved_before_the_next_checkpoint(tmp_path):
    full = True

    def best(path):
        if full:
            raise WriteError(f"{path}: cannot be written (no room)")
        path.write_bytes(b"best")

    with logbook.Logbook(tmp_path) as log:
        log.rewind(0, -1)
        saver = checkpoints.Saver(tmp_path, 2, (1, float("inf")), log)
        saver.save(1, best, best=True)
        saver.save(2, lambda path: path.write_bytes(b"later"))  # tries the best first
        saver.wait()
        assert saver.failure and not checkpoints.checkpoint_files(tmp_path)
        full = False
        saver.save(3, lambda path: path.write_bytes(b"later"))
        saver.close()
    assert saver.failure is None
    path = checkpoints.checkpoint_path(tmp_path, 3)
    assert (
        path.read_bytes() == b"later" and path.with_name(checkpoints.BEST).read_bytes() == b"best"
    )
