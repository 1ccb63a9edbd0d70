"""The heads beside the linear one: numbers, files, runs, maps, exports, and what is refused."""

import shutil

import numpy as np
import paddle
import pytest
from conftest import run_train
from helpers.commands import run_here
from helpers.runs import assert_same, state_of

from bit_paddle import create_model, load, save_npz
from bit_paddle.config.settings import Settings
from bit_paddle.data import loader
from bit_paddle.errors import CheckpointError, ConfigError
from bit_paddle.inference import formats, predictor, verify
from bit_paddle.inference.trained import find_trained
from bit_paddle.models import cost, heads
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.models.native import build, plain
from bit_paddle.models.weights import load_npz
from bit_paddle.training.classification import frozen
from bit_paddle.training.classification.plan import make_plan
from bit_paddle.training.classification.task import loss_of

MODEL, OTHERS = "R14x0.5", ("max+mean", "local", "conv:64")


def made(head, classes=3, seed=2):
    """A network all of whose last layer is random too."""
    model = create_model(MODEL, classes, head=head, seed=seed)
    random = np.random.default_rng(0)
    for one in (*model.last_linear.parameters(), model.norm.bias):
        noise = random.normal(0, 0.1, one.shape)
        one.set_value((one.numpy() + noise).astype(paddle.get_default_dtype()))
    return model


def images_of(count, dtype, height=33, width=75):
    pixels = np.random.default_rng(1).uniform(-1, 1, (count, 3, height, width))
    return paddle.to_tensor(pixels.astype(dtype))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """{head: the file of a model}."""
    folder = tmp_path_factory.mktemp("heads")
    for head in OTHERS:
        notes = {"classes": ["a", "b", "c"], "crop": 64}
        save_npz(made(head), folder / f"{heads.last_name(head)}.npz", notes)
    return {head: folder / f"{heads.last_name(head)}.npz" for head in OTHERS}


# --- Numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
@pytest.mark.parametrize("head", OTHERS)
def test_gradients_are_those_of_finite_differences(head, dtype):
    """Of each parameter of the head, of a kernel before it in each stage, and of the images."""
    model, images = made(head), images_of(2, dtype)
    images.stop_gradient = False
    labels, random = np.array([0, 2]), np.random.default_rng(3)

    def loss():
        return -paddle.nn.functional.log_softmax(model(images))[np.arange(2), labels].sum()

    loss().backward()
    every = dict(model.named_parameters())
    names = [name for name in every if name.startswith("head.")]
    names += ["block3.unit01.b.conv.weight", "block4.unit01.a.norm.weight", "norm.bias"]
    for name, one in [*((name, every[name]) for name in names), ("images", images)]:
        direction = random.standard_normal(one.shape)
        direction /= np.linalg.norm(direction)
        expected, start, sides = float((one.grad.numpy() * direction).sum()), one.numpy(), []
        with paddle.no_grad():
            for step in (1e-5, -1e-5):
                one.set_value(start + step * direction)
                sides.append(float(loss()))
            one.set_value(start)
        found = (sides[0] - sides[1]) / 2e-5
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9), name
        assert expected != 0, name


@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
@pytest.mark.parametrize("head", OTHERS)
def test_a_head_computes_what_its_description_says(head, dtype):
    model, images = made(head), images_of(2, dtype)
    model.eval()
    with paddle.no_grad():
        third, last = (one.numpy() for one in model.stages(images, activated=True, skip=2))
        logits = model(images).numpy()
    flat = last.reshape(*last.shape[:2], -1)
    values = {name: one.numpy() for name, one in model.head.named_parameters()}
    joined = np.concatenate([flat.max(axis=2), flat.mean(axis=2)], axis=1)
    if head == "local":
        scores = np.einsum("nchw,c->nhw", third, values["attention3.weight"].ravel())
        coarse = np.einsum("nchw,c->nhw", last, values["attention4.weight"].ravel())
        scores += coarse.repeat(2, 1).repeat(2, 2)[:, : scores.shape[1], : scores.shape[2]]
        weights = np.exp(scores - scores.max())
        weights /= weights.sum(axis=(1, 2), keepdims=True)
        joined = np.concatenate([joined, np.einsum("nchw,nhw->nc", third, weights)], axis=1)
    elif head != "max+mean":
        kernel = values["projection.conv.weight"][:, :, 0, 0]
        kernel = (kernel - kernel.mean(axis=1, keepdims=True)) / kernel.std(axis=1, keepdims=True)
        grouped = np.einsum("ncp,dc->ndp", flat, kernel).reshape(2, heads.GROUPS, -1)
        mean, variance = (f(grouped, axis=2, keepdims=True) for f in (np.mean, np.var))
        normal = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(2, 64, -1)
        joined = np.maximum(normal, 0).mean(axis=2)
    last_layer = [one.numpy() for one in model.last_linear.parameters()]
    np.testing.assert_allclose(logits, joined @ last_layer[0] + last_layer[1], atol=1e-9)
    with paddle.no_grad():
        np.testing.assert_allclose(model.forward_joined(images).numpy(), joined, atol=1e-9)


