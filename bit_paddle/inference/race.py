"""Measure runtimes against each other, each in a process of its own, in turns.

Two libraries with thread pools in one process slow each other down. All processes take a turn in
every round, so that a busy moment of the machine affects all of them.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bit_paddle.errors import ConfigError, PeerError
from bit_paddle.system import progress
from bit_paddle.system.runtimes import RUNTIMES

RUNS = {1: 40, 8: 3, 32: 1}  # in a turn, by batch size

PAUSE = 0.4  # seconds between turns: the threads of a library spin on after their work

INT8 = "int8"

_AMP = {"float32": "off", "bf16": "bf16", INT8: "off"}

_START = "from bit_paddle.inference import contender; contender.main()"

_KINDS = {"paddle": "weights", "paddle-inference": "paddle"}  # that runtimes load; others: onnx


@dataclass
class Row:
    """What was measured of a runtime in a precision; ``fault`` is why it was not."""

    runtime: str
    precision: str
    seconds: dict[int, list[float]] = field(default_factory=dict)  # of each run, by batch size
    memory: int = 0  # peak of the process after the timing, in bytes
    top1: float | None = None  # from 0 to 1
    mean_average_precision: float | None = None  # instead, if an image may have several labels
    difference: float | None = None  # see `bench`
    fault: str | None = None

    @property
    def kind(self) -> str:
        """What the runtime loads, as `contender.prepare` names it."""
        return INT8 if self.precision == INT8 else _KINDS.get(self.runtime, "onnx")

    def percentile(self, batch: int, share: float) -> float:
        """Return the seconds that ``share`` percent of the runs of a batch took at most."""
        return float(np.percentile(self.seconds[batch], share))

    def speed(self, batch: int) -> float:
        """Return the images per second, by the median of the runs."""
        return batch / self.percentile(batch, 50)


def rows(runtimes: Sequence[str]) -> list[Row]:
    """Return an empty row for every precision of ``runtimes``, as far as they know it on a CPU."""
    found = []
    for precision in _AMP:
        for name in runtimes:
            one = RUNTIMES[name]
            if one.int8 if precision == INT8 else _AMP[precision] in one.amp:
                found.append(Row(name, precision))
    return found


class Process:
    """A process of `contender`; ``title`` is its name in messages."""

    def __init__(self, title: str, stack: ExitStack):
        self._title = title
        self._errors = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
        )
        stack.callback(self.end)

    def ask(self, request: str, **arguments: Any) -> Any:
        """Return the answer to a request.

        Raises `ConfigError` with the fault that the process reports; `PeerError` if it has ended.
        """
        line = ""
        try:
            self._process.stdin.write(f"{json.dumps([request, arguments])}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            pass  # it has ended
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:]
            raise PeerError(
                f"the process of {self._title} ended with status {status} ({' '.join(last)}); "
                "choose what is measured with --runtimes"
            )
        found = json.loads(line)
        if "fault" in found:
            raise ConfigError(found["fault"])
        return found["answer"]

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def prepare(contenders: Sequence[Row], **arguments: Any) -> dict[str, Any]:
    """Return what `contender.prepare` returns; it runs in a process that ends."""
    kinds = sorted({row.kind for row in contenders})
    with ExitStack() as stack:
        return Process("the preparation", stack).ask("prepare", kinds=kinds, **arguments)


def race(
    contenders: Sequence[Row],
    paths: dict[str, str],
    rounds: int,
    data: tuple[str, str | None] | None,
) -> int:
    """Measure all ``contenders`` and fill their rows; return the number of images with a label.

    ``paths`` are those of `prepare`. ``data`` is a data set and its folder, whose validation images
    give the accuracies. Without it, the logits of random images are compared. Raises `PeerError` if
    a process ends.
    """
    images = 0
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        running: dict[int, Process] = {}
        for number, row in enumerate(contenders):
            process = Process(f"{row.runtime} in {row.precision}", stack)
            try:
                process.ask(
                    "load",
                    path=paths[row.kind],
                    runtime=row.runtime,
                    amp=_AMP[row.precision],
                    batches=[*RUNS],
                )
                running[number] = process
            except ConfigError as fault:  # such as a processor without bf16
                row.fault = str(fault)
                process.end()
        turns = list(itertools.product(range(rounds), running))
        with progress.progress_bar(desc="turns", total=len(turns)) as bar:
            for _, number in turns:
                time.sleep(PAUSE)
                _turn(contenders[number], running[number])
                bar.update(1)
        for number, process in running.items():
            row, file = contenders[number], str(Path(folder, f"{number}.npy"))
            row.memory = process.ask("memory")
            if data is None:
                process.ask("logits", into=file)
            else:
                found = process.ask("accuracy", dataset=data[0], datadir=data[1], into=file)
                images, row.top1 = found["images"], found.get("top1")
                row.mean_average_precision = found.get("mean_average_precision")
            process.end()
        _compare(contenders, {number: Path(folder, f"{number}.npy") for number in running})
    return images


def _turn(row: Row, process: Process) -> None:
    for batch, runs in RUNS.items():
        seconds = process.ask("time", batch=batch, runs=runs)
        row.seconds.setdefault(batch, []).extend(seconds)


def _compare(contenders: Sequence[Row], files: dict[int, Path]) -> None:
    """Fill the differences from Paddle in float32, if that has been measured."""
    first = next(
        (
            number
            for number in files
            if (contenders[number].runtime, contenders[number].precision) == ("paddle", "float32")
        ),
        None,
    )
    if first is None:
        return
    expected = np.load(files[first])
    for number, file in files.items():
        difference = np.abs(np.load(file) - expected).max() / np.abs(expected).max()
        contenders[number].difference = float(difference)
