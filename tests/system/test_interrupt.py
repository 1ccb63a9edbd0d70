"""Signals, sent to real processes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, wait_until

from bit_paddle.system.signals import Interrupt, Interrupted

WAIT = """
import signal, time
from bit_paddle.system.signals import Interrupt
with Interrupt() as stop:
    print("ready", flush=True)
    while not stop.signal:
        time.sleep(0.01)
    print("first", flush=True)
    {then}
print("left", stop.exit_status, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""
UNTIL_THE_SECOND = """
    while stop.count < 2:
        time.sleep(0.01)
    print("second", flush=True)
"""


@pytest.fixture
def waiting():
    """Start a process that waits for a signal, and then does as it is told."""
    processes = []

    def start(then="", before=()):
        processes.append(
            subprocess.Popen(
                [*before, sys.executable, "-c", WAIT.format(then=then)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert processes[-1].stdout.readline() == "ready\n"
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "number, status",
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGHUP, 129),
        (signal.SIGUSR1, 143),  # a notice that SIGTERM is coming
    ],
)
def test_first_signal_is_noted_and_handlers_come_back(number, status, waiting):
    process = waiting()
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == f"first\nleft {status} True\n"
    assert process.returncode == 0


def test_second_ctrl_c_leaves_at_once(waiting):
    """Also within one long operation, during which Python runs no handler."""
    process = waiting("import hashlib; hashlib.pbkdf2_hmac('sha1', b'', b'', 10**9)")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "first\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


@pytest.mark.parametrize(
    "first, second, status",
    [
        (signal.SIGTERM, signal.SIGTERM, 143),
        (signal.SIGUSR1, signal.SIGTERM, 143),
        (signal.SIGHUP, signal.SIGHUP, 129),
        (signal.SIGINT, signal.SIGTERM, 130),
        (signal.SIGTERM, signal.SIGINT, 143),
    ],
)
def test_another_second_signal_changes_nothing(first, second, status, waiting):
    process = waiting(UNTIL_THE_SECOND)
    process.send_signal(first)
    assert process.stdout.readline() == "first\n"
    process.send_signal(second)
    assert process.communicate(timeout=30)[0] == f"second\nleft {status} True\n"
    assert process.returncode == 0


def test_a_lost_terminal_does_not_end_what_nohup_has_started(waiting):
    process = waiting(before=["nohup"])
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "first\nleft 143 True\n"


def test_without_a_signal_the_status_is_0():
    with Interrupt() as stop:
        assert stop.signal is None and stop.count == 0
    assert stop.exit_status == 0


def test_checked_stops_before_the_next_item():
    seen = []
    with Interrupt() as stop:
        with pytest.raises(Interrupted):
            for item in stop.checked(range(10)):
                seen.append(item)
                if item == 2:
                    signal.raise_signal(signal.SIGTERM)
        assert seen == [0, 1, 2]
        with pytest.raises(Interrupted):
            next(stop.checked([1]))
    assert list(Interrupt().checked(range(3))) == [0, 1, 2]


@pytest.mark.parametrize(
    "number, status, said",
    [
        (signal.SIGINT, 130, "interrupted\n"),
        (signal.SIGTERM, -signal.SIGTERM, ""),
        (signal.SIGUSR1, -signal.SIGTERM, ""),
        (signal.SIGHUP, -signal.SIGHUP, ""),
    ],
)
def test_a_signal_while_a_command_is_imported_ends_it_in_silence(number, status, said, tmp_path):
    """Here at the import of a module that takes its time."""
    mark = tmp_path / "imported"
    pauses = "for _ in range(600): time.sleep(0.1)"  # Python handles signals between them
    (tmp_path / "yaml.py").write_text(f"import time; open({str(mark)!r}, 'w')\n{pauses}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "bit_paddle.train", "--help"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(mark.exists, process)
    process.send_signal(number)
    assert process.communicate(timeout=30)[1] == said
    assert process.returncode == status


def test_a_signal_while_paddle_is_imported_ends_a_run_in_silence(tmp_path):
    """Here when Paddle has put its own handler for SIGTERM, which prints a stack of C++."""
    words = "--model R14x0.5 --from_scratch --dataset digits --precrop 36 --crop 32 --steps 2"
    process = subprocess.Popen(
        [sys.executable, "-m", "bit_paddle.train", *words.split(), "--logdir", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,  # where Paddle prints that
        stderr=subprocess.STDOUT,
        text=True,
    )

    def caught():
        status = Path(f"/proc/{process.pid}/status").read_text()
        mask = re.search(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)[1]
        return int(mask, 16) >> (signal.SIGTERM - 1) & 1

    wait_until(caught, process)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=120)[0]
    assert "Traceback" not in told and "FatalError" not in told
    assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)  # at once, or noted


def test_a_program_that_imports_the_package_keeps_its_handlers():
    code = "import signal, sys, bit_paddle\nprint(signal.getsignal(signal.SIGUSR1).name)\n" \
        "print(sys.excepthook is sys.__excepthook__)"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "SIG_DFL\nTrue\n"


STARTED = """
import signal, subprocess, sys
from bit_paddle.system.signals import Interrupt, Interrupted
sleep = ["sh", "-c", "sh -c 'echo $$; sleep 600; :' & echo $$; wait"]
before = subprocess.Popen(["sleep", "600"])
with Interrupt() as stop:
    print(before.pid, flush=True)
    try:
        with stop.raising():
            subprocess.run(sleep)
    except Interrupted:
        print("raised", before.poll(), flush=True)
    try:
        with stop.raising():
            print("not reached")
    except Interrupted:
        print("raised again", flush=True)
before.kill()
before.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_work_that_leaves_nothing_behind_ends_at_once(number):
    """With all that was started for it, and nothing that was started before."""
    process = subprocess.Popen(
        [sys.executable, "-c", STARTED], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    _, *started = (int(process.stdout.readline()) for _ in range(3))
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == "raised None\nraised again\n"
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in started))


def test_a_signal_after_such_work_is_noted_only():
    with Interrupt() as stop:
        with stop.raising():
            pass
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal is signal.SIGTERM


def test_interrupted_is_not_taken_for_an_error():
    assert not issubclass(Interrupted, Exception)


def test_handlers_come_back_and_what_was_ignored_stays_so():

    def before(number, frame):
        raise AssertionError("it is not this one's turn")

    old = signal.signal(signal.SIGTERM, before)
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.signal is signal.SIGTERM and stop.count == 1
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is before
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, old)
        signal.signal(signal.SIGHUP, ignored)
