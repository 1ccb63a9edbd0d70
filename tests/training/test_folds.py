"""Cross-validation: every image is predicted once, by a model that was not trained on it."""

import csv
import json
import signal

import numpy as np
import pytest
from helpers.commands import run_here, run_outside, start_train

import bit_paddle as bit
from bit_paddle.errors import ConfigError
from bit_paddle.inference.metrics import interval

TINY = ["--model", "R14x0.5", "--from_scratch", "--precrop", "36", "--crop", "32", "--batch", "8",
        "--steps", "2", "--no-save", "--workers", "0"]  # fmt: skip


def read(path):
    with open(path, newline="") as stream:
        return list(csv.reader(stream))


def check(folder, image_folder, folds):
    """Compare folds.json with predictions.csv, and that with the images and the runs."""
    content = json.loads((folder / "folds.json").read_text())
    head, *rows = read(folder / "predictions.csv")
    assert head == ["path", "label", "fold", "prediction", "p(amber)", "p(blue)", "p(coral)"]
    paths = sorted(row[0] for row in rows)
    assert paths == sorted(
        path.relative_to(image_folder).as_posix() for path in image_folder.rglob("*.png")
    )
    assert content["count"] == folds and content["pooled"]["images"] == len(rows)
    right = sum(row[1] == row[3] for row in rows)
    assert content["pooled"]["top1"] == right / len(rows)
    assert content["pooled"]["interval"] == list(interval(right / len(rows), len(rows)))
    of_folds = [run["top1"] for run in content["runs"]]
    assert content["top1"] == {
        "min": min(of_folds), "median": np.median(of_folds), "max": max(of_folds)}  # fmt: skip
    for run in content["runs"]:
        own = [row for row in rows if int(row[2]) == run["fold"]]
        assert run["images"] == len(own)
        assert run["top1"] == pytest.approx(sum(row[1] == row[3] for row in own) / len(own))
    for row in rows:
        probabilities = np.array(row[4:], float)
        assert abs(probabilities.sum() - 1) < 1e-4
        assert head[4 + probabilities.argmax()] == f"p({row[3]})" and row[0].split("/")[1] == row[1]
    for name, recall in content["pooled"]["recall"].items():
        own = [row for row in rows if row[1] == name]
        assert recall == sum(row[3] == name for row in own) / len(own)
    return content, rows


def test_folds(image_folder, tmp_path):
    arguments = [*TINY, "--dataset", "folder", "--datadir", image_folder, "--folds", 3,
                 "--logdir", tmp_path, "--name", "cv"]  # fmt: skip
    plan = run_here("train", *arguments, "--dry-run").stdout
    assert "51 images in 3 folds" in plan and "6 steps in all" in plan
    assert not (tmp_path / "cv").exists()
    done = run_here("train", *arguments)
    assert done.returncode == 0, done.stderr
    check(tmp_path / "cv", image_folder, 3)
    table = (tmp_path / "cv/folds.txt").read_text()
    assert table in done.stdout and "95% interval" in table
    assert table in run_here("train", *arguments).stdout  # complete: nothing runs again
    run_here("report", tmp_path / "cv", "--pictures", 1)
    page = (tmp_path / "cv/report.html").read_text()
    assert "all folds: top-1" in page and "cv/fold-3" in page


@pytest.mark.slow
def test_a_killed_cross_validation_resumes(image_folder, tmp_path):
    arguments = [*TINY, "--dataset", "folder", "--datadir", image_folder, "--folds", 3,
                 "--logdir", tmp_path]  # fmt: skip
    assert run_outside("train", *arguments, "--name", "whole").returncode == 0
    process = start_train(*arguments, "--name", "cut")
    for line in process.stdout:
        if line.startswith("--- run 2 of 3"):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=60)
    assert (tmp_path / "cut/fold-1/result.json").exists()
    assert not (tmp_path / "cut/fold-3").exists()
    assert run_outside("train", *arguments, "--name", "cut").returncode == 0
    check(tmp_path / "cut", image_folder, 3)
    whole, cut = (read(tmp_path / name / "predictions.csv") for name in ("whole", "cut"))
    assert whole == cut


@pytest.mark.slow
def test_processes_predict_the_same(image_folder, tmp_path):
    arguments = [*TINY, "--dataset", "folder", "--datadir", image_folder, "--folds", 2,
                 "--logdir", tmp_path]  # fmt: skip
    assert run_outside("train", *arguments, "--name", "one").returncode == 0
    done = run_outside("train", *arguments, "--name", "two", "--nproc", 2)
    assert done.returncode == 0, done.stderr
    (_, one), (_, two) = (check(tmp_path / name, image_folder, 2) for name in ("one", "two"))
    assert [row[:3] for row in one] == [row[:3] for row in two]
    values = [np.array([row[4:] for row in rows], float) for rows in (one, two)]
    assert np.abs(values[0] - values[1]).max() < 1e-3


def test_in_python(image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = bit.fine_tune("R14x0.5", image_folder, from_scratch=True, precrop=36, crop=32, batch=8,
                        steps=1, save=False, workers=0, folds=2, group=r"/(\d+)\.png")  # fmt: skip
    assert [one.folder.name for one in run.runs] == ["fold-1", "fold-2"]
    assert run.folder.name.endswith("-folds2")
    assert f"top-1 {run.result['pooled']['top1']:.2%}" in repr(run)
    folds = {}
    for row in read(run.folder / "predictions.csv")[1:]:
        folds.setdefault(row[0].rsplit("/", 1)[1], set()).add(row[2])
    assert len(folds) == 12 and all(len(fold) == 1 for fold in folds.values())


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--folds 3 --repeats 2", "--repeats and --folds"),
        ("--folds 3 --val_fraction 0.2", "--val_fraction and --folds"),
        ("--fold 2", "--fold: is 2"),
        ("--folds 3 --fold 4", "--fold: is 4"),
        ("--folds 1", "expected at least 2"),
    ],
)
def test_contradictions(flags, words, image_folder):
    words_of = flags.replace("--", "").split()
    settings = dict(zip(words_of[::2], words_of[1::2]))
    with pytest.raises(ConfigError, match=words):
        bit.fine_tune("R14x0.5", image_folder, from_scratch=True, **settings)
