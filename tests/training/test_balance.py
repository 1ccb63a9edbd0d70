"""--balance: what the plan says of classes, and how their weights act on a run."""

import dataclasses
import shutil
from functools import partial

import numpy as np
import paddle
import pytest
from conftest import run_train, update
from helpers.commands import TINY, run_here
from helpers.runs import assert_same, lines_of, state_of
from PIL import Image

from bit_paddle import create_model, evaluate
from bit_paddle.config.saved import differences, to_dict
from bit_paddle.config.settings import Settings
from bit_paddle.data.loader import MicroBatch, step_positions
from bit_paddle.models.losses import LOSSES, class_weights
from bit_paddle.runs.results import result
from bit_paddle.training.classification import task
from bit_paddle.training.classification.plan import make_plan
from bit_paddle.training.classification.rows import LARGE_RATIO
from bit_paddle.training.optimizer import Momentum


def make_images(root, counts, val=2):
    """Write train/ with ``counts`` {class: images} and val/; return the folder."""
    random = np.random.default_rng(0)
    for name, count in counts.items():
        for part, number in (("train", count), ("val", val)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for k in range(number):
                pixels = random.integers(0, 256, (36, 36, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{k:03}.png")
    return root


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Classes of 20, 6 and 2 training images."""
    return make_images(tmp_path_factory.mktemp("uneven"), {"amber": 20, "blue": 6, "coral": 2})


def plan_of(folder, **changes):
    values = {"model": "R14x0.5", "dataset": "folder", "from_scratch": True, "steps": 3,
              "precrop": 36, "crop": 32, "batch": 8, "workers": 0}  # fmt: skip
    return make_plan(Settings(**{**values, "datadir": str(folder), **changes}))


def row(plan, title):
    (text,) = (text for name, text in plan.rows() if name == title)
    return text


# --- The plan -----------------------------------------------------------------------------------


def test_the_plan_names_the_ratio_and_balance(uneven):
    plan = plan_of(uneven)
    text = row(plan, "classes")
    assert text.startswith(
        "largest : smallest class = 10 : 1, 20 training images of amber, 2 of coral"
    )
    assert "--balance 0.5" in text and plan.class_counts.tolist() == [20, 6, 2]
    assert "--balance" not in row(plan_of(uneven, balance=0.5), "classes")


def test_the_plan_names_balance_from_a_bound_on(uneven, tmp_path):
    shutil.copytree(uneven, tmp_path / "images")
    (tmp_path / "images/train/amber/019.png").unlink()
    text = row(plan_of(tmp_path / "images"), "classes")
    assert LARGE_RATIO == 10 and "= 9.5 : 1, 19 training images of amber" in text
    assert "--balance" not in text


def test_the_ratio_is_that_of_the_used_images(uneven, tmp_path):
    """After few-shot selection, and without skipped images."""
    assert "= 1 : 1, 2 training images per class" in row(
        plan_of(uneven, examples_per_class=2), "classes"
    )
    shutil.copytree(uneven, tmp_path / "images")
    (tmp_path / "images/train/coral/000.png").write_bytes(b"no image")
    plan = plan_of(tmp_path / "images", on_bad_image="skip")
    assert "= 20 : 1, 20 training images of amber, 1 of coral" in row(plan, "classes")
    assert plan.to_dict()["training_images_per_class"] == [20, 6, 1]


def test_a_class_without_training_images_is_counted(tmp_path):
    make_images(tmp_path, {"amber": 4, "blue": 2})
    lines = [(path, path.parent.name) for path in sorted((tmp_path / "train").rglob("*.png"))]
    for name, more in (("train", []), ("val", [(lines[0][0], "coral")])):
        text = "".join(f"{path},{label}\n" for path, label in [*lines, *more])
        (tmp_path / f"{name}.csv").write_text(text)
    (tmp_path / "three.yaml").write_text("reader: list\nclasses: [amber, blue, coral]\n")
    plan = plan_of(tmp_path, dataset=str(tmp_path / "three.yaml"), balance=1.0)
    text = row(plan, "classes")
    assert "= 2 : 1, 4 training images of amber, 2 of blue" in text
    assert "; 1 class without training images" in text
    assert plan.class_weights.tolist() == pytest.approx([0.75, 1.5, 0])


def test_the_plan_has_the_weights(uneven):
    plan = plan_of(uneven, balance=1.0)
    assert plan.class_weights.tolist() == pytest.approx([28 / 60, 28 / 18, 28 / 6])
    assert "0.467 (largest class) to 4.67 (smallest), mean 1 (--balance 1)" in row(plan, "loss")
    assert plan.to_dict()["balance"] == 1.0
    plan = plan_of(uneven)
    assert plan.class_weights is None and row(plan, "loss") == "softmax cross-entropy"


def test_show_prints_the_ratio(uneven, tmp_path):
    words = ["--dataset", "folder", "--datadir", uneven, "--output", tmp_path / "out"]
    done = run_here("show", *words, "--images", 4, "--workers", 0)
    assert done.returncode == 0, done.stderr
    assert "largest : smallest class = 10 : 1" in done.stdout and "--balance 0.5" in done.stdout


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "much"])
def test_powers_outside_0_to_1_are_refused(value, uneven):
    done = run_train(*TINY, "--dataset", "folder", "--datadir", uneven, f"--balance={value}")
    assert done.returncode == 2 and "--balance: is " in done.stderr


# --- Resuming -----------------------------------------------------------------------------------


def test_a_change_is_noticed_also_by_a_run_of_an_older_version():
    now = Settings("R50x1", "digits", balance=0.5)
    before = to_dict(dataclasses.replace(now, balance=0.0))
    assert differences(before, now) == ["balance: 0.0 -> 0.5"]
    del before["balance"]  # as version 0.1.0 wrote it
    assert differences(before, now) == ["balance: 0.0 -> 0.5"]
    assert differences(before, dataclasses.replace(now, balance=0.0)) == []


# --- One step -----------------------------------------------------------------------------------

COUNTS = np.array([40, 4, 1])


def trained(split, power, lam, name="softmax", amp="off"):
    """Two updates of 9 images in ``split`` parts; return the losses and all weights."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (9, 3, 32, 32)).astype(np.uint8)
    labels, partners = random.integers(0, 3, 9), random.permutation(9)
    model = create_model("R14x0.5", 3, seed=0)
    model.amp = amp
    optimizer = Momentum(0.1, 0.9, model.parameters())
    loss_of = partial(task.loss_of, name=name, class_weights=class_weights(COUNTS, power))
    losses = []
    for _ in range(2):
        parts = [
            MicroBatch(
                images[part], labels[part], part, images[partners[part]], labels[partners[part]]
            )
            for part in np.array_split(np.arange(9), split)
        ]
        losses.append(update(model, optimizer, parts, 0.01, lam, loss_of=loss_of))
    weights = {key: parameter.numpy() for key, parameter in model.named_parameters()}
    return losses, weights, labels, labels[partners]


@pytest.fixture
def float64():
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype("float32")


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("lam", [1.0, 0.3])
def test_a_batch_may_be_split_in_any_way(name, lam, float64):
    """Also where labels differ much between the parts: nothing is normalized within a part."""
    losses, whole, *_ = trained(1, 0.5, lam, name)
    assert losses != trained(1, 0.0, lam, name)[0]
    for split in (2, 4, 9):
        again, weights, *_ = trained(split, 0.5, lam, name)
        assert again == pytest.approx(losses, rel=1e-12, abs=0)
        for key, expected in whole.items():
            assert np.abs(weights[key] - expected).max() <= 1e-10 * np.abs(expected).max(), key


@pytest.mark.parametrize("lam", [1.0, 0.3])
def test_the_first_loss_is_the_mean_weight_times_that_of_guessing(lam, float64):
    """The head is zero: each image's loss is log 3."""
    losses, _, labels, partners = trained(2, 1.0, lam)
    weights = class_weights(COUNTS, 1.0)
    mean = (lam * weights[labels] + (1 - lam) * weights[partners]).mean()
    assert mean != pytest.approx(1, rel=0.01)
    assert losses[0] == pytest.approx(mean * np.log(3), rel=1e-13)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_has_the_same_weights(amp):
    losses, *_ = trained(2, 1.0, 0.3)
    half, *_ = trained(2, 1.0, 0.3, amp=amp)
    assert half == pytest.approx(losses, rel=0.02) and half[1] != losses[1]


# --- A run --------------------------------------------------------------------------------------


def run(folder, tmp_path, name, *more):
    done = run_train(*TINY, "--dataset", "folder", "--datadir", folder, "--batch", 8, "--steps", 3,
                     "--base_lr", 0.05, "--logdir", tmp_path, "--name", name, *more)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tmp_path / name


def test_a_run_weighs_training_and_not_validation(uneven, tmp_path):
    """The head is zero in the first step, and in a run whose learning rate stays tiny."""
    balanced = run(uneven, tmp_path, "balanced", "--balance", 1, "--base_lr", 1e-12)
    plan = plan_of(uneven, balance=1.0)
    batch = plan.subset[step_positions(len(plan.subset), 8, 0, 0)]
    mean = plan.class_weights[plan.data.train.labels[batch]].mean()
    assert mean != pytest.approx(1, rel=0.01)
    first = lines_of(balanced, "train")[0]["loss"]
    assert first == pytest.approx(mean * np.log(3), rel=1e-5)
    (val,) = lines_of(balanced, "val")  # two images per class, whose mean weight is 2.23
    assert val["loss"] == pytest.approx(np.log(3), rel=1e-5)


def test_equal_classes_train_bit_for_bit_as_without(uneven, tmp_path):
    few = ["--examples_per_class", 2]
    plain = run(uneven, tmp_path, "plain", *few)
    balanced = run(uneven, tmp_path, "balanced", *few, "--balance", 1)
    assert_same(state_of(balanced), state_of(plain))


def test_a_run_of_another_balance_is_not_resumed(uneven, tmp_path):
    run(uneven, tmp_path, "run", "--balance", 0.5)
    (tmp_path / "run/result.json").unlink()
    words = [*TINY, "--dataset", "folder", "--datadir", uneven, "--batch", 8, "--steps", 3]
    words += ["--base_lr", 0.05, "--logdir", tmp_path, "--name", "run"]
    done = run_train(*words)
    assert done.returncode == 2 and "balance: 0.5 -> 0.0" in done.stderr


def test_the_result_has_balanced_accuracy(uneven, tmp_path):
    folder = run(uneven, tmp_path, "run", "--balance", 0.5)
    found = result(folder, plan_of(uneven).settings)
    measured = evaluate(str(folder), uneven)
    recalls = [share for share in measured.per_class.values() if share is not None]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls), rel=1e-12)
