"""The command as users run it: real processes, real files."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, arrays_of, run_train, start_train, update
from helpers.commands import run_outside, wait_until
from helpers.runs import assert_same, lines_of, state_of
from PIL import Image

from bit_paddle import create_model
from bit_paddle.config.settings import FIELDS, Settings
from bit_paddle.data import loader
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.data.readers import registry
from bit_paddle.errors import NonFiniteError
from bit_paddle.models import cost
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.runs import logbook
from bit_paddle.system.signals import Interrupt, Interrupted
from bit_paddle.training import run as training_run
from bit_paddle.training.classification.plan import make_plan
from bit_paddle.training.optimizer import Momentum

TINY = ["--model", "R14x0.5", "--from_scratch", "--precrop", "36", "--crop", "32", "--batch", "8"]


def test_a_whole_run(small_checkpoint, image_folder, tmp_path):
    done = run_outside(
        "train",
        "--model",
        small_checkpoint,
        "--dataset",
        "folder",
        "--datadir",
        image_folder,
        "--precrop",
        36,
        "--crop",
        32,
        "--batch",
        8,
        "--batch_split",
        2,
        "--steps",
        5,
        "--eval_every",
        2,
        "--workers",
        2,
        "--logdir",
        tmp_path,
        "--name",
        "run",
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    steps, evaluations = lines_of(folder, "train"), lines_of(folder, "val")
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    assert [line["lr"] for line in steps] == pytest.approx([0, 0.003, 0.003, 0.0003, 0.00003])
    assert all({"loss", "images_per_second"} <= set(line) for line in steps)
    assert steps[0]["loss"] == pytest.approx(np.log(3), abs=1e-6)  # a zero head guesses
    assert [line["step"] for line in evaluations] == [2, 4, 5]
    assert all(line["images"] == 15 and line["top5"] == 1 for line in evaluations)
    # The printed text, the log and the scalars tell the same.
    assert f"top-1 {evaluations[-1]['top1']:.2%}" in done.stdout
    assert done.stdout.splitlines()[-1] == f"logs are in {folder}"
    assert "in all: " in done.stdout and "it/s" not in done.stderr  # no bar outside a terminal
    log = (folder / "train.log").read_text()
    assert "step 5 of " in log and "36 -> 32, by --precrop and --crop" in log
    from visualdl import LogReader

    (scalars,) = folder.glob("vdlrecords*")
    scalars = LogReader(file_path=str(scalars))
    assert [round(item.value, 4) for item in scalars.get_data("scalar", "train/loss")] == [
        pytest.approx(line["loss"], abs=1e-4) for line in steps
    ]
    # The model is what was measured: loaded again, it gives the same figures.
    with CheckpointFile(folder / "model.npz") as file:
        notes = file.notes()
        assert (
            notes["classes"] == ["amber", "blue", "coral"]
            and notes["crop"] == 32
            and file.classes == 3
        )
    from bit_paddle.training.classification import validation

    val = registry.open_dataset("folder", str(image_folder)).val
    tally = validation.evaluate(
        create_model(folder / "model.npz"), loader.evaluation_batches(val, Preprocessing(32), 4, 0)
    )
    assert (tally.top1, tally.images) == (evaluations[-1]["top1"], 15)
    assert tally.loss == pytest.approx(evaluations[-1]["loss"], rel=1e-5)
    # config.yaml repeats the run.
    again = run_train("--config", folder / "config.yaml", "--name", "again")
    assert again.returncode == 0, again.stderr
    assert [line["loss"] for line in lines_of(tmp_path / "again", "train")] == [
        pytest.approx(line["loss"], rel=1e-4) for line in steps
    ]


def test_model_and_dataset_alone_make_a_plan(tmp_path):
    pytest.importorskip("sklearn")
    done = run_train(
        "--model",
        "BiT-M-R50x1",
        "--dataset",
        "digits",
        "--dry-run",
        "--from_scratch",
        "--logdir",
        tmp_path / "new",
    )
    assert done.returncode == 0, done.stderr
    for words in (
        "R50x1",
        "1,442 training images",
        "160 -> 128, by the code rule, as 8 x 8 is under 96 x 96",
        "500 steps",
        "200, 300, 400",
        "512 images per step",
        "none below 20,000",
        "momentum 0.9, no weight decay",
        "model.npz",
    ):
        assert words in done.stdout, words
    assert not (tmp_path / "new").exists()


def test_few_shot_counts_for_the_rule(tmp_path):
    done = run_train(
        *TINY, "--dataset", "digits", "--examples_per_class", 3, "--batch", 64, "--dry-run"
    )
    assert "30 training images, 3 per class by seed 0" in done.stdout
    assert "sampled with replacement" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_and_the_same_command_goes_on(number, status, image_folder, tmp_path):
    arguments = [*TINY, "--dataset", "folder", "--datadir", image_folder, "--steps", 60,
                 "--batch_split", 2, "--eval_every", 25, "--logdir", tmp_path]  # fmt: skip
    assert run_train(*arguments, "--name", "undisturbed").returncode == 0
    arguments += ["--name", "run"]
    process = start_train(*arguments)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, process, 120)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "Traceback" not in err
    steps = lines_of(tmp_path / "run", "train")
    assert steps[-1]["step"] < 60
    assert f"{number.name}: ending after step {steps[-1]['step']}" in out
    checkpoint = max((tmp_path / "run/checkpoints").glob("step-*.npz"))
    assert checkpoint.name == f"step-{steps[-1]['step']:08d}.npz"
    assert create_model(checkpoint).num_classes == 3  # it is a model too
    done = run_train(*arguments)
    assert done.returncode == 0 and f"resumes after step {steps[-1]['step']}" in done.stdout
    assert_same(state_of(tmp_path / "run"), state_of(tmp_path / "undisturbed"))


@pytest.mark.slow
def test_a_killed_run_goes_on_from_what_is_whole_and_fits(image_folder, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(image_folder, images)
    arguments = [*TINY, "--dataset", "folder", "--datadir", images, "--steps", 40,
                 "--save_every", 1, "--eval_every", 7, "--logdir", tmp_path]  # fmt: skip
    assert run_train(*arguments, "--name", "undisturbed").returncode == 0
    expected = state_of(tmp_path / "undisturbed")
    run = [*arguments, "--name", "run"]
    process = start_train(*run, stdout=subprocess.DEVNULL)
    checkpoints = tmp_path / "run/checkpoints"
    wait_until(lambda: len(list(checkpoints.glob("step-*.npz"))) >= 2, process, 120)
    process.kill()
    process.wait()
    # Other settings and other data are refused, with all that differs.
    done = run_train(*run, "--batch", 4, "--seed", 3)
    assert done.returncode == 2 and "batch: 8 -> 4" in done.stderr and "seed: 0 -> 3" in done.stderr
    (images / "train/blue/3.png").rename(tmp_path / "3.png")
    done = run_train(*run)
    assert done.returncode == 2 and "training images: 36 -> 35" in done.stderr
    (tmp_path / "3.png").rename(images / "train/blue/3.png")
    # Another run starts from it.
    done = run_train(*arguments, "--name", "other", "--resume", tmp_path / "run")
    assert done.returncode == 0 and f"from {checkpoints}" in done.stdout
    assert_same((state_of(tmp_path / "other")[0], []), (expected[0], []))
    # A damaged array is found when it is read; what --resume names is not replaced by anything.
    damaged = tmp_path / "damaged.npz"
    content = bytearray(max(checkpoints.glob("step-*.npz")).read_bytes())
    content[len(content) // 3] ^= 1
    damaged.write_bytes(content)
    done = run_train(*arguments, "--name", "none", "--resume", damaged)
    assert done.returncode == 2 and "damaged.npz: resnet/" in done.stderr
    # A shorter schedule is forced on it, and ends at once.
    done = run_train(*arguments, "--name", "short", "--resume", tmp_path / "run", "--steps", 1,
                     "--force")  # fmt: skip
    assert done.returncode == 0 and "model after step" in done.stdout
    # Its best is its own, from its next validation on.
    assert (tmp_path / "other/checkpoints/best.npz").exists()
    # A dry run says what the command does.
    done = run_train(*run, "--dry-run")
    assert done.returncode == 0 and "the run resumes after step" in done.stdout
    done = run_train(*arguments, "--name", "undisturbed", "--dry-run")
    assert "this run is complete" in done.stdout and "weights" not in done.stdout
    # The newest is damaged: said, and the one before is taken.
    newest = max(checkpoints.glob("step-*.npz"))
    os.truncate(newest, newest.stat().st_size - 1000)
    done = run_train(*run)
    assert done.returncode == 0 and str(newest) in done.stdout and "skipped" in done.stdout
    assert_same(state_of(tmp_path / "run"), expected)


def test_if_all_checkpoints_are_damaged_the_rules_go_on(image_folder, tmp_path):
    """To --resume, and without it to the beginning; either is said, and nothing differs."""
    arguments = [*TINY, "--dataset", "folder", "--datadir", image_folder, "--steps", 6,
                 "--save_every", 2, "--logdir", tmp_path]  # fmt: skip
    assert run_train(*arguments, "--name", "first").returncode == 0
    expected = state_of(tmp_path / "first")
    begin = min((tmp_path / "first/checkpoints").glob("step-*"))  # of step 4, if the disk keeps up
    from_first = ["--resume", begin]
    assert run_train(*arguments, *from_first, "--name", "second").returncode == 0
    for name, flags, said in (
        ("second", from_first, f"{begin.name} is tried next"),
        ("first", [], "the run starts from the beginning"),
    ):
        for path in (tmp_path / name / "checkpoints").glob("step-*"):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        (tmp_path / name / "result.json").unlink()
        done = run_train(*arguments, *flags, "--name", name)
        assert done.returncode == 0 and said in done.stdout, done.stderr
    assert_same(state_of(tmp_path / "first"), expected)
    arrays, lines = state_of(tmp_path / "second")
    assert_same((arrays, lines), (expected[0], expected[1][int(begin.stem[5:]) :]))
    assert len(list((tmp_path / "first/checkpoints").glob("*.damaged"))) == 2


@pytest.mark.slow
def test_a_run_that_was_stopped_before_its_first_checkpoint_tells_its_new_data(
    image_folder, tmp_path
):
    moved = tmp_path / "moved"
    for folder in (image_folder, moved):
        arguments = [*TINY, "--dataset", "folder", "--datadir", folder, "--steps", 1,
                     "--logdir", tmp_path, "--name", "run"]  # fmt: skip
        assert run_train(*arguments).returncode == 0
        assert f"datadir: {folder}\n" in (tmp_path / "run/config.yaml").read_text()
        assert str(folder) in (tmp_path / "run/plan.json").read_text()
        if not moved.exists():
            shutil.copytree(image_folder, moved)
            shutil.rmtree(tmp_path / "run/checkpoints")
            for name in ("result.json", "model.npz"):
                (tmp_path / "run" / name).unlink()


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_what_cannot_be_written_is_named_and_made_up_for(stopped, tmp_path):
    """With a limit on the size of files, which is as good as a full disk."""
    pytest.importorskip("sklearn")
    arguments = [*TINY, "--dataset", "digits", "--steps", 2000 if stopped else 8,
                 "--logdir", tmp_path, "--name", "run"]  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-m", "bit_paddle.train", *map(str, arguments)]
    limited = subprocess.Popen(
        ["bash", "-c", 'ulimit -f 20; exec "$@"', "bash", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    if stopped:
        metrics = tmp_path / "run/metrics.jsonl"
        wait_until(lambda: metrics.exists() and metrics.read_text(), limited, 120)
        time.sleep(1)
        limited.send_signal(signal.SIGTERM)
    out, err = limited.communicate(timeout=120)
    assert limited.returncode == 1, out + err
    assert "not saved: the checkpoint of step" in out and "cannot be written" in err
    assert "resumes from there" not in out and not list(tmp_path.glob("bit_paddle-*"))
    if not stopped:
        done = run_train(*arguments)
        assert done.returncode == 0 and "complete" not in done.stdout
        steps = [line["step"] for line in lines_of(tmp_path / "run", "train")]
        assert steps == list(range(1, 9)) and (tmp_path / "run/result.json").exists()


@pytest.mark.slow
def test_steps_that_are_not_finite_are_left_out_if_asked(tmp_path):
    """Features near float32's end, which some images exceed; a learning rate of 0 in effect."""
    pytest.importorskip("sklearn")
    arrays = arrays_of(14, 1, 10, 0)
    arrays["resnet/group_norm/gamma"][:] = 1e38
    np.savez(tmp_path / "brink.npz", **arrays)
    arguments = ["--model", tmp_path / "brink.npz", "--dataset", "digits", "--precrop", 36,
                 "--crop", 32, "--batch", 2, "--base_lr", 1e-60, "--steps", 12,
                 "--logdir", tmp_path]  # fmt: skip
    done = run_train(*arguments, "--name", "run")
    assert done.returncode == 1 and "the update was skipped" in done.stderr
    assert "the loss is nan" in done.stderr
    assert "step" in done.stderr and "digits train image" in done.stderr
    done = run_train(*arguments, "--name", "run", "--skip_nonfinite", 12)  # a repair, not a change
    assert done.returncode == 0, done.stderr
    lines = lines_of(tmp_path / "run", "train")
    left_out = sum(line["loss"] is None for line in lines)
    assert [line["step"] for line in lines] == list(range(1, 13)) and 0 < left_out < 12
    # Each is said, whether before or after the restart.
    assert left_out == (tmp_path / "run/train.log").read_text().count("warning: step")


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_which_goes_on(image_folder, tmp_path):
    arguments = [*TINY, "--dataset", "folder", "--datadir", image_folder, "--steps", 40,
                 "--nproc", 2, "--save_every", 1, "--logdir", tmp_path]  # fmt: skip
    assert run_train(*arguments, "--name", "undisturbed").returncode == 0
    arguments += ["--name", "run"]
    process = start_train(*arguments, stdout=subprocess.DEVNULL)
    wait_until(lambda: list((tmp_path / "run/checkpoints").glob("step-*.npz")), process, 120)
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    first, second = map(int, open(children).read().split())
    os.kill(second, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 137
    assert "rank 1" in err and "SIGKILL" in err and "Traceback" not in err
    assert not os.path.exists(f"/proc/{first}")
    newest = max((tmp_path / "run/checkpoints").glob("step-*.npz"))
    newest.write_bytes(newest.read_bytes()[:1000])  # reported as with one process
    done = run_train(*arguments)
    assert done.returncode == 0 and f"note: {newest}: " in done.stdout
    log = (tmp_path / "run/train.log").read_text()
    assert f"note: {newest}: " in log and log.count("it is skipped") == 1
    assert newest.with_suffix(".npz.damaged").exists()
    assert_same(state_of(tmp_path / "run"), state_of(tmp_path / "undisturbed"))


def test_names_of_runs(image_folder, tmp_path):
    arguments = [
        *TINY,
        "--dataset",
        "folder",
        "--datadir",
        image_folder,
        "--steps",
        1,
        "--logdir",
        tmp_path,
        "--no-save",
    ]
    for expected in (f"R14x0.5-{image_folder.name}", f"R14x0.5-{image_folder.name}-2"):
        assert run_train(*arguments).returncode == 0
        assert sorted(path.name for path in tmp_path.iterdir())[-1] == expected
        assert not (tmp_path / expected / "model.npz").exists()
    done = run_train(*arguments, "--name", f"R14x0.5-{image_folder.name}")
    assert done.returncode == 0 and "this run is complete: steps 1" in done.stdout
    done = run_train(*arguments, "--name", f"R14x0.5-{image_folder.name}", "--seed", 1)
    assert done.returncode == 2 and "seed: 0 -> 1" in done.stderr and "--force" in done.stderr


@pytest.mark.parametrize("logdir", ["a file", "/proc/nothing/here"])
def test_a_log_folder_that_cannot_be_written(logdir, image_folder, tmp_path):
    (tmp_path / "a file").touch()
    done = run_train(
        *TINY, "--dataset", "folder", "--datadir", image_folder, "--logdir", tmp_path / logdir
    )
    assert done.returncode == 2 and "--logdir" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--dataset", "folder", "--datadir", "nowhere"], "nowhere: no such folder"),
        (["--dataset", "digits", "--examples_per_class", "1000"], "not every class has that many"),
        (["--dataset", "digits", "--device", "gpu"], "--device gpu"),
    ],
)
def test_mistakes(arguments, words, tmp_path):
    done = run_train(*TINY, *arguments, "--logdir", tmp_path)
    assert done.returncode == 2 and words in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in run_train(*TINY, *arguments, "--logdir", tmp_path, "--traceback").stderr


