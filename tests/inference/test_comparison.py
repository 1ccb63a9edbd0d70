"""Two models on the same images, and the files of an evaluation."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import bit_paddle as bit
from bit_paddle import create_model, evaluate, save_npz
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.errors import ConfigError
from bit_paddle.inference import comparison
from bit_paddle.inference.evaluation import Evaluation, Outputs

NAMES = ["amber", "blue", "coral"]


def trained(path, seed, names):
    model = create_model("R14x0.5", num_classes=3, seed=1)
    weight = np.random.default_rng(seed).normal(0, 1, (1024, 3)).astype(np.float32)
    order = [NAMES.index(name) for name in names]
    model.head.weight.set_value(weight[:, order])
    save_npz(model, path, notes={"classes": list(names), "crop": 32})
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "a": trained(folder / "a.npz", 0, NAMES),
        "a turned": trained(folder / "turned.npz", 0, NAMES[::-1]),
        "b": trained(folder / "b.npz", 3, NAMES[::-1]),
    }


def made(right, classes=NAMES, labels=None):
    """An evaluation whose images are right as given; all labels are 0."""
    labels = np.zeros(len(right), int) if labels is None else labels
    logits = np.eye(3, dtype=np.float32)[np.where(right, labels, (labels + 1) % 3)]
    top1 = float(np.mean(right))
    outputs = Outputs(logits, labels, "softmax", ())
    view = Preprocessing(32)
    return Evaluation("m", view, top1, 1.0, top1, 0.0, len(right), list(classes), outputs)


def test_mcnemar_and_difference_by_hand():
    """Only the first is right on 2, only the second on 8: p = 2 (1 + 10 + 45) / 2^10."""
    one = np.repeat([True, True, False, False], [20, 2, 8, 10])
    other = np.repeat([True, False, True, False], [20, 2, 8, 10])
    found = comparison.compare(made(one), made(other))
    assert found.p_value == pytest.approx(2 * 56 / 1024, rel=1e-12)
    assert found.difference == 6 / 40
    assert list(found.only_a) == [20, 21] and list(found.only_b) == [*range(22, 30)]
    deviation = np.sqrt((10 / 40 - 0.15**2) / 40)  # of the mean of 8 x 1, 2 x -1 and 30 x 0
    expected = (0.15 - 1.96 * deviation, 0.15 + 1.96 * deviation)
    assert found.interval == pytest.approx(expected, abs=0.03)
    assert comparison.compare(made(one), made(one)).p_value == 1


def test_classes_and_labels_must_be_the_same():
    one = made(np.ones(4, bool))
    with pytest.raises(ConfigError, match="has no class 'coral'"):
        comparison.compare(one, made(np.ones(4, bool), ["amber", "blue", "dust"]))
    with pytest.raises(ConfigError, match="different labels"):
        comparison.compare(one, made(np.ones(4, bool), labels=np.ones(4, int)))


def test_the_order_of_the_classes_does_not_matter(models, image_folder):
    found = bit.compare(models["a"], models["a turned"], image_folder)
    assert found.p_value == 1 and found.difference == 0
    assert found.a.top1 == found.b.top1 and found.a.macro_f1 == found.b.macro_f1
    assert found.a.ece == pytest.approx(found.b.ece, abs=1e-6)


def test_the_command_writes_all_files(models, image_folder, tmp_path, capsys):
    words = ["--dataset", str(image_folder), "--output", str(tmp_path)]
    both = ["--model", str(models["a"]), "--compare", str(models["b"])]
    assert evaluate.main([*both, *words]) == 0
    printed = capsys.readouterr().out
    assert "McNemar's exact test" in printed and "macro_f1" in printed
    found = bit.compare(models["a"], models["b"], image_folder)
    summary = json.loads((tmp_path / "comparison.json").read_text())
    assert summary["p_value"] == found.p_value and summary["top1"] == [found.a.top1, found.b.top1]
    rows = list(csv.DictReader(open(tmp_path / "differences.csv")))
    assert sum(row["right"] == "first" for row in rows) == len(found.only_a)
    assert sum(row["right"] == "second" for row in rows) == len(found.only_b)
    assert all((row["first"] == row["label"]) == (row["right"] == "first") for row in rows)
    assert len(found.only_a) + len(found.only_b) > 0
    Image.open(tmp_path / "differences.png").verify()
    Image.open(tmp_path / "reliability.png").verify()

    metrics = json.loads((tmp_path / "metrics.json").read_text())
    low, high = metrics["intervals"]["top1"]
    assert low < metrics["top1"] < high and metrics["macro_f1"] == found.a.macro_f1
    rows = list(csv.DictReader(open(tmp_path / "per_class.csv")))
    assert [float(row["auc"]) for row in rows] == pytest.approx(found.a.scores.auc, abs=1e-4)
    rows = list(csv.DictReader(open(tmp_path / "predictions.csv")))
    assert len(rows) == found.a.images
    for number, row in enumerate(rows):
        assert row["prediction"] == found.a.prediction(number)
        shares = [float(row[name]) for name in ("p", "p_2", "p_3")]
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-4)
        assert row["path"].startswith("val/") and row["path"].split("/")[1] == row["label"]
