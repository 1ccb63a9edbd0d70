"""The benches of speed: a small race of real contenders, and the table of what it has measured."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

BENCHES = ROOT / "scripts/benchmarks"


@pytest.fixture
def modules(monkeypatch):
    """Return the modules of the benches, which import each other as scripts do."""
    names = ("networks", "standings", "contenders", "inference", "speed")
    monkeypatch.syspath_prepend(str(BENCHES))
    yield {name: __import__(name) for name in names}
    for name in (*names, "machine"):
        sys.modules.pop(name)


def record(**races):
    """Return a record of R50x1 with the contenders' seconds of some rounds, for batch sizes."""
    found = {
        batch[1:]: {name: {"seconds": times, "memory": 900} for name, times in results.items()}
        for batch, results in races.items()
    }
    limits = {"float32": {"gflops": 400, "by": "a library"}}
    machine = {"processor": "2 x X", "system": "S", "versions": "V", "load": "0.1"}
    return {"task": "inference", "model": "R50x1", "side": 128, "races": found,
            "machine": {**machine, "limits": limits}}  # fmt: skip


def test_ratios_and_shares(modules):
    """To the median of the fastest peer of that precision; kernels folded by hand count apart."""
    times = {
        "bit_paddle": [0.05, 0.07, 0.06],
        "transformers": [0.12, 0.12, 0.12],
        "transformers, NHWC, compiled": [0.09, 0.1, 0.11],
        "transformers, folded": [0.01] * 3,
        "OpenVINO": [0.02, 0.05, 0.04],
        "ONNX Runtime": [0.05] * 3,
        "bit_paddle bf16": [0.03] * 3,
        "OpenVINO bf16": [0.03] * 3,
    }
    found = record(_8=times)
    rows = modules["standings"].rows(found, "8")
    # 8 images of 1.3346 G multiply-adds: 21.35 GFLOP in 0.06 s
    assert rows["bit_paddle"] == ["0.0600", "0.0500", "0.0700", "0.60", "1.50", "89%", "900"]
    assert rows["bit_paddle bf16"][3:] == ["", "1.00", "", "900"]
    ours = rows["bit_paddle"]
    found["task"] = "training step"  # three times the operations, and no engines
    assert modules["standings"].rows(found, "8")["bit_paddle"] == [*ours[:4], "267%", "900"]


def test_the_table_has_what_was_measured(modules):
    times = {"": [0.1], ", compiled": [0.2], ", compiled, frozen": [0.08], ", folded": [0.04]}
    times = {f"transformers{way}": seconds for way, seconds in times.items()}
    small = record(_8={"bit_paddle": [0.05], **times, "OpenVINO": [0.04]})
    small["races"]["1"] = {"bit_paddle": {"seconds": [0.01], "memory": 800}}
    text = modules["speed"].table([small])
    start = "| inference of R50x1 at 128 | float32 |"
    assert f"{start} the fastest PyTorch |  | transformers, compiled, frozen |" in text
    assert f"{start} to the fastest PyTorch |  | 0.62 |" in text
    assert f"{start} to the fastest PyTorch without `freezing` |  | 0.50 |" in text
    assert f"{start} to the fastest PyTorch, kernels standardized by hand too |  | 1.25 |" in text
    assert f"{start} to the faster of OpenVINO and ONNX Runtime |  | 1.25 |" in text
    assert f"{start} share of the limit | 67% | 107% |" in text
    assert "obvious" not in text and "bf16 |" not in text
    assert "- limit in float32: 400 GFLOP/s (a library)" in text


def test_warming_up_ends_when_nothing_is_compiled_any_more(modules, monkeypatch):
    times = iter([20, 15, 0.2, 9, 0.21, 0.2, 0.2])
    contenders = modules["contenders"]
    monkeypatch.setattr(contenders, "seconds_of", lambda run: next(times))
    contenders.warm_up(None)
    assert list(times) == [0.2]


@pytest.mark.slow
@pytest.mark.weekly
def test_a_race(modules, tmp_path):
    """One contender cannot be imported: it is skipped, with the reason."""
    pytest.importorskip("onnxruntime")
    (tmp_path / "openvino.py").write_text("raise ImportError('not this time')")
    racing = ("bit_paddle, pure Paddle", "OpenVINO", "ONNX Runtime")
    others = [name for name in modules["inference"].CONTENDERS if name not in racing]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-W", "ignore", BENCHES / "inference.py", "--model", "R14x0.5"]
    command += ["--side", "32", "--batches", "2", "--rounds", "2", "--without", *others]
    command += ["--json", tmp_path / "inference.json"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert "OpenVINO: skipped, it does not run here (ImportError: not this time)" in done.stdout
    found = json.loads((tmp_path / "inference.json").read_text())
    (results,) = found["races"].values()
    assert list(results) == ["bit_paddle, pure Paddle", "ONNX Runtime"]
    assert all(len(result["seconds"]) == 2 for result in results.values())
    assert found["machine"]["limits"]["float32"]["gflops"] > 1
    text = modules["speed"].table([found])
    assert re.search(r"ONNX Runtime \| 0\.\d{4} .*\| +\| 1\.00 \| \d+% \|", text), text
