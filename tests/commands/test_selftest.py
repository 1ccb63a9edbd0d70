"""The selftest: real checks on the CPU, a check that finds a fault, and its page."""

import re

import numpy as np
import pytest
from conftest import run_here

from bit_paddle import errors, selftest
from bit_paddle.system import processes
from bit_paddle.training.selftest import checks, runs
from bit_paddle.training.selftest.checks import CHECKS, Check
from bit_paddle.training.selftest.runs import CheckFailed, NotRun, Run, Runs


def cells(page):
    """Return {check: (result, measured)} of the table of a page."""
    rows = re.findall(r"<tr>(<td>.*?)</tr>", page.read_text(), re.S)
    found = [re.findall(r"<td>(.*?)</td>", row, re.S) for row in rows]
    return {name: (re.sub("</?b>", "", result), text) for name, _, result, _, text in found}


@pytest.mark.slow
def test_a_machine_without_a_gpu(tmp_path):
    """Numbers in the process, one run that another resumes, and the rows of a GPU."""
    page = tmp_path / "page.html"
    done = run_here("selftest", "--checks", "goldens", "resume", "memory", "pinned",
                    "--output", page)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = cells(page)
    assert list(found) == ["goldens", "resume", "memory", "pinned"]
    assert found["memory"] == found["pinned"] == ("not run", "no GPU")
    assert found["goldens"][0] == "passed" and "81 gradients" in found["goldens"][1]
    assert found["resume"] == ("passed", "all weights have the same bits after 8 steps")
    assert "2 passed, 0 failed, 2 not run" in done.stdout and "Python" in page.read_text()
    for name, (status, text) in found.items():
        assert re.search(rf"^{name} +{status} +{re.escape(text)}$", done.stdout, re.M)


def test_a_failing_check_is_named(monkeypatch, tmp_path, capsys):
    def different(_):
        raise CheckFailed("the weights <differ>")

    def broken(_):
        raise RuntimeError("CUDA error 700")

    monkeypatch.setitem(CHECKS, "resume", Check("resumes", different))
    monkeypatch.setitem(CHECKS, "shard", Check("shards", broken))
    monkeypatch.setitem(CHECKS, "speed", Check("images per second", lambda _: "3 images/s"))
    page = tmp_path / "page.html"
    words = ["--checks", "resume", "speed", "shard", "--output", str(page)]
    assert selftest.main(words) == 1
    assert "1 passed, 2 failed (resume, shard), 0 not run" in capsys.readouterr().out
    assert cells(page) == {
        "resume": ("failed", "the weights &lt;differ&gt;"),
        "speed": ("passed", "3 images/s"),
        "shard": ("failed", "RuntimeError: CUDA error 700"),
    }
    assert "failed (resume, shard)" in page.read_text().split("</h1>")[0]


def test_wrong_words(monkeypatch, capsys):
    monkeypatch.setattr(processes, "gpus", list)
    assert errors.run_command(selftest.main, ["--gpu"]) == 2
    assert "this machine has no GPU" in capsys.readouterr().err
    assert errors.run_command(selftest.run, ["resum"]) == 2
    assert "did you mean resume" in capsys.readouterr().err


# --- A check fails where runs differ ------------------------------------------------------------


class MadeUp(Runs):
    """Runs that were never made: those with ``changed`` among their words have other losses."""

    def __init__(self, tmp_path, changed, gpus=()):
        super().__init__(tmp_path, gpus)
        self.changed, self.asked = changed, []

    def train(self, *words, **options):
        self.asked.append((words, options))
        number, resumes = len(self.asked), "--resume" in words
        losses = np.linspace(2, 1, runs.STEPS)[runs.STEPS // 2 if resumes else 0 :]
        wrong, folder = self.changed in words, self.folder / str(number)
        folder.mkdir()
        np.savez(folder / "model.npz", a=np.float32([1, 2 + 1e-6 * wrong]))
        log = "tried micro-batches\nout of memory; retried" if self.gpus else ""
        return Run(folder, (losses + 0.2 * wrong).tolist(), 10.0, "1.5 GiB", log)


@pytest.mark.parametrize(
    "name, changed",
    [
        ("amp", "bf16"),
        ("processes", "--nproc"),
        ("recompute", "unit"),
        ("shard", "--shard"),
        ("resume", "--resume"),
    ],
)
def test_each_check_finds_a_difference(name, changed, tmp_path):
    (tmp_path / "same").mkdir()
    assert CHECKS[name].run(MadeUp(tmp_path / "same", "nothing"))
    with pytest.raises(CheckFailed, match=r"differ"):
        CHECKS[name].run(MadeUp(tmp_path, changed))


def test_checks_of_gpus(tmp_path, monkeypatch):
    """What they compare, where no GPU is at hand to compute it."""
    made = MadeUp(tmp_path, "nothing", gpus=[0])
    text = checks.out_of_memory(made)
    assert "out of memory; retried" in text
    assert [options["limit_mb"] for _, options in made.asked] == [8000, 4000]
    with pytest.raises(NotRun, match="one GPU"):
        checks.all_processes(made)
    monkeypatch.setattr(checks, "_halves", lambda _: ["fp16"])
    made = MadeUp(tmp_path / "two", "nothing", gpus=[0, 1])
    made.folder.mkdir()
    assert checks.speed(made) == (
        "images/s: float32 10.0 1.5 GiB, fp16 10.0 1.5 GiB, 2 GPUs 10.0 1.5 GiB"
    )


def test_a_run_that_fails_is_a_failed_check(tmp_path):
    with pytest.raises(CheckFailed, match=r"train --amp fp8: status 2: .*--amp"):
        Runs(tmp_path).train("--amp", "fp8")


@pytest.mark.slow
def test_the_exchange_beside_the_backward_pass(tmp_path):
    """Two processes make the same steps in both ways."""
    (result,) = selftest.run(["overlap"])
    assert result.status == "passed" and "same bits" in result.text
    assert re.search(r"[\d.]+ ms per step beside the backward pass, [\d.]+ ms", result.text)
