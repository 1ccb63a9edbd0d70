"""Training with several labels per image: formulae, runs, and what each command makes of them."""

import csv
import json
from functools import partial

import numpy as np
import paddle
import pytest
from conftest import update
from helpers.commands import run_here
from helpers.losses import check_sets
from helpers.runs import assert_same, lines_of, state_of
from helpers.serving import running
from helpers.tags import NAMES, make_tags
from helpers.twin import Twin
from scipy.special import expit, log_expit

import bit_paddle as bit
from bit_paddle import create_model
from bit_paddle.api import Run
from bit_paddle.config import parsing
from bit_paddle.data.labels import LabelSets
from bit_paddle.data.loader import MicroBatch
from bit_paddle.data.readers import registry
from bit_paddle.errors import ConfigError, DataError
from bit_paddle.inference import probing
from bit_paddle.models import losses
from bit_paddle.system.device import to_device
from bit_paddle.training.classification import task
from bit_paddle.training.classification.plan import make_plan
from bit_paddle.training.optimizer import Momentum

TINY = ["--model", "R14x0.5", "--from_scratch", "--precrop", "36", "--crop", "32", "--batch", "8",
        "--workers", "0", "--base_lr", "0.05"]  # fmt: skip


@pytest.fixture(scope="module")
def tags(tmp_path_factory):
    return make_tags(tmp_path_factory.mktemp("tags"))


def data(tags):
    return ["--dataset", "folder", "--datadir", str(tags), "--separator", ";"]


def settings_of(tags, *more):
    return parsing.parse([*TINY, *data(tags), *map(str, more)], "train", registry.find)[0]


# --- Formulae -----------------------------------------------------------------------------------


def random_case(seed, images=6, classes=5):
    random = np.random.default_rng(seed)
    logits = 3 * random.normal(size=(images, classes))
    own, other = random.random((2, images, classes)) < 0.4
    return logits, own, other


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_the_loss_is_its_twin_in_numpy(scale):
    check_sets(losses.LOSSES["sigmoid"], scale)


@pytest.mark.parametrize("lam", [1.0, 0.3])
def test_gradients_are_those_of_the_formula(lam):
    """d loss / d logits = (sigmoid(logits) - targets) / N, where MixUp mixes the targets."""
    for seed in range(5):
        logits, own, other = random_case(seed)
        own[0], other[0] = False, False  # an image without a label
        tensor = paddle.to_tensor(logits, stop_gradient=False)
        loss = losses.LOSSES["sigmoid"]
        found = loss(tensor, own) if lam == 1 else losses.mixed(loss, tensor, own, other, lam)
        found.backward()
        targets = lam * own + (1 - lam) * other
        expected = -(targets * log_expit(logits) + (1 - targets) * log_expit(-logits)).sum() / 6
        assert float(found) == pytest.approx(expected, rel=1e-10)
        gradient = (expit(logits) - targets) / 6
        np.testing.assert_allclose(tensor.grad.numpy(), gradient, rtol=1e-10, atol=1e-12)


def test_one_label_per_image_is_the_case_of_one_column():
    logits, *_ = random_case(0)
    labels = np.array([0, 3, 1, 1, 4, 2])
    loss = losses.LOSSES["sigmoid"]
    sets = loss.losses(paddle.to_tensor(logits), np.eye(5, dtype=bool)[labels]).numpy()
    np.testing.assert_allclose(sets, loss.losses(paddle.to_tensor(logits), labels).numpy(), 1e-13)


@pytest.fixture
def float64():
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype("float32")


def batch_of(part, pixels, sets, order):
    partners = order[part]
    return MicroBatch(pixels[part], sets[part], part, pixels[partners], sets[partners])