def test_a_damaged_checkpoint_is_found_before_the_data(small_checkpoint, tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(small_checkpoint.read_bytes()[:100_000])
    done = run_train(
        "--model", path, "--dataset", "folder", "--datadir", tmp_path, "--logdir", tmp_path
    )
    assert done.returncode == 2 and "x.npz: not a readable .npz" in done.stderr


def test_divergence_stops_before_the_weights(tmp_path):
    """A learning rate beyond float32 (1e30 is survived: standardization forgives any scale)."""
    pytest.importorskip("sklearn")
    done = run_train(
        *TINY,
        "--dataset",
        "digits",
        "--base_lr",
        "1e38",
        "--steps",
        "50",
        "--logdir",
        tmp_path,
        "--name",
        "run",
    )
    assert done.returncode == 1
    assert "the update was skipped" in done.stderr and "digits train image" in done.stderr
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()  # of the step before
    assert create_model(checkpoint).num_classes == 10
    assert "NonFiniteError" in (tmp_path / "run" / "train.log").read_text()


def test_update_refuses_a_loss_that_is_no_number(small_checkpoint):
    model = create_model(small_checkpoint, 3)
    optimizer = Momentum(0.1, 0.9, model.parameters())
    model.head.bias.set_value(np.array([np.nan, 0, 0], np.float32))
    before = [parameter.numpy() for parameter in model.parameters()]
    part = loader.MicroBatch(np.zeros((2, 3, 32, 32), np.uint8), np.array([0, 1]), np.arange(2))
    with pytest.raises(NonFiniteError):
        update(model, optimizer, [part], 0.1)
    assert all(
        np.array_equal(a, b.numpy(), equal_nan=True) for a, b in zip(before, model.parameters())
    )
    assert all(
        parameter.grad is None or not parameter.grad.numpy().any()
        for parameter in model.parameters()
    )


def test_an_update_that_is_interrupted_between_micro_batches_was_not_made(small_checkpoint):
    model = create_model(small_checkpoint, 3)
    optimizer = Momentum(0.1, 0.9, model.parameters())
    before = [parameter.numpy() for parameter in model.parameters()]
    part = loader.MicroBatch(np.zeros((2, 3, 32, 32), np.uint8), np.array([0, 1]), np.arange(2))
    with Interrupt() as stop:

        def parts():
            yield part
            signal.raise_signal(signal.SIGTERM)  # each part is made before the one before is used
            yield part
            raise AssertionError("went on")

        with pytest.raises(Interrupted):
            update(model, optimizer, parts(), 0.1, images=4, checked=stop.checked)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, model.parameters()))
    assert all(one.grad is None or not one.grad.numpy().any() for one in model.parameters())


