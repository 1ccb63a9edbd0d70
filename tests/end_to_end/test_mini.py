"""BiT-Mini, the checkpoint that comes with this package."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SHARED, run_train

from bit_paddle import create_model, evaluate
from bit_paddle.data import fewshot, transforms
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.data.readers import registry
from bit_paddle.inference import predictor, trained
from bit_paddle.models import npz
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.models.published import MINI, find, obtain

ENTRY = find(MINI)


@pytest.fixture(autouse=True)
def without_network(monkeypatch):
    monkeypatch.setenv("BIT_PADDLE_BASE_URL", "http://127.0.0.1:9/")


def test_the_file():
    path = obtain(ENTRY)
    assert path.parent == ROOT / "bit_paddle/pretrained"
    assert ENTRY.parameters <= 4_000_000 and ENTRY.bytes <= path.stat().st_size <= 8_000_000
    with np.load(path) as file:
        kinds = {key: file[key].dtype.kind + str(file[key].dtype.itemsize) for key in file.files}
    with CheckpointFile(path) as file:
        file.check(ENTRY.architecture, ENTRY.classes)
        notes = file.notes()
    published = [key for key, _ in npz.shapes(ENTRY.architecture, ENTRY.classes)]
    assert {kinds[key] for key in published} == {"f2"}
    assert not any("/" in str(value) for value in notes.values())  # nobody's folders


def test_what_it_knows_of_itself():
    found = trained.find_trained(MINI)
    assert found.preprocessing == ENTRY.preprocessing
    assert found.classes[0] == "airplane" and found.outputs == len(found.classes) == 10


@pytest.mark.slow
def test_its_features_are_worth_more_than_random_ones():
    """A digit is of the class whose mean, of 10 images, has the nearest direction."""
    pytest.importorskip("sklearn")
    train, val = registry.open_dataset("digits")[:2]
    few = fewshot.select(train.labels, 10, 0, train.classes)

    def accuracy(pretrained: bool) -> float:
        name = MINI if pretrained else ENTRY.architecture.name
        model = create_model(name, num_classes=0, pretrained=pretrained)
        model.eval()

        def features(images, indices):
            views = [
                transforms.evaluation_view(images.image(k), Preprocessing(64, 64)) for k in indices
            ]
            parts = np.array_split(np.stack(views), 8)
            found = np.concatenate([predictor.infer(model, part) for part in parts])
            return found / np.linalg.norm(found, axis=1, keepdims=True)

        known, asked = features(train, few), features(val, np.arange(len(val)))
        center = known.mean(axis=0)
        means = np.stack([known[train.labels[few] == k].mean(axis=0) for k in range(10)])
        distances = ((asked - center)[:, None] - (means - center)) ** 2
        return float((distances.sum(axis=2).argmin(axis=1) == val.labels).mean())

    assert accuracy(pretrained=True) > accuracy(pretrained=False) + 0.05


@pytest.mark.slow
def test_the_quickstart_in_short(tmp_path):
    pytest.importorskip("sklearn")
    top1 = {}
    for name, words in (
        ("tuned", []),
        ("scratch", ["--model", ENTRY.architecture.name, "--from_scratch"]),
    ):
        common = ["--config", "configs/digits.yaml", "--steps", 20, "--logdir", tmp_path]
        done = run_train(*common, "--no-save", "--name", name, *words)
        assert done.returncode == 0, done.stderr
        top1[name] = json.loads((tmp_path / name / "result.json").read_text())["top1"]
    assert top1["tuned"] > top1["scratch"] + 0.1


@pytest.mark.skipif(
    not (SHARED / "data" / "make_cifar10.py").exists(), reason="needs ../shared/data"
)
@pytest.mark.slow
def test_its_accuracy_is_the_catalogues(tmp_path):
    script = SHARED / "data" / "make_cifar10.py"
    subprocess.run([sys.executable, script, tmp_path], check=True, capture_output=True)
    words = ["--model", MINI, "--dataset", "cifar10", "--datadir", str(tmp_path)]
    assert evaluate.main([*words, "--batch", "100", "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    assert found["images"] == 10_000
    assert found["top1"] == pytest.approx(ENTRY.accuracy / 100, abs=5e-4)  # 5 near ties
