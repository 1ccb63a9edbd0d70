"""Training from a program or a notebook: keywords become the words of the command."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from bit_paddle import errors
from bit_paddle.errors import ConfigError
from bit_paddle.training.launch import Ended


def words_of(
    function: str,
    taken: Mapping[str, Any],
    settings: Mapping[str, Any],
    known: Iterable[str],
    force: bool = False,
) -> list[str]:
    """Return the arguments ``taken`` and ``settings`` of ``function`` as words of the command.

    ``known`` are the names of all settings. None is a value that was not given. Raises
    `ConfigError` for a keyword that is no setting.
    """
    for name in settings:
        if name in taken:
            raise ConfigError(f"{name}: is an argument of {function} already")
        if name not in known and name != "config":
            raise ConfigError(f"{name}: no such setting; {errors.did_you_mean(name, known)}")
    values = {**taken, **settings}
    words = [_word(name, value) for name, value in values.items() if value is not None]
    return words + (["--force"] if force else [])


def carry_out(run: Callable[[], Ended]) -> Ended:
    """Call ``run``, which trains; return how it ended. A signal then has its usual effect.

    Errors: also `PeerError` if a process of the run has failed.
    """
    try:
        ended = run()
    except BaseException as error:
        _forget_frames(error)
        raise
    if ended.signal not in (None, signal.SIGINT):
        os.kill(os.getpid(), ended.signal)  # the run is saved: now the signal does its own work
    elif ended.status and ended.signal is None:
        raise errors.PeerError(
            f"{ended.folder}: a process of the run ended with status {ended.status}; its message "
            "is above"
        )
    return ended


def _forget_frames(error: BaseException | None) -> None:
    """Free the local variables of a run that failed: a notebook keeps its traceback for long.

    They hold the model, the momentum and the threads that read images.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _word(name: str, value: Any) -> str:
    """Return a setting as an argument of the command."""
    if isinstance(value, (bool, np.bool_)):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"
