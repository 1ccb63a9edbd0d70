"""The run's folder: a log for people, a line of JSON a step, VisualDL scalars, and timings."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bit_paddle.errors import ConfigError


def create_folder(
    logdir: str, name: str | None, default: str, first_file: str = "train.log"
) -> Path:
    """Make a new folder for a run: ``logdir/name``, or ``logdir/default``, numbered if taken.

    Of several processes that ask at once each gets its own: whoever makes ``first_file`` in it has
    it. Raises `ConfigError` where ``name`` is
    taken or the folder cannot be made or written.
    """
    for candidate in [name] if name else _numbered(default):
        folder = Path(logdir, candidate)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not any(folder.iterdir()):
                os.close(os.open(folder / first_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                return folder
        except FileExistsError:
            if not folder.is_dir():
                raise ConfigError(
                    f"--logdir {logdir}: {folder} cannot be made, a file is in its place"
                ) from None
        except OSError as error:
            raise ConfigError(
                f"--logdir {logdir}: {folder} cannot be written ({error.strerror}); "
                "name another with --logdir"
            ) from error
    raise ConfigError(taken(Path(logdir, name)))


def next_folder(logdir: str, name: str | None, default: str) -> Path:
    """Return the folder that `create_folder` would make. Raises `ConfigError` if it is taken."""
    for candidate in [name] if name else _numbered(default):
        folder = Path(logdir, candidate)
        if not folder.is_dir() or not any(folder.iterdir()):
            return folder
    raise ConfigError(taken(Path(logdir, name)))


def taken(folder: Path) -> str:
    """Say that ``folder`` holds a run."""
    return f"--name {folder.name}: {folder} already holds a run; take another name, or remove it"


def _numbered(name: str) -> Iterator[str]:
    return itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))


class Logbook:
    """Everything that a run writes about itself, into ``folder``; a context manager."""

    def __init__(self, folder: Path):
        from visualdl import LogWriter  # takes a second to import

        self.folder = folder
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()
        self._log = open(folder / "train.log", "a", encoding="utf-8", errors="backslashreplace")
        self._metrics = open(folder / "metrics.jsonl", "a", encoding="utf-8")
        self._scalars = LogWriter(str(folder))

    def __enter__(self) -> Logbook:
        return self

    def __exit__(self, *_: object) -> None:
        self._scalars.close()
        self._metrics.close()
        self._log.close()

    def say(self, text: str, console: bool = True) -> None:
        """Write ``text`` to train.log, each line with the time, and to standard output."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        self._log.writelines(f"{now} {line}\n" for line in text.splitlines())
        self._log.flush()
        if console:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def metrics(self, kind: str, step: int, **values: float) -> None:
        """Write one line of metrics.jsonl, and its values as VisualDL scalars ``kind/name``.

        ``step`` counts the updates made so far. A value that is not finite is written as null.
        """
        finite = {
            name: value if abs(value) < float("inf") else None for name, value in values.items()
        }
        self._metrics.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")
        self._metrics.flush()
        for name, value in finite.items():
            if value is not None:
                self._scalars.add_scalar(f"{kind}/{name}", value, step)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time spent inside to ``part`` of the closing summary."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def timings(self) -> str:
        """Return the parts timed so far as a line, longest first, after the time of the run."""
        whole = time.perf_counter() - self._started
        parts = sorted(self.seconds.items(), key=lambda item: -item[1])
        return f"{whole:.1f} s in all: " + ", ".join(
            f"{part} {seconds:.1f} s ({seconds / whole:.0%})" for part, seconds in parts
        )


def progress_bar(**options: Any) -> tqdm:
    """Return a tqdm bar that shows itself on a terminal alone."""
    return tqdm(disable=None, dynamic_ncols=True, leave=False, **options)
