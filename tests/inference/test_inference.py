"""The commands that use trained models: evaluate and predict, in real processes."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SHARED, arrays_of
from helpers import commands
from PIL import Image
from servers import Server

from bit_paddle import create_model, save_npz
from bit_paddle.data import transforms
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.errors import CheckpointError, ConfigError
from bit_paddle.inference import evaluation, outputs, trained
from bit_paddle.models import npz, published
from bit_paddle.models.architecture import Architecture


def run(command, *arguments, **environment):
    options = {"env": {**os.environ, **environment}} if environment else {}
    return commands.run(command, *arguments, **options)


@pytest.fixture(scope="module")
def colour_model(tmp_path_factory):
    """A model that tells the three colours of ``image_folder`` apart, as `train` would save it."""
    model = create_model("R14x0.5", num_classes=3, seed=1)
    random = np.random.default_rng(0)
    model.head.weight.set_value(random.normal(0, 1, (1024, 3)).astype(np.float32))
    path = tmp_path_factory.mktemp("trained") / "model.npz"
    save_npz(model, path, notes={"classes": ["amber", "blue", "coral"], "crop": 32})
    return path


def logits_of(path, images, crop=32):
    """What the model gives, computed here step by step."""
    import paddle

    pixels = np.stack(
        [
            np.asarray(Image.open(image).convert("RGB").resize((crop, crop), Image.BILINEAR))
            for image in images
        ]
    )
    with paddle.no_grad():
        return create_model(path)(
            paddle.to_tensor(pixels.transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1))
        ).numpy()


# --- evaluate ------------------------------------------------------------------------------------


def test_evaluate(colour_model, image_folder, tmp_path):
    done = run(
        "evaluate",
        "--model",
        colour_model,
        "--dataset",
        "folder",
        "--datadir",
        image_folder,
        "--output",
        tmp_path / "out",
        "--batch",
        4,
    )
    assert done.returncode == 0, done.stderr
    images = sorted((image_folder / "val").rglob("*.png"))
    labels = np.array([("amber", "blue", "coral").index(path.parent.name) for path in images])
    best = logits_of(colour_model, images).argmax(axis=1)
    summary = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert summary["top1"] == np.mean(best == labels) and summary["images"] == 15
    assert summary["preprocessing"] == {
        "crop": 32,
        "resize": None,
        "filter": "bilinear",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "centre": "down",
    }
    assert f"top-1 {summary['top1']:.2%}" in done.stdout
    header, *rows = csv.reader(open(tmp_path / "out" / "confusion.csv"))
    assert header == ["class", "amber", "blue", "coral"]
    expected = np.zeros((3, 3), int)
    np.add.at(expected, (labels, best), 1)
    assert [list(map(int, row[1:])) for row in rows] == expected.tolist()
    per_class = list(csv.DictReader(open(tmp_path / "out" / "per_class.csv")))
    assert [float(row["accuracy"]) for row in per_class] == [
        pytest.approx(expected[k, k] / 5, abs=1e-4) for k in range(3)
    ]
    with Image.open(tmp_path / "out" / "confusion.png") as picture:
        assert picture.width > 300 and len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_evaluate_maps_classes_by_name(colour_model, image_folder, tmp_path):
    """Data of two of the three classes: their labels are 0 and 1, the model's outputs 1 and 2."""
    import shutil

    for part in ("train", "val"):
        for name in ("blue", "coral"):
            shutil.copytree(image_folder / part / name, tmp_path / "two" / part / name)
    done = run(
        "evaluate",
        "--model",
        colour_model,
        "--dataset",
        "folder",
        "--datadir",
        tmp_path / "two",
        "--output",
        tmp_path / "out",
    )
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(open(tmp_path / "out" / "per_class.csv")))
    assert [(row["class"], row["images"]) for row in rows] == [
        ("amber", "0"),
        ("blue", "5"),
        ("coral", "5"),
    ]
    images = sorted((tmp_path / "two" / "val").rglob("*.png"))
    best = logits_of(colour_model, images).argmax(axis=1)
    assert [int(row["right"]) for row in rows] == [0, (best[:5] == 1).sum(), (best[5:] == 2).sum()]


