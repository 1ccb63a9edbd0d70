"""Threads that start before memory can run out, and the message where none starts."""

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
