"""The processor time of a command: other work on the machine hardly changes it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from bit_paddle import errors
from bit_paddle.system import environment


def shared_core() -> dict[str, str]:
    """Return the environment of a process that has its share of the cores, and one thread."""
    return {**environment.share(environment.cpu_count()), "OMP_NUM_THREADS": "1"}


def processor_seconds(command: Sequence[str], variables: Mapping[str, str] | None = None) -> float:
    """Run ``command``; return the processor time in seconds of it and of its children.

    ``variables`` is its environment, `shared_core` by default. What it prints goes to standard
    error. Raises `BitPaddleError` if it fails.
    """
    place = dict(shared_core() if variables is None else variables)
    process = subprocess.Popen(command, env=place, stdout=sys.stderr)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise errors.BitPaddleError(f"{' '.join(command)}: ended with {process.returncode}")
    return used.ru_utime + used.ru_stime