def test_evaluate_all_of_a_folder(colour_model, image_folder, tmp_path):
    """Class folders alone: a tenth is what training would hold out, and that is said."""
    flags = ["--model", colour_model, "--dataset", "folder", "--datadir", image_folder / "val"]
    counts = {}
    for split in ("val", "train", "all"):
        output = tmp_path / split
        done = run("evaluate", *flags, "--split", split, "--output", output)
        assert (
            done.returncode == 0 and "note: no validation images are given: 3 of 15" in done.stderr
        )
        counts[split] = json.loads((output / "metrics.json").read_text())
    assert [counts[split]["images"] for split in counts] == [3, 12, 15]
    whole = run("evaluate", *flags[:-1], image_folder, "--output", tmp_path / "whole")
    assert whole.returncode == 0
    expected = json.loads((tmp_path / "whole/metrics.json").read_text())
    assert counts["all"]["top1"] == expected["top1"]
    assert counts["all"]["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    # A result that cannot be written is printed before.
    (tmp_path / "all/per_class.csv").unlink()
    (tmp_path / "all/per_class.csv").mkdir()
    done = run("evaluate", *flags, "--output", tmp_path / "all")
    assert done.returncode == 1 and "top-1" in done.stdout and "per_class.csv" in done.stderr


def test_evaluate_the_test_images(colour_model, image_folder, tmp_path):
    """And all images are those of three parts; without the third one, an error says where it is."""
    shutil.copytree(image_folder, tmp_path / "data")
    shutil.rmtree(tmp_path / "data/val")
    for name, count in (("amber", 5), ("blue", 1)):
        (tmp_path / "data/test" / name).mkdir(parents=True)
        for k in range(count):
            shutil.copy(image_folder / "val" / name / f"{k}.png", tmp_path / "data/test" / name)
    flags = ["--model", colour_model, "--dataset", "folder", "--datadir", tmp_path / "data"]
    done = run("evaluate", *flags, "--split", "test")
    assert done.returncode == 2 and "no test images" in done.stderr
    assert "give val_fraction if the run had it" in done.stderr
    done = run("evaluate", *flags, "--output", tmp_path / "val")
    assert done.returncode == 0 and "test are used for validation" in done.stderr
    counts = {"val": json.loads((tmp_path / "val/metrics.json").read_text())}
    for split in ("test", "all", "train"):
        output = tmp_path / split
        more = ["--val_fraction", 0.25, "--split", split, "--output", output]
        done = run("evaluate", *flags, *more)
        assert done.returncode == 0, done.stderr
        counts[split] = json.loads((output / "metrics.json").read_text())
    assert [counts[split]["images"] for split in ("val", "test", "all", "train")] == [6, 6, 42, 27]
    assert counts["test"]["loss"] == counts["val"]["loss"] and counts["test"]["split"] == "test"
    images = sorted((tmp_path / "data/test").rglob("*.png"))
    right = logits_of(colour_model, images).argmax(axis=1) == np.array([0] * 5 + [1])
    assert counts["test"]["top1"] == right.mean()


def test_a_folder_stands_for_the_model_in_it(colour_model, image_folder, tmp_path):
    flags = ["--dataset", "folder", "--datadir", image_folder, "--output", tmp_path / "out"]
    done = run("evaluate", "--model", colour_model.parent, *flags)
    assert done.returncode == 0 and str(colour_model) in done.stdout, done.stderr
    done = run("evaluate", "--model", image_folder, *flags)
    assert done.returncode == 2 and "is a folder without model.npz" in done.stderr
    other = tmp_path / "model.tflite"
    other.write_bytes(b"\x08\x08 no zip")
    done = run("predict", image_folder, "--model", other)
    assert done.returncode == 2 and "other formats cannot be read" in done.stderr


def test_evaluate_refuses_other_classes(colour_model, small_checkpoint):
    pytest.importorskip("sklearn")
    done = run("evaluate", "--model", colour_model, "--dataset", "digits")
    assert done.returncode == 2 and "was not trained on 10 classes of the data" in done.stderr


@pytest.fixture(scope="module")
def exported_model(colour_model, tmp_path_factory):
    """`colour_model` as a folder of Paddle Inference."""
    folder = tmp_path_factory.mktemp("exported") / "served"
    done = run("export", "--model", colour_model, "--format", "paddle", "--output", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("amp, close", [("off", 1e-4), ("bf16", 0.05)])
def test_an_exported_folder_is_evaluated_and_predicts(
    amp, close, exported_model, colour_model, image_folder, tmp_path
):
    """Whatever Paddle Inference has to say, standard output is the result alone."""
    flags = ("--dataset", "folder", "--datadir", image_folder, "--batch", 4)
    for model, *more in ((colour_model,), (exported_model, "--amp", amp)):
        output = tmp_path / f"evaluate-{model.name}"
        done = run("evaluate", "--model", model, *flags, *more, "--output", output)
        assert done.returncode == 0, done.stderr
    one, other = (
        json.loads((tmp_path / f"evaluate-{name}" / "metrics.json").read_text())
        for name in ("model.npz", "served")
    )
    assert other["loss"] == pytest.approx(one["loss"], rel=close)
    assert other["images"] == 15 and (amp != "off" or other["top1"] == one["top1"])
    words = ("predict", image_folder / "val", "--format", "json", "--model")
    one = json.loads(run(*words, colour_model).stdout)
    other = json.loads(run(*words, exported_model, "--amp", amp).stdout)
    for row, expected in zip(other, one):
        found = {each["class"]: each["probability"] for each in row["classes"]}
        sought = {each["class"]: each["probability"] for each in expected["classes"]}
        assert row["image"] == expected["image"] and found == pytest.approx(sought, abs=close)


@pytest.mark.parametrize(
    "flags, named",
    [
        (("--device", "gpu"), "--device gpu"),
        (("--amp", "fp16"), "--amp fp16"),
        (("--features", "out.npz"), "--features"),
    ],
)
def test_what_an_exported_folder_cannot(flags, named, exported_model, image_folder):
    done = run("predict", image_folder / "val", "--model", exported_model, *flags)
    assert done.returncode == 2 and named in done.stderr and "Traceback" not in done.stderr


# --- predict -------------------------------------------------------------------------------------


def test_predict_formats(colour_model, image_folder, tmp_path):
    paths = [image_folder / "val" / "blue" / "0.png", image_folder / "val" / "coral" / "3.png"]
    logits = logits_of(colour_model, paths).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = np.array(["amber", "blue", "coral"])
    done = run(
        "predict",
        *paths,
        "--model",
        colour_model,
        "--top",
        2,
        "--format",
        "json",
        "--sheet",
        tmp_path / "sheet.png",
    )
    assert done.returncode == 0, done.stderr
    for result, path, row in zip(json.loads(done.stdout), paths, probabilities):
        order = np.argsort(-row)[:2]
        assert result["image"] == str(path)
        assert [one["class"] for one in result["classes"]] == names[order].tolist()
        assert [one["probability"] for one in result["classes"]] == pytest.approx(
            row[order], rel=1e-4
        )
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 + 2 * (160 + 8), 8 + 160 + 16 + 8)
    table = run("predict", *paths, "--model", colour_model, "--top", 1).stdout.splitlines()
    assert [line.split()[-1] for line in table] == names[probabilities.argmax(axis=1)].tolist()
    done = run(
        "predict",
        image_folder / "val",
        "--model",
        colour_model,
        "--format",
        "csv",
        "--output",
        tmp_path / "x.csv",
    )
    assert done.returncode == 0 and done.stdout == ""
    rows = list(csv.DictReader(open(tmp_path / "x.csv")))
    assert len(rows) == 15 * 3 and rows[0]["rank"] == "1"
    assert [row["image"] for row in rows[::3]] == [
        str(path) for path in sorted((image_folder / "val").rglob("*.png"))
    ]


def test_predict_features(colour_model, image_folder, tmp_path):
    import paddle

    done = run(
        "predict",
        image_folder / "val",
        "--model",
        colour_model,
        "--features",
        tmp_path / "f.npz",
        "--batch",
        4,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "f.npz")
    images = sorted((image_folder / "val").rglob("*.png"))
    assert found["names"].tolist() == [str(path) for path in images]
    assert found["features"].shape == (15, 1024) and found["features"].dtype == np.float32
    view = transforms.evaluation_view(Image.open(images[7]).convert("RGB"), Preprocessing(32))
    with paddle.no_grad():
        expected = create_model(colour_model, 0)(
            paddle.to_tensor(view[None] / np.float32(127.5) - np.float32(1))
        )
    np.testing.assert_allclose(found["features"][7], expected.numpy()[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("what", ["classes", "features"])
def test_unreadable_images_are_named_and_the_rest_is_done(
    what, colour_model, image_folder, tmp_path
):
    import shutil

    shutil.copytree(image_folder / "val", tmp_path / "images")
    for name in ("blue/1.png", "coral/4.png"):
        (tmp_path / "images" / name).write_bytes(b"no image")
    (tmp_path / "images/blue/layers.xcf").write_bytes(b"of a drawing program")
    arguments = (
        ["--features", tmp_path / "f.npz"]
        if what == "features"
        else ["--format", "csv", "--top", 1]
    )
    done = run("predict", tmp_path / "images", "--model", colour_model, *arguments)
    assert done.returncode == 1
    assert "note: 1 files in" in done.stderr
    assert (
        "blue/1.png" in done.stderr
        and "coral/4.png" in done.stderr
        and "Traceback" not in done.stderr
    )
    if what == "features":
        found = np.load(tmp_path / "f.npz")
        assert len(found["features"]) == len(found["names"]) == 13
        assert not [name for name in found["names"] if name.endswith(("blue/1.png", "coral/4.png"))]
    else:
        assert len(done.stdout.splitlines()) == 1 + 13


@pytest.mark.slow
def test_predict_memory_does_not_grow(colour_model, image_folder, tmp_path):
    """Peak memory for 3,000 images beside that for 300: both long past the start."""
    source_image = (image_folder / "val" / "blue" / "0.png").read_bytes()
    peaks = []
    for count in (300, 3000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for k in range(count):
            (folder / f"{k}.png").write_bytes(source_image)
        code = (
            f"{commands.PEAK}import sys; from bit_paddle import predict; "
            "status = predict.main(sys.argv[1:]); print(status, peak())"
        )
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                code,
                folder,
                "--model",
                colour_model,
                "--features",
                tmp_path / f"{count}.npz",
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        status, peak = map(int, done.stdout.split()[-2:])
        assert status == 0 and len(np.load(tmp_path / f"{count}.npz")["features"]) == count
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 30e6  # bytes; the views alone would be 300 MB


def test_an_address_that_cannot_be_reached_is_named_and_the_rest_is_done(
    colour_model, image_folder
):
    image = image_folder / "val" / "blue" / "0.png"
    done = run("predict", image, "http://127.0.0.1:9/x.jpg", "--model", colour_model, "--top", 1,
               NO_PROXY="*")  # fmt: skip
    assert done.returncode == 1 and done.stdout.startswith(str(image))
    assert "http://127.0.0.1:9/x.jpg: cannot be reached" in done.stderr
    assert "goes to" not in done.stderr  # the place is gone with the command


@pytest.mark.slow
def test_predict_fetches_images_checkpoint_and_class_names(image_folder, tmp_path):
    """A published model by name, an image by address: all from one real server."""
    names = [f"class_{k}, alias" for k in range(1000)]
    npz.write(tmp_path / "x.npz", arrays_of(50, 1, 1000, 0).items())
    server = Server(
        {
            "/BiT-M-R50x1-ILSVRC2012.npz": (tmp_path / "x.npz").read_bytes(),
            "/ilsvrc2012_wordnet_lemmas.txt": "\n".join(names).encode(),
            "/photo": (image_folder / "val" / "blue" / "0.png").read_bytes(),
        }
    )
    environment = {
        "NO_PROXY": "127.0.0.1",
        "BIT_PADDLE_BASE_URL": server.address,
        "BIT_PADDLE_HOME": str(tmp_path / "home"),
        "BIT_PADDLE_NATIVE": "0",  # in that home none are compiled
    }
    for _ in range(2):
        done = run(
            "predict",
            f"{server.address}/photo",
            "--model",
            "BiT-M-R50x1-ILSVRC2012",
            "--top",
            1,
            "--crop",
            64,
            **environment,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{server.address}/photo ") and "class " in done.stdout
    asked = [path for path, _ in server.requests]
    assert (
        asked.count("/BiT-M-R50x1-ILSVRC2012.npz")
        == asked.count("/ilsvrc2012_wordnet_lemmas.txt")
        == 1
    )
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere.png"], "nowhere.png: no such image"),
        (["README.md", "--features", "x", "--sheet", "y"], "cannot be combined"),
        (["README.md", "--output", "docs"], "--output docs: is a folder; give the name of a file"),
        (["configs"], "no images in configs"),
        (["README.md", "--features", "nowhere/x.npz"], "nowhere is not a folder"),
    ],
)
def test_predict_mistakes(arguments, words, colour_model):
    done = run("predict", *arguments, "--model", colour_model)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


# --- where a model comes from -----------------------------------------------------------------


def test_source_of_our_own(colour_model):
    found = trained.find_trained(str(colour_model))
    assert found.classes == ["amber", "blue", "coral"] and found.trained_here
    assert found.preprocessing == Preprocessing(32) and found.class_name(2) == "coral"


def test_source_of_an_unknown_file(small_checkpoint):
    found = trained.find_trained(str(small_checkpoint))
    assert found.class_name(3) == "3"
    with pytest.raises(ConfigError, match="--crop"):
        trained.required_preprocessing(found)
    found = trained.find_trained(str(small_checkpoint), crop=64)
    assert trained.required_preprocessing(found) == Preprocessing(64)


def test_source_with_too_few_names(small_checkpoint, tmp_path):
    save_npz(
        create_model(small_checkpoint), tmp_path / "x.npz", notes={"classes": ["a"], "crop": 32}
    )
    with pytest.raises(CheckpointError, match="10 outputs, but the file names 1 classes"):
        trained.find_trained(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("name, count", [("ilsvrc2012", 1000), ("imagenet21k", 21843)])
@pytest.mark.skipif(not (SHARED / "labels").exists(), reason="needs ../shared/labels")
def test_published_class_names_fit_their_heads(name, count, monkeypatch, tmp_path):
    """Lists in the published form have a line an output, in the order of the head."""
    file = published.LEMMAS[name]
    content = (SHARED / "labels" / file.replace(".txt", ".derived.txt")).read_bytes()
    server = Server({f"/{file}": content})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("BIT_PADDLE_BASE_URL", server.address)
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path))
    names = trained._lemmas(file, count)
    assert len(names) == count and names[0] in ("tench, Tinca tinca", "organism, being")
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (224, 224), (90, 40)])
def test_centre_crop_view(size):
    """Shorter side to 256, then the middle 224, as Pillow has it."""
    width, height = size
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    )
    large = image.resize(
        (int(256 * width / min(size)), int(256 * height / min(size))), Image.BILINEAR
    )
    left, top = (large.width - 224) // 2, (large.height - 224) // 2
    expected = np.asarray(large.crop((left, top, left + 224, top + 224))).transpose(2, 0, 1)
    found = transforms.evaluation_view(image, Preprocessing(224, 256))
    assert found.shape == (3, 224, 224) and np.array_equal(found, expected)


