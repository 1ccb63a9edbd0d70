"""Class activation maps add up to the logit, and their pictures lie where the network looked."""

import csv
from dataclasses import replace

import numpy as np
import paddle
import pytest
from helpers import commands
from PIL import Image

import bit_paddle as bit
from bit_paddle import create_model, save_npz
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.data.transforms import evaluation_view
from bit_paddle.errors import ConfigError
from bit_paddle.inference import predictor
from bit_paddle.inference.model import TrainedModel
from bit_paddle.inference.trained import find_trained
from bit_paddle.models.native import build


def scene(width, height, box, seed):
    """Return grey noise with an object of colours in a box (left, top, right, bottom)."""
    random = np.random.default_rng(seed)
    pixels = random.integers(100, 130, (height, width, 3)).astype(np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = random.integers(0, 255, (bottom - top, right - left, 3))
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def finder(tmp_path_factory):
    """A model whose class "object" has the weights that tell an object's place from the ground."""
    network = create_model("R14x0.5", num_classes=2, seed=1)
    network.eval()
    pixels = np.asarray(scene(256, 256, (96, 96, 160, 160), 5)).transpose(2, 0, 1)[None]
    with paddle.no_grad():
        last = network.forward_maps(paddle.to_tensor(pixels / np.float32(127.5) - np.float32(1)))[1]
    last = last.numpy()[0]
    direction = last[:, 4, 4] - last.mean(axis=(1, 2))
    network.head.weight.set_value(np.stack([direction, -direction], axis=1))
    network.head.bias.set_value(np.array([0.25, -0.5], np.float32))
    path = tmp_path_factory.mktemp("finder") / "model.npz"
    save_npz(network, path, notes={"classes": ["object", "ground"], "crop": 256})
    return path


def test_maps_add_up_to_the_logits(dtype):
    model = create_model("R14x0.5", num_classes=4, seed=2)
    random = np.random.default_rng(0)
    model.head.weight.set_value(random.normal(size=(1024, 4)).astype(dtype))
    model.head.bias.set_value(random.normal(size=4).astype(dtype))
    model.eval()
    images = random.uniform(-1, 1, (3, 3, 96, 75)).astype(dtype)
    whole = predictor.infer(model, images)
    assert whole.dtype == dtype and predictor.class_maps(model, images).logits.dtype == dtype
    for outputs in (None, np.array([3, 0, 1])):
        found = predictor.class_maps(model, images, outputs)
        assert found.maps.shape == (3, 3, 3) and found.maps.std(axis=(1, 2)).min() > 0
        assert np.array_equal(found.logits, whole)
        chosen = whole.argmax(axis=1) if outputs is None else outputs
        tolerance = {"float64": 1e-13, "float32": 1e-5}[dtype] * np.abs(found.maps).max()
        sums = found.maps.mean(axis=(1, 2)) + found.biases
        np.testing.assert_allclose(sums, whole[np.arange(3), chosen], rtol=0, atol=tolerance)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_compiled_operators_give_the_same_maps(amp, finder):
    file = find_trained(str(finder))
    network = create_model(finder)
    network.amp = amp
    network.eval()
    operators, _ = build.choose("cpu", amp, lambda text: None)
    picture = scene(256, 256, (30, 40, 90, 100), 1)
    plain = predictor.class_maps(network, np.asarray(picture).transpose(2, 0, 1)[None])
    network.compute_with(operators)
    network.eval()
    compiled = predictor.class_maps(network, np.asarray(picture).transpose(2, 0, 1)[None])
    assert plain.maps.dtype == compiled.maps.dtype == np.float32
    scale = np.abs(plain.maps).max()
    bound = scale * {"off": 1e-4, "bf16": 0.1}[amp]
    np.testing.assert_allclose(compiled.maps, plain.maps, rtol=0, atol=bound)
    own = TrainedModel(file, "cpu", amp).explain(picture)
    total = own.map.mean() + own.bias
    assert total == pytest.approx(own.logits[own.output], abs=1e-5 * float(scale))


PLACES = [
    ((400, 300), (90, 40, 130, 80)),
    ((400, 300), (270, 220, 310, 260)),
    ((512, 512), (40, 400, 100, 460)),
    ((300, 420), (200, 100, 240, 140)),
]


@pytest.mark.parametrize("view", [Preprocessing(256), Preprocessing(224, 256)], ids=str)
def test_an_object_is_where_the_map_is_bright(view, finder):
    """On average to a few pixels. Cells stretched over the crop would be 16 and more to the right
    and below."""
    model = TrainedModel(replace(find_trained(str(finder)), preprocessing=view), "cpu")
    errors = []
    for number, (size, box) in enumerate(PLACES):
        shown = model.explain(scene(*size, box, number), "object")
        assert shown.map.shape == (-(-view.crop // 32),) * 2 and shown.map.dtype == np.float32
        heat = np.asarray(shown.heat(), np.float64)
        assert heat.shape == size[::-1] and heat.max() > 240
        heat[heat < 128] = 0
        rows, columns = np.indices(heat.shape)
        found = np.array([(columns * heat).sum(), (rows * heat).sum()]) / heat.sum()
        errors.append(found - [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    assert np.abs(errors).max() < 32 and np.abs(np.mean(errors, axis=0)).max() < 8, errors


def test_the_overlay_leaves_out_what_was_not_seen(finder):
    view = Preprocessing(224, 256)
    model = TrainedModel(replace(find_trained(str(finder)), preprocessing=view), "cpu")
    picture = scene(400, 300, (200, 100, 240, 140), 0)
    shown = model.explain(picture)
    left, top, right, bottom = shown.seen  # 341 x 256, from (58, 16)
    assert shown.seen == pytest.approx((58 * 400 / 341, 18.75, 282 * 400 / 341, 281.25))
    outside = np.ones((300, 400), bool)
    outside[round(top) : round(bottom), round(left) : round(right)] = False
    assert (np.asarray(shown.heat())[outside] == 0).all()
    overlay = np.asarray(shown.overlay()).astype(int)
    assert overlay.shape == (300, 400, 3)
    assert (np.ptp(overlay[outside], axis=1) <= 4).all()  # grey: no colours
    assert np.ptp(overlay[~outside], axis=1).max() > 100
    assert (overlay[round(top), round(left) : round(right)] == 255).all()  # the frame
    tiny = model.explain(picture.resize((40, 30)))
    assert tiny.overlay().size == tiny.heat().size == (256, 192)
    assert model.explain(picture.resize((3000, 2000))).overlay().size == (1024, 683)


@pytest.mark.parametrize("size", [(100, 100), (64, 200), (333, 120)])
@pytest.mark.parametrize("centre", ["down", "even"])
def test_seen_is_the_crop(size, centre):
    """Of a picture whose bands are coordinates, the corners of the crop are those of `seen`."""
    width, height = size
    columns, rows = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([columns, rows, 0 * rows], axis=-1).round().astype(np.uint8)
    view = Preprocessing(51, 60, centre=centre)
    crop = evaluation_view(Image.fromarray(pixels), view).astype(float)
    left, top, right, bottom = view.seen(*size)
    for band, low, high, side in ((0, left, right, width), (1, top, bottom, height)):
        ends = (crop[band].min() * side / 255, crop[band].max() * side / 255)
        assert ends == pytest.approx((low, high), abs=1 + side / 60)
    assert Preprocessing(51).seen(*size) == (0, 0, *size)


def test_in_python(finder):
    model = bit.load(finder)
    picture = scene(120, 90, (10, 10, 40, 40), 3)
    shown, other = model.explain(picture), model.explain(picture, "ground")
    assert shown.label == "object" and model.explain(picture, 1).label == other.label == "ground"
    assert np.array_equal(shown.logits, model.logits(picture)[0])
    assert shown.probability == pytest.approx(dict(model(picture))["object"])
    assert (shown.bias, other.bias) == (0.25, -0.5)
    np.testing.assert_allclose(other.map, -shown.map, rtol=1e-6)
    assert other.map.mean() + other.bias == pytest.approx(shown.logits[1], rel=1e-5)
    html = shown._repr_html_()
    assert 'src="data:image/png;base64,' in html and "object" in html and "+ bias 0.250" in html
    assert len(repr(shown)) < 3000 and "Image" not in repr(shown)


def test_a_model_of_another_scaling(finder):
    """Its pixels are scaled by its own mean and std, for maps too."""
    view = Preprocessing(64, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    model = TrainedModel(replace(find_trained(str(finder)), preprocessing=view), "cpu")
    picture = scene(120, 90, (10, 10, 40, 40), 3)
    shown = model.explain(picture)
    assert np.array_equal(shown.logits, model.logits(picture)[0])
    assert not np.allclose(shown.logits, bit.load(finder, crop=64).logits(picture)[0], rtol=1e-3)


def test_what_cannot_be_explained(finder, tmp_path):
    model = bit.load(finder)
    picture = scene(120, 90, (10, 10, 40, 40), 3)
    for label, words in (
        ("objects", "did you mean object"),
        (2, "expected 0 to 1"),
        (True, "no class"),
    ):
        with pytest.raises(ConfigError, match=words):
            model.explain(picture, label)
    bit.export(model, "paddle", tmp_path / "served")
    with pytest.raises(ConfigError, match="served: is an export, not the checkpoint"):
        bit.load(tmp_path / "served").explain(picture)
    save_npz(create_model("R14x0.5", num_classes=0), tmp_path / "none.npz", {"crop": 32})
    with pytest.raises(ConfigError, match="has no head"):
        bit.load(tmp_path / "none.npz").explain(picture)
    picture.save(tmp_path / "a.png")
    for more, words in (
        (["--model", tmp_path / "served"], "is an export, not the checkpoint"),
        (["--model", finder, "--features", tmp_path / "x.npz"], "--features: cannot"),
        (["--model", finder, "--views", "flip"], "--views: cannot be combined with"),
    ):
        done = commands.run_here("predict", tmp_path / "a.png", *more, "--maps", tmp_path / "maps")
        assert done.returncode == 2 and words in done.stderr, done.stderr
        assert not (tmp_path / "maps").exists()


def test_predict_writes_maps(finder, tmp_path):
    """Two pictures per image; images of one name do not overwrite each other."""
    root = tmp_path / "images"
    for folder in ("a", "b"):
        (root / folder).mkdir(parents=True)
        scene(120, 90, (10, 10, 40, 40), len(folder)).save(root / folder / "same name.png")
    (root / "b" / "broken.png").write_text("no image")
    plain = commands.run_here("predict", root, "--model", finder, "--format", "csv")
    done = commands.run_here("predict", root, "--model", finder, "--format", "csv", "--batch", 2,
                             "--maps", tmp_path / "new" / "maps")  # fmt: skip
    assert done.returncode == plain.returncode == 1 and "broken.png" in done.stderr
    assert done.stdout == plain.stdout
    folder = tmp_path / "new" / "maps"
    rows = list(csv.DictReader(open(folder / "maps.csv")))
    assert [row["image"] for row in rows] == [str(root / f / "same name.png") for f in "ab"]
    files = [row[kind] for row in rows for kind in ("heat", "overlay")]
    assert files == [f"same_name{n}-{kind}.png" for n in ("", "-2") for kind in ("heat", "overlay")]
    assert {path.name for path in folder.iterdir()} == {"maps.csv", *files}
    model = bit.load(finder)
    for row in rows:
        shown = model.explain(row["image"])
        assert row["class"] == shown.label
        assert float(row["logit"]) == pytest.approx(shown.logits[shown.output], rel=1e-4)
        with Image.open(folder / row["overlay"]) as picture, Image.open(row["image"]) as own:
            assert picture.size == (256, 192) and picture.mode == "RGB" and own.size == (120, 90)
            difference = np.asarray(picture, int) - np.asarray(shown.overlay(), int)
            assert np.abs(difference).max() <= 3
