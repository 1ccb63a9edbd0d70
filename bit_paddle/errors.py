"""The package's own exceptions, and how a command reports them.

Every message says what was found, what was expected and what to do. ``exit_status`` is the
status of the command: 2 for the user's mistake, 1 for a failure (disk, network, a diverged run).
"""

from __future__ import annotations

import codecs
import difflib
import json
import os
import sys
import traceback
from collections.abc import Iterable
from typing import Callable


class BitPaddleError(Exception):
    """Base class of every error that this package raises on purpose."""

    exit_status = 2


class ConfigError(BitPaddleError, ValueError):
    """A flag, a setting or a combination of settings that cannot work."""


class MissingFileError(BitPaddleError, FileNotFoundError):
    """A file or folder that the user named does not exist."""


class CheckpointError(BitPaddleError, ValueError):
    """A checkpoint cannot be read, or does not fit the model."""


class MisfitError(CheckpointError):
    """The arrays of a checkpoint have other names, shapes or types than those of the model."""


class DataError(BitPaddleError, ValueError):
    """Images or labels cannot be used for training."""


class DownloadError(BitPaddleError, OSError):
    """A file could not be downloaded, or arrived damaged."""

    exit_status = 1


class WriteError(BitPaddleError, OSError):
    """A file or folder cannot be written."""

    exit_status = 1


class NonFiniteError(BitPaddleError, ArithmeticError):
    """A loss or gradient is not a finite number. It is raised before the weights change."""

    exit_status = 1


class GradientOverflow(NonFiniteError):
    """Gradients are too large for half precision at this loss scale; a lower scale may work."""


class OutOfMemoryError(BitPaddleError, MemoryError):
    """The device is out of memory: a step does not fit."""

    exit_status = 1


class PeerError(BitPaddleError, ConnectionError):
    """Another process of the run has ended. The exit status of that process tells the reason."""

    exit_status = 69  # EX_UNAVAILABLE


class DifferenceError(BitPaddleError, ArithmeticError):
    """An exported model computes something else than the model."""

    exit_status = 1


def did_you_mean(name: str, choices: Iterable[str], most: int = 5) -> str:
    """Return the help for an unknown ``name``: the nearest of ``choices``, or the first twelve."""
    choices = list(choices)
    by_lower_case = {choice.lower(): choice for choice in reversed(choices)}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=most, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(_quoted(by_lower_case[match]) for match in near) + "?"
    if len(choices) <= 12:
        return "choose from " + ", ".join(map(_quoted, choices))
    return f"choose from {', '.join(map(_quoted, choices[:12]))} and {len(choices) - 12} more"


def _quoted(name: str) -> str:
    """Return ``name``, in quotes if a blank in it would be overlooked."""
    return repr(name) if name.split() != [name] else name


def install_hint(extra: str) -> str:
    """Return the command that installs the packages of an extra of ``setup.py``."""
    return f"pip install -e '.[{extra}]' in the folder of bit_paddle's setup.py"


def printable(text: str) -> str:
    """Return ``text`` with control characters escaped, which a terminal would obey."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


# How a stream writes a character that its encoding lacks: as \u72d7, which JSON and Python read.
_ESCAPE = "bit_paddle.escape"


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(_ESCAPE, _escaped)


def tell(text: str, end: str = "\n") -> None:
    """Print ``text`` also from Python calls: the streams belong to the caller and stay as they are.

    The characters that the encoding of the standard output lacks are escaped.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, _ESCAPE).decode(encoding), end=end, flush=True)


def _interrupted(error: BaseException | None) -> bool:
    """Return whether Ctrl-C led to ``error``: compiled modules make other errors of it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) or "KeyboardInterrupt" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def run_command(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run ``command(arguments)`` and return its exit status, turning errors into one message.

    ``--traceback`` among the arguments prints the traceback too. From here on the standard streams
    escape what their encoding lacks, so that no text ends a command.
    """
    wants_traceback = "--traceback" in arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ESCAPE)
    try:
        return command([word for word in arguments if word != "--traceback"])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if wants_traceback:
            traceback.print_exc()
        if _interrupted(error):
            print("interrupted", file=sys.stderr)
            return 130
        if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has stopped reading
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        if isinstance(error, BitPaddleError):
            print(f"error: {printable(str(error))}", file=sys.stderr)
            return error.exit_status
        if isinstance(error, ModuleNotFoundError) and error.name == "paddle":
            print(f"error: PaddlePaddle is not installed: {install_hint('cpu')}", file=sys.stderr)
            print("or, on a machine with a GPU of NVIDIA: with gpu instead of cpu", file=sys.stderr)
            return 2
        if isinstance(error, (OSError, MemoryError)):  # a full disk: the message is enough
            print(f"error: {error}", file=sys.stderr)
            return 1
        if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
            print(
                "error: the system starts no more threads: it has no memory left, or the user has "
                "too many processes (`ulimit -u` shows how many are allowed)",
                file=sys.stderr,
            )
            return 1
        print(
            f"error: unexpected {type(error).__name__}: {error}\n"
            "This looks like a defect of bit_paddle; --traceback shows where.",
            file=sys.stderr,
        )
        return 1
