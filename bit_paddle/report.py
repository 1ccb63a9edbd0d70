"""Show runs as one page to look at: ``python -m bit_paddle.report --help``.

Curves, accuracy, confusion, the most confident mistakes with the places that made them, timings and
plan of each run; of several, side by side. The page holds all of its pictures and needs no network.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bit_paddle import errors
from bit_paddle.config import parsing
from bit_paddle.config.types import whole
from bit_paddle.runs import history
from bit_paddle.runs.history import Recorded
from bit_paddle.system import files

if TYPE_CHECKING:
    from bit_paddle.inference.examine import Examined
from bit_paddle.visual.page import Pictures, page

PROG = "python -m bit_paddle.report"

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
    flags = _parser().parse_args(arguments)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # Paddle has everything logged
    found = [run for folder in flags.runs for run in history.read(Path(folder))]
    default = Path(flags.runs[0]) if len(flags.runs) == 1 else Path(flags.runs[0]).parent
    output = Path(flags.output or default / "report.html")
    if not output.parent.is_dir():
        raise errors.ConfigError(f"--output: {output.parent} is not a folder")
    examined: list[Examined | str] = [_examine(run, flags) for run in found]
    pictures: Pictures = {}
    text = page(found, examined, pictures)
    for name, write in pictures.items():
        files.write(output.with_name(f"{output.stem}-{name}.png"), write)
    files.write_text(output, text)
    print(f"open {output.resolve().as_uri()}")
    return 0


def _examine(run: Recorded, flags: argparse.Namespace) -> Examined | str:
    """Return what the model of ``run`` makes of its images, or why that is not known."""
    if not flags.model:
        return "Not run over the validation images (--no-model)."
    model = run.model
    if model is None:
        return f"There is no model in {run.folder}, so it could not be run over its images."
    from bit_paddle.inference import examine

    try:
        return examine.examine(run, model, flags.pictures)
    except errors.BitPaddleError as error:
        if error.exit_status != 2:
            raise
        return f"Not run over the validation images: {error}"


def _parser() -> argparse.ArgumentParser:
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
        default=12,
        metavar="N",
        help="mistakes, and right answers, to show (default: 12)",
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
