"""More than one look at an image: which pixels are seen, and how the answers are averaged."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers import commands
from PIL import Image

import bit_paddle as bit
from bit_paddle import create_model, save_npz
from bit_paddle.data import loader
from bit_paddle.data.preprocessing import Look, Preprocessing
from bit_paddle.data.transforms import evaluation_view
from bit_paddle.errors import ConfigError
from bit_paddle.inference import inputs, views
from bit_paddle.inference.trained import find_trained
from bit_paddle.models.losses import LOSSES

CLASSES = ["amber", "blue", "coral"]


def write_model(path, **notes):
    network = create_model("R14x0.5", num_classes=3, seed=1)
    random = np.random.default_rng(0)
    network.head.weight.set_value(random.normal(0, 0.3, (1024, 3)).astype(np.float32))
    save_npz(network, path, notes={"classes": CLASSES, "crop": 44, **notes})
    return path


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model.npz")


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3))
    image = Image.fromarray(pixels.astype(np.uint8))
    return image.resize((width, height), Image.Resampling.BICUBIC)


# --- Averages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_probabilities_are_averaged(name):
    loss, random = LOSSES[name], np.random.default_rng(0)
    logits = random.normal(0, 4, (6, 7, 5))
    mean = np.mean([loss.probabilities(part) for part in logits], axis=0)
    found = loss.mean_logits(logits)
    np.testing.assert_allclose(loss.probabilities(found), mean, rtol=1e-13)
    labels = random.integers(0, 5, 7)
    if name == "softmax":
        own = -np.log(mean[np.arange(7), labels])
    else:
        right = np.eye(5, dtype=bool)[labels]
        own = -np.where(right, np.log(mean), np.log1p(-mean)).sum(axis=1)
    np.testing.assert_allclose(loss.per_image(found, labels), own, rtol=1e-12)
    same = loss.probabilities(loss.mean_logits(np.stack([logits[0]] * 3)))
    np.testing.assert_allclose(same, loss.probabilities(logits[0]), rtol=1e-13)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_certainty_does_not_become_infinite(name):
    logits = np.array([[[2000.0, -2000.0]], [[1900.0, -1900.0]]])
    found = LOSSES[name].mean_logits(logits)
    assert np.isfinite(found).all() and found[0, 0] > found[0, 1] + 1000
    with np.errstate(invalid="ignore"):
        broken = LOSSES[name].mean_logits(np.array([[[np.nan, 1.0]], [[2.0, 1.0]]]))
    assert not np.isfinite(broken).all()  # which metrics count as wrong


# --- Looks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(300, 200), (120, 260), (128, 128)])
def test_five_crops_of_a_resized_image(size):
    """As torchvision's FiveCrop of Resize(128)."""
    image, view = picture(*size), Preprocessing(112, 128)
    width, height = (128 * side // min(size) for side in size)
    whole = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    top, left = int((height - 112) / 2), int((width - 112) / 2)
    boxes = {None: (top, left), (0, 0): (0, 0), (0, 1): (0, width - 112)}
    boxes |= {(1, 0): (height - 112, 0), (1, 1): (height - 112, width - 112)}
    for corner, (top, left) in boxes.items():
        expected = whole[:, top : top + 112, left : left + 112]
        assert np.array_equal(evaluation_view(image, view, corner), expected)


@pytest.mark.parametrize("resize", [None, 112])
def test_an_image_that_fits_is_enlarged_for_its_corners(resize):
    image, view = picture(300, 200), Preprocessing(112, resize)
    size = (128, 128) if resize is None else (192, 128)
    whole = np.asarray(image.resize(size, Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(evaluation_view(image, view, (1, 0)), whole[:, -112:, :112])
    assert np.array_equal(evaluation_view(image, view, (0, 1)), whole[:, :112, -112:])


@pytest.mark.parametrize(
    "text, count, work, sides",
    [
        (None, 1, 1, {64}),
        ("flip", 2, 2, {64}),
        ("five", 5, 5, {64}),
        ("scales", 3, 3.125, {48, 64, 80}),
        ("scales, five,flip", 30, 31.25, {48, 64, 80}),
    ],
)
def test_what_the_words_mean(text, count, work, sides, model_file):
    own = Preprocessing(64, 72, "bicubic", centre="even")
    words = views.parse(text)
    looks = views.looks(words, replace(find_trained(str(model_file)), preprocessing=own))
    assert looks[0] == Look(own) and len(set(looks)) == len(looks) == count
    assert views.cost(words) == (count, pytest.approx(work))
    assert {look.preprocessing.crop for look in looks} == sides
    assert sum(look.preprocessing.crop**2 for look in looks) / 64**2 == pytest.approx(work)
    for look in looks:
        view = look.preprocessing
        assert (view.filter, view.centre) == ("bicubic", "even")
        assert view.resize / view.crop == 72 / 64
    mirrored = sum(look.mirrored for look in looks)
    assert mirrored == (count // 2 if "flip" in words else 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_shows_every_look(workers):
    images = inputs.GivenImages([picture(80, 60, seed) for seed in range(5)])
    small, large = Preprocessing(32), Preprocessing(40, 48)
    looks = [Look(small), Look(large, (1, 1)), Look(small, None, True)]
    batches = list(loader.batches_of_looks(images, looks, 2, workers))
    assert [batch.indices.tolist() for batch in batches[::3]] == [[0, 1], [2, 3], [4]]
    for number, batch in enumerate(batches):
        view, corner, mirrored = looks[number % 3]
        for index, pixels in zip(batch.indices, batch.images):
            expected = evaluation_view(images.image(index), view, corner)
            assert np.array_equal(pixels, expected[..., ::-1] if mirrored else expected)


# --- Commands and Python ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(model_file, image_folder):
    """Return the validation images and their mean probabilities [15, 3] over 30 views."""
    model = bit.load(model_file)
    paths = sorted((image_folder / "val").rglob("*.png"))
    total = 0
    for crop in (44, 33, 55):
        for corner in (None, (0, 0), (0, 1), (1, 0), (1, 1)):
            side = crop if corner is None else round(crop * 8 / 7)
            top, left = (0, 0) if corner is None else np.multiply(corner, side - crop)
            stack = []
            for path in paths:
                whole = np.asarray(Image.open(path).convert("RGB").resize((side, side), 2))
                stack.append(whole[top : top + crop, left : left + crop].transpose(2, 0, 1))
            batch = np.stack(stack)
            for pixels in (batch, np.ascontiguousarray(batch[..., ::-1])):
                logits = model.logits(pixels).astype(np.float64)
                powers = np.exp(logits - logits.max(axis=1, keepdims=True))
                total = total + powers / powers.sum(axis=1, keepdims=True) / 30
    return paths, total


def test_evaluate(model_file, image_folder, expected, tmp_path):
    paths, probabilities = expected
    labels = np.array([CLASSES.index(path.parent.name) for path in paths])
    done = commands.run_here(
        "evaluate", "--model", model_file, "--dataset", image_folder, "--batch", 4, "--views",
        "flip,five,scales", "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "30 views, about 31.2 times the work of one" in done.stderr
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    assert found["views"] == ["flip", "five", "scales"] and found["preprocessing"]["crop"] == 44
    assert found["top1"] == np.mean(probabilities.argmax(axis=1) == labels)
    loss = -np.log(probabilities[np.arange(15), labels]).mean()
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    plain = bit.evaluate(bit.load(model_file), image_folder)
    assert plain.views == () and plain.loss != pytest.approx(loss, rel=1e-3)
    one = bit.evaluate(bit.load(model_file), image_folder, views="flip")
    assert one.views == ("flip",) and one.loss not in (plain.loss, found["loss"])


def test_predict(model_file, image_folder, expected):
    paths, probabilities = expected
    words = "scales,flip,five"
    done = commands.run_here("predict", image_folder / "val", "--model", model_file, "--format",
                             "json", "--views", words, "--batch", 4)  # fmt: skip
    assert done.returncode == 0 and "30 views" in done.stderr
    results = {result["image"]: result["classes"] for result in json.loads(done.stdout)}
    model = bit.load(model_file)
    rows = model([str(path) for path in paths], views=words)
    for path, row, own in zip(paths, rows, probabilities):
        assert dict(row) == pytest.approx(dict(zip(CLASSES, own)), rel=1e-5)
        assert [(item["class"], item["probability"]) for item in results[str(path)]] == row
    (first, *_) = paths
    assert dict(model(first, views=words)) == pytest.approx(dict(rows[0]), rel=1e-5)
    logits = model.logits(first, views=words)
    assert logits.shape == (1, 3) and logits.dtype == np.float64
    assert np.array_equal(model.logits(first, views=None), model.logits(first))


def test_mirrors_that_change_labels(model_file, image_folder, tmp_path):
    """Refused by the data's description, by the run's own, and by what an export keeps of it."""
    described = tmp_path / "signs.yaml"
    described.write_text(f"reader: folder\ndatadir: {image_folder}\nflip: false\n")
    with pytest.raises(ConfigError, match="--views flip: the data say flip: false"):
        bit.evaluate(bit.load(model_file), described, views="flip")
    assert bit.evaluate(bit.load(model_file), described, views="five").images == 15
    image = picture(60, 60)
    for number, notes in enumerate(({"flip": False}, {"settings": {"flip": False}})):
        model = bit.load(write_model(tmp_path / f"{number}.npz", **notes))
        with pytest.raises(ConfigError, match="--views flip: the model was trained with --no-flip"):
            model(image, views="five,flip")
        assert model(image) and model(image, views="five")
    for name in ("npz", "paddle"):
        bit.export(model, name, tmp_path / f"out.{name}")
        exported = bit.load(tmp_path / f"out.{name}")
        assert not exported.file.flip
        scaled = exported(image, views="scales")
        assert dict(scaled) == pytest.approx(dict(model(image, views="scales")), rel=1e-3)
    assert bit.load(model_file).file.flip


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--views", "flop"], "--views: is 'flop': did you mean flip"),
        (["--views", ""], "expected one or more of flip, five, scales"),
        (["--views", "flip", "--features", "x.npz"], "cannot be combined with --features"),
        (["--views", "scales", "--crop", "40"], "of the crop, 40 pixels, is 30, and the network"),
    ],
)
def test_mistakes(arguments, words, model_file, image_folder):
    done = commands.run_here("predict", image_folder, "--model", model_file, *arguments)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not done.stdout


def test_mistakes_in_python(model_file, image_folder):
    model = bit.load(model_file)
    with pytest.raises(ConfigError, match="a preprocessed batch is one view"):
        model.logits(np.zeros((1, 3, 44, 44), np.uint8), views="flip")
    with pytest.raises(ConfigError, match="did you mean five"):
        bit.evaluate(model, image_folder, views="fives")
    with pytest.raises(ConfigError, match="expected words in one text"):
        bit.evaluate(model, image_folder, views=["flip"])
    with pytest.raises(ConfigError, match="calibrate: takes one model"):
        bit.compare(model, model, image_folder, calibrate=True)