# --- Names of classes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, data, expected",
    [
        (["a", "crane", "crane"], ["a", "crane", "crane"], [0, 1, 2]),
        (["a", "crane", "b", "crane"], ["b", "a"], [2, 0]),
        (["a", "crane", "crane"], ["crane"], "2 of its outputs are called 'crane'"),
        (["dog", "cat"], ["cat", "fox"], "output 1 is 'cat', which is class 0 of the data"),
        (["cat", "dog"], ["cat", "n02084071"], [0, 1]),
        (["tench", "shark"], ["n01440764", "n01484850"], [0, 1]),
    ],
)
def test_classes_of_a_foreign_model(names, data, expected):
    file = trained.TrainedFile("x", len(names), 8, Preprocessing(32), names, False)
    if isinstance(expected, list):
        assert evaluation.match_classes(file, data).tolist() == expected
    else:
        with pytest.raises(ConfigError, match=expected):
            evaluation.match_classes(file, data)


@pytest.mark.parametrize("classes, expected", [([1, 2, 3], list("123")), (None, None), (5, "5")])
def test_notes_that_another_program_wrote(classes, expected, tmp_path):
    arrays = npz.shapes(Architecture.parse("R14x0.5"), 3)
    notes = {"crop": 32, "classes": classes, "settings": {"loss": ["softmax"]}}
    path = tmp_path / "x.npz"
    npz.write(path, ((key, np.zeros(shape, np.float32)) for key, shape in arrays), notes)
    if isinstance(expected, str):
        with pytest.raises(CheckpointError, match="its notes have classes 5, expected a list"):
            trained.find_trained(str(path))
    else:
        file = trained.find_trained(str(path))
        assert file.classes == expected and file.loss == "softmax"


def test_a_terminal_does_not_obey_names_of_classes():
    result = {"image": "a.png", "classes": [{"class": "\x1b[2Jcat", "probability": 1.0}]}
    assert "".join(outputs.FORMATS["table"]([result], ["a.png"])) == "a.png  100.00%  \\x1b[2Jcat\n"


def test_classes_that_are_paired_by_order_are_said(capsys):
    """A model of another library: by name if it can be, else by order, and then a note says so."""
    file = trained.TrainedFile(Path("x"), 2, 8, Preprocessing(32), ["cat", "dog"], False)
    assert evaluation.match_classes(file, ["dog", "cat"]).tolist() == [1, 0]
    assert not capsys.readouterr().err
    assert evaluation.match_classes(file, ["cats", "dogs"]).tolist() == [0, 1]
    assert "paired by their order: cats = cat, dogs = dog" in capsys.readouterr().err
    assert evaluation.match_classes(file, ["cat", "dogs"]).tolist() == [0, 1]
    assert capsys.readouterr().err.rstrip().endswith("order: dogs = dog")
    with pytest.raises(ConfigError, match=r"1 class \(cat\)\. Classes are paired by name"):
        evaluation.match_classes(replace(file, classes=["lion", "dog"]), ["cat"])