@pytest.mark.parametrize("split, lam", [(1, 1.0), (3, 1.0), (1, 0.3), (4, 0.3)])
def test_a_trajectory_is_that_of_numpy(split, lam, float64):
    """Steps of the head with momentum, on features of the frozen network; uneven micro-batches."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (10, 3, 32, 32)).astype(np.uint8)
    sets = LabelSets.of([np.flatnonzero(random.random(4) < 0.4).tolist() for _ in range(9)] + [[]])
    order, rate = random.permutation(10), 0.02
    model = create_model("R14x0.5", 4, seed=0)
    model.learn_only("head")
    model.eval()
    optimizer = Momentum(rate, 0.9, model.parameters())
    mixed = to_device(pixels)
    if lam != 1:
        mixed = losses.mix(mixed, to_device(pixels[order]), lam)
    inputs = model.frozen_part(mixed)
    features = inputs.mean(axis=[2, 3]).numpy() if inputs.ndim == 4 else inputs.numpy()
    features = features.reshape(10, -1)
    targets = lam * sets.dense(4) + (1 - lam) * sets[order].dense(4)
    weights, bias = np.zeros((features.shape[1], 4)), np.zeros(4)
    velocity = [np.zeros_like(weights), np.zeros_like(bias)]
    for _ in range(20):
        parts = [batch_of(p, pixels, sets, order) for p in np.array_split(np.arange(10), split)]
        loss_of = partial(task.loss_of, name="sigmoid")
        found = update(model, optimizer, parts, rate, lam, loss_of=loss_of)
        logits = features @ weights + bias
        expected = -(targets * log_expit(logits) + (1 - targets) * log_expit(-logits)).sum() / 10
        assert found == pytest.approx(expected, rel=1e-10)
        gradient = (expit(logits) - targets) / 10
        velocity = [0.9 * velocity[0] + features.T @ gradient, 0.9 * velocity[1] + gradient.sum(0)]
        weights, bias = weights - rate * velocity[0], bias - rate * velocity[1]
    linear = model.last_linear
    np.testing.assert_allclose(linear.weight.numpy(), weights, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(linear.bias.numpy(), bias, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("split, lam", [(1, 1.0), (3, 0.3)])
def test_a_trajectory_of_the_whole_network_is_that_of_numpy(split, lam, float64):
    """Every weight after steps with momentum, on an image without a label too."""
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (5, 3, 32, 32)).astype(np.uint8)
    sets = LabelSets.of([[0, 2], [], [1], [0, 1, 3], [3]])
    order, rate = random.permutation(5), 0.02
    model = create_model("R14x0.5", 4, seed=0)
    model.last_linear.weight.set_value(0.1 * random.normal(size=[1024, 4]))
    twin = Twin({name: one.numpy().copy() for name, one in model.named_parameters()})
    velocity = {name: np.zeros_like(value) for name, value in twin.parameters.items()}
    optimizer = Momentum(rate, 0.9, model.parameters())
    views = pixels / 127.5 - 1
    views = lam * views + (1 - lam) * views[order]
    targets = lam * sets.dense(4) + (1 - lam) * sets[order].dense(4)
    for _ in range(4):
        parts = [batch_of(p, pixels, sets, order) for p in np.array_split(np.arange(5), split)]
        loss_of = partial(task.loss_of, name="sigmoid")
        found = update(model, optimizer, parts, rate, lam, loss_of=loss_of)
        logits, gradients = twin.gradients(views, lambda logits: (expit(logits) - targets) / 5)
        expected = -(targets * log_expit(logits) + (1 - targets) * log_expit(-logits)).sum() / 5
        assert found == pytest.approx(expected, rel=1e-10)
        for name, gradient in gradients.items():
            velocity[name] = 0.9 * velocity[name] + gradient
            twin.parameters[name] = twin.parameters[name] - rate * velocity[name]
    assert gradients.keys() == twin.parameters.keys()
    for name, one in model.named_parameters():
        wanted = twin.parameters[name]
        assert np.abs(one.numpy() - wanted).max() <= 1e-10 * np.abs(wanted).max(), name
        assert np.abs(gradients[name]).max() > 0, name


# --- Settings and the plan ----------------------------------------------------------------------


def test_the_data_choose_the_loss(tags):
    settings = settings_of(tags)
    assert settings.loss == "sigmoid"
    rows = dict(make_plan(settings).rows())
    text = "sigmoid cross-entropy, because an image may have several labels; the bias of a new"
    assert rows["loss"].startswith(text) and " starts at -0.167," in rows["loss"]
    assert "0 to 4 labels per image, mean 1.83; 2 images without any" in rows["classes"]
    plain = [*TINY, "--dataset", "digits"]
    assert parsing.parse(plain, "train", registry.find)[0].loss == "softmax"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--loss", "softmax"], "--loss: is softmax, but .* exactly one label is right"),
        (["--balance", "0.5"], "--balance: is 0.5, but an image of these data may have several"),
        (["--rule", "distill", "--teacher", "BiT-Mini"], "--rule: is distill, but an image"),
    ],
)
def test_what_does_not_fit_is_refused(words, message, tags):
    with pytest.raises(ConfigError, match=message):
        settings_of(tags, *words)


def test_few_shot_selects_by_labels(tags):
    plan = make_plan(settings_of(tags, "--examples_per_class", 2))
    assert (plan.class_counts >= 2).all() and len(plan.subset) <= 8


# --- Runs ---------------------------------------------------------------------------------------


def run(tags, folder, name, *more):
    done = run_here("train", *TINY, *data(tags), "--logdir", folder, "--name", name, *more)
    assert done.returncode == 0, done.stderr
    return folder / name


@pytest.fixture(scope="module")
def trained(tags, tmp_path_factory):
    return run(tags, tmp_path_factory.mktemp("runs"), "tags", "--steps", 60, "--batch", 24,
               "--no-flip", "--base_lr", "0.1")  # fmt: skip


def test_a_run_learns_the_labels(trained):
    first, last = (lines_of(trained, "train")[k]["loss"] for k in (0, -1))
    (line,) = lines_of(trained, "val")
    assert last < first / 2
    assert line["mean_average_precision"] > 0.9 and line["images"] == 12
    result = json.loads((trained / "result.json").read_text())
    assert result["mean_average_precision"] == line["mean_average_precision"]
    assert "top1" not in result and "mean average precision" in (trained / "train.log").read_text()


def test_a_resumed_run_has_the_same_bits(tags, tmp_path):
    whole = run(tags, tmp_path, "whole", "--steps", 4, "--save_every", 2)
    cut = run(tags, tmp_path, "cut", "--steps", 4, "--save_every", 2)
    for path in (cut / "result.json", cut / "model.npz", *(cut / "checkpoints").glob("*-4.npz")):
        path.unlink(missing_ok=True)
    for path in sorted((cut / "checkpoints").glob("step-*.npz"))[1:]:
        path.unlink()
    again = run(tags, tmp_path, "cut", "--steps", 4, "--save_every", 2)
    assert_same(state_of(again), state_of(whole))


def test_changed_labels_are_noticed(tags, tmp_path):
    copy = make_tags(tmp_path / "copy")
    run(copy, tmp_path, "changed", "--steps", 2)
    (tmp_path / "changed/result.json").unlink()
    path = copy / "labels.csv"
    path.write_text(path.read_text().replace("train/03.png,amber;blue", "train/03.png,amber"))
    done = run_here("train", *TINY, *data(copy), "--logdir", tmp_path, "--name", "changed",
                    "--steps", 2)  # fmt: skip
    assert done.returncode == 2 and "names and labels" in done.stderr


def test_folds(tags, tmp_path):
    folder = run(tags, tmp_path, "cv", "--steps", 2, "--folds", 3, "--no-save")
    content = json.loads((folder / "folds.json").read_text())
    assert content["pooled"]["images"] == 36
    with open(folder / "predictions.csv", newline="") as stream:
        head, *rows = csv.reader(stream)
    assert head[:6] == ["path", "fold", *(f"y({name})" for name in NAMES)] and len(rows) == 36
    expected = dict(line.split(",") for line in (tags / "labels.csv").read_text().splitlines())
    for path, _, *cells in rows:
        own = [name for name, cell in zip(NAMES, cells) if cell == "1"]
        assert ";".join(own) == expected[path]
    sklearn = pytest.importorskip("sklearn.metrics")
    truths, shares = (np.array([row[a:b] for row in rows], float) for a, b in ((2, 6), (6, 10)))
    ours = content["pooled"]["mean_average_precision"]
    assert ours == pytest.approx(sklearn.average_precision_score(truths, shares), abs=1e-12)
    assert "all folds: mean average precision" in (folder / "folds.txt").read_text()


def test_repeats(tags, tmp_path):
    folder = run(tags, tmp_path, "twice", "--steps", 2, "--repeats", 2, "--no-save")
    text = (folder / "repeats.txt").read_text()
    assert "mAP" in text and "micro F1" in text and "median" in text


def test_shards_give_the_same_bits(tags, tmp_path):
    """The index of the labels is mapped; weights and scores are those of the files."""
    description = bit.pack(tags, tmp_path / "packed", separator=";", shard_mb=0.05)
    files = run(tags, tmp_path, "files", "--steps", 3)
    done = run_here("train", *TINY, "--dataset", description, "--logdir", tmp_path, "--name",
                    "shards", "--steps", 3)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_same(state_of(tmp_path / "shards"), state_of(files))
    ours, theirs = (lines_of(tmp_path / name, "val")[-1] for name in ("shards", "files"))
    assert ours["mean_average_precision"] == theirs["mean_average_precision"]
    assert "loss: sigmoid" in (tmp_path / "shards/config.yaml").read_text()


def test_bad_images_are_skipped(trained, tmp_path):
    """Also by `evaluate`; an error if a label would lose its last image."""
    copy = make_tags(tmp_path / "copy")
    for name in ("train/03.png", "val/01.png"):
        (copy / name).write_bytes(b"no image")
    plan = make_plan(settings_of(copy, "--on_bad_image", "skip"))
    assert len(plan.subset) == 23 and len(plan.data.val) == 11 and len(plan.skipped) == 2
    whole = make_plan(settings_of(make_tags(tmp_path / "whole")))
    assert (whole.class_counts - plan.class_counts).tolist() == [1, 1, 0, 0]  # amber and blue
    result = bit.evaluate(trained, copy, separator=";", on_bad_image="skip")
    assert result.images == 11
    for number in range(8, 16):
        (copy / f"train/{number:02}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="--on_bad_image skip: no image of dun can be read"):
        make_plan(settings_of(copy, "--on_bad_image", "skip"))


# --- In use -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(trained, tags, tmp_path_factory):
    """The run's model is calibrated."""
    out = tmp_path_factory.mktemp("evaluated")
    done = run_here("evaluate", "--model", trained, *data(tags), "--calibrate", "--output", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_evaluate(evaluated, trained, tags):
    out, text = evaluated
    content = json.loads((out / "metrics.json").read_text())
    result = bit.evaluate(trained, tags, separator=";")
    line = lines_of(trained, "val")[-1]
    for name in ("mean_average_precision", "macro_f1", "micro_f1", "loss"):
        assert content[name] == getattr(result, name) == pytest.approx(line[name], abs=1e-6)
    low, high = content["intervals"]["mean_average_precision"]
    assert low <= content["mean_average_precision"] <= high
    assert content["own_thresholds"]["optimistic"] is True
    assert content["own_thresholds"]["macro_f1"] >= content["macro_f1"]
    assert list(content["own_thresholds"]["thresholds"]) == list(NAMES)
    assert "with the model's own threshold per label" in text
    with open(out / "per_class.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["label"] for row in rows] == list(NAMES) and rows[0]["images"] == "6"
    with open(out / "predictions.csv", newline="") as stream:
        rows = {row["path"]: row for row in csv.DictReader(stream)}
    assert rows["val/03.png"]["labels"] == "amber;blue" and rows["val/00.png"]["labels"] == ""
    assert str(result) in text and "mean average precision" in result._repr_html_()


def test_one_image_can_be_measured(trained, tags, tmp_path):
    (tmp_path / "one.png").write_bytes((tags / "val/07.png").read_bytes())
    (tmp_path / "labels.csv").write_text("path,labels\none.png,amber;blue;coral\n")
    spec = tmp_path / "one.yaml"
    spec.write_text("reader: folder\ndatadir: .\nseparator: ';'\nclasses: [amber, blue, coral]\n")
    result = bit.evaluate(trained, spec, split="all")
    assert result.images == 1 and 0 <= result.mean_average_precision <= 1
    with pytest.raises(ConfigError, match="too few images to hold some out"):
        bit.evaluate(trained, spec)


def test_predict_prints_all_labels_above_a_threshold(evaluated, trained, tags):
    images = [tags / f"val/{k:02}.png" for k in range(12)]
    for threshold in ("0.5", "auto"):
        words = ["--model", trained, "--threshold", threshold, "--format", "json"]
        done = run_here("predict", *images, *words)
        assert done.returncode == 0, done.stderr
        found = {row["image"][-6:]: row["classes"] for row in json.loads(done.stdout)}
        model = bit.load(trained)
        calibration = model.file.calibration
        least = np.full(4, 0.5) if threshold == "0.5" else np.array(calibration.thresholds)
        shares = model.file.probabilities(model.logits(images), threshold == "auto")
        for image, row in zip(images, shares):
            wanted = {NAMES[k]: float(row[k]) for k in range(4) if row[k] >= least[k]}
            got = {one["class"]: one["probability"] for one in found[image.name]}
            assert got == pytest.approx(wanted, rel=1e-6)
        python = model(images, threshold=threshold)
        assert [len(row) for row in python] == [len(found[image.name]) for image in images]
    table = run_here("predict", images[0], "--model", trained, "--threshold", 1)
    assert "no label reaches the threshold" in table.stdout
    done = run_here("predict", images[0], "--model", trained, "--threshold", "1.5")
    assert done.returncode == 2 and "expected a probability from 0 to 1, or auto" in done.stderr


def test_probe(tags, tmp_path):
    """The mean average precision of ridge regression, found in the space of the images."""
    metrics = pytest.importorskip("sklearn.metrics")
    head = tmp_path / "head.npz"
    done = run_here("probe", "--model", "BiT-Mini", *data(tags), "--crop", 32, "--seeds", 2,
                    "--output", head, "--results", tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (content,) = json.loads((tmp_path / "probe.json").read_text())
    assert "mean average precision in % on 12 images, 24 to train on" in done.stdout
    assert {row["method"] for row in content["rows"]} == {"ridge"}
    shots = [row["shots"] for row in content["rows"]]
    assert shots == [1, 5, 10, None] and len(content["rows"][0]["scores"]) == 2
    found = registry.open_dataset("folder", str(tags), separator=";")
    model = bit.load("BiT-Mini", crop=32)
    x, queries = (
        model.features([p.image(k) for k in range(len(p))]) for p in (found.train, found.val)
    )
    truths = found.train.labels.dense(4), found.val.labels.dense(4)
    errors, values = {}, {}
    mean, std = x.mean(axis=0, dtype=float), x.std(axis=0, dtype=float) + 1e-5
    one, other = (
        np.hstack([(each - mean) / std, np.full((len(each), 1), 100.0)]) for each in (x, queries)
    )
    kernel, y = one @ one.T, 2.0 * truths[0] - 1
    for strength in probing.STRENGTHS.tolist():  # in the space of the images, not the features
        solved = np.linalg.solve(kernel + strength * np.eye(24), np.hstack([y, kernel]))
        hat, values[strength] = solved[:, 4:].T, other @ one.T @ solved[:, :4]
        apart = (hat @ y - y) / (1 - np.diag(hat)[:, None])  # of each image by all the others
        errors[strength] = (apart**2).mean()
    best = min(errors, key=errors.get)
    wanted = metrics.average_precision_score(truths[1], values[best])
    assert content["strength"] == best and content["rows"][-1]["scores"] == [pytest.approx(wanted)]
    result = bit.evaluate(head, tags, separator=";")
    assert result.mean_average_precision == pytest.approx(wanted, abs=1e-9)
    np.testing.assert_allclose(result.outputs.logits, values[best], atol=2e-4)


@pytest.mark.parametrize("format, name", [("paddle", "served"), ("onnx", "tags.onnx")])
def test_exports_keep_the_thresholds(format, name, evaluated, trained, tags, tmp_path):
    if format == "onnx":
        for package in ("onnx", "onnxruntime"):
            pytest.importorskip(package)
    bit.export(trained, format, tmp_path / name)
    model, exported = bit.load(trained), bit.load(tmp_path / name)
    assert exported.file.calibration == model.file.calibration
    assert exported.file.loss == "sigmoid"
    images = [tags / f"val/{k:02}.png" for k in range(12)]
    for ours, theirs in zip(*(each(images, threshold="auto") for each in (exported, model))):
        assert [name for name, _ in ours] == [name for name, _ in theirs]
    wanted = bit.evaluate(model, tags, separator=";")
    found = bit.evaluate(exported, tags, separator=";")
    assert found.mean_average_precision == pytest.approx(wanted.mean_average_precision, abs=1e-3)
    assert found.chosen.scores.macro_f1 == pytest.approx(wanted.chosen.scores.macro_f1, abs=1e-3)


def described(tags, folder):
    """Return a description of the data, for commands without --separator."""
    spec = folder / "tags.yaml"
    spec.write_text(f"reader: folder\ndatadir: {tags}\nseparator: ';'\n")
    return spec


def test_quantize_measures_what_int8_costs(trained, tags, tmp_path):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    small = tmp_path / "small.onnx"
    found = bit.export(trained, "onnx", small, quantize=described(tags, tmp_path)).int8
    before = bit.evaluate(trained, tags, separator=";", runtime="onnxruntime")
    after = bit.evaluate(small, tags, separator=";")
    wanted = before.mean_average_precision, after.mean_average_precision
    assert (found.float32, found.int8) == wanted and found.images == 12
    assert found.interval == after.intervals["mean_average_precision"]
    decided = [one.outputs.logits >= 0 for one in (before, after)]
    assert found.same == np.mean(decided[0] == decided[1])
    assert str(found).startswith(f"int8: mean average precision {wanted[1]:.2%} (95% interval ")


@pytest.mark.slow
def test_bench_measures_the_mean_average_precision(trained, tags, tmp_path):
    path = tmp_path / "bench.json"
    done = run_here("bench", trained, "--dataset", described(tags, tmp_path), "--rounds", 1,
                    "--runtimes", "paddle", "--json", path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    wanted = bit.evaluate(trained, tags, separator=";").mean_average_precision
    assert rows[0]["mean_average_precision"] == pytest.approx(wanted, abs=1e-9)
    assert rows[0]["top1"] is None
    titles, first = done.stdout.splitlines()[3:5]
    assert titles.split()[-2:] == ["mAP", "logits"] and f" {wanted:.2%} " in first
    assert "mAP and logits: 12 validation images" in done.stdout


def weak(folder, names):
    """Write a model of these labels with random weights."""
    model = create_model("R14x0.5", 4, seed=3)
    weight = np.random.default_rng(0).normal(size=(1024, 4)).astype(np.float32)
    model.last_linear.weight.set_value(weight[:, [NAMES.index(name) for name in names]])
    facts = {"classes": list(names), "crop": 32, "settings": {"loss": "sigmoid"}}
    bit.save_npz(model, folder / "weak.npz", notes=facts)
    return folder / "weak.npz"


def test_compare(trained, tags, tmp_path):
    other = weak(tmp_path, NAMES[::-1])
    done = run_here("evaluate", "--model", other, "--compare", trained, *data(tags), "--output",
                    tmp_path / "out")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = bit.compare(other, trained, tags, separator=";")
    assert f"compared with {found.b.model}: {found}" in done.stdout
    content = json.loads((tmp_path / "out/comparison.json").read_text())
    for name, value in found.differences.items():
        one, two = (getattr(each, name) for each in (found.a, found.b))
        assert content[name] == [one, two] and content["differences"][name] == value == two - one
        low, high = content["difference_intervals"][name]
        assert low <= value <= high and high - low > 0
    with open(tmp_path / "out/differences.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sorted(row["label"] for row in rows) == sorted(NAMES)
    for row in rows:
        place = NAMES.index(row["label"])
        wanted = found.b.scores.average_precision[place]
        assert float(row["second"]) == pytest.approx(wanted, abs=1e-4)
        wanted = found.a.scores.average_precision[3 - place]
        assert float(row["first"]) == pytest.approx(wanted, abs=1e-4)
    same = bit.compare(trained, trained, tags, separator=";")
    assert set(same.differences.values()) == {0} and set(same.intervals.values()) == {(0, 0)}


def test_the_server_answers_with_all_labels(evaluated, trained, tags):
    for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        pytest.importorskip(package)
    with running(model=trained) as server:
        for threshold in ("auto", "0.5"):
            content = (tags / "val/03.png").read_bytes()
            words = {"data": content, "headers": {"Content-Type": "image/png"}}
            answer = server.post(f"/predict?threshold={threshold}", **words)
            (found,) = answer.json()["predictions"]
            pairs = [(one["name"], one["probability"]) for one in found["classes"]]
            assert pairs == bit.load(trained)(tags / "val/03.png", threshold=threshold)
        assert server.post("/predict?threshold=2", **words).status_code == 400


def test_own_thresholds_need_a_calibration(tags, tmp_path):
    folder = run(tags, tmp_path, "raw", "--steps", 1)
    done = run_here("predict", tags / "val/00.png", "--model", folder, "--threshold", "auto")
    assert done.returncode == 2 and "has no calibration" in done.stderr


def test_the_pages_show_such_runs(trained, tags, tmp_path):
    done = run_here("report", trained, "--output", tmp_path / "report.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report.html").read_text()
    assert "best mean average precision" in page and "Scores per label" in page
    assert (tmp_path / "report-labels.png").exists()
    done = run_here("show", *data(tags), "--output", tmp_path / "show", "--images", 8)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "show/per_class.csv", newline="") as stream:
        assert next(csv.DictReader(stream))["train_all"] == "12"
    steps = Run(trained).metrics
    assert "val_mean_average_precision" in steps[-1]


def test_audit_finds_copies_and_judges_no_labels(tags, tmp_path):
    pytest.importorskip("imagehash")
    copy = make_tags(tmp_path / "copy")
    (copy / "val/03.png").write_bytes((copy / "train/05.png").read_bytes())
    (copy / "train/00.png").write_bytes(b"no image")
    words = ["--dataset", "folder", "--datadir", copy, "--separator", ";"]
    done = run_here("audit", *words, "--model", "BiT-Mini", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "labels are not judged: an image of these data may have several" in done.stdout
    with open(tmp_path / "audit.csv", newline="") as stream:
        first, *rest = csv.DictReader(stream)
    assert first["path"] == "train/05.png" and first["label"] == "amber;coral"
    assert first["why"] == "same content, but the other has the label amber;blue"
    kinds = {row["kind"] for row in rest}
    assert "unreadable" in kinds and "label" not in kinds
    done = run_here("audit", *words, "--predictions", tmp_path / "none.csv")
    assert done.returncode == 2 and "--predictions: judges images with one label" in done.stderr


def test_a_softmax_model_is_refused(tags, tmp_path):
    model = create_model("R14x0.5", 4, seed=0)
    bit.save_npz(model, tmp_path / "model.npz", notes={"classes": list(NAMES), "crop": 32})
    with pytest.raises(ConfigError, match="was trained with the softmax loss, for exactly one"):
        bit.evaluate(tmp_path / "model.npz", tags, separator=";")


@pytest.mark.slow
def test_two_processes_measure_as_one(tags, tmp_path):
    one, two = (run(tags, tmp_path, f"of-{n}", "--steps", 4, "--nproc", n) for n in (1, 2))
    for name, value in lines_of(one, "val")[-1].items():
        if name not in ("kind", "time"):
            assert lines_of(two, "val")[-1][name] == pytest.approx(value, rel=1e-4)
