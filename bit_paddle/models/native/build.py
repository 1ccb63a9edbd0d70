"""Compile operators.cc once for this machine, and choose the operators of a command.

The operators are compiled at first use, or ahead of time by ``python -m bit_paddle.compile``. They
are cached for the user. A change of Paddle, compiler, processor or sources compiles them again.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from bit_paddle.errors import install_hint
from bit_paddle.system import environment, fetch, files

SWITCH = "BIT_PADDLE_NATIVE"  # 0 turns the compiled operators off

SOURCES = [
    Path(__file__).with_name(name)
    for name in ("operators.cc", "network.h", "primitives.h", "onednn.h")
]

OPERATORS, FACTS, FAULT = "operators.so", "facts.json", "fault.txt"

SECONDS = 600  # the longest that compiling and checking may take

_AS_TEXT = {"capture_output": True, "encoding": "utf-8", "errors": "replace"}

_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-w")


class Unavailable(Exception):
    """The reason why there are no compiled operators; ``expected`` if nothing has failed."""

    def __init__(self, reason: str, expected: bool = False):
        super().__init__(reason)
        self.expected = expected


def choose(device: str, amp: str, say: Callable[[str], object]) -> tuple[Any, str]:
    """Return the operators for the network, `Compiled` or `plain`, and a description of them.

    ``say``: called with progress messages and warnings. On a CPU this changes how the whole process
    allocates memory, so only commands should call it.
    """
    from bit_paddle.models.native import plain

    if device != "cpu":
        return plain, "Paddle's own"
    environment.keep_memory()
    try:
        operators, facts = load(say)
        if amp == "fp16" or (amp == "bf16" and not facts["bf16"]):
            raise Unavailable(f"the compiled operators cannot compute in {amp} here", expected=True)
    except Unavailable as reason:
        if not reason.expected:
            say(f"warning: operators {reason}")
        return plain, f"Paddle's own ({reason})"
    return operators, f"compiled for this processor, with oneDNN {facts['onednn']}"


def load(say: Callable[[str], object] = print) -> tuple[Any, dict[str, Any]]:
    """Return `Compiled` and {"onednn": version, "bf16": bool}; compile first if that is needed.

    After a failed build, only ``python -m bit_paddle.compile`` tries again. Raises `Unavailable`.
    """
    return _load_or_build(say, again=False)


def rebuild(say: Callable[[str], object] = print) -> tuple[Any, dict[str, Any]]:
    """Compile again, whatever is in the cache; return what `load` returns."""
    return _load_or_build(say, again=True)


def _load_or_build(say: Callable[[str], object], again: bool) -> tuple[Any, dict[str, Any]]:
    if os.environ.get(SWITCH) == "0":
        raise Unavailable(f"{SWITCH}=0", expected=True)
    libraries = _libraries()
    try:
        folder = _folder(libraries)
        if again or not (folder / FACTS).exists():  # written last: with it the build is complete
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(folder / "lock"):
                _build_once(folder, say, again)
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        operators = _load(folder / OPERATORS, libraries)
        _set_threads(libraries)
        return operators, facts
    except (OSError, RuntimeError, subprocess.SubprocessError, ValueError) as error:
        raise Unavailable(
            f"cannot be loaded from the cache: {error}; `python -m bit_paddle.compile` tries again"
        ) from None


def _build_once(folder: Path, say: Callable[[str], object], again: bool) -> None:
    """Build into ``folder``, unless another process has already done so."""
    if again:
        for name in (FACTS, FAULT):
            (folder / name).unlink(missing_ok=True)
    if (folder / FAULT).exists():
        fault = (folder / FAULT).read_text(encoding="utf-8")
        raise Unavailable(
            f"could not be compiled: {_first_error(fault)}; the full output is in "
            f" {folder / FAULT}, and `python -m bit_paddle.compile` tries again"
        )
    if not (folder / FACTS).exists():
        say("compiling operators for this processor, only once; this takes half a minute")
        _build(folder)


def _libraries() -> Path:
    """Return the folder of Paddle's libraries; raise `Unavailable` if compiling is not possible."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Unavailable("the compiled operators need Linux on x86-64", expected=True)
    if shutil.which(_compiler()) is None:
        raise Unavailable(f"there is no compiler: {_compiler()}", expected=True)
    if importlib.util.find_spec("setuptools") is None:
        raise Unavailable(f"compiling needs setuptools: {install_hint('native')}", expected=True)
    folder = Path(importlib.util.find_spec("paddle").origin).parent / "libs"
    for name in ("libdnnl.so.3", "libiomp5.so"):
        if not (folder / name).exists():
            raise Unavailable(f"the installed Paddle does not contain {name}", expected=True)
    return folder


