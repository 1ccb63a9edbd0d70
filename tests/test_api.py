"""The Python interface: what the commands print and write, and its own errors."""

import json
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT
from PIL import Image
from servers import Server

import bit_paddle as bit
from bit_paddle import errors, export, predict
from bit_paddle.inference.model import TrainedModel
from bit_paddle.models import published

NAMES = ["amber", "blue", "coral"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What `train` would leave: a folder with a model that tells the three colours apart."""
    model = bit.create_model("R14x0.5", num_classes=3, seed=1)
    random = np.random.default_rng(0)
    model.head.weight.set_value(random.normal(0, 1, (1024, 3)).astype(np.float32))
    folder = tmp_path_factory.mktemp("run")
    bit.save_npz(model, folder / "model.npz", notes={"classes": NAMES, "crop": 32})
    return folder


@pytest.fixture(scope="module")
def model(run_folder):
    return bit.load(run_folder, device="cpu")


@pytest.fixture(scope="module")
def paths(image_folder):
    return sorted((image_folder / "val").rglob("*.png"))


@pytest.fixture(scope="module")
def exported(run_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "served"
    words = ["--model", str(run_folder), "--format", "paddle", "--output", str(folder)]
    assert export.main(words) == 0
    return folder


# --- The same as the commands ---------------------------------------------------------------------


@pytest.mark.parametrize("which", ["run", "small", "exported"])
def test_predictions_are_those_of_the_command(
    which, run_folder, small_checkpoint, exported, paths, capsys
):
    place = {"run": run_folder, "small": small_checkpoint, "exported": exported}[which]
    words = [*map(str, paths), "--format", "json", "--top", "2", "--crop", "48"]
    assert predict.main([*words, "--model", str(place)]) == 0
    printed = json.loads(capsys.readouterr().out)
    found = bit.load(place, crop=48)(paths, top=2)
    expected = [[(one["class"], one["probability"]) for one in row["classes"]] for row in printed]
    assert found == expected and len(found) == 15


def test_features_are_those_of_the_command(small_checkpoint, paths, tmp_path):
    words = [*map(str, paths), "--crop", "48", "--features", str(tmp_path / "f.npz")]
    assert predict.main([*words, "--model", str(small_checkpoint)]) == 0
    found = bit.load(small_checkpoint, crop=48).features(paths)
    assert found.dtype == np.float32 and found.shape == (15, 2048)
    assert np.array_equal(found, np.load(tmp_path / "f.npz")["features"])


def test_evaluation_is_that_of_the_command(run_folder, model, image_folder, tmp_path, capsys):
    result = bit.evaluate(model, image_folder)
    words = ["--model", str(run_folder), "--dataset", "folder", "--datadir", str(image_folder)]
    assert bit.evaluate.main([*words, "--output", str(tmp_path)]) == 0
    assert str(result) in capsys.readouterr().out
    written = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("top1", "top5", "balanced_accuracy", "loss", "images"):
        assert getattr(result, name) == written[name]
    rows = [line.split(",") for line in (tmp_path / "confusion.csv").read_text().splitlines()]
    assert result.confusion.tolist() == [list(map(int, row[1:])) for row in rows[1:]]
    assert result.classes == rows[0][1:] == NAMES and result.confusion.sum() == 15
    assert result.per_class == {
        name: result.confusion[k, k] / 5 for k, name in enumerate(result.classes)
    }
    assert result.balanced_accuracy == pytest.approx(np.mean(list(result.per_class.values())))
    # By name, by its words, and with the folder as that of a data set.
    again = bit.evaluate(str(run_folder), "folder", datadir=image_folder, batch=4, workers=0)
    assert (again.top1, again.images) == (result.top1, 15)
    assert again.loss == pytest.approx(result.loss, rel=1e-6)
    assert bit.evaluate(model, str(image_folder), "all").images == 15 + 36
    assert "top-1" in repr(result) and "<table>" in result._repr_html_()


def test_a_folder_named_like_a_data_set(model, image_folder, tmp_path, monkeypatch):
    (tmp_path / "digits").symlink_to(image_folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.ConfigError, match="was not trained on 10 classes"):
        pytest.importorskip("sklearn")
        bit.evaluate(model, "digits")
    assert bit.evaluate(model, "./digits").images == 15


# --- What it takes --------------------------------------------------------------------------------


def test_every_kind_of_image(model, paths):
    path = paths[7]
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    server = Server({"/photo": path.read_bytes()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        kinds = [path, str(path), picture, np.asarray(picture), f"{server.address}/photo"]
        expected = model(str(path))
        assert [name for name, _ in expected] != NAMES or len(expected) == 3
        assert [share for _, share in expected] == sorted(dict(expected).values(), reverse=True)
        assert sum(dict(expected).values()) == pytest.approx(1)
        for one in kinds:
            assert model(one) == expected
        many = model(kinds, top=1)
    server.shutdown()
    server.server_close()
    assert len(many) == 5 and all(len(row) == 1 for row in many)
    for row in many:
        assert row[0][0] == expected[0][0] and row[0][1] == pytest.approx(expected[0][1], rel=1e-4)
    assert model([]) == [] and model.features([]).shape == (0, 1024)
    assert model((path,)) == [expected]


def test_preprocessed_batches(model, paths, run_folder):
    one = model.preprocess(paths[0])
    assert one.shape == (3, 32, 32) and one.dtype == np.uint8
    with Image.open(paths[0]) as opened:
        squashed = opened.convert("RGB").resize((32, 32), Image.BILINEAR)
    assert np.array_equal(one, np.asarray(squashed).transpose(2, 0, 1))
    batch = np.stack([model.preprocess(path) for path in paths])
    assert np.array_equal(model.logits(batch), model.logits(paths))
    assert np.array_equal(model.features(batch), model.features(paths))
    scaled = batch.astype(np.float32) / np.float32(127.5) - np.float32(1)
    assert np.array_equal(model.logits(scaled), model.logits(batch))
    assert model.logits(paths[0]).shape == (1, 3) and model(batch) == model(paths)
    network = bit.create_model(run_folder / "model.npz")
    network.eval()
    with paddle.no_grad():
        expected = network(paddle.to_tensor(scaled)).numpy()
    np.testing.assert_allclose(model.logits(batch), expected, rtol=1e-3, atol=1e-4)


def test_what_a_model_tells(model, run_folder, small_checkpoint, exported):
    assert model.classes == NAMES and model.architecture == "R14x0.5"
    assert "32 x 32" in model.preprocessing
    assert bit.load(exported).architecture == "R14x0.5"
    assert bit.load(exported).classes == NAMES
    unknown = bit.load(small_checkpoint)
    assert unknown.classes[9] == "9" and "crop=" in unknown.preprocessing
    text, page = repr(model), model._repr_html_()
    assert "R14x0.5" in text and "amber" in text and len(text) < 300
    assert "<table>" in page and str(run_folder) in page


def test_a_folder_in_the_working_folder(run_folder, monkeypatch):
    monkeypatch.chdir(run_folder.parent)
    assert bit.load(run_folder.name).classes == NAMES


def test_a_published_name(monkeypatch, tmp_path):
    found = bit.load("BiT-Mini")
    assert isinstance(found, TrainedModel) and len(found.classes) == 10
    assert "shorter side" in found.preprocessing
    assert bit.list_models() == list(published.CATALOG)
    assert bit.list_models("BiT-M-R50x1*")[:2] == ["BiT-M-R50x1", "BiT-M-R50x1-ILSVRC2012"]
    assert bit.list_models("bit-m*") == []


# --- Errors ---------------------------------------------------------------------------------------


def test_mistakes_in_load(tmp_path, small_checkpoint):
    for given, error, words in (
        ("BiT-M-R50x2", errors.ConfigError, "did you mean"),
        ("nowhere/x.npz", errors.MissingFileError, "no such checkpoint"),
        (tmp_path, errors.MissingFileError, "without model.npz"),
        (tmp_path / "x", errors.MissingFileError, "no such checkpoint"),
        (3, errors.ConfigError, "is a int"),
    ):
        with pytest.raises(error, match=words):
            bit.load(given)
    for option in ({"device": "tpu"}, {"amp": "fp8"}, {"crop": 3}, {"crop": "48"}):
        with pytest.raises(errors.ConfigError, match=next(iter(option))):
            bit.load(small_checkpoint, **option)
    (tmp_path / "x.npz").write_bytes(b"no zip")
    with pytest.raises(errors.CheckpointError):
        bit.load(tmp_path / "x.npz")


def test_mistakes_in_images(model, small_checkpoint, image_folder, paths, tmp_path, exported):
    (tmp_path / "x.png").write_bytes(b"no image")
    for given, error, words in (
        ("nowhere.png", errors.MissingFileError, "no such image"),
        (image_folder, errors.MissingFileError, "is a folder"),
        (tmp_path / "x.png", errors.DataError, "x.png"),
        (np.zeros((4, 4), np.uint8), errors.DataError, r"uint8 \[H, W, 3\]"),
        (np.zeros((4, 4, 3)), errors.DataError, "float64"),
        (np.zeros((1, 4, 4, 3), np.uint8), errors.DataError, r"\[N, 3, H, W\]"),
        (Image.new("F", (4, 4)), errors.DataError, "mode F"),
        (3, errors.DataError, "type int"),
        ([paths[0], None], errors.DataError, "type NoneType"),
    ):
        with pytest.raises(error, match=words):
            model(given)
    with pytest.raises(errors.ConfigError, match="top"):
        model(paths[0], top=0)
    with pytest.raises(errors.ConfigError, match=r"--crop 224 \(crop=224 in Python\)"):
        bit.load(small_checkpoint)(paths[0])
    with pytest.raises(errors.ConfigError, match="exported with its head"):
        bit.load(exported).features(paths[0])


def test_a_model_without_a_head(tmp_path, paths):
    bit.save_npz(bit.create_model("R14x0.5", num_classes=0), tmp_path / "x.npz", {"crop": 32})
    model = bit.load(tmp_path / "x.npz")
    assert model.features(paths[:2]).shape == (2, 1024) and model.classes == []
    with pytest.raises(errors.ConfigError, match="has no head"):
        model(paths[0])
    assert "features only" in repr(model)


def test_mistakes_in_evaluate(model, image_folder, tmp_path):
    for given, options, error, words in (
        ("cifar01", {}, errors.ConfigError, "did you mean cifar10"),
        ("nowhere/", {}, errors.BitPaddleError, "nowhere"),
        (image_folder, {"split": "test"}, errors.ConfigError, "split"),
        (image_folder, {"on_bad_image": "ask"}, errors.ConfigError, "on_bad_image"),
        (image_folder, {"batch": 0}, errors.ConfigError, "batch"),
        (3, {}, errors.ConfigError, "data: is a int"),
    ):
        with pytest.raises(error, match=words):
            bit.evaluate(model, given, **options)
    with pytest.raises(errors.ConfigError, match="did you mean"):
        bit.evaluate("BiT-M-R50x2", image_folder)


# --- Imports --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        "",
        "import bit_paddle.evaluate; ",
        "from bit_paddle import evaluate; ",
        "bit.evaluate; ",
        "import bit_paddle.api; ",
        "from bit_paddle import *; ",
    ],
)
def test_evaluate_is_function_and_module(first, image_folder):
    code = (
        f"import bit_paddle as bit; {first}"
        "import bit_paddle.evaluate as module; assert bit.evaluate is module; "
        f"bit.evaluate('nowhere/x.npz', {str(image_folder)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "MissingFileError: nowhere/x.npz: no such checkpoint" in done.stderr


def test_names_are_read_without_paddle():
    code = (
        "import sys, bit_paddle as bit; "
        "assert {'load', 'evaluate', 'list_models', 'create_model'} <= set(dir(bit)); "
        "assert not {'paddle', 'numpy', 'PIL'} & set(sys.modules); "
        "bit.list_models(); bit.load; bit.evaluate; assert 'paddle' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)


def test_every_public_name_has_its_docstring():
    for name in set(bit.__all__) - {"__version__"}:
        assert len(getattr(bit, name).__doc__) > 100, name
    for name in ("__call__", "preprocess", "logits", "features", "classes", "preprocessing"):
        assert getattr(TrainedModel, name).__doc__, name


def test_keys_of_old_exports(exported, tmp_path):
    """Folders of before have no architecture in their notes."""
    import shutil

    folder = shutil.copytree(exported, tmp_path / "old")
    notes = json.loads((folder / "bit_paddle.json").read_text())
    del notes["architecture"]
    (folder / "bit_paddle.json").write_text(json.dumps(notes))
    assert bit.load(folder).architecture == "" and "exported" in repr(bit.load(folder))


# --- Paddle's own trainer -------------------------------------------------------------------------


class Squares(paddle.io.Dataset):
    """Dark and bright noise, told apart by their label."""

    def __init__(self):
        random = np.random.default_rng(0)
        self.labels = np.arange(16) % 2
        brightness = 0.5 * (2 * self.labels - 1)[:, None, None, None]
        self.images = (random.normal(0, 0.3, (16, 3, 32, 32)) + brightness).astype(np.float32)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index : index + 1]


def test_paddle_model_trains_evaluates_and_predicts():
    """With Paddle's loss and optimizer, as any network of Paddle's; no data set of ours."""
    network, data = bit.create_model("R14x0.5", num_classes=2, seed=0), Squares()
    model = paddle.Model(network)
    optimizer = paddle.optimizer.Momentum(0.01, 0.9, parameters=network.parameters())
    model.prepare(optimizer, paddle.nn.CrossEntropyLoss(), paddle.metric.Accuracy())
    before = model.evaluate(data, batch_size=8, verbose=0)
    assert before["loss"][0] == pytest.approx(np.log(2), rel=1e-5)  # the head is zero
    model.fit(data, epochs=4, batch_size=8, verbose=0)
    after = model.evaluate(data, batch_size=8, verbose=0)
    assert after["acc"] == 1 and after["loss"][0] < 0.1
    (logits,) = model.predict(data, batch_size=8, stack_outputs=True, verbose=0)
    assert logits.shape == (16, 2) and (logits.argmax(axis=1) == data.labels).all()
    network.eval()
    with paddle.no_grad():
        again = network(paddle.to_tensor(data.images)).numpy()
    np.testing.assert_allclose(again, logits, rtol=1e-4, atol=1e-5)