@pytest.mark.parametrize("split", [1, 2, 4, 5])
def test_micro_batches_add_up_to_the_whole_batch(split, dtype, small_checkpoint):
    """Also where an epoch's last batch does not divide: 9 images in 4 parts are 3 + 2 + 2 + 2."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (9, 3, 32, 32)).astype(np.uint8)
    labels = random.integers(0, 3, 9)

    def weights(parts):
        model = create_model(small_checkpoint, 3)
        optimizer = Momentum(0.1, 0.9, model.parameters())
        for _ in range(2):
            micro_batches = [loader.MicroBatch(images[part], labels[part], part) for part in parts]
            update(model, optimizer, micro_batches, 0.01)
        return model.head.weight.numpy(), model.root_block.conv.weight.numpy()

    whole = weights([np.arange(9)])
    bar = {"float64": 1e-10, "float32": 1e-3}[dtype]
    for one, other in zip(whole, weights(np.array_split(np.arange(9), split))):
        assert np.abs(one - other).max() <= bar * np.abs(one).max()


# --- Every setting does something ---------------------------------------------------------------

CHANGES = {
    "model": "R14x1",
    "dataset": "digits",
    "datadir": None,
    "exclude": None,
    "val_fraction": None,
    "separator": None,
    "group": None,
    "folds": 3,
    "fold": None,
    "on_bad_image": None,
    "bit_pretrained_dir": None,
    "from_scratch": None,
    "examples_per_class": 3,
    "examples_per_class_seed": 1,
    "rule": "paper",
    "teacher": None,
    "teacher_crop": None,
    "learn": "head",
    "head": "max+mean",
    "epochs": None,
    "warmup": 0,
    "weight_decay": 100.0,
    "balance": None,
    "loss": "sigmoid",
    "batch": 4,
    "batch_split": 2,
    "base_lr": 0.01,
    "steps": 4,
    "precrop": 40,
    "crop": 34,
    "alternate_crop": None,
    "flip": False,
    "random_crop": False,
    "seed": 1,
    "repeats": None,
    "name": None,
    "logdir": None,
    "eval_every": 1,
    "save": None,
    "workers": None,
    "cache_gb": None,
    "device": None,
    "save_every": None,
    "keep": None,
    "resume": None,
    "skip_nonfinite": None,
    "check": None,
    "nproc": None,
    "devices": None,
    "deterministic": None,
    "recompute": None,
    "amp": "bf16",
    "shard": None,
    "reduce_dtype": None,
    "profile": None,
}


def test_every_setting_has_a_row():
    assert set(CHANGES) == {item.name for item in FIELDS.values()}


@pytest.fixture(scope="module")
def outcome(image_folder, tmp_path_factory):
    """Settings -> everything that a run of them shows, without a process each."""

    def run(**changes):
        values = {
            "model": "R14x0.5",
            "from_scratch": True,
            "dataset": "folder",
            "datadir": None if changes.get("dataset") == "digits" else str(image_folder),
            "steps": 3,
            "precrop": 36,
            "crop": 32,
            "batch": 6,
            "batch_split": 1,
            "examples_per_class": 4,
            "workers": 0,
        }
        plan = make_plan(Settings(**{**values, **changes}))
        shown = []

        class Log(logbook.Silent):
            def metrics(self, kind, step, **numbers):
                numbers.pop("images_per_second", None)
                shown.append(
                    (kind, step, sorted((name, round(value, 5)) for name, value in numbers.items()))
                )

        plan = dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, save=False))
        split = plan.batch_split(1 << 30)
        log = Log()
        log.folder = tmp_path_factory.mktemp("run")
        training_run.run(plan, log, Interrupt())
        return shown, split

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, value in CHANGES.items() if value is not None])
def test_every_setting_changes_something(name, outcome):
    """Those without a value here have tests of their own, here or in test_catalog."""
    if name == "dataset":
        pytest.importorskip("sklearn")
    assert outcome(**{name: CHANGES[name]}) != outcome()


def test_a_setting_that_is_not_changed_changes_nothing(outcome):
    """The control of the test above: two runs of the same settings show the same."""
    assert outcome() == outcome()


def test_automatic_split():
    pytest.importorskip("sklearn")
    settings = Settings("R50x1", "digits", from_scratch=True, precrop=160, crop=128)
    plan = make_plan(settings)
    image = cost.activations(plan.architecture, 128)
    assert 36e6 < image < 37e6  # measured: 36.4 to 36.7 MB (scripts/benchmarks/plan.py)
    splits = [plan.batch_split(memory) for memory in (1, image * 3, 17 * image, 10**13)]
    assert splits == [512, 171, 31, 1]
    plan = dataclasses.replace(plan, settings=dataclasses.replace(settings, batch_split=8))
    assert plan.batch_split(1) == 8


def test_an_image_that_breaks_in_mid_run_costs_no_steps(image_folder, tmp_path):
    """The error names it, and the model of the steps so far is there."""
    shutil.copytree(image_folder, tmp_path / "images")
    write_treacherous_jpeg(tmp_path / "images/val/blue/2.jpg")
    arguments = [*TINY, "--dataset", "folder", "--datadir", tmp_path / "images", "--steps", 3,
                 "--logdir", tmp_path]  # fmt: skip
    done = run_train(*arguments, "--name", "run")
    assert done.returncode == 2 and "val/blue/2.jpg: cannot be decoded" in done.stderr
    assert create_model(tmp_path / "run/checkpoints/step-00000003.npz").num_classes == 3
    done = run_train(*arguments, "--name", "full", "--check", "full")
    assert done.returncode == 2 and "1 of 52 images cannot be used" in done.stderr
    assert "val/blue/2.jpg: cannot be decoded" in done.stderr
    assert not (tmp_path / "full").exists()  # no step was made
    done = run_train(*arguments, "--name", "skip", "--on_bad_image", "skip")
    assert done.returncode == 0 and "1 unreadable image skipped" in done.stdout
    assert "val/blue/2.jpg" in (tmp_path / "skip/skipped.txt").read_text()
    assert "(15 images)" in done.stdout


def write_treacherous_jpeg(path):
    """A file that nothing but decoding shows to be broken: its quantization table has gone."""
    Image.new("RGB", (40, 40), "blue").save(path)
    content = path.read_bytes()
    table = content.index(b"\xff\xdb\x00\x43\x00") + 4
    path.write_bytes(content[:table] + b"\x03" + content[table + 1 :])


def test_broken_images_end_a_run_before_it_starts(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "images")
    for part in ("train/amber/1.png", "val/blue/2.png"):
        (tmp_path / "images" / part).write_bytes(b"no image")
    done = run_train(*TINY, "--dataset", "folder", "--datadir", tmp_path / "images", "--steps", 3,
                     "--logdir", tmp_path, "--name", "run")  # fmt: skip
    assert done.returncode == 2 and "2 of 51 images cannot be used" in done.stderr
    assert "train/amber/1.png" in done.stderr and "val/blue/2.png" in done.stderr
    assert "--on_bad_image skip" in done.stderr
    assert not (tmp_path / "run").exists() and "Traceback" not in done.stderr


SLOW_DISK = """
import os, time

