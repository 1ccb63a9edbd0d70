"""Types of settings and flags: each `Kind` parses a word of the command line or of a file.

A `Kind` is callable, and so also serves as argparse's ``type``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from typing import Any

from bit_paddle.errors import did_you_mean
from bit_paddle.models import published
from bit_paddle.system import files


class BadValue(ValueError, argparse.ArgumentTypeError):
    """A word that a setting cannot have; argparse too shows the message."""


@dataclass(frozen=True)
class Kind:
    """A type of settings. Calling it returns a word's value, or raises `BadValue`."""

    parse: Callable[[str], Any]
    metavar: str
    choices: tuple[str, ...] = ()
    is_switch: bool = False

    def __call__(self, word: str) -> Any:
        return self.parse(word)


def _text(word: str) -> str:
    if not word:
        raise BadValue("is empty")
    return word


def _switch(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise BadValue(f"is {word!r}, expected true or false")
    return word.lower() == "true"


text = Kind(_text, "WORD")

# A path: ~ and $VARIABLES are replaced, in flags (the shell leaves quoted ones) and in files.
file_path = Kind(lambda word: files.expanded(_text(word)), "PATH")

name_or_path = Kind(file_path.parse, "WORD")

switch = Kind(_switch, "true|false", is_switch=True)


def whole(least: int, metavar: str = "N", most: float = math.inf) -> Kind:
    """Return the kind of whole numbers from ``least`` to ``most``."""

    def parse(word: str) -> int:
        try:
            value = int(word)
        except ValueError:
            raise BadValue(f"is {word!r}, expected a whole number") from None
        if value < least:
            raise BadValue(f"is {value}, expected at least {least}")
        if value > most:
            raise BadValue(f"is {value}, expected at most {most}")
        return value

    return Kind(parse, metavar)


def number(fits: Callable[[float], bool], expected: str) -> Kind:
    """Return the kind of numbers for which ``fits`` is true; ``expected`` describes them."""

    def parse(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            raise BadValue(f"is {word!r}, expected a number") from None
        if not fits(value):
            raise BadValue(f"is {word}, expected {expected}")
        return value

    return Kind(parse, "X")


AUTO = "auto"


def _auto_or_whole(word: str) -> int | str:
    return AUTO if word == AUTO else whole(1)(word)


auto_or_whole = Kind(_auto_or_whole, "N")

positive = number(lambda value: 0 < value < math.inf, "a positive number")

not_negative = number(lambda value: 0 <= value < math.inf, "0 or more")

fraction = number(lambda value: 0 < value < 1, "a number between 0 and 1")

share = number(lambda value: 0 <= value <= 1, "a number from 0 to 1")


def one_of(*choices: str) -> Kind:
    """Return the kind whose words are ``choices``."""

    def parse(word: str) -> str:
        if word not in choices:
            raise BadValue(f"is {word!r}: {did_you_mean(word, choices)}")
        return word

    return Kind(parse, "|".join(choices), choices)


def interval(word: str) -> tuple[float, float]:
    """Return (steps, seconds) of a word such as 500 or 10m; one of the two is infinite."""
    try:
        if word.endswith("m"):
            return math.inf, 60 * positive(word[:-1])
        return whole(1)(word), math.inf
    except BadValue:
        raise BadValue(f"is {word!r}, expected steps such as 500, or minutes such as 10m") from None


def _interval_text(word: str) -> str:
    interval(word)
    return word  # as written, so that config.yaml shows the user's own spelling


interval_text = Kind(_interval_text, "N")

# What --model takes, in words.
MODELS = (
    "a published name (BiT-M-R50x1; bit_paddle.catalog lists them), a file or folder of weights "
    "(.npz, .safetensors, .pth, .pdparams, .h5), the folder of a complete run, or hf:OWNER/NAME, a "
    "repository of the Hugging Face hub"
)

# The catalogue's name for a published model, so that all its spellings are one run.
model_name = Kind(lambda word: published.canonical(file_path(word)), "WORD")


def setting(
    group: str,
    kind: Kind,
    help: str,
    default: Any = MISSING,
    *,
    default_help: str = "",
    affects_result: bool = True,
) -> Any:
    """Return a field of `Settings`; ``default_help`` describes a default without a fixed value."""
    metadata = {
        "group": group,
        "kind": kind,
        "help": help,
        "default_help": default_help,
        "affects_result": affects_result,
    }
    return field(default=default, metadata=metadata)
