"""Checkpoints written by a thread of their own, while training goes on."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from bit_paddle import files, runs
from bit_paddle.errors import BitPaddleError
from bit_paddle.logbook import METRICS, Logbook


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
        path = runs.checkpoint_path(self._folder, step)
        files.make_folder(path.parent, "--logdir")
        if (
            self._best is not None
        ):  # first: checkpoints say how good the best is, so it must be there
            self._best(path.with_name(runs.BEST))
        if self._best is write:
            link = path.with_name(f"{path.name}.{os.getpid()}.part")
            try:
                os.link(path.with_name(runs.BEST), link)
                os.replace(link, path)
            except OSError:  # a file system without links
                link.unlink(missing_ok=True)
                write(path)
        else:
            write(path)
        self._best = None
        others = [one for one in runs.checkpoint_files(self._folder) if one != path]
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
        name = runs.checkpoint_path(self._folder, self._step).name
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
                f"{self._folder / runs.CHECKPOINTS} and {METRICS} to {self._folder}, and the same "
                "command goes on from there"
            )
