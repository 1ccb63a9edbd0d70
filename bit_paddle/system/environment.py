"""What the machine grants this process, and the settings that must precede the import of Paddle."""

from __future__ import annotations

import ctypes
import math
import os
import sys
import warnings
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")

_PILLOW_BLOCKS = 32  # of at most 16 MB each: a few images for each of some threads


def prepare() -> None:
    """Let Paddle's matrix products use every core, and the processor's best instructions.

    Both are read by Paddle's MKL at its first product; what the user has set is left alone. Without
    them Paddle gives MKL one thread, and its MKL takes its slowest path on processors that are not
    Intel's: on two cores of an AMD EPYC the two make products five times as fast
    (`scripts/benchmarks/environment.py`).

    Pillow, when it is imported, reads how many blocks of memory to keep. By default it gives each
    image's back to the system, which clears new pages for the next: a third of a resize.

    Paddle 3 warns, at its import, that there is no ccache: of use to those who compile it.
    """
    warnings.filterwarnings("ignore", "No ccache found")
    os.environ.setdefault("PILLOW_BLOCKS_MAX", str(_PILLOW_BLOCKS))
    given = {name: os.environ[name] for name in _THREADS if name in os.environ}
    if "paddle" not in sys.modules:  # which says 1 for the user
        _users.update(given)
    if not given:
        os.environ["MKL_NUM_THREADS"] = _chosen["MKL_NUM_THREADS"] = str(cpu_count())
    if kind := _mkl_type_of_amd():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", kind)


def threads() -> int:
    """Return how many threads are to compute in this process: the user's number, or `prepare`'s."""
    first = next(filter(None, map(_users.get, _THREADS)), "").split(",")[0]
    return int(first) if first.isdigit() and int(first) else cpu_count()


def keep_memory() -> None:
    """Have malloc keep what is freed: each step takes the same again, 270 MB of a stage at a time.

    By default glibc gives large pieces back to the system, which clears new pages for the next: a
    tenth of a training step on a CPU. For commands: what has been kept is there until they end.
    What the user has set is left alone.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has one
    if mallopt is not None and sys.platform == "linux":
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

_users: dict[str, str] = {}  # what the user has said

_chosen: dict[str, str] = {}  # what `prepare` has set that is not for several processes


def share(processes: int) -> dict[str, str]:
    """Return the environment for each of some ``processes``: this one, and a share of its threads.

    As they start from it, what Paddle has put here since `prepare` would pass for the user's word.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _THREADS}
    threads = str(max(1, machine_cpu_count() // processes))
    return {**kept, **_users, **dict.fromkeys(_chosen, threads)}


def _mkl_type_of_amd() -> str:
    """Return MKL's number of the kernels that an AMD processor runs: AVX-512's, AVX2's, or ""."""
    try:
        with open("/proc/cpuinfo") as lines:
            words = set("".join(line for line, _ in zip(lines, range(40))).split())
    except OSError:  # not Linux
        return ""
    if "AuthenticAMD" not in words:
        return ""
    if words >= {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}:
        return "7"
    return "5" if words >= {"avx2", "fma"} else ""


def local_processes() -> int:
    """Return how many processes of one run share this machine."""
    return max(1, int(os.environ.get("PADDLE_LOCAL_SIZE") or 1))


def cpu_count() -> int:
    """Return how many processors this process may use, by affinity and by cgroup quota.

    Of several processes of one run each has its share.
    """
    return max(1, machine_cpu_count() // local_processes())


def machine_cpu_count() -> int:
    """Return how many processors all processes of a run may use here."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _read_cgroup("cpu.max").split()
    if len(quota) == 2 and quota[0] != "max":
        count = min(count, max(1, math.ceil(int(quota[0]) / int(quota[1]))))
    return count


def memory_bytes() -> int:
    """Return the bytes of memory this process may use: the machine's, or its cgroup's limit.

    Of several processes of one run each has its share.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read_cgroup("memory.max").strip()
    return (min(total, int(limit)) if limit.isdigit() else total) // local_processes()


def _read_cgroup(name: str) -> str:
    try:
        return (_CGROUP / name).read_text()
    except OSError:  # no cgroup v2 here
        return ""
