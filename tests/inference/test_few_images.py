"""Images of one class, and one image: measured by what is defined there."""

import csv
import json
import shutil

import numpy as np
import pytest
from helpers import commands

from bit_paddle import create_model, save_npz

UNDEFINED = {"macro_auc"}  # needs images of another class, too


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of the three classes of ``image_folder``; its predictions are arbitrary."""
    network = create_model("R14x0.5", num_classes=3, seed=1)
    random = np.random.default_rng(0)
    network.head.weight.set_value(random.normal(0, 1, (1024, 3)).astype(np.float32))
    path = tmp_path_factory.mktemp("trained") / "model.npz"
    save_npz(network, path, notes={"classes": ["amber", "blue", "coral"], "crop": 32})
    return path


def measured(model, output, *flags):
    """Return metrics.json, the table per class, and the printed text."""
    done = commands.run("evaluate", "--model", model, "--output", output, *flags)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    with open(output / "per_class.csv", encoding="utf-8-sig", newline="") as stream:
        rows = {row["class"]: row for row in csv.DictReader(stream)}
    assert (output / "reliability.png").exists() and (output / "confusion.png").exists()
    return json.loads((output / "metrics.json").read_text()), rows, done.stdout


def folder_of(tmp_path, image_folder, count):
    (tmp_path / "d/blue").mkdir(parents=True)
    for k in range(count):
        shutil.copy(image_folder / f"val/blue/{k}.png", tmp_path / "d/blue")
    return tmp_path / "d"


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("kind", ["folder", "list"])
def test_one_class(kind, count, model, image_folder, tmp_path):
    data = folder_of(tmp_path, image_folder, count)
    if kind == "list":
        (data / "train.csv").write_text("".join(f"blue/{k}.png,blue\n" for k in range(count)))
    flags = ["--dataset", kind, "--datadir", data, "--split", "all"]
    scores, rows, text = measured(model, tmp_path / "out", *flags)
    assert scores["images"] == count and rows["blue"]["images"] == str(count)
    _, whole, _ = measured(
        model, tmp_path / "whole", "--dataset", "folder", "--datadir", image_folder
    )
    assert scores["top1"] == scores["balanced_accuracy"]
    assert count == 1 or scores["top1"] == pytest.approx(float(whole["blue"]["accuracy"]))
    undefined = {name for name, value in scores.items() if value is None}
    assert undefined >= UNDEFINED and not undefined & {"top1", "ece", "brier", "nll", "loss"}
    (line,) = (line for line in text.splitlines() if line.startswith("not defined"))
    assert "all of them are of one class" in line and "nan" not in text
    assert set(line.rpartition(": ")[2].split(", ")) == undefined


def test_one_image_is_not_held_out(model, image_folder, tmp_path):
    """By default that part is measured which training would hold out: here there is none."""
    data = folder_of(tmp_path, image_folder, 1)
    flags = ["--model", model, "--dataset", "folder", "--datadir", data]
    done = commands.run("evaluate", *flags, "--output", tmp_path / "out")
    assert done.returncode == 2 and "take 'all', which measures every image" in done.stderr
    shutil.copytree(image_folder / "val/amber", data / "amber")
    scores, rows, text = measured(model, tmp_path / "some", *flags[2:])
    assert scores["images"] == 1 and rows["blue"]["images"] == "0"  # one of five
    scores, rows, text = measured(model, tmp_path / "all", *flags[2:], "--split", "all")
    assert scores["images"] == 6 and rows["blue"]["images"] == "1"
    assert "not defined" not in text


def test_training_needs_two_classes(image_folder, tmp_path):
    data = folder_of(tmp_path, image_folder, 5)
    flags = ["--model", "R14x0.5", "--from_scratch", "--dataset", "folder", "--datadir", data]
    done = commands.run("train", *flags, "--dry-run")
    assert done.returncode == 2 and "expected two or more" in done.stderr
