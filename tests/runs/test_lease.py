"""Machines between which `flock` does not work: processes without it, each with its own kernel."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from conftest import ROOT

from bit_paddle.config.saved import to_dict, to_yaml
from bit_paddle.config.settings import Settings
from bit_paddle.errors import ConfigError
from bit_paddle.runs import folder as runs_folder
from bit_paddle.runs import lease, locking

MACHINE = """
import fcntl, sys, time
from pathlib import Path
from bit_paddle.config.saved import to_yaml
from bit_paddle.config.settings import Settings
from bit_paddle.errors import ConfigError
from bit_paddle.runs import folder, lease
from bit_paddle.system import files
from bit_paddle.system.signals import Interrupt
fcntl.flock = lambda *_: None
kernel, stale, settings, go = eval(sys.argv[1])
lease._kernel = lambda: kernel
lease.RENEWAL, lease.STALE = 0.1, stale
settings = Settings(**settings)
while go and not Path(go).exists():
    time.sleep(0.001)
try:
    with Interrupt() as stop, folder.claim(settings) as start:
        files.write_text(start.folder / folder.CONFIG, to_yaml(settings))
        print("has", start.folder.name, flush=True)
        while not stop.signal:
            time.sleep(0.01)
    sys.exit(stop.exit_status)
except ConfigError as error:
    print("refused", error, flush=True)
"""


@pytest.fixture
def settings(tmp_path):
    return Settings(model="R14x0.5", dataset="digits", logdir=str(tmp_path), name="run")


@pytest.fixture
def machine(settings):
    """Start a process on another machine, which claims the run and tells what came of it."""
    processes = []

    def start(kernel, stale=60.0, go=None):
        told = repr((kernel, stale, to_dict(settings), go and str(go)))
        command = [sys.executable, "-c", MACHINE, told]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, cwd=ROOT, text=True, **streams))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@contextmanager
def paused(process):
    process.send_signal(signal.SIGSTOP)
    yield
    process.send_signal(signal.SIGCONT)


def test_a_run_of_another_machine_is_left_alone_while_it_lives(machine, settings, tmp_path, capsys):
    one = machine("one")
    assert one.stdout.readline() == "has run\n"
    with pytest.raises(ConfigError) as caught, runs_folder.claim(settings):
        pass
    assert f"is in use by process {one.pid} on " in str(caught.value)
    assert "kernel" not in str(caught.value) and "waiting: " in capsys.readouterr().err
    one.send_signal(signal.SIGTERM)
    assert one.wait(30) == 143
    assert not (tmp_path / "run" / locking.OWNER).exists()
    with runs_folder.claim(settings):  # at once
        assert "waiting: " not in capsys.readouterr().err


def test_what_a_killed_run_leaves_becomes_stale(machine, settings, tmp_path, monkeypatch, capsys):
    one = machine("one")
    assert one.stdout.readline() == "has run\n"
    one.kill()
    one.wait(30)
    monkeypatch.setattr(lease, "STALE", 1.0)
    with runs_folder.claim(settings):
        assert f"process {os.getpid()} " in (tmp_path / "run" / locking.OWNER).read_text()
    (tmp_path / "run" / locking.OWNER).write_text("process 5 on far away\nkernel x\n")
    os.utime(tmp_path / "run" / locking.OWNER, (time.time() - 3600,) * 2)
    monkeypatch.setattr(lease, "STALE", 600.0)
    capsys.readouterr()
    with runs_folder.claim(settings):  # at once: its age tells
        assert "waiting: " not in capsys.readouterr().err


def test_what_an_older_version_has_left_is_no_lease(settings, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / locking.OWNER).write_text("process 5 on here since 2026-01-01 00:00:00\n")
    with runs_folder.claim(settings):
        assert "waiting: " not in capsys.readouterr().err


def test_of_many_machines_one_has_the_run(machine, tmp_path):
    """Beside a stale lease, which each of them finds."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / locking.OWNER).write_text("process 5 on far away\nkernel x\n")
    os.utime(tmp_path / "run" / locking.OWNER, (time.time() - 3600,) * 2)
    every = [machine(f"{number}", go=tmp_path / "go") for number in range(4)]
    (tmp_path / "go").touch()
    first = [process.stdout.readline().split()[0] for process in every]
    assert sorted(first) == ["has", "refused", "refused", "refused"]


def test_a_machine_that_was_away_too_long_ends(machine, settings, tmp_path, monkeypatch):
    """Its run has been taken over; it says so."""
    one = machine("one")
    assert one.stdout.readline() == "has run\n"
    monkeypatch.setattr(lease, "STALE", 1.0)
    with paused(one), runs_folder.claim(settings) as start:
        one.send_signal(signal.SIGCONT)
        _, err = one.communicate(timeout=60)
        assert one.returncode == 143 and "has taken this run over" in err
        assert f"process {os.getpid()} " in (start.folder / locking.OWNER).read_text()


def test_a_lease_that_cannot_be_written_is_done_without(settings, tmp_path):
    """The lock of the kernel still counts."""
    (tmp_path / "run" / locking.OWNER / "x").mkdir(parents=True)  # a folder is in its place
    (tmp_path / "run" / runs_folder.CONFIG).write_text(to_yaml(settings))
    with runs_folder.claim(settings) as start:
        assert start.folder == tmp_path / "run"
        again = runs_folder.claim(settings)
        with pytest.raises(ConfigError, match="is in use by another process"), again:
            pass