@pytest.mark.parametrize("head", OTHERS)
def test_a_new_head_gives_zero_and_the_rest_depends_on_the_seed(head):
    one, same, other = (create_model(MODEL, 3, head=head, seed=seed) for seed in (4, 4, 5))
    assert not one(images_of(1, "float32")).numpy().any()
    names = {name for name, _ in one.head.named_parameters()}
    for name in names:
        values = [dict(net.head.named_parameters())[name].numpy() for net in (one, same, other)]
        assert np.array_equal(*values[:2])
        random = name.startswith(("attention", "projection.conv"))
        assert np.array_equal(values[0], values[2]) != random, name
    assert one.architecture.parameters(3) == sum(each.size for each in one.parameters())


@pytest.mark.parametrize("head", OTHERS)
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_compiled_operators_and_half_precision_compute_the_same(head, amp):
    model, images = made(head), images_of(2, "float32")
    expected = model(images).numpy()
    model.amp = amp
    model.compute_with(build.choose("cpu", amp, lambda text: None)[0])
    found = model(images)
    limit = {"off": 1e-5, "bf16": 0.05}[amp]
    assert np.abs(found.numpy() - expected).max() <= limit * np.abs(expected).max()
    found.sum().backward()
    for name, one in model.head.named_parameters():
        assert np.isfinite(one.grad.numpy()).all() and one.grad.numpy().any(), name


# --- Files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", OTHERS)
def test_a_file_tells_its_head(head, stored, tmp_path):
    model, expected = create_model(stored[head]), made(head)
    assert model.architecture == expected.architecture and model.architecture.head == head
    assert model.num_classes == 3 and find_trained(str(stored[head])).head == head
    for one, other in zip(model.parameters(), expected.parameters()):
        assert np.array_equal(one.numpy(), other.numpy())
    paddle.save(model.state_dict(), str(tmp_path / "same.pdparams"))
    same = create_model(tmp_path / "same.pdparams")
    assert same.architecture.head == head
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in
               zip(same.parameters(), model.parameters()))  # fmt: skip


@pytest.mark.parametrize("head", OTHERS)
def test_a_file_is_the_start_of_any_head(head, stored):
    for new in ("linear", *OTHERS):
        model = create_model(stored[head], 7, head=new, seed=9)
        assert model.architecture.head == new and not model.last_linear.weight.numpy().any()
        assert np.array_equal(model.norm.bias.numpy(), made(head).norm.bias.numpy())
    assert create_model(stored[head], 7).architecture.head == "linear"
    without = create_model(stored[head], 0)
    assert without.forward_features(images_of(1, "float32")).shape == [1, 1024]


