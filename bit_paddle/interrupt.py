"""Signals end a run in good order: after the micro-batch under way, with everything saved."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

Item = TypeVar("Item")


class Interrupted(BaseException):
    """A signal asks to end; not an error, so that nothing but the run's own end catches it."""


class Interrupt:
    """In ``with Interrupt() as stop``, a first signal sets ``stop.signal``, and no more.

    SIGTERM, SIGHUP (unless ignored, as under nohup) and SIGUSR1, which schedulers send as a notice
    of pre-emption, are the same; sent again they change nothing, as a scheduler and a launcher may
    both send one. A second SIGINT (Ctrl-C) leaves at once.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.count = 0
        self._interrupts = 0
        self._before: dict[signal.Signals, Any] = {}  # handlers to give the signals back to

    def __enter__(self) -> Interrupt:
        self._before = {
            number: signal.getsignal(number)
            for number in self.SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        self.renew()
        return self

    def renew(self) -> None:
        """Take the signals back from what has been imported since: Paddle ends on a SIGTERM."""
        for number in self._before:
            signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.count += 1
        if self.signal is None:
            self.signal = signal.Signals(number)

    def checked(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield ``items``; raise `Interrupted` before the first that follows a signal."""
        for item in items:
            if self.signal:
                raise Interrupted
            yield item

    @property
    def exit_status(self) -> int:
        """0, or what a shell reports of a process that the signal ended (a notice is SIGTERM)."""
        if self.signal is None:
            return 0
        return 128 + (signal.SIGTERM if self.signal == signal.SIGUSR1 else self.signal)
