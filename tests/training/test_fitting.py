"""Memory runs out for real here: the system refuses a process more address space than some limit.

Processes that are limited give the memory of every array back to the system at once (`EXACT`), so
that their address space tells how much they have.
"""

import json
import math
import os
import re
import resource
import sys
from functools import partial

import numpy as np
import paddle
import pytest
from conftest import ROOT, run_train, start_train, update, wait_until

from bit_paddle import create_model, save_npz
from bit_paddle.config import settings
from bit_paddle.data.loader import MicroBatch
from bit_paddle.errors import OutOfMemoryError
from bit_paddle.models import cost
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.models.layers import StdConv2D
from bit_paddle.models.native import plain
from bit_paddle.runs import logbook
from bit_paddle.system import processes
from bit_paddle.system.signals import Interrupt
from bit_paddle.training import memory as training_memory
from bit_paddle.training import start as training_start
from bit_paddle.training.classification import task as classification
from bit_paddle.training.classification.plan import make_plan
from bit_paddle.training.memory import find_split, split_further
from bit_paddle.training.optimizer import Momentum

EXACT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**16),  # what is larger goes back to the system when it is freed
    "BIT_PADDLE_NATIVE": "0",  # the limits below are for what Paddle's own operators take
}
MODEL = "R14x0.5"


# --- The smallest split -------------------------------------------------------------------------


def asked_for(estimate, images, least):
    """Return the split found where ``least`` is the smallest that fits, and the questions."""
    asked = []

    def fits(split):
        asked.append(split)
        return split >= least

    return training_memory.smallest_split(estimate, images, fits), asked


@pytest.mark.parametrize("images", [1, 2, 3, 7, 8, 16, 31, 40])
def test_the_smallest_split_is_found_by_few_questions(images):
    """Of all estimates and all thresholds; ``images + 1`` is one that no split reaches."""
    for estimate in range(1, images + 1):
        for least in range(1, images + 2):
            found, asked = asked_for(estimate, images, least)
            assert 1 <= found <= images and asked[0] == estimate
            assert len(asked) == len(set(asked)) and set(asked) <= set(range(1, images + 1))
            # Each doubles or halves the distance, until that is an eighth.
            assert len(asked) <= abs(math.log2(least / estimate)) + 6
            if least > images:
                assert found == images
                continue
            assert found in asked and found >= least  # it was seen to fit
            assert found - least < found / 8
            # Parts are, on average, within an eighth of the largest that fit.
            assert images / found > 7 / 8 * images / least


def test_an_estimate_that_is_exact_costs_few_questions():
    for least in (1, 2, 16, 64, 512):
        found, asked = asked_for(least, 512, least)
        assert found == least
        assert len(asked) <= 5


# --- One try, and one update, in processes whose memory is limited ------------------------------


