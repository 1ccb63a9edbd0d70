"""Exact copies across the parts: counted at every start, their hashes cached."""

import os
import shutil

import numpy as np
import pytest
from helpers.pictures import cloud, fill

from bit_paddle.config import parsing
from bit_paddle.data import copies, stamps
from bit_paddle.data.readers import listing, registry
from bit_paddle.training.classification.plan import make_plan

COUNTS = {"train/a": 6, "train/b": 6, "val/a": 2, "val/b": 2}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(stamps, "SETTLED", 0)
    fill(tmp_path / "d", COUNTS)
    return tmp_path / "d"


def notes(folder, *more, dataset="folder"):
    words = ["--model", "R14x0.5", "--from_scratch", "--dataset", dataset, *map(str, more)]
    plan = make_plan(parsing.parse([*words, "--datadir", str(folder)], "t", registry.find)[0])
    return [note for note in plan.notes() if "cop" in note]


def test_copies_across_parts_are_noted_before_training(folder):
    assert notes(folder) == []
    shutil.copy(folder / "train/a/0.jpg", folder / "val/a/new.jpg")
    assert notes(folder) == [
        "1 validation image is a copy of training images: the validation accuracy is too high by "
        "them; bit_paddle audit lists them, and writes a file for --exclude"
    ]
    shutil.copy(folder / "train/a/0.jpg", folder / "val/b/again.jpg")  # the label does not matter
    (note,) = notes(folder)
    assert note.startswith("2 validation images are copies of training images")


def test_copies_of_the_test_images(folder):
    fill(folder, {"test/a": 1, "test/b": 1}, seed=50)
    shutil.copy(folder / "train/b/1.jpg", folder / "test/b/x.jpg")
    shutil.copy(folder / "val/b/1.jpg", folder / "test/b/y.jpg")
    (note,) = notes(folder)
    assert note.startswith("2 test images are copies of training or validation images: the test")


def test_only_the_chosen_training_images_count(folder):
    shutil.copytree(folder / "train", folder / "val", dirs_exist_ok=True)
    assert notes(folder)[0].startswith("12 validation images")
    assert notes(folder, "--examples_per_class", 1)[0].startswith("2 validation images")
    assert notes(folder)[0].startswith("12 validation images")


def test_a_path_in_both_lists_is_noted_once(folder):
    (folder / "train.csv").write_text("train/a/0.jpg,a\ntrain/a/1.jpg,a\ntrain/b/0.jpg,b\n")
    (folder / "val.csv").write_text("train/a/0.jpg,a\nval/b/0.jpg,b\n")
    assert notes(folder, dataset="list") == []
    shutil.copy(folder / "train/a/1.jpg", folder / "copy.jpg")
    (folder / "val.csv").write_text("train/a/0.jpg,a\ncopy.jpg,b\n")
    assert notes(folder, dataset="list")[0].startswith("1 validation image is a copy")


def test_other_processes_of_a_run_do_not_look(folder, monkeypatch):
    shutil.copy(folder / "train/a/0.jpg", folder / "val/a/new.jpg")
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    assert notes(folder) == []


# --- The cache -----------------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch):
    """The paths that are read, in order."""
    paths, real = [], copies._hash

    def hash_(path, size):
        paths.append(os.path.basename(path))
        return real(path, size)

    monkeypatch.setattr(copies, "_hash", hash_)
    return paths


def same_size(folder):
    """Pad all files to one size, so that all must be read."""
    files = sorted(folder.rglob("*.jpg"))
    most = max(file.stat().st_size for file in files)
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[:-2] + bytes(most - len(content)) + content[-2:])
    return files


def test_only_files_whose_size_is_in_both_parts_are_read(folder, read):
    cloud(99, 200, 300).save(folder / "train/a/large.png")
    cloud(98, 300, 200).save(folder / "val/a/other.png")
    notes(folder)
    sizes = [{f.stat().st_size for f in (folder / part).rglob("*.*")} for part in ("train", "val")]
    both = [f.name for f in folder.rglob("*.*") if f.stat().st_size in sizes[0] & sizes[1]]
    assert sorted(read) == sorted(both) and "large.png" not in read


def test_the_second_start_reads_changed_files_only(folder, read):
    files = same_size(folder)
    notes(folder)
    assert len(read) == 16
    read.clear()
    notes(folder)
    assert read == []
    content = (folder / "train/b/3.jpg").read_bytes()  # written in place: no folder has a new date
    (folder / "val/a/1.jpg").write_bytes(content)
    assert notes(folder)[0].startswith("1 validation image is a copy") and read == ["1.jpg"]
    read.clear()
    shutil.copy(files[0], folder / "train/b/added.jpg")
    notes(folder)
    assert read == ["added.jpg"]


def test_files_of_the_last_seconds_are_read_again(folder, read, monkeypatch):
    monkeypatch.setattr(stamps, "SETTLED", listing.SETTLED)
    same_size(folder)
    notes(folder)
    notes(folder)
    assert len(read) == 32


def test_a_few_shot_start_keeps_the_other_hashes(folder, read):
    same_size(folder)
    notes(folder)
    notes(folder, "--examples_per_class", 2)
    notes(folder)
    assert len(read) == 16


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 nonsense", "half", "short"])
def test_a_damaged_cache_is_made_again(folder, damage, tmp_path):
    shutil.copy(folder / "train/a/0.jpg", folder / "val/a/new.jpg")
    before = notes(folder)
    (file,) = (tmp_path / "cache" / "hashes-1").iterdir()
    content = file.read_bytes()
    if damage == "short":
        with np.load(file) as arrays:
            arrays = dict(arrays)
        with open(file, "wb") as stream:
            np.savez(stream, **{**arrays, "sizes": arrays["sizes"][:3]})
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "half" else damage)
    assert notes(folder) == before != []
    assert file.read_bytes() == content


def test_a_cache_that_cannot_be_written(folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path / "file"))
    shutil.copy(folder / "train/a/0.jpg", folder / "val/a/new.jpg")
    assert len(notes(folder)) == 1


def test_hash_of_large_and_missing_files(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(bytes(range(250)) * 40)
    whole = copies._hash(str(path), 10_000)
    monkeypatch.setattr(copies, "_BLOCK", 999)
    assert copies._hash(str(path), 10_000) == whole != copies._hash(str(path), 9_999)
    assert copies._hash(str(tmp_path / "none"), 5) == 0
