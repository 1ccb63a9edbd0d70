"""Builds operators.cc for this machine, once, and chooses what a command computes with.

They are built at first use, or ahead by ``python -m bit_paddle.compile``, into the user's cache; a
change of Paddle, compiler, processor or of the sources builds them anew.
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

SWITCH = "BIT_PADDLE_NATIVE"  # 0 refuses

SOURCES = [Path(__file__).with_name(name) for name in ("operators.cc", "onednn.h")]

OPERATORS, FACTS, FAULT = "operators.so", "facts.json", "fault.txt"

SECONDS = 600  # for the compiler, after which it is given up

_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-w")


class Unavailable(Exception):
    """Why there are no compiled operators; ``expected`` where nothing has gone wrong."""

    def __init__(self, reason: str, expected: bool = False):
        super().__init__(reason)
        self.expected = expected


def choose(device: str, amp: str, say: Callable[[str], object]) -> tuple[Any, str]:
    """Return what the network is to compute with, `Compiled` or `plain`, and what that is.

    ``say`` hears of compiling, and of a failure of that. For commands, as it changes how this
    process keeps memory.
    """
    from bit_paddle.models.native import plain

    if device != "cpu":
        return plain, "Paddle's own"
    environment.keep_memory()
    try:
        operators, facts = load(say)
        if amp == "fp16" or (amp == "bf16" and not facts["bf16"]):
            raise Unavailable(f"the compiled ones have no {amp} here", expected=True)
    except Unavailable as reason:
        if not reason.expected:
            say(f"warning: operators {reason}")
        return plain, f"Paddle's own ({reason})"
    return operators, f"compiled for this processor, with oneDNN {facts['onednn']}"


def load(say: Callable[[str], object] = print) -> tuple[Any, dict[str, Any]]:
    """Return `Compiled` and what is known of it, built before or now; raises `Unavailable`.

    A build that has failed is not tried again until ``python -m bit_paddle.compile`` is called.
    """
    return _found_or_built(say, again=False)


def rebuild(say: Callable[[str], object] = print) -> tuple[Any, dict[str, Any]]:
    """Do as `load` does, after forgetting what was built."""
    return _found_or_built(say, again=True)


def _found_or_built(say: Callable[[str], object], again: bool) -> tuple[Any, dict[str, Any]]:
    if os.environ.get(SWITCH) == "0":
        raise Unavailable(f"{SWITCH}=0", expected=True)
    libraries = _libraries()
    try:
        folder = _folder(libraries)
        if again or not (folder / FACTS).exists():  # written last, so it says that all is there
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(folder / "lock"):
                _build_once(folder, say, again)
        facts = json.loads((folder / FACTS).read_text())
        operators = _load(folder / OPERATORS, libraries)
        _set_threads(libraries)
        return operators, facts
    except (OSError, RuntimeError, subprocess.SubprocessError, ValueError) as error:
        raise Unavailable(
            f"cannot be had from the cache: {error}; `python -m bit_paddle.compile` tries again"
        ) from None


def _build_once(folder: Path, say: Callable[[str], object], again: bool) -> None:
    """Build into ``folder``, unless another process has been there first."""
    if again:
        for name in (FACTS, FAULT):
            (folder / name).unlink(missing_ok=True)
    if (folder / FAULT).exists():
        raise Unavailable(
            f"could not be compiled: {_last_error((folder / FAULT).read_text())}; all of it is in "
            f"{folder / FAULT}, and `python -m bit_paddle.compile` tries again"
        )
    if not (folder / FACTS).exists():
        say("compiling operators for this processor: once, half a minute")
        _build(folder)


def _libraries() -> Path:
    """Return the folder of the libraries that Paddle ships, if they are those that it takes."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Unavailable("compiled ones are for Linux on x86-64", expected=True)
    if shutil.which(_compiler()) is None:
        raise Unavailable(f"there is no compiler: {_compiler()}", expected=True)
    if importlib.util.find_spec("setuptools") is None:
        raise Unavailable(f"compiling takes setuptools: {install_hint('native')}", expected=True)
    folder = Path(importlib.util.find_spec("paddle").origin).parent / "libs"
    for name in ("libdnnl.so.3", "libiomp5.so"):
        if not (folder / name).exists():
            raise Unavailable(f"this Paddle comes without {name}", expected=True)
    return folder


