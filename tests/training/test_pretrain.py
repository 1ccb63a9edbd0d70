"""Upstream training: its rule, its crops, its losses, and whole runs."""

import itertools
import json
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml
from conftest import ROOT
from helpers.commands import run
from helpers.runs import lines_of
from PIL import Image

from bit_paddle import create_model
from bit_paddle import pretrain as pretraining
from bit_paddle.config import parsing
from bit_paddle.config.saved import to_yaml
from bit_paddle.data import loader
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.data.readers import registry
from bit_paddle.data.transforms import inception_box, inception_view
from bit_paddle.errors import ConfigError
from bit_paddle.inference.metrics import Tally
from bit_paddle.inference.trained import TrainedFile, find_trained
from bit_paddle.models import losses
from bit_paddle.recipes import upstream
from bit_paddle.training.classification import plan
from bit_paddle.training.optimizer import Momentum

TINY = ["--model", "R14x0.5", "--dataset", "folder", "--batch", "8", "--precrop", "36",
        "--crop", "32", "--base_lr", "0.05"]  # fmt: skip


def pretrain(*words):
    return run("pretrain", *words)


# --- The rule -------------------------------------------------------------------------------------


def test_the_schedule_of_ilsvrc():
    found = upstream.schedule(1_281_167, 4096)
    assert (found.warmup, found.drops, found.steps) == (5000, (9390, 18780, 25040), 28170)
    assert upstream.base_lr(4096) == pytest.approx(0.48)
    assert found.learning_rate(2500, 0.48) == pytest.approx(0.24)
    assert found.learning_rate(9391, 0.48) == pytest.approx(0.048)


def test_a_short_run_is_not_all_warm_up():
    found = upstream.schedule(50_000, 4096, epochs=9)
    assert found.steps == 9 * 13 and found.drops == (39, 78, 104)
    assert found.warmup == 23  # a fifth


def test_settings_of_upstream():
    words = ["--model", "R50x1", "--from_scratch", "--dataset", "folder", "--datadir", str(ROOT)]
    words += ["--rule", "upstream"]
    found, _ = parsing.parse(words, "x", registry.find)
    assert (found.batch, found.weight_decay, found.epochs) == (4096, 1e-4, 90)
    assert found.base_lr == pytest.approx(0.48)
    found, _ = parsing.parse([*words, "--batch", "512", "--steps", "7"], "x", registry.find)
    assert (found.base_lr, found.epochs, found.steps) == (pytest.approx(0.06), None, 7)
    again = dict(yaml.safe_load(to_yaml(found)))
    assert again["rule"] == "upstream" and again["weight_decay"] == 1e-4


@pytest.mark.parametrize(
    "words, named",
    [
        (["--epochs", "3"], "--epochs: is for --rule upstream"),
        (["--rule", "upstream", "--epochs", "3", "--steps", "9"], "--epochs and --steps"),
        (["--loss", "hinge"], "--loss: is 'hinge'"),
        (["--weight_decay", "-1"], "--weight_decay: is -1"),
        (["--alternate_crop", "64"], "--alternate_crop: is for --rule upstream"),
        (["--rule", "upstream", "--alternate_crop", "64", "--no-crop"], "views have one size"),
    ],
)
def test_faults(words, named, image_folder):
    words = ["--model", "R14x0.5", "--from_scratch", "--dataset", "folder", "--datadir",
             str(image_folder), *words]  # fmt: skip
    with pytest.raises(ConfigError, match=named):
        parsing.parse(words, "x", registry.find)