def _compiler() -> str:
    return (shlex.split(os.environ.get("CXX", "")) or ["g++"])[0]


def _folder(libraries: Path) -> Path:
    """Return the cache folder of the build, named by a hash of everything that the build uses."""
    import paddle

    command = [_compiler(), "--version"]
    version = subprocess.run(command, **_AS_TEXT, timeout=60).stdout
    processor = [line for line in _processor().splitlines() if line.startswith(("flags", "model"))]
    parts = [source.read_text(encoding="utf-8") for source in SOURCES]
    parts += [
        " ".join(_FLAGS),
        paddle.__version__,
        str(libraries),
        version,
        *sorted(set(processor)),
    ]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return fetch.cache_dir() / "native" / key


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _build(folder: Path) -> None:
    """Compile and check in a separate process, so that a crash there does not end this one."""
    command = [sys.executable, "-W", "ignore", "-m", "bit_paddle.compile", "--into", str(folder)]
    paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")]  # first this package
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if os.environ.get("CXX"):
        environ["CC"] = os.environ["CXX"]  # setuptools compiles C++ with CC, too
    try:
        done = subprocess.run(command, **_AS_TEXT, timeout=SECONDS, env=environ)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"could not be compiled within {SECONDS} s") from None
    if done.returncode:
        output = f"{done.stdout}{done.stderr}".strip() or f"ended with status {done.returncode}"
        reason = f"could not be compiled: {_first_error(output)}"
        if done.returncode == 1:  # other statuses mean interrupted or killed: the next use retries
            files.write_text(folder / FAULT, output)
            reason += f"; the full output is in {folder / FAULT}"
        raise Unavailable(reason)


def _first_error(output: str) -> str:
    """Return the first line of a build's ``output`` that reports an error, else its last line."""
    lines = output.strip().splitlines()
    return next((line for line in lines if "error:" in line), lines[-1])


def build(folder: Path) -> None:
    """Compile into ``folder``, compare with `plain`, and write the facts that `load` returns."""
    import paddle
    from paddle.utils import cpp_extension

    from bit_paddle.models.native import checks, compiled

    libraries = _libraries()
    paddle.set_device("cpu")
    with tempfile.TemporaryDirectory() as temporary:  # a path that needs no quotes in a shell
        cpp_extension.load(
            "bit_native",
            [str(SOURCES[0])],
            extra_cxx_cflags=list(_FLAGS),
            # libiomp5 is Paddle's OpenMP. With the compiler's own OpenMP in the same process, the
            # threads of the two would spin against each other and take twice the time.
            extra_ldflags=[str(libraries / "libiomp5.so"), str(libraries / "libdnnl.so.3")],
            build_directory=temporary,
        )
        library = Path(temporary) / "bit_native" / "bit_native.so"
        operators = compiled.Compiled(ctypes.CDLL(str(library)))
        files.write(folder / OPERATORS, lambda stream: stream.write(library.read_bytes()))
    _set_threads(libraries)
    checks.check(operators, "float32")
    facts = {"onednn": _onednn_version(libraries), "bf16": checks.passes(operators, "bfloat16")}
    files.write_text(folder / FACTS, json.dumps(facts))


@functools.cache
def _load(path: Path, libraries: Path) -> Any:
    from paddle.base import core

    from bit_paddle.models.native import compiled

    core.load_op_meta_info_and_register_op(str(path))
    return compiled.Compiled(ctypes.CDLL(str(path)))


def _set_threads(libraries: Path) -> None:
    """Let the operators use all processors, in the calling thread of Python.

    While it is imported, Paddle limits OpenMP to one thread if the user has set no number.
    """
    ctypes.CDLL(str(libraries / "libiomp5.so")).omp_set_num_threads(environment.threads())


def _onednn_version(libraries: Path) -> str:
    class Version(ctypes.Structure):
        _fields_ = [(name, ctypes.c_int) for name in ("major", "minor", "patch")]

    query = ctypes.CDLL(str(libraries / "libdnnl.so.3")).dnnl_version
    query.restype = ctypes.POINTER(Version)
    version = query().contents
    return f"{version.major}.{version.minor}.{version.patch}"
