"""Choose the operators of a command; compile them for this machine where none are prebuilt.

They are compiled at first use, or by ``python -m bit_paddle.compile``, and kept in the user's
cache. A change of Paddle, processor or sources compiles them again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from bit_paddle.models.native import compiler, library, prebuilt
from bit_paddle.models.native.library import Unavailable
from bit_paddle.system import environment, files, processes

SWITCH = "BIT_PADDLE_NATIVE"  # 0 turns the compiled operators off

OPERATORS, FACTS, FAULT = "operators.so", "facts.json", "fault.txt"

SECONDS = 600  # the longest that compiling and checking may take

Loaded = tuple[Any, dict[str, Any]]


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
    return operators, f"{facts['made']}, with oneDNN {facts['onednn']}"


def load(say: Callable[[str], object] = print) -> Loaded:
    """Return `Compiled` and {"made": by whom, "onednn": version, "bf16": bool}.

    Those compiled for this processor are used, else prebuilt ones, else they are compiled. After a
    failed build, only ``python -m bit_paddle.compile`` tries again. Raises `Unavailable`.
    """
    _heed_switch()
    if not _loaded:
        _loaded.append(_load_first(say))
    library.set_threads()
    return _loaded[0]


_loaded: list[Loaded] = []  # at most one: Paddle registers an operator once per process


def _load_first(say: Callable[[str], object]) -> Loaded:
    folder = library.cache_path(compiler.sources_hash())
    ways: list[Callable[[], Loaded]] = [prebuilt.load, lambda: _compile_once(folder, say)]
    if _exists(folder / FACTS):  # written last: with it the build is complete
        ways.insert(0, lambda: _load_compiled(folder))
    reasons: list[Unavailable] = []
    for way in ways:
        if reasons and not reasons[-1].expected:
            say(f"warning: operators {reasons[-1]}")
        try:
            return way()
        except Unavailable as reason:
            reasons.append(reason)
    if not reasons[-1].expected:
        raise reasons[-1]
    raise Unavailable("; ".join(map(str, reasons)), expected=True)


def rebuild(say: Callable[[str], object] = print) -> Loaded:
    """Compile for this processor, whatever is in the cache; return what `load` returns."""
    _heed_switch()
    return _compile_once(library.cache_path(compiler.sources_hash()), say, again=True)


def _heed_switch() -> None:
    if os.environ.get(SWITCH) == "0":
        raise Unavailable(f"{SWITCH}=0", expected=True)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder of the path cannot be read
        return False


def _load_compiled(folder: Path) -> Loaded:
    """Load what a build has left in ``folder``."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        return library.load(folder / OPERATORS), {**facts, "made": "compiled for this processor"}
    except (OSError, RuntimeError, ValueError) as error:
        raise Unavailable(
            f"cannot be loaded from the cache: {error}; `python -m bit_paddle.compile` tries again"
        ) from None


def _compile_once(folder: Path, say: Callable[[str], object], again: bool = False) -> Loaded:
    """Build into ``folder``, unless another process has already done so, and load the result."""
    compiler.require()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if again:
                for name in (FACTS, FAULT):
                    (folder / name).unlink(missing_ok=True)
            if (folder / FAULT).exists():
                fault = (folder / FAULT).read_text(encoding="utf-8")
                raise Unavailable(
                    f"could not be compiled: {_first_error(fault)}; the full output is in "
                    f"{folder / FAULT}, and `python -m bit_paddle.compile` tries again"
                )
            if not (folder / FACTS).exists():
                say("compiling operators for this processor, only once; this takes ten seconds")
                _build(folder)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise Unavailable(
            f"cannot be kept in the cache: {error}; `python -m bit_paddle.compile` tries again"
        ) from None
    return _load_compiled(folder)


def _build(folder: Path) -> None:
    """Compile and check in a separate process, so that a crash there does not end this one.

    It leads a process group, which ends if this process ends, or leaves this function.
    """
    command = [sys.executable, "-W", "ignore", "-m", "bit_paddle.compile", "--into", str(folder)]
    environ = processes.child_environment(1)
    with subprocess.Popen(
        command, **compiler.AS_TEXT, env=environ, start_new_session=True
    ) as process:
        try:
            output = "".join(process.communicate(timeout=SECONDS)).strip()
        except subprocess.TimeoutExpired:
            raise Unavailable(f"could not be compiled within {SECONDS} s") from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        output = output or f"ended with status {process.returncode}"
        reason = f"could not be compiled: {_first_error(output)}"
        if process.returncode == 1:  # others mean interrupted or killed: the next use retries
            files.write_text(folder / FAULT, output)
            reason += f"; the full output is in {folder / FAULT}"
        raise Unavailable(reason)


def _first_error(output: str) -> str:
    """Return the first line of a build's ``output`` that reports an error, else its last line."""
    lines = output.strip().splitlines()
    return next((line for line in lines if "error:" in line), lines[-1])


def build(folder: Path) -> None:
    """Compile into ``folder``, compare with `plain`, and write the facts that `load` returns.

    Raises RuntimeError with what the compiler says, or with what is computed wrong.
    """
    made = folder / f"{OPERATORS}.part"
    try:
        compiler.compile_library(made, "native", library.paddle_folder())
        facts = library.examine(made)
        made.replace(folder / OPERATORS)
    finally:
        made.unlink(missing_ok=True)
    files.write_text(folder / FACTS, json.dumps(facts))
