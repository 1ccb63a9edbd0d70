"""Checkpoints: name, find, open, and write them in a thread while training continues."""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bit_paddle.errors import BitPaddleError, CheckpointError
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.runs.logbook import METRICS, Logbook
from bit_paddle.system import files, processes
from bit_paddle.system.threads import started_pool

CHECKPOINTS, BEST = "checkpoints", "best.npz"

CLEAN, LARGEST_SCALE = 2000, 2.0**24  # the loss scale doubles after `CLEAN` steps, up to this

_LATER = {"loss_scale": 2.0**16, "clean": 0}  # fields that the oldest checkpoints do not have

_NAME = re.compile(r"step-(\d{8,})\.npz")


@dataclass(frozen=True)
class Progress:
    """How far a run has got. With weights and velocities, it is the whole state of a run.

    Random numbers need no state: they are computed from the seed and the step.
    """

    step: int = 0  # updates made
    evaluated: int = -1  # the step after which validation was last done
    nonfinite: int = 0  # updates skipped in a row
    best: float = -1.0  # the highest score so far; a classification's is its top-1
    loss_scale: float = 2.0**16  # keeps gradients in the range of fp16
    clean: int = 0  # steps since the loss scale last changed

    def counted(self) -> Progress:
        """Return the progress after a step without overflow; the 2,000th doubles the loss scale."""
        if self.clean + 1 < CLEAN:
            return replace(self, clean=self.clean + 1)
        return replace(self, loss_scale=min(2 * self.loss_scale, LARGEST_SCALE), clean=0)


@dataclass(frozen=True)
class Checkpoint:
    """A file that a run can resume from. Only its notes have been read, not its arrays."""

    path: Path
    progress: Progress
    notes: dict[str, Any]
    elsewhere: bool = False  # belongs to another run, given by --resume


# --- Checkpoints in a folder --------------------------------------------------------------------


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint after ``step`` updates."""
    return folder / CHECKPOINTS / f"step-{step:08d}.npz"


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the paths of the run's checkpoints, newest first, without `BEST`."""
    paths = [path for path in (folder / CHECKPOINTS).glob("step-*.npz") if _NAME.match(path.name)]
    return sorted(paths, key=lambda path: int(_NAME.match(path.name)[1]), reverse=True)


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's notes. Raises `MissingFileError` or `CheckpointError`."""
    with CheckpointFile(path) as file:
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
            f"{path}: has a model, but not the state of a run; use it with --model instead of "
            "--resume"
        )
    return Checkpoint(path, Progress(**values), notes)


def readable(folder: Path) -> tuple[list[Checkpoint], dict[Path, str]]:
    """Return the checkpoints whose notes can be read, newest first, and {path: fault} of others."""
    checkpoints, faults = [], {}
    for path in checkpoint_files(folder):
        try:
            checkpoints.append(open_checkpoint(path))
        except BitPaddleError as error:
            faults[path] = f"{' '.join(str(error).split())}; it is skipped"
    return checkpoints, faults


def set_aside(path: Path) -> None:
    """Rename a damaged checkpoint to ``*.damaged``, so that it is not tried or counted again."""
    with suppress(OSError):
        os.replace(path, path.with_suffix(".npz.damaged"))


class Saver:
    """Writes the run's checkpoints in a thread, one at a time; keeps the newest ``keep``.

    ``interval`` is (steps, seconds) between two saves, counted from ``step`` and now at first. A
    failed save is logged: training continues, older checkpoints stay, and later saves are tried as
    usual.
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
        self._pool = started_pool(1, "save")
        self._saving: Future | None = None
        self._step, self._time = step, time.monotonic()  # of the last save
        self._write: Callable[[Path], None] | None = None
        self._best: Callable[[Path], None] | None = None  # writes `BEST`; None if that is saved
        self.failure: str | None = None  # of the last save

    def due(self, step: int) -> bool:
        """Return whether a save is due after ``step``; False while another save is running."""
        if self._saving is not None:
            if not self._saving.done():
                return False
            self.wait()
        steps, seconds = self._interval
        return step - self._step >= steps or time.monotonic() - self._time >= seconds

    def save(self, step: int, write: Callable[[Path], None], best: bool = False) -> None:
        """Call ``write(path)`` in the thread, for the checkpoint after ``step`` updates.

        With ``best``, the checkpoint is also stored as `BEST`. Waits for the previous save.
        """
        self.wait()
        self._step, self._time, self._write = step, time.monotonic(), write
        self._best = write if best else self._best
        self._saving = self._pool.submit(self._save, step, write)

    @processes.saving()
    def _save(self, step: int, write: Callable[[Path], None]) -> None:
        self._log.sync()  # a checkpoint must not be on the disk before the metrics of its steps
        path = checkpoint_path(self._folder, step)
        files.make_folder(path.parent, "--logdir")
        # The best goes first: the checkpoint's notes have its accuracy, so it must exist.
        if self._best is not None:
            self._best(path.with_name(BEST))
        if self._best is write:
            link = path.with_name(f"{path.name}.{os.getpid()}.part")
            try:
                os.link(path.with_name(BEST), link)
                os.replace(link, path)
            except OSError:  # a file system without hard links
                link.unlink(missing_ok=True)
                write(path)
        else:
            write(path)
        self._best = None
        others = [other for other in checkpoint_files(self._folder) if other != path]
        for old in others[self._keep - 1 :]:
            with suppress(OSError):
                old.unlink()

    def wait(self) -> None:
        """Wait for the running save, if any; log whether it failed."""
        if self._wait():
            self._log.say("The next save is tried as usual")

    def _wait(self) -> bool:
        """Wait for the running save, if any; return whether it failed."""
        if self._saving is None:
            return False
        try:
            self._saving.result()
            self.failure = None
            return False
        except (BitPaddleError, OSError, MemoryError) as error:
            self.failure = f"the checkpoint of step {self._step} ({error})"
            self._log.say(f"warning: not saved: {self.failure}. Older checkpoints stay")
            return True
        finally:
            self._saving = None

    def close(self) -> None:
        """Wait for the last save; if it failed, save into the temporary folder instead."""
        try:
            self._pool.shutdown()
        except KeyboardInterrupt:  # the folder's next owner must not meet this thread
            self._pool.shutdown()
            raise
        if not self._wait():
            return
        with processes.saving():
            self._save_elsewhere()

    def _save_elsewhere(self) -> None:
        """Save into the temporary folder, and say so."""
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
                f"{self._folder / CHECKPOINTS} and {METRICS} to {self._folder}; the same command "
                "then resumes from there"
            )
