"""The command that looks for copies, unusual images and wrong labels."""

import csv
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from helpers.commands import run_here, run_outside
from helpers.pictures import cloud, fill
from helpers.places import ROOT, SHARED
from PIL import Image, ImageOps

import bit_paddle as bit
from bit_paddle import errors
from bit_paddle.inference import predictions

_spec = importlib.util.spec_from_file_location("plant", ROOT / "scripts/benchmarks/plant.py")
plant = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plant)


@pytest.fixture
def folder(tmp_path):
    """20 + 8 clouds, and two copies across parts, two within, a blank, a tiny and a broken one."""
    root = tmp_path / "pets"
    fill(root, {"train/cat": 10, "train/dog": 10, "val/cat": 4, "val/dog": 4})
    shutil.copy(root / "train/cat/1.jpg", root / "val/dog/exact.jpg")  # and the label differs
    shutil.copy(root / "train/cat/1.jpg", root / "train/cat/twice.jpg")
    ImageOps.mirror(Image.open(root / "train/dog/2.jpg")).save(root / "val/dog/mirrored.jpg")
    Image.open(root / "train/dog/3.jpg").resize((50, 40)).save(root / "train/dog/small.jpg")
    Image.new("RGB", (96, 80), "white").save(root / "train/cat/blank.jpg")
    cloud(70, 12, 10).save(root / "val/cat/tiny.png")
    (root / "train/dog/broken.jpg").write_bytes(b"\xff\xd8\xff")
    return root


def rows(output):
    return [tuple(row.values()) for row in csv.DictReader(open(output / "audit.csv", newline=""))]


