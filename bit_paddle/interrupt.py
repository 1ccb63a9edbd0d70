"""SIGINT and SIGTERM end a run in good order: at the next step's end instead of at once."""

from __future__ import annotations

import os
import signal
from types import FrameType


class Interrupt:
    """In ``with Interrupt() as stop``, a first signal sets ``stop.signal``; a second one kills."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = signal.Signals(number)

    @property
    def exit_status(self) -> int:
        """0, or what a shell reports of a process that the signal ended."""
        return 128 + self.signal if self.signal else 0