def of_workers(name, count, image_folder, folder):
    """Return what each of ``count`` processes tells."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in {**EXACT, "PYTHONPATH": str(ROOT)}.items():
            patch.setenv(variable, value)
        words = [ROOT / "tests/workers/memory.py", folder, image_folder, name]
        command = [sys.executable, "-W", "ignore", *map(str, words)]
        assert processes.launch(command, count) == 0
    return [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(count)]


@pytest.fixture(scope="module")
def alone(image_folder, tmp_path_factory):
    (told,) = of_workers("alone", 1, image_folder, tmp_path_factory.mktemp("alone"))
    return told


@pytest.fixture(scope="module")
def pair(image_folder, tmp_path_factory):
    return of_workers("pair", 2, image_folder, tmp_path_factory.mktemp("pair"))


MODES = ["off", "unit", "bf16"]  # plain, with --recompute unit, with --amp bf16


@pytest.mark.slow
@pytest.mark.parametrize("when", ["first", "later"])
def test_fits_tells_what_fits_and_changes_nothing(when, alone):
    """Few images fit, many do not, and few fit again; before the first step and after it."""
    answers, before, after, lost = alone["fits"]["off"][when]
    assert answers == [True, False, False, True]
    assert after == before and before[1:] == [{"first": 0, "later": 45}[when], 0]
    assert lost < 1  # images


@pytest.mark.slow
@pytest.mark.parametrize(
    "place, mode",
    [
        *((place, mode) for place in ("way there", "way back") for mode in MODES),
        ("end of the way back", "unit"),
    ],
)
def test_fits_says_no_wherever_memory_runs_out(place, mode, alone):
    """Also inside what is computed again; and the memory of eight images is given back."""
    answer, before, after, lost = alone["fits"][mode][place]
    assert answer is False and after == before and before[1:] == [0, 0]
    assert lost < 0.5


@pytest.mark.slow
def test_fits_holds_what_a_step_has_beside_its_passes(alone):
    """Here twenty times the velocities, which are too much, and then none."""
    assert alone["fits"]["off"]["moved"] == [False, True]


@pytest.mark.parametrize("several", [False, True])
def test_fits_makes_the_passes_of_a_training_step(
    several, small_checkpoint, image_folder, monkeypatch
):
    """With MixUp's partners, and after another micro-batch where there are several."""
    calls, model = [], create_model(small_checkpoint, 3)
    convolution = next(layer for layer in model.sublayers() if isinstance(layer, StdConv2D))

    def loss(model, part, images, lam, **options):
        earlier = convolution.standardized.is_leaf  # its gradient waits for the last pass
        calls.append((part.images.shape, part.partner_images.shape, images, 0 < lam < 1, earlier))
        return loss_of(model, part, images, lam, **options)

    loss_of = classification.loss_of
    monkeypatch.setattr(classification, "loss_of", loss)
    task = plan_of(image_folder).task(logbook.Silent(), Interrupt())
    assert training_memory.fits(model, partial(task.trial_loss, model, 2), several)
    shape = (2, 3, 32, 32)
    assert calls == [(shape, shape, 2, True, True)] * several + [(shape, shape, 2, True, False)]


def test_release_leaves_no_gradient_and_asks_no_gpu(small_checkpoint, monkeypatch):
    def no_gpu():
        raise AssertionError("there is none")

    monkeypatch.setattr(paddle.device.cuda, "empty_cache", no_gpu)
    model = create_model(small_checkpoint, 3)
    model(paddle.zeros([1, 3, 32, 32])).sum().backward()
    assert all(one.grad is not None for one in model.parameters())
    training_memory.release(model)
    assert all(one.grad is None for one in model.parameters())


def assert_undone(found):
    """Check that updates without memory were as if never begun, and that the next ones are made.

    Without it from the first part on, from the second, on the way back of that, and from the
    optimizer's step on, which is made where garbage can be freed ("then freed").
    """
    for key, (result, before, after, *_) in found.items():
        velocities = 45 * key.endswith("True")
        if key.startswith("then"):
            loss, undisturbed = result
            assert loss == undisturbed and after == before and after[1:] == [45, 0]
        else:
            assert result == "OutOfMemoryError" and after == before
            assert before[1:] == [velocities, 0]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_an_update_without_memory_was_not_made_and_the_next_one_is_the_same(mode, alone):
    found = alone["update"][mode]
    assert len(found) == (12 if mode == "off" else 6)
    assert_undone(found)
    assert all(values[3] < 1 for key, values in found.items() if not key.startswith("then"))


@pytest.mark.slow
def test_where_one_process_has_no_memory_all_say_so_and_go_on_as_one(pair):
    """Also on the way back, where gradients are under way between them already."""
    first, second = (told["update"]["off"] for told in pair)
    assert len(first) == 5
    assert_undone(first)
    assert_undone(second)
    assert first["then, False"] == second["then, False"]


