"""The command that compiles operators.cc. It needs g++ alone: no headers of Python or oneDNN."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bit_paddle.models.native.library import ONEDNN, OPENMP, Unavailable

SOURCES = [
    Path(__file__).with_name(name)
    for name in ("operators.cc", "network.h", "primitives.h", "onednn.h")
]

AS_TEXT: dict[str, Any] = {
    **dict.fromkeys(("stdout", "stderr"), subprocess.PIPE),
    "encoding": "utf-8",
    "errors": "replace",
}

_FLAGS = (
    *("-std=c++17", "-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-w"),
    *("-shared", "-fPIC", "-s"),  # a library without names for a debugger: 0.2 MB instead of 5
    "-DPADDLE_ON_INFERENCE",  # leaves out Python, which takes three quarters of the time
    "-DPADDLE_WITH_CUSTOM_KERNEL",  # these two as Paddle's own cpp_extension has them
    "-D_GLIBCXX_USE_CXX11_ABI=1",
)


def program() -> list[str]:
    """Return the words that call the compiler: CXX of the environment, else g++."""
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


def require() -> None:
    """Raise `Unavailable` if there is no compiler."""
    if shutil.which(program()[0]) is None:
        raise Unavailable(f"there is no compiler: {program()[0]}", expected=True)


def sources_hash() -> str:
    """Return a hash of the sources and of the flags that they are compiled with."""
    parts = [source.read_text(encoding="utf-8") for source in SOURCES]
    return hashlib.sha256("\n".join([*parts, *_FLAGS]).encode()).hexdigest()[:16]


def compile_library(
    output: Path, processor: str, paddle: Path, extra: Sequence[str | Path] = ()
) -> None:
    """Compile into the file ``output`` for ``processor`` (as -march has it).

    ``paddle``: the folder of Paddle. ``extra``: more words for the command. Raises RuntimeError
    with the compiler's output.
    """
    include = paddle / "include"
    command = [*program(), *_FLAGS, f"-march={processor}", "-isystem", include]
    command += ["-isystem", include / "third_party", SOURCES[0], *extra, "-o", output]
    # libiomp5 is Paddle's OpenMP. With the compiler's own OpenMP in the same process, the threads
    # of the two would spin against each other and take twice the time.
    command += ["-Wl,--as-needed", "-L", paddle / "base", "-l:libpaddle.so"]
    command += [paddle / "libs" / OPENMP, paddle / "libs" / ONEDNN]
    done = subprocess.run(command, **AS_TEXT)
    if done.returncode:
        output_text = f"{done.stdout}{done.stderr}".strip()
        raise RuntimeError(output_text or f"the compiler ended with status {done.returncode}")
