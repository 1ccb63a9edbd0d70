"""Signals, sent to real processes."""

import signal
import subprocess
import sys

import pytest
from conftest import ROOT

WAIT = """
import signal, time
from bit_paddle.interrupt import Interrupt
with Interrupt() as stop:
    print("ready", flush=True)
    while not stop.signal:
        time.sleep(0.01)
    print("first", flush=True)
    {then}
print("left", stop.exit_status, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_is_noted_and_handlers_come_back(number, status):
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT.format(then="")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == f"first\nleft {status} True\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_leaves_at_once(number):
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT.format(then="time.sleep(60)")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "first\n"
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == -number
