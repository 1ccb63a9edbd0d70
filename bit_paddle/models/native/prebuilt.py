"""The operators that come with the package: choose a library for Paddle and the processor.

``scripts/build_operators.py`` makes the libraries and `CONTENTS`, which describes each of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import sys
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

from bit_paddle.models.native import compiler, library
from bit_paddle.models.native.library import Unavailable
from bit_paddle.system import environment, files

FOLDER = Path(__file__).with_name("prebuilt")

CONTENTS = "contents.json"  # {file: {"paddle", "level", "sources", "sha256", "compiler"}}

_AVX2 = frozenset(["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"])
_AVX512 = _AVX2 | frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"])

LEVELS = {  # best first: {-march of the compiler: (name, flags of /proc/cpuinfo that it needs)}
    "x86-64-v4": ("AVX-512", _AVX512),
    "x86-64-v3": ("AVX2", _AVX2),
}

SECONDS = 30  # the longest that a check may take; it takes a fraction of one


def load() -> tuple[Any, dict[str, Any]]:
    """Return `Compiled` and the facts of `library.examine`; raise `Unavailable`.

    A library is checked once per machine: the facts are kept in the cache, if that can be written.
    """
    import paddle

    path, level = find(paddle.__version__, environment.processor().get("flags", "").split())
    record = library.cache_path(_sha256(path)).with_suffix(".json")
    try:
        facts = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        facts = check(path)
        with contextlib.suppress(OSError):
            record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.write_text(record, json.dumps(facts))
    try:
        operators = library.load(path)
    except (OSError, RuntimeError) as error:
        raise Unavailable(f"that come with bit_paddle cannot be loaded: {error}") from None
    return operators, {**facts, "made": f"prebuilt for {LEVELS[level][0]}"}


def find(paddle: str, flags: Collection[str]) -> tuple[Path, str]:
    """Return the best library for a version of ``paddle`` and a processor with ``flags``.

    Returns its level, too. Raises `Unavailable` if there is none, or if its file is damaged.
    """
    contents = read_contents()
    ours = {one["level"]: name for name, one in contents.items() if one["paddle"] == paddle}
    if not ours:
        raise Unavailable(f"none are prebuilt for Paddle {paddle}", expected=True)
    fitting = [level for level in LEVELS if level in ours and LEVELS[level][1] <= set(flags)]
    if not fitting:
        raise Unavailable("none are prebuilt for a processor without AVX2", expected=True)
    name = ours[fitting[0]]
    if contents[name]["sources"] != compiler.sources_hash():
        raise Unavailable("none are prebuilt from the present sources", expected=True)
    if _sha256(FOLDER / name) != contents[name]["sha256"]:
        raise Unavailable(f"are damaged or missing: {FOLDER / name}; install bit_paddle again")
    return FOLDER / name, fitting[0]


def read_contents() -> dict[str, dict[str, str]]:
    """Return {file name: its description}; empty if this copy of the package has no libraries."""
    try:
        return json.loads((FOLDER / CONTENTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Unavailable(f"cannot be chosen: {FOLDER / CONTENTS}: {error}") from None


def check(path: Path) -> dict[str, Any]:
    """Return the facts of `library.examine`, found in a process of its own; a crash ends only that.

    The process is a fork of this one, which spares it the second that Paddle takes to import.
    Raises `Unavailable` with what went wrong.
    """
    readable, writable = os.pipe()
    with warnings.catch_warnings():  # Python 3.12 warns of threads: those of NumPy allow a fork
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _examine_and_exit(path, writable)
    os.close(writable)
    status = None
    try:
        if select.select([readable], [], [], SECONDS)[0]:  # an answer, or its end
            answer = os.read(readable, select.PIPE_BUF)
            _, status = os.waitpid(child, 0)
    finally:
        os.close(readable)
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if status is None:
        fault = f"no result within {SECONDS} s"
    elif not answer:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else status >> 8
        fault = f"a crash with {'signal' if os.WIFSIGNALED(status) else 'status'} {number}"
    else:
        facts = json.loads(answer)
        if "fault" not in facts:
            return facts
        fault = facts["fault"]
    raise Unavailable(f"that come with bit_paddle do not work here: {fault}")


def _examine_and_exit(path: Path, answer: int) -> NoReturn:
    """Write what is found as JSON into the pipe ``answer``. The process prints nothing."""
    try:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # they are for the parent, which ends this one
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")
        for stream in (1, 2):  # those of Paddle's library
            os.dup2(sys.stdout.fileno(), stream)
        try:
            facts = library.examine(path)
        except Exception as error:
            facts = {"fault": f"{type(error).__name__}: {error}"[:500]}
        os.write(answer, json.dumps(facts).encode())
    finally:
        os._exit(1)


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