old = os.fsync


def fsync(number):
    while "result.json" in os.readlink(f"/proc/self/fd/{{number}}") and not os.path.exists({go!r}):
        time.sleep(0.01)
    old(number)


os.fsync = fsync
"""


@pytest.mark.slow
def test_a_signal_after_the_last_step_leaves_out_the_other_repeats(image_folder, tmp_path):
    """While the first run's files are written, to a disk that takes its time."""
    slow, go = tmp_path / "slow", tmp_path / "go"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(SLOW_DISK.format(go=str(go)))
    arguments = [*TINY, "--dataset", "folder", "--datadir", image_folder, "--steps", 3,
                 "--repeats", 2, "--logdir", tmp_path, "--name", "two"]  # fmt: skip
    process = start_train(*arguments, env={**os.environ, "PYTHONPATH": str(slow)})
    said = next((line for line in process.stdout if line.startswith("step 3: validation")), None)
    process.send_signal(signal.SIGTERM)
    go.touch()
    _, err = process.communicate(timeout=60)
    assert said and process.returncode == 143, err
    assert (tmp_path / "two/seed-0/result.json").exists() and not (tmp_path / "two/seed-1").exists()
    done = run_train(*arguments)
    assert done.returncode == 0 and "this run is complete: steps 3" in done.stdout
    assert json.loads((tmp_path / "two/repeats.json").read_text())["count"] == 2