# --- Inception's crops ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(500, 400), (32, 32), (333, 1000)])
def test_inception_boxes_are_what_they_should_be(size):
    width, height = size
    random = np.random.default_rng(0)
    boxes = np.array([inception_box(width, height, random) for _ in range(3000)])
    columns, rows = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    assert (columns * rows >= 0.05 * width * height).all()
    assert (np.abs(columns - rows * (0.75 + 1.33) / 2) <= rows * 0.29 + 0.5).all()
    # Drawn again by the formulas, without rounding: aspect, then height, each uniformly.
    aspect = random.uniform(0.75, 1.33, 200_000)
    low = np.sqrt(0.05 * width * height / aspect)
    high = np.minimum(np.minimum(np.sqrt(width * height / aspect), height), width / aspect)
    tall = low + random.uniform(0, 1, len(low)) * (high - low)
    for found, expected in ((rows, tall), (columns, tall * aspect)):
        error = expected.std() / np.sqrt(len(found))
        assert abs(found.mean() - expected.mean()) < 5 * error + 0.5  # pixels are whole
    places = boxes[:, 0] / np.maximum(1, width - columns)
    assert abs(places[columns < width].mean() - 0.5) < 0.03


def test_a_very_long_image_is_taken_whole():
    assert inception_box(4000, 10, np.random.default_rng(0)) == (0, 0, 4000, 10)


@pytest.mark.parametrize("flip", [False, True])
def test_an_inception_view_is_a_resized_cut(flip):
    pixels = np.random.default_rng(1).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    image, out = Image.fromarray(pixels), np.empty((3, 24, 24), np.uint8)
    inception_view(image, np.random.default_rng(2), flip, out)
    box = inception_box(80, 60, np.random.default_rng(2))
    alone = Image.fromarray(pixels[box[1] : box[3], box[0] : box[2]])  # nothing from beside it
    expected = np.asarray(alone.resize((24, 24), Image.Resampling.BILINEAR))
    assert np.array_equal(out.transpose(1, 2, 0), expected[:, ::-1] if flip else expected)


# --- Loss and weight decay ------------------------------------------------------------------------


def test_sigmoid_cross_entropy(dtype):
    random = np.random.default_rng(0)
    logits, labels = 10 * random.normal(size=(5, 7)).astype(dtype), random.integers(0, 7, 5)
    target = np.eye(7)[labels]
    exact = logits.astype(np.float64)
    expected = (np.logaddexp(0, exact) - target * exact).sum(axis=1).mean()
    bar = {"float64": 1e-13, "float32": 1e-5}[dtype]
    tensor = paddle.to_tensor(logits, stop_gradient=False)
    loss = losses.Sigmoid()(tensor, labels)
    loss.backward()
    assert float(loss) == pytest.approx(expected, rel=bar)
    gradient = (1 / (1 + np.exp(-exact)) - target) / 5
    assert np.abs(tensor.grad.numpy() - gradient).max() < bar
    tally = Tally(7)
    tally.add(logits, labels, "sigmoid")
    assert tally.loss == pytest.approx(expected, rel=bar)


def test_weight_decay_is_of_kernels_alone(dtype):
    model = create_model("R14x0.5", num_classes=3)
    optimizer = Momentum(0.1, 0.9, model.parameters(), weight_decay=0.01)
    before = {name: one.numpy() for name, one in model.named_parameters()}
    for one in model.parameters():
        one.grad = paddle.zeros_like(one)
    for _ in range(2):
        optimizer.step()
    for name, one in model.named_parameters():
        shrunk = 1.0
        if name.endswith("conv.weight") or name == "head.weight":
            first = 1 - 0.1 * 0.01
            shrunk = first - 0.1 * (0.9 * 0.01 + 0.01 * first)
        expected = before[name] * shrunk
        assert np.allclose(one.numpy(), expected, rtol=1e-6 if dtype == "float32" else 1e-14), name


# --- Runs -----------------------------------------------------------------------------------------


