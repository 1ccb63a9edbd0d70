"""Write a run's log (train.log), metrics (one line of JSON per step), VisualDL file and timings."""

from __future__ import annotations

import json
import math
import os
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bit_paddle.errors import WriteError, tell
from bit_paddle.system import files
from bit_paddle.system.progress import bars_are_shown

SILENCE = 30  # seconds without a line on the console
KINDS = ("train", "val", "test")  # of lines in `METRICS`
LOG, METRICS, SCALARS = "train.log", "metrics.jsonl", "vdlrecords.metrics.log"


class GrowingFile:
    """A file to append to. Data that cannot be written now is buffered until the next write."""

    def __init__(self, path: Path):
        self.path = path
        self.error: OSError | None = None  # why data is still in the buffer
        self._buffer = b""
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        self._size = os.fstat(self._descriptor).st_size

    def write(self, data: bytes = b"") -> None:
        """Append the buffer, then ``data``; they stay in the buffer if the disk fails."""
        self._buffer += data
        try:
            while self._buffer:
                count = os.pwrite(self._descriptor, self._buffer, self._size)
                self._size, self._buffer = self._size + count, self._buffer[count:]
            self.error = None
        except OSError as error:
            self.error = error

    def sync(self) -> None:
        """Flush everything to the disk (fsync). Raises `OSError` if data is still in the buffer."""
        error = self.error  # read once: another thread may clear it
        if error is not None:
            raise error
        os.fsync(self._descriptor)

    def content(self) -> bytes:
        """Return the content of the file and the buffer. Raises `OSError`."""
        return self.path.read_bytes()[: self._size] + self._buffer

    def close(self) -> None:
        self.write()
        os.close(self._descriptor)


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the lines of a metrics.jsonl, and the number of unreadable lines.

    A process that is killed while it writes leaves part of a line. A missing file has no lines.
    Raises `WriteError` if the disk fails.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise WriteError(f"{path}: cannot be read ({error.strerror})") from error
    lines, unreadable = [], 0
    for text in content.splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if (
            isinstance(line, dict)
            and line.get("kind") in KINDS
            and type(line.get("step")) is int
            and 0 <= line["step"] < 2**53
        ):
            lines.append(line)
        else:
            unreadable += 1
    return lines, unreadable