def test_repeats(image_folder, tmp_path):
    """Three runs with seeds that count up; each is what a run with its seed alone is."""
    arguments = [*TINY, "--dataset", "folder", "--datadir", image_folder, "--steps", 3,
                 "--examples_per_class", 2, "--logdir", tmp_path, "--no-save"]  # fmt: skip
    done = run_train(*arguments, "--seed", 4, "--repeats", 3, "--name", "three")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "three/repeats.json").read_text())
    losses = [one["loss"] for one in content["runs"]]
    assert content["count"] == 3 and [one["seed"] for one in content["runs"]] == [4, 5, 6]
    assert content["loss"] == {"min": min(losses), "median": sorted(losses)[1], "max": max(losses)}
    assert len(set(losses)) == 3
    balanced = [one["balanced_accuracy"] for one in content["runs"]]  # five images per class
    assert balanced == pytest.approx([one["top1"] for one in content["runs"]], rel=1e-12)
    assert content["balanced_accuracy"]["max"] == max(balanced)
    table = (tmp_path / "three/repeats.txt").read_text()
    assert table in done.stdout and [line.split()[0] for line in table.splitlines()] == [
        "seed", "4", "5", "6", "min", "median", "max"]  # fmt: skip
    alone = run_train(*arguments, "--seed", 5, "--examples_per_class_seed", 1, "--name", "alone")
    assert alone.returncode == 0
    last = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("alone", "three/seed-5")
    ]
    times = [line.pop("time") for line in last]
    assert len(times) == 2 and last[0] == last[1] and last[0]["loss"] == losses[1]
    again = run_train(*arguments, "--seed", 4, "--repeats", 3, "--name", "three")
    assert again.returncode == 0 and table in again.stdout


