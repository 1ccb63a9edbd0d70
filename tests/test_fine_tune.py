"""`bit_paddle.fine_tune`: a run from a program or a notebook is the run of the command."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_train

import bit_paddle as bit
from bit_paddle import errors
from bit_paddle.runs import logbook
from bit_paddle.system import environment

#: Without what Paddle and the package have put there when they were imported.
ENVIRONMENT = {**environment.share(1), "PYTHONPATH": str(ROOT)}

SETTINGS = {
    "from_scratch": True,
    "steps": 4,
    "batch": 6,
    "precrop": 36,
    "crop": 32,
    "base_lr": 0.01,
    "workers": 1,
}


@pytest.fixture
def fine_tune(image_folder, tmp_path, monkeypatch):
    """Return a function that makes a run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda **settings: bit.fine_tune("R14x0.5", image_folder, **{**SETTINGS, **settings})


def arrays_of(path):
    with np.load(path) as file:
        return {key: file[key] for key in file.files if not key.startswith("bit_paddle/")}


def assert_same_model(one, other):
    one, other = (arrays_of(run.folder / "model.npz") for run in (one, other))
    assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_is_the_run_of_the_command(fine_tune, image_folder, tmp_path):
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    run = fine_tune(name="ours", eval_every=2)
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
    words = [f"--{name}={value}" for name, value in SETTINGS.items() if name != "from_scratch"]
    done = run_train("--model=R14x0.5", "--from_scratch", "--dataset=folder",
                     f"--datadir={image_folder}", "--name=command", "--eval_every=2", *words,
                     cwd=tmp_path, env=ENVIRONMENT)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_same_model(run, bit.api.Run(tmp_path / "bit_logs/command"))
    assert run.complete and run.result["steps"] == 4 and run.folder.name == "ours"
    assert [row["step"] for row in run.metrics] == [1, 2, 3, 4]
    assert [row["step"] for row in run.metrics if "val_top1" in row] == [2, 4]
    assert "val_top1" in repr(run.metrics) and "<td>4</td>" in run.metrics._repr_html_()
    assert run.result["top1"] == run.metrics[-1]["val_top1"]
    assert run.model.classes == run.best.classes == ["amber", "blue", "coral"]
    page = run.report()
    assert page == run.folder / "report.html" and "top-1" in page.read_text()


def test_wrong_settings_are_an_error_of_the_package(fine_tune):
    with pytest.raises(errors.ConfigError) as caught:
        fine_tune(batch=-1, crop=None)
    text = str(caught.value)
    assert "2 faults" in text and "--batch: is -1" in text and "--precrop" in text
    for wrong, answer in (
        ({"stesp": 3}, "did you mean steps"),
        ({"help": True}, "no such setting"),
        ({"dataset": "cifar10"}, "is an argument of fine_tune already"),
    ):
        with pytest.raises(errors.ConfigError, match=answer):
            fine_tune(**wrong)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(errors.ConfigError, match="nowhere.npz: no such checkpoint"):
        bit.fine_tune("nowhere.npz", "digits")
    assert not os.path.exists("bit_logs")


def test_repeats(fine_tune):
    run = fine_tune(repeats=2, steps=1)
    assert [one.folder.name for one in run.runs] == ["seed-0", "seed-1"]
    assert run.result["top1"].keys() == {"min", "median", "max"} and "median" in repr(run)
    with pytest.raises(errors.ConfigError, match="use one of run.runs"):
        run.best
    assert run.runs[1].metrics[-1]["step"] == 1


def test_force_cannot_rewrite_a_complete_run(fine_tune):
    """But more steps resume it."""
    run = fine_tune(name="run")
    before = (run.folder / "config.yaml").read_bytes()
    with pytest.raises(errors.ConfigError, match="complete after 4 steps"):
        fine_tune(name="run", base_lr=0.02, force=True)
    assert (run.folder / "config.yaml").read_bytes() == before
    assert fine_tune(name="run", steps=5, force=True).result["steps"] == 5


def test_a_second_profile_is_a_warning(fine_tune, capsys):
    """Paddle's profiler starts once per process."""
    fine_tune(profile=1, steps=5)
    assert fine_tune(profile=1, steps=5).complete
    assert "no profile: Paddle can profile one run per process" in capsys.readouterr().out


def test_a_long_run_is_not_silent(fine_tune, capsys, monkeypatch):
    monkeypatch.setattr(logbook, "SILENCE", 0)
    fine_tune()
    assert "step 2 of 4: loss" in capsys.readouterr().out


@pytest.mark.slow
def test_two_runs_in_threads_do_not_disturb_each_other(fine_tune):
    """Signals are left alone there: Python allows no handlers outside of the main thread."""
    alone = [fine_tune(name=f"alone-{seed}", seed=seed) for seed in (0, 1)]
    beside = {}
    threads = [
        threading.Thread(
            target=lambda seed=seed: beside.update(
                {seed: fine_tune(name=f"beside-{seed}", seed=seed)}
            )
        )
        for seed in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (0, 1):
        assert_same_model(alone[seed], beside[seed])


PROGRAM = """
import sys
import bit_paddle as bit

settings = dict({settings}, steps=60, workers=0, keep=1, save_every="1")
run = bit.fine_tune("R14x0.5", {folder!r}, name="run", **settings{more})
print("returned", run.complete, run.metrics[-1]["step"], flush=True)
run = bit.fine_tune("R14x0.5", {folder!r}, name="run", **settings)
print("resumed", run.complete, run.metrics[-1]["step"], flush=True)
"""


def program(image_folder, folder, more=""):
    """Start a program that makes a run, and resumes it if it was stopped."""
    text = PROGRAM.format(settings=SETTINGS, folder=str(image_folder), more=more)
    return subprocess.Popen([sys.executable, "-W", "ignore", "-u", "-c", textwrap.dedent(text)],
                            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=ENVIRONMENT)  # fmt: skip


def wait_for_steps(folder, process):
    path = folder / "bit_logs/run/metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < 3:
        assert process.poll() is None, process.communicate()[1]


@pytest.mark.slow
def test_ctrl_c_saves_and_returns(image_folder, tmp_path, fine_tune):
    process = program(image_folder, tmp_path)
    wait_for_steps(tmp_path, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in err, err
    returned = next(line for line in out.splitlines() if line.startswith("returned"))
    assert returned.split()[1] == "False" and 2 < int(returned.split()[2]) < 60
    assert "resumed True 60" in out and "SIGINT: ending after step" in out
    whole = fine_tune(name="whole", steps=60, workers=0)
    assert_same_model(whole, bit.api.Run(tmp_path / "bit_logs/run"))


@pytest.mark.slow
def test_sigterm_saves_and_ends_the_program(image_folder, tmp_path):
    process = program(image_folder, tmp_path)
    wait_for_steps(tmp_path, process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGTERM and "returned" not in out
    assert list((tmp_path / "bit_logs/run/checkpoints").glob("step-*.npz"))


@pytest.mark.slow
def test_a_child_that_is_killed_is_an_error_of_the_run(image_folder, tmp_path):
    """Its signal is not the program's: that one gets an exception, and lives on."""
    process = program(image_folder, tmp_path, ", nproc=2, force=True")
    wait_for_steps(tmp_path, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "PeerError: " in err and "ended with status 137" in err
    assert "--force" in (tmp_path / "bit_logs/run/train.log").read_text().splitlines()[0]