def test_a_whole_run(image_folder, tmp_path):
    done = pretrain(*TINY, "--datadir", image_folder, "--epochs", 2, "--loss", "sigmoid",
                    "--logdir", tmp_path, "--name", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = lines_of(tmp_path / "run", "train")
    images = len(list((image_folder / "train").rglob("*.png")))
    assert len(steps) == 2 * -(-images // 8)
    others = 2 * np.log1p(np.exp(-10.0))
    assert steps[0]["loss"] == pytest.approx(others + 10 + np.log1p(np.exp(-10.0)), rel=1e-5)
    assert steps[0]["lr"] == 0 and max(one["lr"] for one in steps) == pytest.approx(0.05)
    log = (tmp_path / "run" / "train.log").read_text()
    for text in ("crop of 5 to 100 % of the area", "centre of 32", "sigmoid cross-entropy",
                 "weight decay 0.0001 of kernels", "(2 epochs)", "none, as upstream"):  # fmt: skip
        assert text in log
    trained = find_trained(str(tmp_path / "run" / "model.npz"))
    assert trained.preprocessing == Preprocessing(32, 36) and trained.loss == "sigmoid"
    done = run("evaluate", "--dataset", "folder", "--datadir", image_folder, "--model",
               tmp_path / "run/model.npz", "--output", tmp_path / "out")  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    measured = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert measured["top1"] == result["top1"] and measured["images"] == result["images"]
    assert measured["loss"] == pytest.approx(result["loss"], rel=1e-5)


@pytest.mark.parametrize("loss, total", [("softmax", 1), ("sigmoid", 0.5 + 1 + 0)])
def test_probabilities(loss, total):
    found = TrainedFile(Path("x"), 3, 64, None, None, True, loss)
    shares = found.probabilities(np.array([[0, 800, -800]], np.float32))
    assert shares.sum() == pytest.approx(total) and shares[0, 1] == pytest.approx(1)


@pytest.mark.slow
def test_two_processes_and_a_resume_give_the_same(image_folder, tmp_path):
    words = [*TINY, "--datadir", image_folder, "--epochs", 3, "--logdir", tmp_path]
    for name, more in (
        ("one", ()),
        ("two", ("--nproc", 2)),
        ("cut", ("--save_every", 4, "--keep", 9)),
    ):
        done = pretrain(*words, "--name", name, *more)
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "cut"  # as if it had been killed after step 4
    for path in (folder / "checkpoints").glob("*.npz"):
        if path.name != "step-00000004.npz":
            path.unlink()
    assert len(list((folder / "checkpoints").iterdir())) == 1
    for name in ("result.json", "model.npz"):
        (folder / name).unlink()
    done = pretrain(*words, "--name", "cut", "--save_every", 4, "--keep", 9)
    assert done.returncode == 0 and "resumes after step 4" in done.stdout, done.stderr
    one, two, cut = (dict(np.load(tmp_path / name / "model.npz")) for name in ("one", "two", "cut"))
    arrays = [key for key, value in one.items() if value.dtype.kind == "f"]
    assert len(arrays) > 20
    for key in arrays:
        assert np.array_equal(one[key], cut[key]), key
        scale = max(1e-3, np.abs(one[key]).max())
        assert np.abs(one[key] - two[key]).max() < 1e-4 * scale, key


def test_a_second_stage_starts_where_the_first_ended(image_folder, tmp_path):
    words = ["--dataset", "folder", "--datadir", image_folder, "--logdir", tmp_path, *TINY[4:]]
    done = pretrain("--model", "R14x0.5", *words, "--steps", 3, "--warmup", 0, "--name", "first")
    assert done.returncode == 0, done.stderr
    first = tmp_path / "first"
    assert "model         R14x0.5, 1024 features, a new head of 3 outputs" in done.stdout
    more = ["--steps", 1, "--warmup", 1]  # the only step has a learning rate of 0
    done = pretrain("--model", first, *words, *more, "--name", "second")
    assert done.returncode == 0, done.stderr
    assert "the head of 3 outputs in the file of its weights, whose classes are the same" in (
        done.stdout
    )
    before, after = (dict(np.load(tmp_path / name / "model.npz")) for name in ("first", "second"))
    kept = [key for key, value in before.items() if value.dtype.kind == "f"]
    assert "resnet/head/conv2d/kernel" in kept and before["resnet/head/conv2d/kernel"].any()
    for key in kept:
        assert np.array_equal(before[key], after[key]), key
    other = tmp_path / "images"
    for place in sorted((image_folder / "train").iterdir()):
        (other / f"not-{place.name}").mkdir(parents=True)
        for path in list(place.glob("*.png"))[:4]:
            (other / f"not-{place.name}" / path.name).write_bytes(path.read_bytes())
    done = pretrain("--model", first, *words, "--datadir", other, *more, "--name", "other")
    assert done.returncode == 0, done.stderr
    assert "the file of its weights has no such head for these classes" in done.stdout
    third = dict(np.load(tmp_path / "other" / "model.npz"))
    assert not third["resnet/head/conv2d/kernel"].any()
    assert np.array_equal(third[kept[0]], before[kept[0]])


def test_pretraining_by_name():
    """An architecture starts from random weights, a published name from its own."""
    for model, expected in (("R50x1", True), ("BiT-Mini", False)):
        words = ["--model", model, "--dataset", "digits", "--rule", "upstream"]
        assert parsing.parse(words, "x", registry.find)[0].from_scratch == expected


def test_crops_of_two_sizes(image_folder, tmp_path):
    words = [*TINY, "--datadir", str(image_folder), "--rule", "upstream", "--alternate_crop", "48"]
    made = plan.make_plan(parsing.parse(words, "x", registry.find)[0])
    assert made.resolution.largest == 48 and made.model_notes["crop"] == 32
    assert dict(made.rows())["resolution"].endswith("training crops of 48 in every second step")

    def steps(start):
        streams = loader.training_batches(
            made.data.train, made.subset, made.resolution, 8, 0, 1, start=start, inception=True
        )
        return list(itertools.islice(streams, 4 - start))

    whole, late = steps(0), steps(3)
    assert [one.pixels.shape[2:] for one in whole] == [(32, 32), (48, 48), (32, 32), (48, 48)]
    assert np.array_equal(whole[3].pixels, late[0].pixels)
    done = pretrain(*words[:-4], *words[-2:], "--steps", 3, "--logdir", tmp_path, "--name", "run")
    assert done.returncode == 0, done.stderr
    assert find_trained(str(tmp_path / "run")).preprocessing == Preprocessing(32, 36)


def test_help_explains_upstream():
    done = pretrain("--help")
    assert done.returncode == 0 and "Inception crops of 224" in done.stdout
    assert "--batch 4096" in done.stdout and "--epochs" in done.stdout
    words = " ".join(done.stdout.split())
    for said in ("the recipe of bit_paddle.pretrain (default: upstream)", "(default: 4096)",
                 "(default: 0.0001)", "(default: 90)", "(default: 256)"):  # fmt: skip
        assert said in words, said


def test_it_knows_one_rule():
    for words in (["--rule", "code"], ["--rule=paper"]):
        with pytest.raises(ConfigError, match="pretrain always is --rule upstream"):
            pretraining.main(["--model", "R50x1", "--dataset", "digits", *words])


def test_an_epoch_of_fewer_images_than_a_batch_is_said(image_folder):
    """36 images in steps of 64."""
    words = [*TINY, "--datadir", str(image_folder), "--rule", "upstream", "--from_scratch"]
    said = "an epoch is one step of 64 images, 1.8 times the training set"
    for batch, expected in ((64, True), (36, False)):
        settings, _ = parsing.parse([*words, "--batch", str(batch)], "x", registry.find)
        assert (said in " ".join(plan.make_plan(settings).notes())) == expected


@pytest.mark.parametrize("name", ["BiT-S-R50x1", "BiT-M-R50x1"])
def test_recipes_can_be_planned(name):
    path = ROOT / "configs" / "pretrain" / f"{name}.yaml"
    words = ["--config", str(path), "--gpus", "8", "--images_per_second", "700"]
    words += [] if name == "BiT-S-R50x1" else ["--images", "14197122", "--classes", "21843"]
    done = run("plan", *words)
    assert done.returncode == 0, done.stderr
    steps = {"BiT-S-R50x1": "28,170", "BiT-M-R50x1": "312,030"}[name]
    assert f"{steps} steps of 4096 images" in done.stdout and steps in path.read_text()
    assert "256 -> 224, by the upstream rule" in done.stdout