def _compiler() -> str:
    return (shlex.split(os.environ.get("CXX", "")) or ["g++"])[0]


def _folder(libraries: Path) -> Path:
    """Return where what is built belongs: another for all that it depends on."""
    import paddle

    command = [_compiler(), "--version"]
    version = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    processor = [line for line in _processor().splitlines() if line.startswith(("flags", "model"))]
    parts = [*(one.read_text() for one in SOURCES), " ".join(_FLAGS), paddle.__version__]
    parts += [str(libraries), version, *sorted(set(processor))]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return fetch.cache_dir() / "native" / key


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _build(folder: Path) -> None:
    """Compile and check, in a process of its own: a crash there is a fault, not the end."""
    command = [sys.executable, "-W", "ignore", "-m", "bit_paddle.compile", "--into", str(folder)]
    paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")]  # this very package
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if os.environ.get("CXX"):
        environ["CC"] = os.environ["CXX"]  # with which setuptools compiles C++ too
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environ)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"were not compiled in {SECONDS} s") from None
    if made.returncode:
        said = f"{made.stdout}{made.stderr}".strip() or f"ended with status {made.returncode}"
        kept = made.returncode == 1  # others were interrupted or killed, as for want of memory
        if kept:
            files.write_text(folder / FAULT, said)
        raise Unavailable(
            f"could not be compiled: {_last_error(said)}"
            + f"; all of it is in {folder / FAULT}" * kept
        )


def _last_error(said: str) -> str:
    """Return the line of what a build has said that tells most: the first error."""
    lines = said.strip().splitlines()
    return next((line for line in lines if "error:" in line), lines[-1])


def build(folder: Path) -> None:
    """Compile into ``folder``, check against `plain`, and write down what is found."""
    import paddle
    from paddle.utils import cpp_extension

    from bit_paddle.models.native import checks, compiled

    libraries = _libraries()
    paddle.set_device("cpu")
    with tempfile.TemporaryDirectory() as temporary:  # whose name a shell can take, unlike others
        cpp_extension.load(
            "bit_native",
            [str(SOURCES[0])],
            extra_cxx_cflags=list(_FLAGS),
            # libiomp5 is Paddle's OpenMP: with the compiler's own beside it, threads of the two
            # would spin against each other, for twice the time.
            extra_ldflags=[str(libraries / "libiomp5.so"), str(libraries / "libdnnl.so.3")],
            build_directory=temporary,
        )
        made = (Path(temporary) / "bit_native" / "bit_native.so").read_bytes()
    files.write(folder / OPERATORS, lambda stream: stream.write(made))
    _set_threads(libraries)
    operators = compiled.Compiled()
    checks.check(operators, "float32")
    facts = {"onednn": _onednn_version(libraries), "bf16": checks.passes(operators, "bfloat16")}
    files.write_text(folder / FACTS, json.dumps(facts))


@functools.cache
def _load(path: Path, libraries: Path) -> Any:
    from paddle.base import core

    from bit_paddle.models.native import compiled

    core.load_op_meta_info_and_register_op(str(path))
    return compiled.Compiled()


def _set_threads(libraries: Path) -> None:
    """Let the operators use all processors; each thread of Python has a number of its own.

    Paddle sets one thread for OpenMP where nobody has chosen, as it is imported.
    """
    ctypes.CDLL(str(libraries / "libiomp5.so")).omp_set_num_threads(environment.threads())


def _onednn_version(libraries: Path) -> str:
    class Version(ctypes.Structure):
        _fields_ = [(name, ctypes.c_int) for name in ("major", "minor", "patch")]

    query = ctypes.CDLL(str(libraries / "libdnnl.so.3")).dnnl_version
    query.restype = ctypes.POINTER(Version)
    version = query().contents
    return f"{version.major}.{version.minor}.{version.patch}"
