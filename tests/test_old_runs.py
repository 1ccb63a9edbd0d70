"""A run that version 0.1.0 began: it is resumed, measured and shown by today's code.

`data/run-0.1.0.tar.xz` holds the images, the checkpoint `start.npz` (by 0.1.0's ``save_npz``; its
weights repeat one block of numbers, so that they compress), the folder of a run of 6 steps that
SIGKILL ended with the checkpoint of step 2, and what 0.1.0 found when nothing ended it.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import ROOT

from bit_paddle import create_model, evaluate, predict, report

COMMAND = (
    "--model start.npz --dataset folder --datadir images --precrop 36 --crop 32 --batch 4 "
    "--base_lr 0.02 --steps 6 --warmup 2 --eval_every 2 --save_every 2 --name run --logdir logs"
)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """The folder as 0.1.0 left it."""
    home = tmp_path_factory.mktemp("old")
    with tarfile.open(ROOT / "tests/data/run-0.1.0.tar.xz") as archive:
        checked = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(home, **checked)
    return home / "run-0.1.0"


@pytest.fixture(scope="module")
def finished(unfinished, tmp_path_factory):
    """The same after today's code has resumed it, and what that printed."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    shutil.copytree(unfinished, folder)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "bit_paddle.train", *COMMAND.split()],
        cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "BIT_PADDLE_NATIVE": "0",
             "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def metrics(folder):
    lines = (folder / "logs/run/metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in _CLOCK + _NEW}
        for line in lines
    ]


_CLOCK, _NEW = ("time", "images_per_second"), ("balanced_accuracy",)


def processor():
    """What decides the last bits of a product: the processor's name, family and model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()[:5]
    except OSError:
        return None
    words = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    return [words.get(key) for key in ("model name", "cpu family", "model")]


def test_it_is_resumed_to_the_same_end(finished):
    """Bit for bit where Paddle and the processor are those of the recording, else nearly."""
    folder, printed = finished
    assert "step-00000002.npz" in printed
    expected = json.loads((folder / "expected.json").read_text())
    with np.load(folder / "logs/run/model.npz") as file:
        arrays = {key: file[key] for key in sorted(file.files) if file[key].dtype.kind == "f"}
    found = metrics(folder)
    if (expected["paddle"], expected["processor"]) == (paddle.__version__, processor()):
        whole = b"".join(key.encode() + array.tobytes() for key, array in arrays.items())
        assert hashlib.sha256(whole).hexdigest() == expected["weights"]
        assert found == expected["metrics"]
    for one, other in zip(found, expected["metrics"]):
        assert one.pop("kind") == other.pop("kind")
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)
    assert len(found) == len(expected["metrics"])


@pytest.mark.parametrize("which", ["unfinished", "finished"])
def test_commands_read_it(which, unfinished, finished, monkeypatch, capsys):
    folder = unfinished if which == "unfinished" else finished[0]
    model = "logs/run/checkpoints/best.npz" if which == "unfinished" else "logs/run"
    monkeypatch.chdir(folder)
    data = ["--dataset", "folder", "--datadir", "images"]
    assert evaluate.main(["--model", model, *data, "--output", f"measured-{which}"]) == 0
    top1 = [row["top1"] for row in metrics(folder) if row["kind"] == "val"][-1]
    measured = json.loads(Path(f"measured-{which}/metrics.json").read_text())
    assert measured["top1"] == top1 and measured["images"] == 4
    assert predict.main(["images/val/dark/0.png", "--model", model]) == 0
    assert "dark" in capsys.readouterr().out
    assert report.main(["logs/run"]) == 0
    assert f"{top1:.1%}"[:4] in Path("logs/run/report.html").read_text()


def test_its_weights_are_loaded(unfinished):
    model = create_model(str(unfinished / "start.npz"))
    assert model.architecture.name == "R14x0.5" and model.num_classes == 2
    block = np.random.default_rng(1).normal(0, 0.05, 1021).astype("float32")
    first = next(iter(model.parameters())).numpy().ravel()
    assert np.array_equal(first, np.resize(block, first.shape))