@pytest.mark.slow
def test_validation_without_memory_takes_fewer_images_at_a_time(alone):
    """The size that fits is told once and kept; where one image is too many, that is an error."""
    whole, smaller, again, nothing, lines = alone["evaluate"]
    assert len(lines) == 1 and "from now on " in lines[0]
    images = int(re.search(r"from now on (\d+) images", lines[0])[1])
    assert 1 <= images < 32 and nothing == "OutOfMemoryError"
    for found in (smaller, again):
        assert found[1:] == whole[1:] and found[0] == pytest.approx(whole[0], rel=1e-5)


# --- In how many parts a run begins -------------------------------------------------------------


def plan_of(image_folder, **changes):
    values = {"batch": 8, "precrop": 36, "crop": 32, "from_scratch": True, **changes}
    return make_plan(settings.Settings(MODEL, "folder", str(image_folder), **values))


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Begin a run with ``memory`` for activations by estimate; return its split, and its log.

    As if an earlier one had found it to be ``known``.
    """

    def begin(plan, memory, device="gpu", known=0):
        lines = []

        class Log(logbook.Silent):
            folder = tmp_path

            def say(self, text, console=True):
                lines.append(text)

        monkeypatch.setattr(training_memory, "activation_memory", lambda *_: memory)
        task = plan.task(Log(), Interrupt())
        begun = training_start.begin(plan, task, "off", plain, Log())
        assert begun.known_split == 0
        split = find_split(plan, task, device, known, begun.model, begun.sums.own, Log())
        return split, lines

    return begin


@pytest.mark.parametrize("images, tried", [(0, "1, 2, 4, 8"), (3, "3, 8"), (1000, "8")])
def test_a_gpu_is_tried_from_the_estimate_on(images, tried, begin, image_folder):
    """All fits here; the GPU is made up, and its model is on the CPU."""
    plan = plan_of(image_folder)
    line = f"--batch_split 1: tried micro-batches of {tried} images; each has 8"
    assert begin(plan, images * cost.activations(plan.architecture, 32)) == (1, [line])


def test_what_is_tried_is_what_a_step_will_hold(begin, image_folder, monkeypatch):
    """Velocities, which a new run has not yet, and earlier gradients where there are parts."""
    tried, fits = [], training_memory.fits

    def noted(model, loss, several, moved):
        ours = [one.name for one in moved] == [one.name for one in model.parameters()]
        tried.append((loss.func.__name__, loss.args[1], several, ours))
        return fits(model, loss, several, moved)

    monkeypatch.setattr(training_memory, "fits", noted)
    plan = plan_of(image_folder, batch=6)
    begin(plan, 3 * cost.activations(plan.architecture, 32))
    assert tried == [("trial_loss", 3, True, True), ("trial_loss", 6, False, True)]


@pytest.mark.slow
def test_what_is_tried_on_a_gpu_must_fit(alone):
    """Really: the system grants about 16 images of the 32, and by estimate all would fit."""
    split, lines = alone["begin"]
    assert split in (2, 3, 4)
    start, end = f"--batch_split {split}: tried micro-batches of ", " images; each has "
    assert len(lines) == 1 and lines[0].startswith(start)
    *tried, each = lines[0][len(start) :].replace(end, ", ").split(", ")
    assert tried[0] == "32 (too many)" and int(each) == -(-32 // split) and each in tried
    too_many = [int(words.split()[0]) for words in tried if "too many" in words]
    assert int(each) < min(too_many)


def test_nothing_is_tried_on_a_cpu_or_where_the_split_is_chosen_or_known(begin, image_folder):
    plan, chosen = plan_of(image_folder), plan_of(image_folder, batch_split=4)
    assert begin(plan, 0, "cpu") == (8, [])
    assert begin(plan, 0, "gpu", known=3) == (3, [])
    for device in ("cpu", "gpu"):
        assert begin(chosen, 0, device) == begin(chosen, 0, device, known=8) == (4, [])


def test_on_a_cpu_a_split_is_what_is_known_or_by_estimate_more(begin, image_folder):
    plan = plan_of(image_folder)
    image = cost.activations(plan.architecture, 32)
    assert begin(plan, 1000 * image, "cpu", known=3) == (3, [])
    assert begin(plan, 2 * image, "cpu", known=3) == (4, [])


def test_parts_are_halved_until_an_image_is_left(image_folder):
    plan, splits = plan_of(image_folder, batch=36), [5]
    while splits[-1] < 36:
        splits.append(split_further(plan, splits[-1]))
    assert splits == [5, 10, 20, 36]
    with pytest.raises(
        OutOfMemoryError, match="with 1 image per micro-batch; take a smaller --crop"
    ):
        split_further(plan, 36)


def test_what_is_split_is_the_share_of_a_process(image_folder, monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: 4)
    plan = plan_of(image_folder, batch=36)
    assert split_further(plan, 5) == 9
    with pytest.raises(OutOfMemoryError, match="with 1 image per micro-batch"):
        split_further(plan, 9)


def test_a_split_that_was_chosen_is_kept(image_folder):
    plan = plan_of(image_folder, batch=36, batch_split=4)
    words = "with 9 images per micro-batch; take --batch_split auto, more parts than 4, a smaller"
    with pytest.raises(OutOfMemoryError, match=words) as caught:
        split_further(plan, 4)
    assert isinstance(caught.value, MemoryError) and caught.value.exit_status == 1


# --- Runs that are granted less memory when they are under way ----------------------------------

CROP, BATCH, STEPS = 96, 36, 8
RUN = ["--model", MODEL, "--from_scratch", "--dataset", "folder", "--precrop", CROP, "--crop", CROP,
       "--workers", 0, "--device", "cpu"]  # fmt: skip


def limit_when_under_way(process, folder, images, crop=CROP, rank=None):
    """Grant a run, or one of its processes, a third less of what its steps so far have taken.

    As soon as two are made. They had ``images`` at once, and it is a third of their activations.
    """
    metrics = folder / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2, process, 120)
    pid = process.pid
    if rank is not None:
        pid = int(open(f"/proc/{pid}/task/{pid}/children").read().split()[rank])
    peak = 1024 * int(re.search(r"VmPeak:\s+(\d+) kB", open(f"/proc/{pid}/status").read())[1])
    less = images * cost.activations(Architecture.parse(MODEL), crop) // 3
    resource.prlimit(pid, resource.RLIMIT_AS, (peak - less, resource.RLIM_INFINITY))


def checkpoints(folder):
    """Return {step: notes} of a run's checkpoints, in order."""
    found = {}
    for path in sorted((folder / "checkpoints").glob("step-*.npz")):
        with CheckpointFile(path) as file:
            found[file.notes()["steps"]] = file.notes()
    return found


