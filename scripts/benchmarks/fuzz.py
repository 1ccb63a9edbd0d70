#!/usr/bin/env python3
"""Read mutated files of every kind; only the package's own errors may be raised.

    python scripts/benchmarks/fuzz.py                        # all kinds, 500 inputs each
    python scripts/benchmarks/fuzz.py --inputs 2000 --seed 7 --output fuzz.json
    python scripts/benchmarks/fuzz.py --only onnx,video      # some kinds

Each kind of `fuzz_targets` is read in a process of its own. A fault is an error that is not the
package's, a crash, more than 10 seconds of the processor for an input, or more than 1 GB of memory
beside what the process has at its start. Input k depends on the seed, the kind and k only. Exit
status 0 means that there was no fault. A kind is skipped if the package that it needs is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import fuzz_targets  # noqa: E402

from bit_paddle.errors import BitPaddleError  # noqa: E402

MEMORY = 1 << 30  # bytes that a process may take more than at its start

SECONDS, WAIT = 10, 300  # of the processor per input, and until an input that waits is a hang

WORDS = r"""'|O' '<f8' True NaN Infinity -1 1e308 -1e308 99999999999 (99999999999 (True &a [*a] ?
<<: - ~ " , [] {} null !!python/name:os.system 2026-99-99 \u0000 "\ud800" １² é yes ../../etc/passwd
/etc/passwd file:///etc/passwd http://127.0.0.1:9/ <!DOCTYPE <!ENTITY"""
TOKENS = [word.encode() for word in WORDS.split()]  # values that may break a reader
TOKENS += [b"!!bool x", b"!!timestamp x", b"!!int ''", b"{" * 2000, b"[" * 2000, b"9" * 5000]
TOKENS += [b"0x" + b"f" * 4000, b"\xff" * 8, bytes(8), b"\x80", b"\r\n", b"\t", b": "]
TOKENS += [b"\xe2\x80\xa8", b"PK\1\2", b"PK\3\4", b"PK\5\6", b"\x93NUMPY\2\0", b"\x93NUMPY\3\0"]
TOKENS += [b"cos\nsystem\n(S'false'\ntR.", b"\xff\x7f", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]

VALUE = re.compile(rb"(?<=[:,>] )[^,\n}<]+|(?<=[,>])[^,:\n}<]+")

KINDS = ["flip", "overwrite", "insert", "delete", "duplicate", "truncate", *["value"] * 4]


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return ``content`` after one to four changes."""
    result = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        size = len(result)
        near = chance.choice((size, size, min(size, 512), -min(size, 512)))  # all, or an end
        at = chance.randint(0, near) if near >= 0 else size - chance.randint(0, -near)
        other = chance.choice(TOKENS) if chance.random() < 0.7 else chance.randbytes(8)
        kind, length = chance.choice(KINDS), chance.randint(1, 64)
        if kind == "flip" and at < size:
            result[at] ^= 1 << chance.randrange(8)
        elif kind == "overwrite":
            result[at : at + len(other)] = other
        elif kind == "insert":
            result[at:at] = other
        elif kind == "delete":
            del result[at : at + length]
        elif kind == "duplicate":
            result[at:at] = result[at : at + length] * chance.randint(1, 3)
        elif kind == "truncate":
            del result[at:]
        elif kind == "value":  # the text after ": ", "," or ">" is replaced
            values = list(VALUE.finditer(bytes(result[: 1 << 16])))
            if values:
                value = chance.choice(values)
                result[value.start() : value.end()] = other
    return bytes(result)


@dataclass
class Row:
    """A row of the table, and the faults."""

    kind: str
    inputs: int = 0
    refused: int = 0  # with an error of the package
    read: int = 0
    slowest: float = 0.0  # seconds of the processor
    memory: int = 0  # bytes more than before the first input, at most
    note: str = ""
    faults: list[str] = field(default_factory=list)


def place_of(error: BaseException) -> str:
    """Return the type of an error, its innermost line, and its innermost line in this package."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
    own = [line for line, frame in zip(lines, frames) if "/bit_paddle/" in frame.filename]
    return f"{type(error).__name__} at {lines[-1]}, from {own[-1] if own else '?'}"


def memory(key: str) -> int:
    """Return a value of this process's status, such as VmHWM (the peak), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def fuzzed(row: Row, folder: Path, count: int, seed: int, save: Callable[[Row], None]) -> None:
    """Read ``count`` mutations of a kind's files, in this process; ``save`` keeps the row."""
    contents, read = fuzz_targets.TARGETS[row.kind](folder)
    for way, content in enumerate(contents):
        read(content, way)  # a whole file is read, and loads the libraries
    before = memory("VmRSS")
    limit = memory("VmSize") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    faults: dict[str, str] = {}
    for number in range(count):
        chance = random.Random(f"{seed} {row.kind} {number}")
        way = chance.randrange(len(contents))
        content = mutated(contents[way], chance)
        row.inputs += 1
        row.faults = [*faults.values(), f"{row.kind}: input {number} ended the process"]
        save(row)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(WAIT)
        start = sum(os.times()[:4])
        try:
            read(content, way)
            row.read += 1
        except BitPaddleError:
            row.refused += 1
        except Exception as error:
            place = place_of(error)
            faults.setdefault(place, f"{row.kind}: input {number}: {place}: {error!s:.200}")
        row.slowest = max(row.slowest, sum(os.times()[:4]) - start)
        row.memory = max(0, memory("VmHWM") - before)
    for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
        signal.setitimer(timer, 0)
    row.faults = list(faults.values())
    save(row)


def in_a_process(kind: str, count: int, seed: int) -> Row:
    """Return the row of a kind, from a fork of this process."""
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None  # on a disk, files would be synced
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        result = Path(folder, "row.json")
        result.write_text(json.dumps(asdict(Row(kind, faults=[f"{kind}: did not start"]))))
        child = os.fork()
        if not child:
            status = 1
            try:
                os.environ["BIT_PADDLE_HOME"] = os.path.join(folder, "home")
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, 1)  # notes and warnings of the readers
                os.dup2(nothing, 2)
                inner = Path(folder, "files")
                inner.mkdir()
                os.chdir(inner)  # a relative path of a mutated file leads to nothing
                part = result.with_name("row.part")

                def save(row: Row) -> None:
                    part.write_text(json.dumps(asdict(row)))
                    part.rename(result)

                fuzzed(Row(kind), inner, count, seed, save)
                status = 0
            except ImportError as error:
                save(Row(kind, note=f"skipped: {error}"))
                status = 0
            except BaseException:
                save(Row(kind, faults=[f"{kind}: {traceback.format_exc()}"]))
            finally:
                os._exit(status)
        status = os.waitpid(child, 0)[1]
        row = Row(**json.loads(result.read_text()))
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            hang = number in (signal.SIGALRM, signal.SIGPROF)
            reason = "it does not end" if hang else f"signal {number}"
            row.faults[-1] += f": {reason}"
        return row


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table of Markdown, with a last row for all."""
    total = Row("all", *(sum(getattr(row, name) for row in rows)
                         for name in ("inputs", "refused", "read")),
                max(row.slowest for row in rows), max(row.memory for row in rows))  # fmt: skip
    lines = [
        "| kind | inputs | refused | read | slowest input (CPU) | memory | faults |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in [*rows, total]:
        faults = sum(len(one.faults) for one in rows) if row is total else len(row.faults)
        numbers = f"{row.inputs:,} | {row.refused:,} | {row.read:,} | {row.slowest:.2f} s | "
        numbers += f"{row.memory / 1e6:,.0f} MB | {faults}"
        lines.append(f"| {row.kind} | {row.note or numbers} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=500, help="inputs per kind (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all mutations")
    parser.add_argument("--only", metavar="KIND[,KIND]", help="kinds to read (default: all)")
    parser.add_argument("--output", metavar="FILE.json", help="write the rows to this file")
    flags = parser.parse_args()
    kinds = flags.only.split(",") if flags.only else list(fuzz_targets.TARGETS)
    if set(kinds) - set(fuzz_targets.TARGETS):
        parser.error(f"--only: choose from {', '.join(fuzz_targets.TARGETS)}")
    rows = []
    for kind in kinds:
        start = time.time()
        rows.append(in_a_process(kind, flags.inputs, flags.seed))
        found = f"{len(rows[-1].faults)} faults" if rows[-1].faults else "no fault"
        print(f"{kind}: {found}, {time.time() - start:.0f} s", file=sys.stderr)
        print(
            "".join(f"{fault}\n" for fault in rows[-1].faults), end="", file=sys.stderr, flush=True
        )
    faults = [fault for row in rows for fault in row.faults]
    print(table(rows))
    if flags.output:
        Path(flags.output).write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
