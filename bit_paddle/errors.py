"""The package's own exceptions, and the text that helps with a misspelt name.

Every error says what was found, what was expected and what to do. ``exit_status`` is what a
command leaves with: 2 for the user's mistake, 1 for a failure (a disk, a network, a diverged run).
"""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Iterable
from typing import Callable


class BitPaddleError(Exception):
    """Base class; catching it catches everything that this package raises on purpose."""

    exit_status = 2


class ConfigError(BitPaddleError, ValueError):
    """A flag, a setting or a combination of them that cannot be run."""


class MissingFileError(BitPaddleError, FileNotFoundError):
    """A file or folder that the user named and that is not there."""


class CheckpointError(BitPaddleError, ValueError):
    """A checkpoint that cannot be read, or does not fit the model."""


class DataError(BitPaddleError, ValueError):
    """Images or labels that cannot be trained on."""


class DownloadError(BitPaddleError, OSError):
    """A file that could not be fetched, or arrived wrong."""

    exit_status = 1


class WriteError(BitPaddleError, OSError):
    """A file or folder that cannot be written."""

    exit_status = 1


class NonFiniteError(BitPaddleError, ArithmeticError):
    """A loss or gradient is not a finite number; raised before the weights are touched."""

    exit_status = 1


class GradientOverflow(NonFiniteError):
    """Gradients too large for half precision at this loss scale; a lower one may do."""


class OutOfMemoryError(BitPaddleError, MemoryError):
    """A step does not fit in the memory of the device."""

    exit_status = 1


class PeerError(BitPaddleError, ConnectionError):
    """Another process of the run has gone; its own status says why, and this one does not."""

    exit_status = 69  # EX_UNAVAILABLE


class DifferenceError(BitPaddleError, ArithmeticError):
    """An export that does not compute what the model computes."""

    exit_status = 1


def did_you_mean(name: str, choices: Iterable[str], most: int = 5) -> str:
    """Return what to say of an unknown ``name``: its nearest choices, or all of a few."""
    choices = list(choices)
    by_lower_case = {choice.lower(): choice for choice in reversed(choices)}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=most, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(by_lower_case[match] for match in near) + "?"
    if len(choices) <= 12:
        return "choose from " + ", ".join(choices)
    return f"choose from {', '.join(choices[:12])} and {len(choices) - 12} more"


def install_hint(extra: str) -> str:
    """Return the command that installs the packages of one of ``setup.py``'s extras."""
    return f"pip install '.[{extra}]' in the folder of bit_paddle's setup.py"


def run_command(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run ``command(arguments)`` and return its exit status, turning errors into one message.

    ``--traceback`` among the arguments prints the traceback too.
    """
    wants_traceback = "--traceback" in arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may be in no encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        return command([word for word in arguments if word != "--traceback"])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if wants_traceback:
            traceback.print_exc()
        if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        if isinstance(error, BitPaddleError):
            print(f"error: {error}", file=sys.stderr)
            return error.exit_status
        if isinstance(error, (OSError, MemoryError)):  # a full disk, a lost folder: says enough
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(
            f"error: unexpected {type(error).__name__}: {error}\n"
            "This looks like a defect of bit_paddle; --traceback shows where.",
            file=sys.stderr,
        )
        return 1
