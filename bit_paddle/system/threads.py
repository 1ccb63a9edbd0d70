"""Pools of threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait


def started_pool(workers: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of ``workers`` threads, called ``name``, which have all started.

    A thread that starts when memory has run out may end before it answers, and Python waits for
    its answer for ever. Raises `RuntimeError` where the system starts no more threads.
    """
    pool, all_of_them = ThreadPoolExecutor(workers, name), threading.Barrier(workers)
    try:
        wait([pool.submit(all_of_them.wait) for _ in range(workers)])
    except BaseException:
        all_of_them.abort()  # those that have started would wait for the others for ever
        pool.shutdown(wait=False)
        raise
    return pool