class Logbook:
    """Writes the log, metrics and VisualDL file of a run into ``folder``; a context manager.

    A disk fault does not end the run: data that cannot be written stays in memory, and `missing`
    reports it. Call `rewind` before the first metrics.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()
        self._console, self._printed = True, time.monotonic()
        self._log = GrowingFile(folder / LOG)
        self._files = [self._log]

    def rewind(self, step: int, evaluated: int) -> None:
        """Remove the metrics that an earlier process wrote after ``step``, so that none is twice.

        Validations are removed after the step ``evaluated``. All measures of test images are
        removed: the end of the run repeats them. Raises `WriteError`.
        """
        from visualdl.component.base_component import scalar  # takes a second to import

        self._scalar = scalar
        folder = self.folder
        lines, unreadable = read_metrics(folder / METRICS)
        last = {"train": step, "val": evaluated, "test": -1}
        lines = [line for line in lines if line["step"] <= last[line["kind"]]]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        if unreadable > 1 or not _cut(folder / METRICS, text.encode()):
            files.write_text(folder / METRICS, text)
        for old in folder.glob("vdlrecords*"):
            old.unlink()
        self._metrics, self._scalars = GrowingFile(folder / METRICS), GrowingFile(folder / SCALARS)
        self._files += [self._metrics, self._scalars]
        self._scalars.write(b"".join(map(self._records, lines)))
        if unreadable > 1:  # one is normal: a killed process leaves part of a line
            self.say(f"{unreadable} lines of {METRICS} could not be read and are removed")

    def __enter__(self) -> Logbook:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def say(self, text: str, console: bool = True) -> None:
        """Write ``text`` to train.log, each line with the time, and to standard output."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = "".join(f"{now} {line}\n" for line in text.splitlines())
        self._log.write(lines.encode(errors="backslashreplace"))
        if console and self._console and sys.stdout is not None:
            try:
                with tqdm.external_write_mode(file=sys.stdout):
                    tell(text)
            except OSError:  # the terminal has been closed; the run continues
                self._console = False

    def progress(self, text: str) -> None:
        """Write ``text`` to train.log; where no bar is shown, print it every `SILENCE` seconds."""
        silent = time.monotonic() - self._printed > SILENCE and not bars_are_shown()
        self.say(text, console=silent)
        if silent:
            self._printed = time.monotonic()

    def metrics(self, kind: str, step: int, **values: float) -> None:
        """Write ``values`` as a line of metrics.jsonl and as VisualDL scalars ``kind/name``.

        ``step`` is the number of updates so far. The line also has ``time``, in seconds since 1970.
        A value that is not finite is written as null.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"kind": kind, "step": step, **finite, "time": round(time.time(), 3)}
        self._metrics.write((json.dumps(line) + "\n").encode())
        self._scalars.write(self._records(line))

    def _records(self, line: dict[str, Any]) -> bytes:
        """Return a line of metrics in VisualDL's format: each record after its length.

        VisualDL's own writer is not used: a full disk ends its thread, and the program then hangs.
        """
        when = line.get("time")
        walltime = round(1000 * when) if _is_number(when) and abs(when) < 2**40 else 0
        records = [
            self._scalar(f"{line['kind']}/{name}", value, line["step"], walltime)
            for name, value in line.items()
            if name not in ("step", "time") and name.isascii() and _is_number(value)
        ]
        data = (record.SerializeToString() for record in records)
        return b"".join(struct.pack("<Q", len(record)) + record for record in data)

    def sync(self) -> None:
        """Flush all metrics to the disk (fsync). Raises `WriteError`."""
        try:
            self._metrics.sync()
        except OSError as error:
            path = self._metrics.path
            raise WriteError(f"{path}: cannot be written ({error.strerror})") from error

    def copy_metrics(self, folder: Path) -> None:
        """Write all metrics so far to another folder. Raises `OSError` or `WriteError`."""
        files.write(folder / METRICS, lambda stream: stream.write(self._metrics.content()))

    def missing(self) -> list[str]:
        """Retry to write the buffers; return the files that still fail, each with the reason."""
        for file in self._files:
            file.write()
        return [
            f"part of {file.path} ({file.error.strerror})" for file in self._files if file.error
        ]

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time spent inside to ``part`` of `timings`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def timings(self) -> str:
        """Return a line with the run's total time and the time of each part, longest first."""
        whole = time.perf_counter() - self._started
        parts = sorted(self.seconds.items(), key=lambda item: -item[1])
        return f"{whole:.1f} s in all: " + ", ".join(
            f"{part} {seconds:.1f} s ({seconds / whole:.0%})" for part, seconds in parts
        )


class Silent(Logbook):
    """The logbook of all ranks but 0: it writes nothing."""

    def __init__(self) -> None:
        self.folder = Path(os.devnull)
        self.seconds = {}
        self._started = time.perf_counter()
        self._files = []

    def rewind(self, step: int, evaluated: int) -> None:
        pass

    def progress(self, text: str) -> None:
        pass

    def say(self, text: str, console: bool = True) -> None:
        pass

    def metrics(self, kind: str, step: int, **values: float) -> None:
        pass

    def sync(self) -> None:
        pass


def _cut(path: Path, beginning: bytes) -> bool:
    """Truncate the file to ``beginning``, which needs no disk space; return False if it differs."""
    try:
        if not path.read_bytes().startswith(beginning):
            return False
        os.truncate(path, len(beginning))
    except OSError:
        return False
    return True


def _is_number(value: object) -> bool:
    return (type(value) is int and abs(value) < 2**53) or (
        type(value) is float and math.isfinite(value)
    )
