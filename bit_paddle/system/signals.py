"""Signals end a run cleanly: after the current micro-batch, with everything saved."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

Item = TypeVar("Item")


class Interrupted(BaseException):
    """A signal has asked the run to end. Not an `Exception`, so that only the run catches it."""


class Interrupt:
    """Inside ``with Interrupt() as stop`` a signal sets ``stop.signal`` and does nothing else.

    SIGTERM, SIGHUP (unless ignored, as under nohup) and SIGUSR1, which schedulers send before they
    pre-empt, are handled alike; sent again they change nothing, as a scheduler and a launcher may
    both send one. A second SIGINT (Ctrl-C) ends the process at once, even in a long operation of
    Paddle; ``embedded`` in a program or notebook it raises KeyboardInterrupt instead. Enter it
    after the import of Paddle, which handles SIGTERM itself. Outside of the main thread, where
    Python allows no handlers, signals are left alone.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

    def __init__(self, embedded: bool = False) -> None:
        self.signal: signal.Signals | None = None
        self.count = 0
        self._embedded, self._raised, self._written = embedded, False, None
        self._before: dict[signal.Signals, Any] = {}
        self._kept: set[int] | None = None  # processes that `raising` does not end; inside it

    def __enter__(self) -> Interrupt:
        if not _in_main_thread():
            return self
        if not self._embedded:
            pipe, self._written = os.pipe()
            os.set_blocking(self._written, False)
            self._fd_before = signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(pipe,), daemon=True).start()
        self._before = {
            number: signal.signal(number, self._note)
            for number in self.SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if self._written is not None:
            signal.set_wakeup_fd(self._fd_before)
            os.close(self._written)  # which ends the thread

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.signal is None:
            self.signal = signal.Signals(number)
        elif self._embedded and number == signal.SIGINT and not self._raised:
            self._raised = True  # once: what ends the run must not be cut short again
            raise KeyboardInterrupt
        if self._kept is not None:
            started, self._kept = children() - self._kept, None
            for child in started:
                end(child)
            raise Interrupted

    @staticmethod
    def _watch(pipe: int) -> None:
        """End the process at the second SIGINT: `_note` would wait for the current operation."""
        interrupts = 0
        with open(pipe, "rb", buffering=0) as stream:
            for numbers in iter(lambda: stream.read(1), b""):
                interrupts += numbers[0] == signal.SIGINT
                if interrupts > 1:
                    os._exit(128 + signal.SIGINT)

    def checked(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield ``items``; raise `Interrupted` before the next item once a signal has come."""
        for item in items:
            if self.signal:
                raise Interrupted
            yield item

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Inside, a signal ends the processes that were started inside, and raises `Interrupted`.

        For work that takes long and leaves nothing behind, such as a compiler's.
        """
        if self.signal:
            raise Interrupted
        self._kept = children()
        try:
            yield
        finally:
            self._kept = None

    @property
    def exit_status(self) -> int:
        """0, or 128 + the signal, as a shell reports it; SIGUSR1 counts as SIGTERM."""
        if self.signal is None:
            return 0
        return 128 + (signal.SIGTERM if self.signal == signal.SIGUSR1 else self.signal)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, let Ctrl-C end the process at once: an import or a library would swallow it."""
        if self._embedded or not _in_main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)
        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def held(number: signal.Signals) -> Iterator[None]:
    """Inside, let a signal to this thread wait; it takes effect at the end.

    Threads that start inside never get it. Another thread without this would get it at once.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def heed_notice() -> None:
    """Make SIGUSR1, a notice of pre-emption, act as SIGTERM as long as nothing can be saved."""
    signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def children(pid: int | str = "self") -> set[int]:
    """Return the processes that process ``pid`` has started; Linux lists them, others do not."""
    found: set[int] = set()
    for listed in Path("/proc", str(pid), "task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            found.update(map(int, listed.read_text(encoding="utf-8").split()))
    return found


def end(pid: int) -> None:
    """End process ``pid`` and those that it has started, at once."""
    started = children(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for child in started:
        end(child)


def prepare() -> None:
    """Make a signal end a command without a traceback while the command is being imported.

    The package calls this first of all. Ctrl-C ends as in `errors.run_command`, which takes over
    from here.
    """
    if _is_command():
        heed_notice()
        sys.excepthook = _end_if_interrupted


def shield() -> None:
    """Import NumPy, if this is a command, so that the threads that it starts never get SIGTERM.

    The package calls this when it has chosen the number of threads.
    """
    if _is_command():
        with held(signal.SIGTERM):
            import numpy  # noqa: F401


def _is_command() -> bool:
    program = os.path.basename(next(iter(getattr(sys, "argv", ())), ""))
    return program in ("-m", "bit_paddle") and _in_main_thread()  # `-m` while Python looks for it


def _end_if_interrupted(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    cause: BaseException | None = error
    while cause is not None:  # compiled modules make other errors of it
        if isinstance(cause, KeyboardInterrupt) or "KeyboardInterrupt" in str(cause):
            print("interrupted", file=sys.stderr, flush=True)
            os._exit(128 + signal.SIGINT)
        cause = cause.__cause__ or cause.__context__
    sys.__excepthook__(kind, error, traceback)
