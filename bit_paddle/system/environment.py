"""The processors and memory of this process, and settings that must precede Paddle's import."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import itertools
import math
import os
import platform
import resource
import subprocess
import sys
import warnings
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")

_PILLOW_BLOCKS = 32  # of at most 16 MB each: a few images per thread


def prepare() -> None:
    """Let Paddle's matrix products use every core and the best instructions of the processor.

    Paddle's MKL reads both variables at its first product; values of the user stay. Without them
    Paddle gives MKL one thread, and MKL takes its slowest path on processors of other makers than
    Intel: on two cores of an AMD EPYC the two variables make products five times as fast
    (`scripts/benchmarks/environment.py`).

    Pillow reads at its import how many blocks of memory to keep. By default it returns the memory
    of each image to the system, which clears new pages for the next: a third of a resize.

    Paddle 3 warns at its import that ccache is missing, which only helps those who compile Paddle.
    """
    warnings.filterwarnings("ignore", "No ccache found")
    os.environ.setdefault("PILLOW_BLOCKS_MAX", str(_PILLOW_BLOCKS))
    given = {name: os.environ[name] for name in _THREADS if name in os.environ}
    if "paddle" not in sys.modules:  # which sets them to 1 itself
        _users.update(given)
    if not given:
        os.environ["MKL_NUM_THREADS"] = _chosen["MKL_NUM_THREADS"] = str(cpu_count())
    if kind := _mkl_type_of_amd():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", kind)


def threads() -> int:
    """Return how many threads compute in this process: the user's number, or that of `prepare`."""
    first = next(filter(None, map(_users.get, _THREADS)), "").split(",")[0]
    return int(first) if first.isdigit() and int(first) else cpu_count()


def keep_memory() -> None:
    """Make malloc keep freed memory: every step needs the same again, up to 270 MB per stage.

    By default glibc returns large pieces to the system, which clears new pages for the next: a
    tenth of a training step on a CPU. For commands only: the memory is kept until the process ends.
    Settings of the user stay.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has it
    if mallopt is not None and sys.platform == "linux":
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

_users: dict[str, str] = {}  # variables that the user has set

_chosen: dict[str, str] = {}  # variables that `prepare` has set for one process alone


def share(processes: int) -> dict[str, str]:
    """Return the environment for each of several ``processes``: a copy with a share of the threads.

    It has not what Paddle has set since `prepare`, which would look like a setting of the user.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _THREADS}
    threads = str(max(1, machine_cpu_count() // processes))
    return {**kept, **_users, **dict.fromkeys(_chosen, threads)}


@functools.cache
def processor() -> dict[str, str]:
    """Return what Linux tells of the first processor ("model name", "flags" …), else nothing."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            fields = [line.partition(":") for line in itertools.takewhile(str.strip, lines)]
    except OSError:  # not Linux
        return {}
    return {name.strip(): value.strip() for name, _, value in fields}


def _mkl_type_of_amd() -> str:
    """Return MKL's number of the best kernels for an AMD processor (AVX-512, AVX2), or ""."""
    if processor().get("vendor_id") != "AuthenticAMD":
        return ""
    words = set(processor().get("flags", "").split())
    if words >= {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}:
        return "7"
    return "5" if words >= {"avx2", "fma"} else ""


def machine() -> str:
    """Return the versions and the hardware of this process in words."""
    model = processor().get("model name") or platform.machine()
    gpus = []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(
            ["nvidia-smi", "-L"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=60,
        )
        gpus = [line.split(" (UUID")[0] for line in listed.stdout.splitlines()]
    hardware = "; ".join([f"{machine_cpu_count()} x {model}", *gpus])
    return f"{paddle()}, Python {platform.python_version()}, {platform.system()}; {hardware}"


def paddle() -> str:
    """Return the installed package of Paddle and its version, without loading it."""
    for name in ("paddlepaddle-gpu", "paddlepaddle"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    return "no Paddle"


def local_processes() -> int:
    """Return how many processes of one run share this machine."""
    return max(1, int(os.environ.get("PADDLE_LOCAL_SIZE") or 1))


def cpu_count() -> int:
    """Return how many processors this process may use, by affinity and by cgroup quota.

    Several processes of one run share them.
    """
    return max(1, machine_cpu_count() // local_processes())


def machine_cpu_count() -> int:
    """Return how many processors all processes of a run may use on this machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _read_cgroup("cpu.max").split()
    if len(quota) == 2 and quota[0] != "max":
        count = min(count, max(1, math.ceil(int(quota[0]) / int(quota[1]))))
    return count


def memory_bytes() -> int:
    """Return the bytes of memory that this process may use: the machine's, or its cgroup's limit.

    Several processes of one run share them.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read_cgroup("memory.max").strip()
    return (min(total, int(limit)) if limit.isdigit() else total) // local_processes()


def peak_bytes() -> int:
    """Return the most bytes of memory that this process has had at once since its start."""
    try:
        with open("/proc/self/status", encoding="utf-8") as lines:
            return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except OSError:  # not Linux; this number is at least that of the parent process
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _read_cgroup(name: str) -> str:
    try:
        return (_CGROUP / name).read_text(encoding="utf-8")
    except OSError:  # no cgroup v2 here
        return ""
