"""List the published models: ``python -m bit_paddle.catalog``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from bit_paddle.config.parsing import Parser
from bit_paddle.errors import ConfigError, did_you_mean, run_command
from bit_paddle.models.published import ALIASES, CATALOG, lookup

NAMES_WIDTH = 42  # of the column of other names: then a line has at most 150 characters


def table(words: Iterable[str] = ()) -> str:
    """Return the rows that contain all of ``words``, in any case, as aligned lines.

    All names of a checkpoint in other libraries are searched. The last column shows those that
    contain a word first, and as many as fit.
    """
    words = [word.lower() for word in words]
    rows = [("name", "classes", "of", "GB", "preprocessing", "top-1", "names in other libraries")]
    for entry in CATALOG.values():
        row = (
            entry.name,
            f"{entry.classes:,}",
            entry.data,
            f"{entry.bytes / 1e9:.2f}",
            str(entry.preprocessing),
            f"{entry.accuracy:.1f}" if entry.accuracy else "",
        )
        text = " ".join((*row, *entry.aliases)).lower()
        if all(word in text or lookup(word) is entry for word in words):
            rows.append((*row, _some(entry.aliases, words)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    right = (1, 3, 5)  # numbers
    return "\n".join(
        "  ".join(
            cell.rjust(width) if k in right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    )


def _some(names: Iterable[str], words: Sequence[str]) -> str:
    """Return the ``names`` that fit in `NAMES_WIDTH`; names with most of ``words`` come first."""
    shown = ""
    for name in sorted(names, key=lambda name: -sum(word in name.lower() for word in words)):
        longer = f"{shown}, {name}" if shown else name
        if len(longer) <= NAMES_WIDTH or name.lower() in words:
            shown = longer
    return shown


def main(arguments: Sequence[str]) -> int:
    """Print the published models that match all words of ``arguments``; return 0."""
    words = parser().parse_args(arguments).words
    lines = table(words)
    if "\n" not in lines:
        known = {word for name in [*CATALOG, *ALIASES] for word in (name, *name.split("-"))}
        raise ConfigError(
            f"no model of the catalogue matches {' and '.join(map(repr, words))}; "
            f"{did_you_mean(words[-1], sorted(known))}"
        )
    print(lines)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = Parser("python -m bit_paddle.catalog", description=__doc__)
    parser.add_argument(
        "words",
        nargs="*",
        help="words that a model's row, or a name of the model in another library, must contain "
        "(default: all models)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
