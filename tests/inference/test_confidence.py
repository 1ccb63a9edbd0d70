"""Temperature, unknown images and strangers: the numbers, the commands, the model's file."""

import csv
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from helpers import commands
from helpers.pictures import cloud, fill

import bit_paddle as bit
from bit_paddle import create_model, save_npz
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.errors import CheckpointError, ConfigError, DataError, MissingFileError
from bit_paddle.inference import calibration, confidence, evaluation, outputs, scores
from bit_paddle.inference.trained import TrainedFile, find_trained, write_notes
from bit_paddle.models.losses import LOSSES

CLASSES = ["amber", "blue", "coral"]


def random_case(seed, images=400, classes=6, sharpness=3.0):
    """Logits that are too sure of a class, which is right for some of the images."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1, (images, classes))
    shares = LOSSES["softmax"].probabilities(logits)
    labels = np.array([random.choice(classes, p=row) for row in shares])
    return (sharpness * logits).astype(np.float32), labels


# --- The temperature ----------------------------------------------------------------------------


@pytest.mark.parametrize("loss, high, low", [("softmax", 3.0, 0.0), ("sigmoid", 2.5, -2.5)])
def test_a_temperature_by_hand(loss, high, low):
    """Three of four images are right, so their probability must become 3/4."""
    logits, labels = np.array([[high, low]] * 8), np.array([0, 0, 0, 1] * 2)
    found, note = calibration.temperature(logits, labels, loss)
    assert found == pytest.approx(high / np.log(3), rel=1e-6) and not note
    assert scores.probabilities(logits, loss, found)[0, 0] == pytest.approx(3 / 4, rel=1e-6)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_the_temperature_is_where_the_slope_is_zero(loss):
    for seed, sharpness in enumerate((0.2, 1.0, 3.0)):
        logits, labels = random_case(seed, sharpness=sharpness)
        found, note = calibration.temperature(logits, labels, loss)
        wide = logits.astype(np.float64)
        shares = LOSSES[loss].probabilities(wide / found)
        slope = (shares * wide).sum(axis=1) - wide[np.arange(len(labels)), labels]
        assert abs(slope.mean()) < 1e-5 * sharpness and not note
        if loss == "softmax":  # whose labels were drawn by the true probabilities
            assert found == pytest.approx(sharpness, rel=0.15)


def test_images_that_do_not_tell_a_temperature():
    logits, labels = random_case(0)
    right = logits.argmax(axis=1)
    assert calibration.temperature(logits, right, "softmax")[0] == 1
    found, note = calibration.temperature(100 * logits, right, "softmax")  # probabilities are 1
    assert found == 1 and "the images hold no mistake" in note
    found, note = calibration.temperature(logits, logits.argmin(axis=1), "softmax")
    assert found == 100 and "no better than guessing" in note
    about = {"data": "pets val", "digests": ("x",), "crop": 64}
    result, notes = calibration.fit(logits[:20], labels[:20], "softmax", **about)
    assert result.images == 20 and "only 20 images" in notes[-1]
    assert calibration.fit(logits, labels, "softmax", **about)[1] == []
    with pytest.raises(ConfigError, match="not finite"):
        calibration.fit(np.full((3, 2), np.nan), np.zeros(3, int), "softmax", **about)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_the_order_of_the_classes_stays(loss):
    """Also where probabilities become 1 or 0."""
    logits, _ = random_case(1)
    found = replace(fitted(logits), temperature=0.01)
    file = TrainedFile(Path("x"), 6, 8, Preprocessing(64), None, True, loss, calibration=found)
    plain, sharp = (outputs.best_classes(file, logits, 6, flag) for flag in (False, True))
    names = [[[name for name, _ in row] for row in rows] for rows in (plain, sharp)]
    assert names[0] == names[1] and max(row[1][1] for row in sharp) > 0.5 - (loss == "softmax")
    assert [int(row[0]) for row in names[0]] == logits.argmax(axis=1).tolist()


# --- Scores of strangers ------------------------------------------------------------------------


def test_separation_equals_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    for case in range(300):
        sizes = random.integers(1, 60, 2)
        known, strange = (random.normal(shift, 1, n) for shift, n in zip((1, 0), sizes))
        if case % 3 == 0:  # ties
            known, strange = np.round(known), np.round(strange)
        own = np.repeat([1, 0], sizes)
        fpr, tpr, _ = sklearn.roc_curve(
            own, np.concatenate([known, strange]), drop_intermediate=False
        )
        found = confidence.separation(known, strange)
        expected = sklearn.roc_auc_score(own, np.concatenate([known, strange]))
        assert found.auroc == pytest.approx(expected, abs=1e-12)
        assert found.fpr95 == pytest.approx(fpr[np.argmax(tpr >= 0.95)], abs=1e-12)
    assert np.isnan(confidence.separation(np.array([np.nan, 1]), np.ones(2))).all()


def test_the_scores():
    from scipy.special import logsumexp

    logits = np.random.default_rng(0).normal(0, 900, (50, 4))
    expected = {
        "max_logit": logits.max(axis=1),
        "energy": logsumexp(logits, axis=1),
        "max_probability": np.exp(logits.max(axis=1) - logsumexp(logits, axis=1)),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(confidence.score(name, logits, "softmax"), values, rtol=1e-12)
    several = confidence.score("energy", np.array([[2.0, -1.0], [800.0, -800.0]]), "sigmoid")
    np.testing.assert_allclose(several, [np.log1p(np.exp(2)) + np.log1p(np.exp(-1)), 800])


def fitted(logits, labels=None):
    labels = np.zeros(len(logits), int) if labels is None else labels
    about = {"data": "pets val", "digests": ("x",), "crop": 64}
    return calibration.fit(logits, labels, "softmax", **about)[0]


@pytest.mark.parametrize("images", [40, 341, 1000])
def test_the_share_of_unknown_images(images):
    logits, labels = random_case(2, images)
    found = fitted(logits, labels)
    for share in (0.01, 0.05, 0.123, 0.5, 0.99):
        unknown = found.unknown(logits, "softmax", share)
        assert abs(unknown.mean() - share) <= 1 / images + 0.005
        values = confidence.score(found.score, logits, "softmax")
        assert values[unknown].max(initial=-np.inf) < values[~unknown].min()
    assert found.unknown(np.full((1, 6), np.nan), "softmax", 0.01).all()


@pytest.mark.parametrize(
    "value, share", [("5%", 0.05), ("0.05", 0.05), (0.25, 0.25), (" 12.5% ", 0.125)]
)
def test_a_share(value, share):
    assert calibration.parse_share(value) == pytest.approx(share)


@pytest.mark.parametrize("value", ["5", "0", "100%", "0%", "-5%", "nan", "%", "five", 1, True])
def test_no_share(value):
    with pytest.raises(ConfigError, match="such as 5% or 0.05"):
        calibration.parse_share(value)


# --- The model's file ---------------------------------------------------------------------------


def write_model(path, seed=1, **notes):
    network = create_model("R14x0.5", num_classes=3, seed=seed)
    random = np.random.default_rng(0)
    network.head.weight.set_value(random.normal(0, 0.3, (1024, 3)).astype(np.float32))
    save_npz(network, path, notes={"classes": CLASSES, "crop": 44, "steps": 7, **notes})
    return path


@pytest.fixture(scope="module")
def plain_file(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "plain.npz")


@pytest.fixture(scope="module")
def calibrated(plain_file, image_folder):
    """Return a calibrated copy of the model, and what the command printed and wrote."""
    path = plain_file.with_name("model.npz")
    shutil.copy(plain_file, path)
    done = commands.run_here("evaluate", "--model", path, "--dataset", image_folder,
                             "--calibrate", "--output", path.parent / "out")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return path, done, json.loads((path.parent / "out/metrics.json").read_text())


def test_calibrate(calibrated, plain_file, image_folder):
    path, done, written = calibrated
    with np.load(plain_file) as before, np.load(path) as after:
        assert before.files == after.files
        for name in before.files[:-1]:
            assert before[name].tobytes() == after[name].tobytes() and "notes" not in name
    raw = bit.evaluate(bit.load(plain_file), image_folder)
    assert raw.calibration is raw.calibrated is None
    expected, _ = calibration.temperature(raw.outputs.logits, raw.outputs.labels, "softmax")
    entry = written["calibrated"]
    assert entry["temperature"] == pytest.approx(expected, rel=1e-5) and expected != 1
    assert entry["optimistic"] and entry["fitted_on"] == {
        "data": f"{image_folder.name} val", "images": 15}  # fmt: skip
    assert entry["nll"] < written["nll"] and written["top1"] == raw.top1
    assert "too good. Measure on others" in done.stdout and "only 15 images" in done.stderr
    assert list(path.parent.glob("*.part")) == []
    model = bit.load(path)
    train = bit.evaluate(model, image_folder, split="train")
    assert not train.calibrated.optimistic
    both = bit.evaluate(model, image_folder, split="all")
    assert both.calibrated.optimistic  # a part of them fitted it
    images = scores.per_image(*(train.outputs.logits, train.outputs.labels, "softmax"), expected)
    assert train.calibrated.brier == pytest.approx(images.brier.mean(), rel=1e-4)
    assert bit.evaluate(model, image_folder, views="flip").calibration is None
    assert bit.evaluate(path, image_folder, crop=40).calibration is None
    with np.load(path) as file:
        notes = json.loads(file["bit_paddle/notes"].tobytes())
    assert notes.pop("calibration")["images"] == 15
    assert notes == {"classes": CLASSES, "crop": 44, "steps": 7}


def test_calibrate_from_python(plain_file, image_folder, tmp_path):
    path = tmp_path / "link.npz"
    shutil.copy(plain_file, tmp_path / "real.npz")
    path.symlink_to("real.npz")
    model = bit.load(path)
    result = bit.evaluate(model, image_folder, calibrate=True)
    assert model.file.calibration == result.calibration == bit.load(path).file.calibration
    assert path.is_symlink()
    again = bit.evaluate(model, image_folder, "train", calibrate=False)
    assert again.calibration == result.calibration


def test_exports_keep_it(calibrated, tmp_path):
    path, _, _ = calibrated
    model = bit.load(path)
    served, found = tmp_path / "served", model.file.calibration
    served.mkdir()
    write_notes(model.file, served)  # as `export --format paddle` does
    for name in ("npz", "huggingface"):
        place = tmp_path / (f"{name}.npz" if name == "npz" else name)
        bit.export(model, name, place)
        assert find_trained(str(place)).calibration == found
    assert find_trained(str(served)).calibration == found
    assert f"Divide the logits by {found.temperature:.6g}" in (place / "README.md").read_text()
    with pytest.raises(ConfigError, match="calibrate the checkpoint that it came from"):
        calibration.check(find_trained(str(served)), "val", ())


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0},
        {"temperature": "hot"},
        {"temperature": float("nan")},
        {"quantiles": [1.0, 2.0]},
        {"quantiles": [2.0] * 200 + [1.0]},
        {"quantiles": [float("inf")] * 201},
        {"score": "entropy"},
        {"crop": None},
    ],
)
def test_a_malformed_note(change):
    good = asdict(fitted(*random_case(3)))
    assert calibration.of_note(Path("x"), json.loads(json.dumps(good))).images == 400
    for note in ({**good, **change}, [], "words"):
        with pytest.raises(CheckpointError, match="its calibration is malformed"):
            calibration.of_note(Path("x"), note)


# --- Predict ------------------------------------------------------------------------------------


def predicted(calibrated, image_folder, *arguments):
    done = commands.run_here("predict", image_folder / "val", "--model", calibrated[0],
                             "--calibrated", "--unknown", "20%", *arguments)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_predict(calibrated, image_folder, tmp_path):
    path, _, _ = calibrated
    model = bit.load(path)
    done = predicted(calibrated, image_folder, "--format", "json", "--sheet", tmp_path / "s.png")
    results = json.loads(done.stdout)
    assert "fitted on 15 images" in done.stderr and (tmp_path / "s.png").is_file()
    images = [result["image"] for result in results]
    logits = model.logits(images)
    assert [item["unknown"] for item in results].count(True) == 3  # of 15
    energies = np.logaddexp.reduce(logits, axis=1)
    unknown = [item["unknown"] for item in results]
    assert sorted(np.argsort(energies)[:3]) == np.flatnonzero(unknown).tolist()
    shares = LOSSES["softmax"].probabilities(logits / model.file.calibration.temperature)
    for item, row, flag in zip(results, shares, model(images, calibrated=True, unknown=0.2)):
        found = [(each["class"], each["probability"]) for each in item["classes"]]
        assert found[0] == (CLASSES[row.argmax()], pytest.approx(row.max(), rel=1e-5))
        assert flag == ([] if item["unknown"] else found)
    text = predicted(calibrated, image_folder, "--top", 1).stdout.splitlines()
    assert sum("unknown  nearest:" in line for line in text) == 3 and len(text) == 18
    lines = csv.DictReader(predicted(calibrated, image_folder, "--format", "csv").stdout.split())
    assert [line["unknown"] for line in lines if line["rank"] == "1"].count("true") == 3
    plain = commands.run_here("predict", images[0], "--model", path, "--format", "csv")
    assert plain.stdout.startswith("image,rank,class,probability\n")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--unknown", "5"], "--unknown: is '5', expected a share"),
        (["--unknown", "5%", "--views", "flip"], "--unknown: was measured with one view"),
        (["--calibrated", "--features", "x.npz"], "cannot be combined with --calibrated"),
        (["--calibrated", "--maps", "maps"], "--maps: cannot be combined with --calibrated"),
        (["--calibrated", "--crop", 40], "calibrated with images of 44 pixels, and 40 are used"),
    ],
)
def test_mistakes_of_predict(arguments, words, calibrated, image_folder):
    done = commands.run_here("predict", image_folder, "--model", calibrated[0], *arguments)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not done.stdout


def test_a_model_without_calibration(plain_file, image_folder):
    done = commands.run_here("predict", image_folder, "--model", plain_file, "--unknown", "5%")
    assert done.returncode == 2 and "has no calibration; measure one" in done.stderr
    assert f"evaluate --model {plain_file} --dataset … --calibrate" in done.stderr
    for options in ({"calibrated": True}, {"unknown": "5%"}):
        with pytest.raises(ConfigError, match="has no calibration"):
            bit.load(plain_file)(cloud(1), **options)


# --- Evaluate -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--calibrate", "--split", "train"], "that the model was not trained on"),
        (["--calibrate", "--views", "flip"], "--calibrate: measures one view"),
        (["--calibrate", "--compare", "BiT-Mini"], "--calibrate: takes one model"),
        (["--calibrate", "--model", "BiT-Mini"], "export --model BiT-Mini --format npz"),
        (["--strangers", "nowhere"], "--strangers nowhere: no such folder"),
    ],
)
def test_mistakes_of_evaluate(arguments, words, plain_file, image_folder):
    given = ["--model", plain_file, "--dataset", image_folder, *arguments]
    before = plain_file.read_bytes()
    done = commands.run_here("evaluate", *given)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and plain_file.read_bytes() == before


def test_other_files_are_not_changed(plain_file, image_folder, tmp_path):
    bit.export(plain_file, "pdparams", tmp_path / "x.pdparams")
    with pytest.raises(ConfigError, match=r"is no \.npz file; calibrate a copy"):
        bit.evaluate(tmp_path / "x.pdparams", image_folder, calibrate=True, crop=44)


def test_strangers(plain_file, image_folder, tmp_path, monkeypatch):
    sklearn = pytest.importorskip("sklearn.metrics")
    fill(tmp_path, {"other/deep/er": 9, "other": 4})
    (tmp_path / "other/notes.txt").write_text("no image")
    words = ["--model", plain_file, "--dataset", image_folder, "--output", tmp_path / "out"]
    done = commands.run_here("evaluate", *words, "--strangers", tmp_path / "other", "--batch", 4)
    assert done.returncode == 0 and "13 strangers in" in done.stdout, done.stderr
    found = json.loads((tmp_path / "out/metrics.json").read_text())["strangers"]
    assert found["images"] == 13 and "calibrated" not in found
    model = bit.load(plain_file)
    paths = [sorted(place.rglob("*.*g")) for place in (image_folder / "val", tmp_path / "other")]
    logits = [model.logits([str(path) for path in part]) for part in paths]
    own = np.repeat([1, 0], [15, 13])
    for name in confidence.SCORES:
        values = np.concatenate([confidence.score(name, part, "softmax") for part in logits])
        assert found[name]["auroc"] == pytest.approx(sklearn.roc_auc_score(own, values))
        assert f"{name:<15} AUROC {found[name]['auroc']:7.2%}" in done.stdout
    (tmp_path / "other/torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    with pytest.raises(DataError, match="--strangers: 1 image cannot be read"), \
            monkeypatch.context() as patch:  # fmt: skip
        patch.setattr(evaluation, "measure", lambda *_: pytest.fail("measured before the check"))
        bit.evaluate(model, image_folder, strangers=tmp_path / "other")
    skipped = bit.evaluate(
        model, image_folder, strangers=tmp_path / "other", on_bad_image="skip"
    ).strangers
    assert skipped.images == 13
    assert skipped.separations["energy"].auroc == pytest.approx(found["energy"]["auroc"])
    with pytest.raises(MissingFileError):
        bit.evaluate(model, image_folder, strangers=tmp_path / "none")
    with pytest.raises(ConfigError, match="omit --views"):
        bit.evaluate(model, image_folder, strangers=tmp_path / "other", views="flip")
