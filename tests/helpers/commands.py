"""Commands, in processes of their own as users start them, or inside of this one."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from helpers.places import ROOT

TINY = ["--model", "R14x0.5", "--from_scratch", "--precrop", "36", "--crop", "32"]

# ru_maxrss is at least what the parent had when it started the process; VmHWM is the process's own.
PEAK = """
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

"""


def start_train(*arguments: object, **options) -> subprocess.Popen:
    """Start ``python -m bit_paddle.train`` as a user would, in a process that can be disturbed."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "bit_paddle.train", *map(str, arguments)],
        text=True,
        **{"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def run_outside(
    command: str, *arguments: object, timeout: float = 300, **options
) -> subprocess.CompletedProcess:
    """Run ``python -m bit_paddle.command`` in a process of its own, as a user would."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"bit_paddle.{command}", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        **{"cwd": ROOT, **options},
    )


def run_here(command: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a command inside of this process, which has loaded Paddle: seconds quicker.

    For tests of what a command says and writes; not of signals, processes, memory or environments.
    """
    from bit_paddle import errors

    words = [str(word) for word in arguments]
    module = importlib.import_module(f"bit_paddle.{command}")
    notice = signal.getsignal(signal.SIGUSR1)
    before = sys.argv, os.getcwd()
    sys.argv = [module.__file__, *words]
    os.chdir(ROOT)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            try:
                status = errors.run_command(module.main, words)
            except SystemExit as ended:
                status = ended.code or 0
    finally:
        sys.argv = before[0]
        os.chdir(before[1])
        signal.signal(signal.SIGUSR1, notice)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def run(command: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    """Run a command: inside of this process, unless there are ``options`` or several processes."""
    if options or {"--nproc", "--devices"} & set(arguments):
        return run_outside(command, *arguments, **options)
    return run_here(command, *arguments)


def run_train(*arguments: object, **options) -> subprocess.CompletedProcess:
    """Run ``train``; return its status and what it printed."""
    return run("train", *arguments, **options)


def wait_until(
    condition: Callable[[], Any], process: subprocess.Popen | None = None, seconds: float = 60
) -> Any:
    """Return what ``condition()`` gives once it is true.

    The test fails if that takes longer than ``seconds`` or if ``process`` ends before.
    """
    deadline = time.monotonic() + seconds
    while True:
        ended = process is not None and process.poll() is not None
        if found := condition():
            return found
        if ended:
            told = process.stderr.read() if process.stderr else ""
            pytest.fail(f"the process ended with status {process.returncode}\n{told}")
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s in vain")
        time.sleep(0.01)


def environment_with(**variables: object) -> dict[str, str]:
    """Return this process's environment, with ``variables``."""
    return {**os.environ, **{key: str(value) for key, value in variables.items()}}
