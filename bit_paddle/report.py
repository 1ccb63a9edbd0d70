"""Show runs as one page to look at: ``python -m bit_paddle.report --help``.

Curves, accuracy, confusion, the most confident mistakes with the places that made them, timings and
plan of each run; of several, side by side. The page holds all of its pictures and needs no network.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bit_paddle import errors
from bit_paddle.config import parsing
from bit_paddle.config.types import whole
from bit_paddle.runs import history
from bit_paddle.runs.history import RunHistory
from bit_paddle.system import files

if TYPE_CHECKING:
    from bit_paddle.inference.examine import Analysis
from bit_paddle.visual.page import Pictures, page

PROG = "python -m bit_paddle.report"
MISTAKES = 12  # pictures of mistakes, and of right answers

_EPILOG = f"""\
Writes one page with all of its pictures in it, and these once more as PNG files beside it.

examples:
  {PROG} bit_logs/pets
      writes bit_logs/pets/report.html
  {PROG} bit_logs/pets bit_logs/pets-2 --output compared.html
      two runs side by side
  {PROG} bit_logs/pets-x5
      all runs of --repeats 5
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command ``arguments``; `bit_paddle.errors` says what it raises."""
    flags = parser().parse_args(arguments)
    output = write_report(flags.runs, flags.output, flags.model, flags.pictures)
    print(f"open {output.resolve().as_uri()}")
    return 0


def write_report(
    folders: Sequence[str | os.PathLike],
    output: str | os.PathLike | None = None,
    model: bool = True,
    mistakes: int = MISTAKES,
) -> Path:
    """Write one page about the runs in ``folders``, and its pictures; return the page's path.

    Without ``output`` it is report.html in the run's folder, or beside several runs. ``model``
    runs each model over its validation images, and shows its ``mistakes`` most confident mistakes.
    Errors: `MissingFileError` (no run there), `ConfigError`, `WriteError`.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # Paddle has everything logged
    found = [run for folder in folders for run in history.read(Path(folder))]
    default = Path(folders[0]) if len(folders) == 1 else Path(folders[0]).parent
    output = Path(output or default / "report.html")
    if not output.parent.is_dir():
        raise errors.ConfigError(f"--output: {output.parent} is not a folder")
    analyses: list[Analysis | str] = [_analysis(run, model, mistakes) for run in found]
    pictures: Pictures = {}
    text = page(found, analyses, pictures)
    for name, write in pictures.items():
        files.write(output.with_name(f"{output.stem}-{name}.png"), write)
    files.write_text(output, text)
    return output


def _analysis(run: RunHistory, run_model: bool, mistakes: int) -> Analysis | str:
    """Return how the model of ``run`` does on its validation images, or why that is not known."""
    if not run_model:
        return "Not run over the validation images (--no-model)."
    model = run.model
    if model is None:
        return f"There is no model in {run.folder}, so it could not be run over its images."
    from bit_paddle.inference import examine

    try:
        return examine.analyze(run, model, mistakes)
    except errors.BitPaddleError as error:
        if error.exit_status != 2:
            raise
        return f"Not run over the validation images: {error}"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = parsing.Parser(
        prog=PROG,
        description="Show runs as one page to look at, of which nothing is elsewhere.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, below bit_logs")
    parser.add_argument(
        "--output", metavar="FILE.html", help="the page (default: report.html in the run's folder)"
    )
    parser.add_argument(
        "--pictures",
        type=whole(0),
        default=MISTAKES,
        metavar="N",
        help=f"mistakes, and right answers, to show (default: {MISTAKES})",
    )
    parser.add_argument(
        "--no-model",
        dest="model",
        action="store_false",
        help="show what the run has recorded alone: needs neither its model nor its images",
    )
    return parser


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
