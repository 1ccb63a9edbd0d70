"""The scripts, and the recipes they run, as far as goes without GPUs and data."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageDraw

from bit_paddle.config import parsing
from bit_paddle.data.boxes.reading import read_boxes
from bit_paddle.data.readers import registry


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for synset in ("n01440764", "n01443537"):
            path = folder / part / synset
            path.mkdir(parents=True)
            for k in range(2):
                pixels = random.integers(0, 256, (120, 100, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(path / f"{k}.JPEG")
    return folder


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_recipe_can_be_run(path, imagenet):
    words = ["--config", str(path)]
    if path.stem.startswith("imagenet"):
        words += ["--datadir", str(imagenet)]
    settings, _ = parsing.parse(words, "train", registry.find)
    assert (
        f"--config configs/{path.name}" in path.read_text() and settings.model in path.read_text()
    )


@pytest.mark.parametrize(
    "script, model",
    [
        ("imagenet_4xv100", "R50x1"),
        ("imagenet_r101x3_4xv100", "R101x3"),
        ("imagenet_r152x4_4xv100", "R152x4"),
    ],
)
def test_scripts_for_four_cards_show_their_plan(script, model, imagenet, tmp_path):
    """And its header has the split that the plan gives."""
    path = ROOT / "scripts" / f"{script}.sh"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                   "BIT_PADDLE_HOME": str(tmp_path)}  # fmt: skip
    command = [path, imagenet, "--dry-run", "--logdir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"{model}, " in done.stdout and "4 training images" in done.stdout
    assert subprocess.run([path], capture_output=True, env=environment).returncode != 0
    recipe = f"configs/imagenet2012_{model}.yaml"
    words = ["-m", "bit_paddle.plan", "--config", recipe, "--gpus", "4"]
    plan = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT)
    (split,) = [line for line in plan.stdout.splitlines() if line.startswith("split")]
    split = split.split(": ")[1]
    assert split in path.read_text() and split in (ROOT / recipe).read_text()


def test_several_machines_are_asked_for():
    done = subprocess.run([ROOT / "scripts/imagenet_multinode.sh", "x"], capture_output=True)
    assert done.returncode != 0 and b"how many machines" in done.stderr


def test_scenes_have_their_drawings_in_their_boxes(tmp_path):
    folders = []
    for part, grey, size in (("photos", 200, (120, 90)), ("drawings", 255, (30, 40))):
        folder = tmp_path / part
        for split in ("train", "val"):
            for name in ("disc", "other"):
                (folder / split / name).mkdir(parents=True)
                picture = Image.new("RGB", size, (grey,) * 3)
                if part == "drawings":
                    ImageDraw.Draw(picture).rectangle([5, 5, 20, 30], fill=0)
                picture.save(folder / split / name / "0.png")
        folders += [f"--{part}", str(folder)]

    def make(out, seed, *more):
        words = ["--images", "10", "--side", "128", "--classes", "2", "--seed", str(seed), *more]
        script = str(ROOT / "scripts" / "make_scenes.py")
        command = [sys.executable, script, str(tmp_path / out), *folders, *words]
        subprocess.run(command, check=True, capture_output=True)
        return read_boxes(tmp_path / out / "train.json")

    first, again, other = make("first", 0), make("again", 0), make("other", 1)
    assert len(first) == 8 and first.classes == ["disc", "other"]
    same, different = ([*map(np.array_equal, first.boxes, one.boxes)] for one in (again, other))
    assert all(same) and not all(different)
    for path, boxes in zip(first.paths, first.boxes):
        pixels = np.asarray(Image.open(first.root / path).convert("L"), int)
        drawn = abs(pixels - 200) > 40  # photographs are grey, without any detail
        inside = np.zeros_like(drawn)
        for x1, y1, x2, y2 in boxes.astype(int):
            assert drawn[y1:y2, x1:x2].mean() > 0.8  # rectangles, pasted whole
            inside[y1:y2, x1:x2] = True
        assert 1 <= len(boxes) <= 5 and not drawn[~inside].any()
    assert max(map(len, first.boxes)) > 1
    assert {len(boxes) for boxes in make("single", 0, "--objects", "1").boxes} == {1}


def test_canvases_have_the_labels_of_their_photographs(image_folder, tmp_path):
    """Each class has its own colour, so the colours of a canvas tell its labels."""

    def make(out, seed):
        script = str(ROOT / "scripts" / "make_canvases.py")
        words = ["--photos", str(image_folder), "--images", "10", "--side", "64", "--seed", seed]
        command = [sys.executable, script, str(tmp_path / out), *words]
        subprocess.run(command, check=True, capture_output=True)
        return (tmp_path / out / "labels.csv").read_text()

    text = make("first", "0")
    assert text == make("again", "0") and text != make("other", "1")
    data = registry.open_dataset("folder", str(tmp_path / "first"), separator=";")
    assert (len(data.train), len(data.val)) == (8, 2)
    assert data.train.classes == ["amber", "blue", "coral"]
    for index, labels in enumerate(data.train.labels.tolist()):
        pixels = np.asarray(data.train.image(index), int)
        places = [pixels[:, :32], pixels[:, 32:]]
        places = [half[k : k + 32] for half in places for k in (0, 32)]
        assert labels == tuple(sorted({int(p.mean(axis=(0, 1)).argmax()) for p in places}))
