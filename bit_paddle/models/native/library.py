"""Load a library of compiled operators into Paddle, and find out what it can do."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import platform
import sys
from pathlib import Path
from typing import Any

from bit_paddle.system import environment, fetch

ONEDNN, OPENMP = "libdnnl.so.3", "libiomp5.so"  # both in Paddle's folder libs


class Unavailable(Exception):
    """The reason why there are no compiled operators; ``expected`` if nothing has failed."""

    def __init__(self, reason: str, expected: bool = False):
        super().__init__(reason)
        self.expected = expected


def paddle_folder() -> Path:
    """Return the folder of Paddle; raise `Unavailable` if it cannot have compiled operators."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Unavailable("the compiled operators need Linux on x86-64", expected=True)
    folder = Path(importlib.util.find_spec("paddle").origin).parent
    for name in (ONEDNN, OPENMP):
        if not (folder / "libs" / name).exists():
            raise Unavailable(f"the installed Paddle does not contain {name}", expected=True)
    return folder


def cache_path(*parts: str) -> Path:
    """Return a path in the cache, named by a hash of ``parts``, of Paddle and of the processor."""
    import paddle

    processor = environment.processor()
    parts += tuple(processor.get(name, "") for name in ("model", "model name", "flags"))
    parts += (paddle.__version__, str(paddle_folder()))
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return fetch.cache_dir() / "native" / key


def load(path: Path) -> Any:
    """Return `Compiled` with the operators of the library at ``path``. A process may load only one.

    The library names Paddle, oneDNN and OpenMP without folders. The system finds those that this
    process has already: Paddle's.
    """
    from paddle.base import core

    from bit_paddle.models.native import compiled

    core.load_op_meta_info_and_register_op(str(path))
    return compiled.Compiled(ctypes.CDLL(str(path)))


def set_threads() -> None:
    """Let the operators use all processors, in the calling thread of Python.

    While it is imported, Paddle limits OpenMP to one thread if the user has set no number.
    """
    _of_paddle(OPENMP).omp_set_num_threads(environment.threads())


def limit_spinning(milliseconds: int) -> None:
    """Let OpenMP's threads sleep once they have waited so long; by default they spin for 200 ms.

    Holds for the calling thread of Python. Between requests others need the processors.
    """
    _of_paddle(OPENMP).kmp_set_blocktime(milliseconds)


def examine(path: Path) -> dict[str, Any]:
    """Load the operators at ``path``, compare them with `plain`, and return what they can do.

    {"onednn": version, "bf16": whether they compute in it}. Raises RuntimeError if they differ. A
    crash ends the process, so call it in one of its own.
    """
    import paddle

    from bit_paddle.models.native import checks

    paddle.set_device("cpu")
    operators = load(path)
    set_threads()
    checks.check(operators, "float32")
    return {"onednn": _onednn_version(), "bf16": checks.passes(operators, "bfloat16")}


def _onednn_version() -> str:
    class Version(ctypes.Structure):
        _fields_ = [(name, ctypes.c_int) for name in ("major", "minor", "patch")]

    query = _of_paddle(ONEDNN).dnnl_version
    query.restype = ctypes.POINTER(Version)
    version = query().contents
    return f"{version.major}.{version.minor}.{version.patch}"


def _of_paddle(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(paddle_folder() / "libs" / name))
