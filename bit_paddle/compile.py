"""Compile the operators for this machine ahead of time: ``python -m bit_paddle.compile``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bit_paddle import errors
from bit_paddle.config import parsing
from bit_paddle.models.native import build
from bit_paddle.system import processes


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; return its exit status."""
    flags = parser().parse_args(arguments)
    try:
        if flags.into:
            processes.end_with_parent(group=True)
            build.build(flags.into)
            return 0
        _, facts = build.rebuild()
    except build.Unavailable as reason:
        print(f"error: no compiled operators: {reason}", file=sys.stderr)
        return 1
    except RuntimeError as fault:  # of --into: the process that started this one reports it
        print(fault, file=sys.stderr)
        return 1
    precisions = "float32 and bf16" if facts["bf16"] else "float32"
    print(f"compiled for {precisions}, with oneDNN {facts['onednn']}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = parsing.Parser(
        prog="python -m bit_paddle.compile",
        description=__doc__.split(":")[0] + ". Other commands use these, else those that come with "
        "bit_paddle, else they compile at first use. Only this command retries a failed build. "
        f"{build.SWITCH}=0 in the environment turns the compiled operators off.",
        allow_abbrev=False,
    )
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