def weights(path):
    with np.load(path) as file:
        return {key: file[key].astype(np.float64) for key in file if "notes" not in key}


def distance(one, other):
    """Return that of all weights together, by Euclid."""
    assert one.keys() == other.keys()
    return sum(np.square(one[key] - other[key]).sum() for key in one) ** 0.5


@pytest.fixture(scope="module")
def runs(image_folder, tmp_path_factory):
    """A folder with a run that nothing has disturbed, and the arguments of others like it."""
    logdir = tmp_path_factory.mktemp("runs")
    arguments = [*RUN, "--datadir", image_folder, "--logdir", logdir]
    whole = [*arguments, "--batch", BATCH, "--steps", STEPS, "--save_every", 1]
    save_npz(create_model(MODEL, 3, pretrained=False), logdir / "begun.npz")
    done = run_train(*whole, "--name", "undisturbed")
    assert done.returncode == 0 and f"{BATCH} images per step, in 1 part\n" in done.stdout
    return logdir, whole, arguments


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_run_that_memory_fails_goes_on_in_smaller_parts(count, runs):
    """Of two processes the second alone is granted less, and both compute in smaller parts.

    The weights are those of an undisturbed run, but for float32 sums that are rounded in another
    order; they differ by a small part of the way that they have come.
    """
    logdir, arguments, _ = runs
    folder, arguments = logdir / f"auto-{count}", [*arguments, "--name", f"auto-{count}"]
    arguments += ["--nproc", count] if count > 1 else []
    process = start_train(*arguments, env={**os.environ, **EXACT})
    limit_when_under_way(process, folder, BATCH // count, rank=1 if count > 1 else None)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in err, err
    made_again = re.findall(r"step (\d+): out of memory; retried in (\d+) micro-batches", out)
    assert [int(split) for _, split in made_again] in ([2], [2, 4])
    assert all(2 < int(step) <= STEPS for step, _ in made_again)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [*range(1, STEPS + 1)]
    expected = weights(logdir / "undisturbed/model.npz")
    found, begun = weights(folder / "model.npz"), weights(logdir / "begun.npz")
    difference = distance(found, expected) / distance(begun, expected)
    print(f"{count} processes: {difference:.1e} of the way")
    assert difference < 1e-3
    # It goes on with the split that it has found, though there is memory for less.
    notes, split = checkpoints(folder), int(made_again[-1][1])
    begin, end = notes  # the first may be an older one, where the disk does not keep up
    assert begin < end == STEPS
    assert (notes[end]["batch_split"], notes[end]["processes"]) == (split, count)
    if count == 1:
        (folder / "result.json").unlink()
        (folder / f"checkpoints/step-{STEPS:08d}.npz").unlink()
        done = run_train(*arguments, env={**os.environ, **EXACT})
        assert done.returncode == 0 and f"resumes after step {begin}" in done.stdout
        assert f"{BATCH} images per step, in {notes[begin]['batch_split']} parts\n" in done.stdout
        same = notes[begin]["batch_split"] == split
        assert distance(weights(folder / "model.npz"), found) <= (0 if same else 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, flags, images, crop, advice",
    [
        ("chosen", ["--batch", BATCH, "--batch_split", 1], BATCH, CROP,
         "36 images per micro-batch; take --batch_split auto, more parts than 1, a smaller --crop"),
        ("one", ["--batch", 1, "--precrop", 384, "--crop", 384], 1, 384,
         "1 image per micro-batch; take a smaller --crop, or --recompute unit if it is off"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_split_says_what_to_do(name, flags, images, crop, advice, runs):
    logdir, _, arguments = runs
    arguments = [*arguments, *flags, "--steps", 5000, "--name", name]
    process = start_train(*arguments, env={**os.environ, **EXACT})
    limit_when_under_way(process, logdir / name, images, crop)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and f"error: out of memory with {advice}" in err
    assert "Traceback" not in err and "retried" not in out
    # What has been learned so far is kept.
    steps = len((logdir / name / "metrics.jsonl").read_text().splitlines())
    assert [*checkpoints(logdir / name)] == [steps] and steps >= 2
    assert "OutOfMemoryError" in (logdir / name / "train.log").read_text()


def test_memory_that_fails_as_kernels_are_standardized_is_an_error_too(
    monkeypatch, small_checkpoint
):
    """At the head of an update; after that, one with memory is made."""
    model = create_model(small_checkpoint, 3)
    optimizer = Momentum(0.1, 0.9, model.parameters())
    part = MicroBatch(np.zeros((2, 3, 32, 32), np.uint8), np.array([0, 1]), np.arange(2))

    def fail(weight):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(plain, "standardize", fail)
        with pytest.raises(OutOfMemoryError):
            update(model, optimizer, [part], 0.01)
    assert not any(velocity is not None for velocity in optimizer.velocities())
    assert np.isfinite(update(model, optimizer, [part], 0.01))
