"""Pools of threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait


def started_pool(workers: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of ``workers`` threads, called ``name``, which have all started.

    A thread that starts when memory has run out may end before it answers, and Python waits for
    its answer for ever.
    """
    pool, all_of_them = ThreadPoolExecutor(workers, name), threading.Barrier(workers)
    wait([pool.submit(all_of_them.wait) for _ in range(workers)])
    return pool
