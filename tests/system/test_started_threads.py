"""Threads that start before memory can run out, and the message where none starts."""

import subprocess
import sys
import threading

from bit_paddle import errors
from bit_paddle.system.threads import started_pool


def test_all_threads_of_a_pool_have_started():
    pool = started_pool(3, "early")
    assert sum("early" in thread.name for thread in threading.enumerate()) == 3
    assert pool.submit(sum, [1, 2]).result() == 3
    pool.shutdown()


def test_a_thread_for_which_there_is_no_memory_is_no_defect(capsys):
    """Its stack is larger than the space of addresses, so that the system really refuses it."""

    def command(arguments: list[str]) -> int:
        before = threading.stack_size(1 << 47)
        try:
            threading.Thread(target=int).start()
        finally:
            threading.stack_size(before)
        return 0

    assert errors.run_command(command, []) == 1
    printed = capsys.readouterr().err
    assert "error: the system starts no more threads: it has no memory left" in printed
    assert "defect" not in printed


def test_a_pool_of_which_some_threads_start_does_not_wait_for_the_others():
    """Two stacks of 1 GB fit into the space of addresses, and the third does not."""
    script = """
import resource, threading
from bit_paddle.system.threads import started_pool
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (5 << 29),) * 2)
threading.stack_size(1 << 30)
started_pool(4, "early")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, encoding="utf-8", timeout=60
    )
    assert done.returncode == 1
    assert "RuntimeError: can't start new thread" in done.stderr
