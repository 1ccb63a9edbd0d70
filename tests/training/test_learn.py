"""--learn: what is frozen stays as it is, costs little, and changes nothing for the rest."""

import shutil
from functools import partial

import numpy as np
import paddle
import pytest
from conftest import run_train, update
from helpers.runs import assert_same, state_of

from bit_paddle import create_model, plan, save_npz
from bit_paddle.config.settings import Settings
from bit_paddle.data import loader, transforms
from bit_paddle.errors import ConfigError
from bit_paddle.models import cost
from bit_paddle.models.architecture import LEARN, PARTS, Architecture, frozen_parts
from bit_paddle.models.layers import StdConv2D
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.recipes.hyperrule import Resolution
from bit_paddle.runs import snapshot
from bit_paddle.runs.checkpoints import open_checkpoint
from bit_paddle.runs.logbook import Silent
from bit_paddle.system.device import to_device
from bit_paddle.system.signals import Interrupt, Interrupted
from bit_paddle.training.classification import frozen
from bit_paddle.training.classification.plan import make_plan
from bit_paddle.training.classification.task import loss_of
from bit_paddle.training.optimizer import Momentum

MODEL = "R14x0.5"
FIXED = ("--no-flip", "--no-random_crop")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network with random kernels, and GroupNorms that are not the identity."""
    path = tmp_path_factory.mktemp("learn") / "start.npz"
    model, random = create_model(MODEL, 3, seed=3), np.random.default_rng(0)
    for one in model.parameters():
        if one.ndim == 1:
            noise = 0.1 * random.standard_normal(one.shape)
            one.set_value((one.numpy() + noise).astype("float32"))
    save_npz(model, path)
    return path


def model_of(learn, **options):
    model, random = create_model(MODEL, 3, seed=3), np.random.default_rng(0)
    head = random.standard_normal(model.head.weight.shape) / 64  # not 0, which learns nothing below
    model.head.weight.set_value(head.astype("float32"))
    for name, value in options.items():
        setattr(model, name, value)
    model.learn_only(learn)
    return model


def batch_of(count, side=32):
    random = np.random.default_rng(count)
    pixels = random.integers(0, 256, (count, 3, side, side)).astype(np.uint8)
    labels, order = np.arange(count) % 3, np.arange(count)
    return loader.MicroBatch(pixels, labels, order, pixels[::-1].copy(), labels[::-1])


def gradients_of(model, part, scale=1.0):
    """The gradients of the two micro-batches of a step, times ``scale``; the second has MixUp."""
    with model.standardized_once() as last_pass:
        (loss_of(model, part, len(part.labels)) * scale).backward()
        last_pass()
        (loss_of(model, part, len(part.labels), 0.7) * scale).backward()
    found = {name: one.grad for name, one in model.named_parameters()}
    return {name: None if one is None else one.numpy() for name, one in found.items()}


# --- What is frozen -----------------------------------------------------------------------------


@pytest.mark.parametrize("learn", LEARN)
def test_each_word_freezes_what_comes_before(learn):
    model, names = model_of(learn), PARTS if learn == "all" else PARTS[PARTS.index(learn) :]
    learned = model.learned()
    assert {name.split(".")[0] for name in learned} == set(names)
    assert len(learned) == sum(name.startswith(names) for name, _ in model.named_parameters())
    count = sum(one.size for one in learned.values())
    assert Architecture.parse(MODEL).learned_parameters(3, learn) == count


@pytest.mark.parametrize(
    "learn, recompute",
    [("head", "off"), ("block4", "off"), ("block4", "unit"), ("block1", "block")],
)
def test_what_learns_has_the_gradients_of_a_whole_network(learn, recompute):
    part = batch_of(4)
    expected = gradients_of(model_of("all"), part)
    model = model_of(learn, recompute=recompute)
    found = gradients_of(model, part)
    for name, gradient in found.items():
        if name.startswith(frozen_parts(learn)):
            assert gradient is None, name
        else:  # kernels are standardized in another order, if at all
            assert np.array_equal(gradient, expected[name]) and gradient.any(), name


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_learns_too(amp):
    scale = 2.0**12 if amp == "fp16" else 1.0
    found = gradients_of(model_of("block4", amp=amp), batch_of(4), scale)
    assert all(found[name].any() for name in model_of("block4").learned())
    kept = model_of("block4", amp=amp).frozen_part(to_device(batch_of(2).images))
    assert kept.dtype == {"bf16": paddle.bfloat16, "fp16": paddle.float16}[amp]
    assert model_of("head", amp=amp).frozen_part(to_device(batch_of(2).images)).dtype == (
        paddle.float32
    )


def test_frozen_kernels_are_standardized_once(monkeypatch, checkpoint):
    model, calls = model_of("block4"), []
    standardize = model.operators.standardize

    def counted(weight):
        calls.append(weight)
        return standardize(weight)

    monkeypatch.setattr(StdConv2D.operators, "standardize", counted)
    learned = sum(isinstance(one, StdConv2D) for one in model.block4.sublayers())
    for _ in range(2):
        gradients_of(model, batch_of(2))
    assert len(calls) == 2 * learned
    for change in (model.eval, model.train):
        change()
    before = model(to_device(batch_of(2).images)).numpy()
    state = create_model(checkpoint).state_dict()
    model.set_state_dict(state)
    after = model(to_device(batch_of(2).images)).numpy()
    model.learn_only("all")
    assert not model.frozen and len(model.learned()) == len(model.parameters())
    assert all(one.folded is None for one in model.sublayers() if isinstance(one, StdConv2D))
    whole = model(to_device(batch_of(2).images)).numpy()
    assert np.array_equal(after, whole) and not np.array_equal(after, before)


# --- A head on cached features ------------------------------------------------------------------


def trained_by_hand(features, labels, batches, rate):
    """Softmax regression by SGD with momentum, in NumPy."""
    weight, bias = np.zeros((features.shape[1], 3)), np.zeros(3)
    velocities = [np.zeros_like(weight), np.zeros_like(bias)]
    for rows in batches:
        logits = features[rows] @ weight + bias
        logits = np.exp(logits - logits.max(axis=1, keepdims=True))
        errors = logits / logits.sum(axis=1, keepdims=True) - np.eye(3)[labels[rows]]
        gradients = features[rows].T @ errors / len(rows), errors.mean(axis=0)
        for velocity, gradient, one in zip(velocities, gradients, (weight, bias)):
            velocity[...] = 0.9 * velocity + gradient
            one -= rate * velocity
    return weight, bias


@pytest.mark.parametrize("remembered", [False, True])
def test_a_head_is_what_it_is_on_cached_features(remembered):
    """In float64, over 50 steps, without crops."""
    before = paddle.get_default_dtype()
    paddle.set_default_dtype("float64")
    try:
        every = batch_of(24)
        model = create_model(MODEL, 3, seed=3)
        with paddle.no_grad():
            features = model.forward_features(to_device(every.images)).numpy()
        model.learn_only("head")
        outputs = None
        if remembered:
            values = model.frozen_part(to_device(every.images)).numpy()
            assert values.shape == (24, model.architecture.features)
            outputs = frozen.Outputs(np.arange(24), values, "float64")
        optimizer = Momentum(0.1, 0.9, list(model.learned().values()))
        batches = [loader.step_positions(24, 8, 0, at) for at in range(50)]
        for rows in batches:
            parts = np.array_split(rows, 2)
            parts = [loader.MicroBatch(every.images[p], every.labels[p], p) for p in parts]
            update(model, optimizer, parts, 0.1, loss_of=partial(loss_of, outputs=outputs))
        weight, bias = trained_by_hand(features, every.labels, batches, 0.1)
    finally:
        paddle.set_default_dtype(before)
    assert np.abs(weight).max() > 0.1
    assert np.abs(model.head.weight.numpy() - weight).max() < 1e-9
    assert np.abs(model.head.bias.numpy() - bias).max() < 1e-9


# --- A run --------------------------------------------------------------------------------------


def run(checkpoint, folder, logs, name, *more):
    done = run_train("--model", checkpoint, "--dataset", "folder", "--datadir", folder,
                     "--precrop", 36, "--crop", 32, "--batch", 9, "--steps", 6, "--base_lr", 0.05,
                     "--weight_decay", 0.1, "--logdir", logs, "--name", name, *more)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return logs / name


@pytest.fixture(scope="module")
def trained(checkpoint, image_folder, tmp_path_factory):
    """(what learns, whether views are fixed) -> the folder of a run with all its checkpoints."""
    logs = tmp_path_factory.mktemp("runs")
    more = ("--save_every", 1, "--keep", 9, "--eval_every", 3)
    return {
        (learn, bool(fixed)): run(
            checkpoint, image_folder, logs, f"{learn}{len(fixed)}", "--learn", learn, *fixed, *more
        )
        for learn, fixed in (("head", FIXED), ("block4", FIXED), ("block4", ()))
    }


def test_frozen_weights_keep_their_bits(trained, checkpoint):
    """With weight decay; and only what learns has momentum in the checkpoints."""
    start = dict(np.load(checkpoint))
    for (learn, _), folder in trained.items():
        (arrays, _), moved = state_of(folder), []
        for key, array in start.items():
            name = f"model/{key}"
            if not np.array_equal(arrays[name], array):
                moved.append(name)
        assert moved and all(key.split("/")[1].startswith("resnet") for key in moved)
        momentum = {key for key in arrays if snapshot.MOMENTUM in key}
        blocks = {"head": ("head",), "block4": ("head", "block4", "group_norm")}[learn]
        assert len(momentum) == len(moved)
        for key in [*moved, *momentum]:
            assert key.rpartition("resnet/")[2].startswith(blocks), key


def test_outputs_are_remembered_where_views_are_fixed(trained, checkpoint, image_folder, tmp_path):
    """A run that computes them in every step shows the same; the log tells which is which."""
    text = (trained["block4", True] / "train.log").read_text()
    assert "for the outputs of the frozen parts, computed once per image" in text
    assert "learns        block4, norm, head: " in text and "frozen parts 0." in text
    flags = ("--learn", "block4", *FIXED, "--cache_gb", 0)
    every = run(checkpoint, image_folder, tmp_path, "every", *flags)
    text = (every / "train.log").read_text()
    assert "do not fit in the cache: they are computed in every step" in text
    assert "frozen parts 0." not in text
    random = (trained["block4", False] / "train.log").read_text()
    assert "computed in every step, because the views are random" in random
    with np.load(every / "model.npz") as one, np.load(trained["block4", True] / "model.npz") as two:
        for key in one:
            if one[key].dtype == np.float32:
                assert np.abs(one[key] - two[key]).max() <= 1e-5 * np.abs(one[key]).max(), key


@pytest.mark.parametrize("learn, fixed", [("head", FIXED), ("block4", ())])
def test_a_resumed_run_ends_with_the_same_bits(
    learn, fixed, trained, checkpoint, image_folder, tmp_path
):
    whole = trained[learn, bool(fixed)]
    folder = tmp_path / "again"
    shutil.copytree(whole, folder)
    for at in (4, 5, 6):
        (folder / f"checkpoints/step-{at:08d}.npz").unlink(missing_ok=True)
    (folder / "result.json").unlink(), (folder / "model.npz").unlink()
    more = ("--save_every", 1, "--keep", 9, "--eval_every", 3)
    run(checkpoint, image_folder, tmp_path, "again", "--learn", learn, *fixed, *more)
    assert "resumes after step 3" in (folder / "train.log").read_text()
    assert_same(state_of(folder), state_of(whole))


@pytest.mark.slow
def test_two_processes_train_as_one(trained, checkpoint, image_folder, tmp_path):
    flags = ("--learn", "block4", *FIXED, "--save_every", 1, "--keep", 9, "--eval_every", 3)
    two = run(checkpoint, image_folder, tmp_path, "two", *flags, "--nproc", 2, "--shard")
    (found, _), (expected, _) = state_of(two), state_of(trained["block4", True])
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert np.abs(found[key] - array).max() <= 1e-4 * max(1e-3, np.abs(array).max()), key


def test_what_was_frozen_starts_without_momentum(trained, tmp_path):
    """A run that resumes from one that has learned less; and the other way round."""
    path = sorted((trained["head", True] / "checkpoints").glob("step-*"))[-1]
    assert open_checkpoint(path).notes["settings"]["learn"] == "head"
    model = ResNetV2(Architecture.parse(MODEL), 3)
    optimizer = Momentum(0.1, 0.9, model.parameters())
    snapshot.restore(model, optimizer, path)
    found = dict(zip(model.learned(), optimizer.velocities()))
    assert found["head.weight"].numpy().any()
    assert not any(one.numpy().any() for name, one in found.items() if "head" not in name)
    path = sorted((trained["block4", True] / "checkpoints").glob("step-*"))[-1]
    model.learn_only("head")
    optimizer = Momentum(0.1, 0.9, list(model.learned().values()))
    snapshot.restore(model, optimizer, path)
    assert len(optimizer.velocities()) == 2 and optimizer.velocities()[0].numpy().any()


# --- The plan -----------------------------------------------------------------------------------


def plan_of(checkpoint, folder, **changes):
    values = {"model": str(checkpoint), "dataset": "folder", "datadir": str(folder), "steps": 9,
              "precrop": 36, "crop": 32, "batch": 8, "workers": 0, "learn": "block4"}  # fmt: skip
    return make_plan(Settings(**{**values, **changes}))


def test_the_plan_tells_what_learns(checkpoint, image_folder):
    text = plan_of(checkpoint, image_folder).describe()
    assert "learns        block4, norm, head: 1.51 of 2.01 million weights" in text
    assert "learns" not in plan_of(checkpoint, image_folder, learn="all").describe()
    fixed = {"flip": False, "random_crop": False}
    remembered = plan_of(checkpoint, image_folder, **fixed)
    assert frozen.are_remembered(remembered) and frozen.bytes_of(remembered) == 36 * 2048 * 4
    assert "0.3 MB for the outputs of the frozen parts" in remembered.describe()
    for changes in ({"flip": True}, {"random_crop": True}, {"learn": "all"}, {"steps": 4},
                    {"cache_gb": 2e-4}):  # fmt: skip
        one = plan_of(checkpoint, image_folder, **{**fixed, **changes})
        assert not frozen.are_remembered(one), changes
    note = "With --no-crop --no-flip they are computed once per image"
    assert note in text
    assert note not in plan_of(checkpoint, image_folder, cache_gb=2e-4).describe()
    note = "--recompute has no effect"
    assert note in plan_of(checkpoint, image_folder, learn="head", recompute="unit").describe()
    assert note not in plan_of(checkpoint, image_folder, recompute="unit").describe()


def test_the_estimate_follows(capsys):
    def printed(learn, *more):
        words = ["--model", "BiT-M-R50x1", "--dataset", "cifar10", "--learn", learn, *more]
        assert plan.main(list(map(str, words))) == 0
        return capsys.readouterr().out

    every, block4, head = map(printed, ("all", "block4", "head"))
    assert "learns" not in every and "about 4.0 G" in every
    assert "block4, norm, head: 15.0 of 23.5 million weights" in block4 and "about 1.9 G" in block4
    assert "head: 0.0205 of 23.5 million weights" in head and "about 1.3 G" in head
    assert "gradients                 0.06 GiB" in block4
    assert "momentum                  0.00 GiB" in head
    fixed = printed("block4", "--no-flip", "--no-crop", "--examples_per_class", 100)
    assert "(262.1 MB) fit into the cache (--cache_gb). A step then takes 0.8 G" in fixed
    assert "views are fixed" not in block4 + printed("all", "--no-flip", "--no-crop")


def test_unknown_parts_are_refused():
    with pytest.raises(ConfigError, match="'block5': did you mean block4"):
        model_of("block5")


def test_random_weights_are_not_frozen(image_folder):
    done = run_train("--model", MODEL, "--from_scratch", "--learn", "head", "--dataset", "folder",
                     "--datadir", image_folder, "--dry-run")  # fmt: skip
    assert done.returncode == 2 and "--learn: is head, which keeps the weights" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("learn", ["head", "block4", "block2"])
def test_the_estimate_is_what_paddle_asks_for(learn):
    """By Paddle's own count of a CPU's memory, between two sizes of micro-batch."""
    core = paddle.base.core
    if not hasattr(core, "host_memory_stat_reset_peak_value"):
        pytest.skip("this Paddle cannot count anew")
    model, peaks = model_of(learn), []
    for images in (8, 24):
        part = batch_of(images, 96)
        for _ in range(2):
            model.clear_gradients()
            before = core.host_memory_stat_current_value("Allocated", 0)
            core.host_memory_stat_reset_peak_value("Allocated", 0)
            with model.standardized_once():
                loss_of(model, part, len(part.labels)).backward()
        peaks.append(core.host_memory_stat_peak_value("Allocated", 0) - before)
    measured = (peaks[1] - peaks[0]) / 16
    estimate = cost.activations(model.architecture, 96, learn=learn)
    assert estimate == pytest.approx(measured, rel=0.15)


# --- Computing the outputs ----------------------------------------------------------------------


def test_a_signal_ends_the_computation(checkpoint, image_folder):
    one = plan_of(checkpoint, image_folder, flip=False, random_crop=False)
    model, stop = create_model(checkpoint, 3), Interrupt()
    model.learn_only("block4")
    outputs = frozen.compute(one, model, 2, Silent(), stop)
    rows = np.array([7, 0, 30])
    images = one.data.train
    view = np.stack([np.stack(transforms.resized(images.image(k), (32, 32))) for k in rows])
    expected = model.frozen_part(to_device(view)).numpy()
    assert np.abs(outputs(rows).numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    stop.signal = 15
    with pytest.raises(Interrupted):
        frozen.compute(one, model, 2, Silent(), stop)


def test_batches_without_pixels_have_the_same_labels(image_folder):
    one = plan_of(MODEL, image_folder, from_scratch=True, learn="all")
    given = (one.data.train, one.subset, Resolution(32, 32), 9, 0)
    for workers in (0, 2):
        with_pixels, without = (
            loader.training_batches(*given, workers, decoded=decoded) for decoded in (True, False)
        )
        for _ in range(3):
            first, second = (list(next(one).micro_batches(2)) for one in (with_pixels, without))
            for a, b in zip(first, second):
                assert np.array_equal(a.labels, b.labels) and np.array_equal(a.indices, b.indices)
                assert len(a.images) and not len(b.images)
        with_pixels.close(), without.close()