def test_one_tree_and_its_fraction(image_folder, tmp_path):
    arguments = [*TINY, "--dataset", "folder", "--datadir", image_folder / "train", "--dry-run"]
    for fraction, counts in ((None, "33 training images, 3 validation"),
                             ("0.25", "27 training images, 9 validation")):  # fmt: skip
        done = run_train(*arguments, *(["--val_fraction", fraction] if fraction else []))
        assert counts in done.stdout, done.stdout + done.stderr


def test_memory_for_resized_images(image_folder):
    settings = Settings(
        "R14x0.5", "folder", str(image_folder), from_scratch=True, precrop=160, crop=128
    )
    for gigabytes, words in (
        (0.0028, "2.8 MB for the cache"),
        (0.0027, "decoded again in each epoch"),
    ):
        plan = make_plan(dataclasses.replace(settings, cache_gb=gigabytes))
        assert words in plan.describe()


def test_a_run_that_never_started_leaves_its_name_free(image_folder, tmp_path):
    arguments = [*TINY, "--dataset", "folder", "--datadir", image_folder, "--steps", 1,
                 "--logdir", tmp_path, "--name", "run", "--no-save"]  # fmt: skip
    assert run_train(*arguments, "--device", "gpu").returncode == 2
    assert not (tmp_path / "run").exists()
    assert run_train(*arguments).returncode == 0


def test_mistakes_are_answered_before_a_download(tmp_path):
    """Nobody is there to download from, and nobody is asked."""
    environment = {**os.environ, "BIT_PADDLE_BASE_URL": "http://127.0.0.1:9", "NO_PROXY": "*",
                   "BIT_PADDLE_HOME": str(tmp_path)}  # fmt: skip
    done = run_train("--model", "BiT-M-R50x1", "--dataset", "folder", "--datadir", "nowhere",
                     env=environment)  # fmt: skip
    assert "nowhere: no such folder" in done.stderr and "cannot be reached" not in done.stderr