def test_a_wrong_head_is_reported_both_ways(stored, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        load_npz(create_model(MODEL, 3, head="local"), stored["conv:64"])
    text = str(caught.value)
    assert "not those of R14x0.5 with a head (local) of 3 outputs" in text
    assert "missing (4):" in text and "resnet/head/attention3/kernel [1, 1, 512, 1]" in text
    assert "unexpected (5):" in text and "resnet/head/projection/group_norm/gamma [64]" in text
    load_npz(create_model(MODEL, 3, head="local"), stored["conv:64"], head="zero")
    arrays = dict(np.load(stored["local"]))
    del arrays["resnet/head/attention4/kernel"]
    np.savez(tmp_path / "less.npz", **arrays)
    with pytest.raises(CheckpointError, match="attention4/kernel"):
        find_trained(str(tmp_path / "less.npz"))
    arrays = dict(np.load(stored["conv:64"]))
    arrays["resnet/head/conv_mean/kernel"] = np.zeros((50, 3), np.float32)
    np.savez(tmp_path / "odd.npz", **arrays)
    fault = pytest.raises(CheckpointError, match="conv:C, where C is a multiple of 32")
    with CheckpointFile(tmp_path / "odd.npz") as file, fault:
        file.architecture()


@pytest.mark.parametrize("head, fault", [
    ("max-mean", "did you mean max\\+mean"), ("conv", "expected conv:C"),
    ("conv:50", "multiple of 32"), ("conv:0", "multiple of 32"), ("local:3", "'local:3'"),
])  # fmt: skip
def test_unknown_heads_are_refused(head, fault):
    with pytest.raises(ConfigError, match=fault):
        create_model(MODEL, 3, head=head)
    done = run_here("train", "--model", MODEL, "--dataset", "digits", "--head", head)
    assert done.returncode == 2 and "--head: is" in done.stderr


def test_a_new_head_needs_classes():
    for classes in (None, 0):
        with pytest.raises(ConfigError, match="give num_classes"):
            create_model("BiT-Mini", classes, head="local")


# --- Runs ---------------------------------------------------------------------------------------


def run(model, data, logs, name, head, *more):
    done = run_train("--model", model, "--dataset", "folder", "--datadir", data, "--precrop", 36,
                     "--crop", 32, "--batch", 8, "--steps", 4, "--base_lr", 0.05, "--save_every",
                     1, "--eval_every", 2, "--keep", 9, "--logdir", logs, "--name", name,
                     "--head", head, *more)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return logs / name


@pytest.mark.parametrize("head", OTHERS)
def test_a_run_learns_the_head_resumes_and_may_be_split(head, stored, image_folder, tmp_path):
    """It starts from a model with another head."""
    start = stored[OTHERS[OTHERS.index(head) - 1]]
    whole = run(start, image_folder, tmp_path, "whole", head)
    assert f"a new head ({head}) of 3 outputs" in (whole / "train.log").read_text()
    shutil.copytree(whole, tmp_path / "again")
    for at in (3, 4):
        (tmp_path / f"again/checkpoints/step-{at:08d}.npz").unlink(missing_ok=True)
    (tmp_path / "again/result.json").unlink(), (tmp_path / "again/model.npz").unlink()
    again = run(start, image_folder, tmp_path, "again", head)
    assert "resumes after step 2" in (again / "train.log").read_text()
    assert_same(state_of(again), state_of(whole))
    parts = run(start, image_folder, tmp_path, "parts", head, "--batch_split", 4)
    model = create_model(whole / "model.npz")
    assert model.architecture.head == head
    with np.load(whole / "model.npz") as one, np.load(parts / "model.npz") as two:
        own = [key for key in one if heads.is_key(key)]
        for key in own:
            assert np.abs(one[key] - two[key]).max() <= 1e-4 * max(1e-2, np.abs(one[key]).max())
            assert key.endswith("gamma") or one[key].any(), key
    assert len(own) == len(list(model.head.parameters()))
    done = run_train("--model", start, "--dataset", "folder", "--datadir", image_folder,
                     "--precrop", 36, "--crop", 32, "--batch", 8, "--steps", 4, "--logdir",
                     tmp_path, "--name", "again")  # fmt: skip
    assert done.returncode == 2 and f"head: {head} -> linear" in done.stderr


@pytest.mark.parametrize("head", OTHERS)
def test_the_head_alone_learns_as_in_a_whole_network(head, stored, image_folder):
    """All of its parameters, and also from remembered outputs where they are one array."""
    fixed = {"flip": False, "random_crop": False, "learn": "head", "head": head, "workers": 0}
    given = {"precrop": 36, "crop": 32, "batch": 8, "steps": 9}
    plan = make_plan(Settings(str(stored[head]), "folder", str(image_folder), **given, **fixed))
    assert frozen.are_remembered(plan) == (head != "local")
    pixels = np.random.default_rng(5).integers(0, 256, (4, 3, 32, 32)).astype(np.uint8)
    part = loader.MicroBatch(pixels, np.arange(4) % 3, np.arange(4))
    gradients = []
    for learn in ("all", "head", "remembered"):
        model, outputs = made(head), None
        model.learn_only(learn if learn != "remembered" else "head")
        if learn == "remembered":
            if head == "local":
                assert "this head takes two of their outputs" in plan.describe()
                continue
            values = model.frozen_part(paddle.to_tensor(pixels / np.float32(127.5) - 1)).numpy()
            size = cost.boundary_bytes(plan.architecture, 32, "head")
            assert values.nbytes == 4 * size
            outputs = frozen.Outputs(np.arange(4), values, "float32")
        loss_of(model, part, 4, outputs=outputs).backward()
        gradients.append({name: one.grad.numpy() for name, one in model.head.named_parameters()})
        assert learn == "all" or not any(one.grad is not None for one in model.block4.parameters())
    for name, expected in gradients[0].items():
        for found in gradients[1:]:
            np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("learn", ["all", "head"])
@pytest.mark.parametrize("head", ["local", "conv:512", "max+mean"])
def test_the_estimate_is_what_paddle_asks_for(head, learn):
    """By Paddle's own count of a CPU's memory, between two sizes of micro-batch."""
    core = paddle.base.core
    if not hasattr(core, "host_memory_stat_reset_peak_value"):
        pytest.skip("this Paddle cannot count anew")
    model, peaks = made(head), []
    model.learn_only(learn)
    for images in (8, 24):
        pixels = np.zeros((images, 3, 96, 96), np.uint8)
        part = loader.MicroBatch(pixels, np.arange(images) % 3, np.arange(images))
        before = core.host_memory_stat_current_value("Allocated", 0)
        core.host_memory_stat_reset_peak_value("Allocated", 0)
        with model.standardized_once():
            loss_of(model, part, images).backward()
        peaks.append(core.host_memory_stat_peak_value("Allocated", 0) - before)
        model.clear_gradients()
    estimate = cost.activations(model.architecture, 96, learn=learn)
    assert estimate == pytest.approx((peaks[1] - peaks[0]) / 16, rel=0.15)


def test_the_plan_counts_the_head(capsys):
    from bit_paddle import plan

    words = ["--model", "BiT-M-R50x1", "--dataset", "cifar10", "--head", "conv:256"]
    assert plan.main(words) == 0
    more = 2048 * 256 + 2 * 256 + 256 * 10 + 10
    found = capsys.readouterr().out
    assert f"R50x1: {23_500_352 + more:,} parameters with a head (conv:256) of 10" in found


# --- Maps and exports ---------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["max+mean", "conv:64"])
def test_maps_add_up_to_the_logits(head, dtype):
    model = made(head)
    model.eval()
    images = images_of(3, dtype, 96, 75).numpy()
    found = predictor.class_maps(model, images, np.array([2, 0, 1]))
    assert found.maps.shape == (3, 3, 3) and found.maps.std(axis=(1, 2)).min() > 0
    tolerance = {"float64": 1e-13, "float32": 1e-5}[dtype] * np.abs(found.maps).max()
    sums = found.maps.mean(axis=(1, 2)) + found.biases
    whole = predictor.infer(model, images)[np.arange(3), [2, 0, 1]]
    np.testing.assert_allclose(sums, whole, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("side, share", [(1, 1.0), (2, 0.25)])
def test_the_gradient_of_a_maximum(side, share, dtype):
    """Equal maxima share it. Over one place, amax of Paddle 2.6.2 leaves it unwritten."""
    x = paddle.ones([2, 64, side, side], dtype)
    x.stop_gradient = False
    plain.maximum(x).sum().backward()
    assert (x.grad.numpy() == share).all()


def test_a_maximum_counts_where_it_is():
    model = made("max+mean")
    weight = np.zeros((2048, 3), np.float32)
    weight[7, 1] = 1  # the maximum of one channel
    model.last_linear.weight.set_value(weight)
    model.eval()
    images = images_of(1, "float32", 96, 96).numpy()
    (map,) = predictor.class_maps(model, images, np.array([1])).maps
    with paddle.no_grad():
        last = model.stages(paddle.to_tensor(images), activated=True, skip=3)[0].numpy()[0, 7]
    assert np.count_nonzero(map) == 1 and map.argmax() == last.argmax()
    assert map.max() == pytest.approx(9 * last.max())


def test_a_local_head_shows_its_attention(stored, tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    model = load(stored["local"])
    assert "head: local" in repr(model)
    shown = model.explain(path)
    assert shown.attention and shown.map.shape == (4, 4) and (shown.map > 0).all()
    assert shown.map.sum() == pytest.approx(1, abs=1e-5)
    assert "the map is the attention of the head" in str(shown)
    bright = np.asarray(shown.heat(), int)  # 256 x 256; place i is centred on pixel 4 x 16 i
    row, column = np.unravel_index(shown.map.argmax(), (4, 4))
    peak = np.unravel_index(bright.argmax(), bright.shape)
    assert np.abs(np.array(peak) - 64 * np.array([row, column])).max() <= 24
    with pytest.raises(ConfigError, match="the same for every class"):
        model.explain(path, "b")
    done = run_here("predict", path, "--model", stored["local"], "--maps", tmp_path / "maps")
    assert done.returncode == 0 and (tmp_path / "maps/image-overlay.png").exists()


@pytest.mark.parametrize("head", OTHERS)
@pytest.mark.parametrize("format", ["paddle", "onnx", "npz"])
def test_exports_compute_the_same(format, head, stored, tmp_path):
    for package in formats.FORMATS[format].packages:
        pytest.importorskip(package)
    model, file = create_model(stored[head]), find_trained(str(stored[head]))
    model.eval()
    found = verify.export(model, file, format, tmp_path / "out")
    assert found is None or found.difference <= verify.LIMIT
    if format != "onnx":
        assert load(tmp_path / "out").file.head == head


def test_formats_of_others_refuse(stored, tmp_path):
    for format in ("safetensors-timm", "huggingface"):
        done = run_here("export", "--model", stored["local"], "--format", format, "--output",
                        tmp_path / "out")  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert "has a head (local), and the format holds linear heads only" in done.stderr
        assert "use one of paddle, pdparams, npz, onnx" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_report_draws_the_attention(stored, image_folder, tmp_path):
    folder = run(stored["local"], image_folder, tmp_path, "run", "local")
    done = run_here("report", folder)
    assert done.returncode == 0, done.stderr
    text = (folder / "report.html").read_text()
    assert "the attention of the head" in text and "class activation map" not in text
