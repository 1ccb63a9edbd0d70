"""Processes that tell each other that they live, and why they end: real ones, without Paddle."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest
from conftest import ROOT, wait_until

from bit_paddle.errors import PeerError
from bit_paddle.system import peers, processes

MEETING = """
    peers.meet()  # the limit of START ends after the second meeting
    while True:
        peers.meet()
        (tmp / f"{rank}.met").touch()
        time.sleep(0.05)
"""


@pytest.fixture
def team(tmp_path):
    """Start ``count`` processes of one run, which execute ``code`` as a command of the package."""
    started = []

    def start(code, count, before=""):
        endpoints = ",".join(f"127.0.0.1:{port}" for port in processes._free_ports(count))
        script = f"""
import sys, time
from pathlib import Path
from bit_paddle import errors
from bit_paddle.system import peers, processes
tmp, rank = Path({str(tmp_path)!r}), processes.rank()
{textwrap.dedent(before)}
def main(_):
    with peers.joined():
{textwrap.indent(textwrap.dedent(code), " " * 8)}
    return 0
sys.exit(errors.run_command(main, []))
"""
        for rank in range(count):
            place = {"PADDLE_TRAINER_ID": str(rank), "PADDLE_TRAINERS_NUM": str(count)}
            place["PADDLE_TRAINER_ENDPOINTS"] = endpoints
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", script],
                    cwd=ROOT,
                    env={**os.environ, "PYTHONPATH": str(ROOT), **place},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ends(started):
    """Return (exit status, what it has printed) of each."""
    return [(one.wait(timeout=60), one.stderr.read().strip()) for one in started]


def all_met(tmp_path, count):
    wait_until(lambda: all((tmp_path / f"{rank}.met").exists() for rank in range(count)))


def test_a_run_of_one_process_meets_nobody():
    with peers.joined():
        peers.meet({"version": 1})
    assert str(peers.lost(RuntimeError())) == "another process of this run has ended"


def test_all_wait_for_the_last_one(team, tmp_path):
    code = """
        for k in range(3):
            time.sleep(0.5 * (rank == k))
            (tmp / f"{rank}.{k}").touch()
            peers.meet({"k": k, "long": "x" * 300})
            assert all((tmp / f"{other}.{k}").exists() for other in range(3))
    """
    assert ends(team(code, 3)) == [(0, "")] * 3


def test_what_differs_is_named_in_all(team):
    code = 'peers.meet({"version": "1" if rank < 2 else "2", "flag": 5})'
    name = socket.gethostname()
    for status, text in ends(team(code, 3)):
        assert status == 2
        assert text.startswith(f"error: {name} (rank 2) differs from {name} (rank 0):\n")
        assert text.splitlines()[1:-1] == ["  version: 1 -> 2"]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_is_told_to_all(failing, team):
    code = f"""
        if rank == {failing}:
            raise errors.MissingFileError("no photos")
        while True:
            peers.meet()
    """
    found = ends(team(code, 3))
    assert found.pop(failing) == (2, "error: no photos")
    text = f"error: {socket.gethostname()} (rank {failing}) has failed: no photos"
    assert found == [(PeerError.exit_status, text)] * 2


@pytest.mark.parametrize("killed", [0, 1])
def test_one_that_is_killed_is_named(killed, team, tmp_path):
    started = team(MEETING, 3)
    all_met(tmp_path, 3)
    started[killed].kill()
    found = ends(started)
    assert found.pop(killed)[0] == -signal.SIGKILL
    for status, text in found:
        assert status == PeerError.exit_status
        assert f"(rank {killed}) has ended without a message" in text


@pytest.mark.parametrize("frozen", [0, 1])
def test_one_that_hangs_is_named_and_ends_when_it_comes_back(frozen, team, tmp_path):
    started = team(MEETING, 2, "peers.SILENCE, peers.BEAT = 3.0, 0.2")
    all_met(tmp_path, 2)
    started[frozen].send_signal(signal.SIGSTOP)
    other = started[1 - frozen]
    assert other.wait(timeout=60) == PeerError.exit_status
    text = other.stderr.read()
    assert "nothing was heard from" in text and f"(rank {frozen}) for 3 s" in text
    started[frozen].send_signal(signal.SIGCONT)
    assert started[frozen].wait(timeout=60) == PeerError.exit_status


def test_one_that_does_not_notice_is_ended(team, tmp_path):
    code = """
        peers.meet()
        (tmp / f"{rank}.met").touch()
        time.sleep(0.5 if rank else 100)
        raise errors.DataError("broken")
    """
    started = team(code, 2, "processes.GRACE = 0.5; peers.BEAT = 0.2")
    began = time.monotonic()
    (status, text), _ = ends(started)
    assert status == PeerError.exit_status and text.endswith("(rank 1) has failed: broken")
    assert time.monotonic() - began < 50


def test_a_stranger_does_not_disturb(team, tmp_path):
    code = """
        if rank:
            while not (tmp / "called").exists():
                time.sleep(0.01)
        peers.meet()
        (tmp / "0.met").touch()
    """
    started = team(code, 2)
    port = int(endpoint(started[0]).rpartition(":")[2])
    for text in (
        b"GET / HTTP/1.0\r\n\r\n",
        b'{"hello": 7, "host": "x"}\n',
        b'{"hello": 1}\n',
        b"[]\n",
    ):
        wait_until(lambda text=text: called(port, text))
    (tmp_path / "called").touch()
    assert ends(started) == [(0, "")] * 2


def endpoint(process):
    with open(f"/proc/{process.pid}/environ", encoding="utf-8") as file:
        words = dict(word.partition("=")[::2] for word in file.read().split("\0"))
    return words["PADDLE_TRAINER_ENDPOINTS"].split(",")[0]


def called(port, text):
    """Send ``text`` to a port of this machine; return whether anybody was there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(100):
                pass
        return True
    except OSError:
        return False
