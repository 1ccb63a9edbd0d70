"""Checkpoints written by a thread of their own, while training goes on."""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bit_paddle.errors import BitPaddleError, CheckpointError
from bit_paddle.models import npz
from bit_paddle.runs.logbook import METRICS, Logbook
from bit_paddle.system import files

CHECKPOINTS, BEST = "checkpoints", "best.npz"

CLEAN, LARGEST_SCALE = 2000, 2.0**24  # of the loss scale

_LATER = {"loss_scale": 2.0**16, "clean": 0}  # of `Progress`, not in the oldest checkpoints

_NAME = re.compile(r"step-(\d{8,})\.npz")


@dataclass(frozen=True)
class Progress:
    """How far a run has got; with the weights and velocities, all that its future depends on.

    Random numbers need no state: each is made from the seed and the step.
    """

    step: int = 0  # updates made
    evaluated: int = -1  # the step after which validation was last done
    nonfinite: int = 0  # steps in a row whose update was left out
    best: float = -1.0  # the highest top-1 so far
    loss_scale: float = 2.0**16  # which keeps gradients in the range of fp16
    clean: int = 0  # steps since it was last changed

    def counted(self) -> Progress:
        """Return this after one more clean step; every 2,000th tries twice the loss scale."""
        if self.clean + 1 < CLEAN:
            return replace(self, clean=self.clean + 1)
        return replace(self, loss_scale=min(2 * self.loss_scale, LARGEST_SCALE), clean=0)


@dataclass(frozen=True)
class Checkpoint:
    """A file that a run can go on from, by its name and notes; its arrays are not read yet."""

    path: Path
    progress: Progress
    notes: dict[str, Any]
    elsewhere: bool = False  # of another run, which --resume names


# --- Checkpoints in a folder --------------------------------------------------------------------


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the file of the checkpoint after ``step`` updates."""
    return folder / CHECKPOINTS / f"step-{step:08d}.npz"


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the run's checkpoints, newest first; `BEST` is not among them."""
    found = [path for path in (folder / CHECKPOINTS).glob("step-*.npz") if _NAME.match(path.name)]
    return sorted(found, key=lambda path: int(_NAME.match(path.name)[1]), reverse=True)


def open_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint by its notes. Errors: `MissingFileError`, `CheckpointError`."""
    with npz.CheckpointFile(path) as file:
        notes = file.notes()
    values = notes.get("progress")
    types = {name: type(item.default) for name, item in Progress.__dataclass_fields__.items()}
    if (
        not isinstance(values, dict)
        or {name: type(value) for name, value in {**_LATER, **values}.items()} != types
        or values["step"] < 0
        or math.frexp({**_LATER, **values}["loss_scale"])[0] != 0.5  # a power of two
        or not isinstance(notes.get("settings"), dict)
        or not isinstance(notes.get("data"), dict)
    ):
        raise CheckpointError(
            f"{path}: holds a model, but not the state of a run; start from its weights with "
            "--model instead of --resume"
        )
    return Checkpoint(path, Progress(**values), notes)


def readable(folder: Path) -> tuple[list[Checkpoint], dict[Path, str]]:
    """Return a folder's checkpoints whose notes can be read, newest first, and others' faults."""
    found, faults = [], {}
    for path in checkpoint_files(folder):
        try:
            found.append(open_checkpoint(path))
        except BitPaddleError as error:
            faults[path] = f"{' '.join(str(error).split())}; it is passed over"
    return found, faults


def set_aside(path: Path) -> None:
    """Rename a damaged checkpoint, so that it is neither tried again nor counted."""
    with suppress(OSError):
        os.replace(path, path.with_suffix(".npz.damaged"))


class Saver:
    """Writes the checkpoints of the run in ``folder``, one at a time; keeps the last ``keep``.

    ``interval`` is (steps, seconds) between two, the first counted from ``step`` and now. The log
    is told of each save that fails: training goes on, the files before it stay, and the next save
    is tried like any other.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        interval: tuple[float, float],
        log: Logbook,
        step: int = 0,
    ):
        self._folder, self._keep, self._interval = folder, keep, interval
        self._log = log
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._under_way: Future | None = None
        self._step, self._time = step, time.monotonic()  # of the last save
        self._write: Callable[[Path], None] | None = None
        self._best: Callable[[Path], None] | None = None  # writes the best, which is not yet saved
        self.failure: str | None = None  # of the last save

    def due(self, step: int) -> bool:
        """Return whether to save after ``step``; not while a save is under way."""
        if self._under_way is not None:
            if not self._under_way.done():
                return False
            self.wait()
        steps, seconds = self._interval
        return step - self._step >= steps or time.monotonic() - self._time >= seconds

    def save(self, step: int, write: Callable[[Path], None], best: bool = False) -> None:
        """Have ``write(path)`` called in the thread, for the checkpoint after ``step`` updates.

        ``best`` gives it the name `runs.BEST` too. Waits for the save before.
        """
        self.wait()
        self._step, self._time, self._write = step, time.monotonic(), write
        self._best = write if best else self._best
        self._under_way = self._pool.submit(self._save, step, write)

    def _save(self, step: int, write: Callable[[Path], None]) -> None:
        self._log.sync()  # no checkpoint without the metrics of its steps
        path = checkpoint_path(self._folder, step)
        files.make_folder(path.parent, "--logdir")
        if (
            self._best is not None
        ):  # first: checkpoints say how good the best is, so it must be there
            self._best(path.with_name(BEST))
        if self._best is write:
            link = path.with_name(f"{path.name}.{os.getpid()}.part")
            try:
                os.link(path.with_name(BEST), link)
                os.replace(link, path)
            except OSError:  # a file system without links
                link.unlink(missing_ok=True)
                write(path)
        else:
            write(path)
        self._best = None
        others = [one for one in checkpoint_files(self._folder) if one != path]
        for old in others[self._keep - 1 :]:
            with suppress(OSError):
                old.unlink()

    def wait(self) -> None:
        """Wait for the save that is under way, if there is one, and say if it failed."""
        if self._wait():
            self._log.say("The next save is tried all the same")

    def _wait(self) -> bool:
        """Wait likewise; return whether there was one that failed."""
        if self._under_way is None:
            return False
        try:
            self._under_way.result()
            self.failure = None
            return False
        except (BitPaddleError, OSError, MemoryError) as error:
            self.failure = f"the checkpoint of step {self._step} ({error})"
            self._log.say(f"warning: not saved: {self.failure}. What was saved before stays")
            return True
        finally:
            self._under_way = None

    def close(self) -> None:
        """Wait for the last save; if it has failed, put it where there is room: the temp folder."""
        self._pool.shutdown()
        if not self._wait():
            return
        name = checkpoint_path(self._folder, self._step).name
        with suppress(BitPaddleError, OSError):
            folder = Path(tempfile.mkdtemp(prefix="bit_paddle-"))
            try:
                self._write(folder / name)
                self._log.copy_metrics(folder)
            except BaseException:
                shutil.rmtree(folder)
                raise
            self._log.say(
                f"step {self._step} is saved in {folder} instead. Move {name} to "
                f"{self._folder / CHECKPOINTS} and {METRICS} to {self._folder}, and the same "
                "command goes on from there"
            )