def test_the_table_the_sheet_and_the_file(folder, tmp_path):
    done = run_here("audit", "--dataset", "folder", "--datadir", folder, "--output", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    assert "     2  exact copies, 2 of them across parts\n" in done.stdout
    assert "     2  near copies, 1 of them across parts\n" in done.stdout
    found = rows(tmp_path / "o")
    near = [found[2][6], found[3][6]]
    assert all(0.98 <= float(score) <= 1 for score in near)
    assert [row[:7] for row in found] == [
        *[
            ("exact copy", path, "train", "cat", "val/dog/exact.jpg", "val", "1.0000")
            for path in ("train/cat/1.jpg", "train/cat/twice.jpg")
        ],
        ("near copy", "train/dog/2.jpg", "train", "dog", "val/dog/mirrored.jpg", "val", near[0]),
        ("near copy", "train/dog/small.jpg", "train", "dog", "train/dog/3.jpg", "train", near[1]),
        ("unreadable", "train/dog/broken.jpg", "train", "dog", "", "", "1.0000"),
        ("one colour", "train/cat/blank.jpg", "train", "cat", "", "", "1.0000"),
        ("tiny", "val/cat/tiny.png", "val", "cat", "", "", "10.0000"),
    ]
    assert found[0][7] == "same content, but the other has the label dog"
    assert found[6][7] == "10 x 12 pixels, as 1 of 34 images; median side 80"
    lines = (tmp_path / "o/exclude.txt").read_text().splitlines()
    assert [line for line in lines if line[0] != "#"] == [
        *("train/cat/1.jpg", "train/cat/twice.jpg", "train/dog/2.jpg"),
        *("train/dog/broken.jpg", "train/cat/blank.jpg"),
    ]
    assert {"# train/dog/small.jpg", "# val/cat/tiny.png"} <= set(lines)
    sheet = Image.open(tmp_path / "o/sheet.png")
    assert sheet.size == (8 + 4 * (320 + 8), 8 + 2 * (160 + 16 + 8))
    copy, original = (np.asarray(sheet)[30:138, left : left + 150] for left in (14, 174))
    assert np.array_equal(copy, original) and copy.std() > 10


def test_the_file_ends_the_note_on_copies(folder, tmp_path):
    (folder / "train/dog/broken.jpg").unlink()
    words = ["--dataset", "folder", "--datadir", folder]
    assert run_here("audit", *words, "--output", tmp_path / "o").returncode == 0
    train = ["--model", "R14x0.5", "--from_scratch", *words, "--dry-run"]
    assert "1 validation image is a copy of training images" in run_here("train", *train).stdout
    done = run_here("train", *train, "--exclude", tmp_path / "o/exclude.txt")
    assert "4 images left out (4 of train, 0 of val)" in done.stdout
    assert "copy" not in done.stdout and "copies" not in done.stdout
    again = run_here("audit", *words, "--exclude", tmp_path / "o/exclude.txt", "--output", tmp_path)
    assert "     0  exact copies\n     1  near copies\n" in again.stdout


def test_labels_by_the_features_of_a_model(image_folder, small_checkpoint, tmp_path):
    root = tmp_path / "d"
    shutil.copytree(image_folder, root)
    (root / "train/amber/7.png").rename(root / "train/blue/wrong.png")
    found = bit.audit(root, model=bit.load(small_checkpoint, crop=32))
    first = found.of("label")[0]
    assert (first.path, first.label) == ("train/blue/wrong.png", "blue")
    assert "amber" in first.other and first.why.startswith("rather amber: ")
    assert first.score > 0.6 and not any(row.kind == "label" for row in bit.audit(root).findings)


def test_labels_by_predictions_out_of_fold(folder, tmp_path):
    (folder / "train/dog/broken.jpg").unlink()
    names = [f"{part.parent.parent.name}/{part.parent.name}/{part.name}" for part in
             sorted(folder.rglob("*.*"))]  # fmt: skip
    lines = ["path,label,fold,prediction,p(cat),p(dog)\n"]
    for name in names[1:]:
        label = name.split("/")[1]
        right = 0.2 if name == "train/dog/5.jpg" else 0.9
        cat = right if label == "cat" else 1 - right
        lines.append(f"{name},{label},1,cat,{cat},{1 - cat}\n")
    (tmp_path / "p.csv").write_text("".join(lines))
    (one,) = bit.audit(folder, predictions=tmp_path / "p.csv").of("label")
    assert one.path == "train/dog/5.jpg" and one.score == pytest.approx(0.8)
    assert one.why == "rather cat: 80%, its label 20.0%"
    read = predictions.read(tmp_path / "p.csv", names, ["cat", "dog"])
    assert np.isnan(read[0]).all() and not np.isnan(read[1:]).any()
    for text, words in (
        ("path,label\n", "is no predictions.csv of --folds"),
        (lines[0] + "train/cat/0.jpg,cat,1,cat,0.5,much\n", "p.csv:2: cannot be read"),
        (lines[0] + "x.jpg,cat,1,cat,0.5,0.5\n", "has none of the images"),
    ):
        (tmp_path / "p.csv").write_text(text)
        with pytest.raises(errors.DataError, match=words):
            bit.audit(folder, predictions=tmp_path / "p.csv")
    with pytest.raises(errors.MissingFileError, match="no such file"):
        bit.audit(folder, predictions=tmp_path / "none.csv")


def test_a_path_that_a_list_has_twice_is_no_copy(folder):
    lines = [f"train/{name}/{k}.jpg,{name}\n" for name in ("cat", "dog") for k in range(5)]
    (folder / "train.csv").write_text("".join(lines))
    (folder / "val.csv").write_text(lines[0] + "val/dog/exact.jpg,dog\n")
    found = bit.audit("list", datadir=folder)
    assert [row.path for row in found.findings] == ["train/cat/1.jpg"]


def test_names_of_any_bytes_reach_the_file(folder, tmp_path):
    """Bytes that are no UTF-8, as in names of an old system."""
    name = os.fsdecode(b"train/dog/\xe9t\xe9.jpg")
    shutil.copy(folder / "val/dog/0.jpg", folder / name)
    words = ["--dataset", "folder", "--datadir", folder]
    assert run_here("audit", *words, "--output", tmp_path / "o").returncode == 0
    assert os.fsencode(name) in (tmp_path / "o/exclude.txt").read_bytes().splitlines()
    again = bit.audit("folder", datadir=folder, exclude=tmp_path / "o/exclude.txt")
    assert not again.of("exact copy")


def test_images_in_memory():
    found = bit.audit("digits")
    assert found.images == 1797 and not found.of("exact copy")
    assert found.findings[0].path.startswith("digits train image ")


def test_addresses():
    for command in ("audit", "data.audit"):
        done = run_outside(command, "--help")
        assert done.returncode == 0 and "exclude.txt" in done.stdout, done.stderr
    code = "import sys, bit_paddle.audit; assert 'paddle' not in sys.modules"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)


def test_mistakes(folder):
    done = run_here("audit", "--dataset", "folder", "--datadir", folder, "--model", "BiT-Mino")
    assert done.returncode == 2 and "did you mean BiT-Mini" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data/clothing10.tar").exists(), reason="needs photographs")
def test_planted_copies_are_found(tmp_path):
    with tarfile.open(SHARED / "data/clothing10.tar") as archive:
        archive.extractall(tmp_path)
    planted = plant.plant(tmp_path, seed=0)
    counts = plant.count_copies(planted, bit.audit(tmp_path))
    assert [found for _, found, _ in counts[:3]] == [10, 10, 10] and counts[3][1] <= 2
