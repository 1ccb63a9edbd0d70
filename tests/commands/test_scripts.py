"""The shell scripts for ImageNet and the recipes they run, as far as goes without GPUs and data."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from bit_paddle.config import parsing
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
