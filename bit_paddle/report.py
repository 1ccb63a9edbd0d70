"""Write one HTML page about runs: ``python -m bit_paddle.report --help``.

The page shows curves, accuracy, confusion matrix, the most confident mistakes with their class
activation maps, timings and plan; of a detector average precision, the worst mistakes, and images
with their boxes. Several runs are shown side by side. The page contains all of its
pictures and needs no network.
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
from bit_paddle.config.types import file_path, whole
from bit_paddle.runs import history
from bit_paddle.runs.history import RunHistory
from bit_paddle.system import files
from bit_paddle.visual.html import Pictures
from bit_paddle.visual.page import page

if TYPE_CHECKING:
    from bit_paddle.visual.page import Analysis

PROG = "python -m bit_paddle.report"
MISTAKES = 12  # images with mistakes, and as many with right predictions

_EPILOG = f"""\
The page contains all of its pictures. They are also written as PNG files into the same folder.

examples:
  {PROG} bit_logs/pets
      writes bit_logs/pets/report.html
  {PROG} bit_logs/pets bit_logs/pets-2 --output compared.html
      shows two runs side by side
  {PROG} bit_logs/pets-x5
      shows all runs of --repeats 5; those of --folds 5 likewise
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; return its exit status. Raises `bit_paddle.errors`."""
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

    The default ``output`` is report.html in the run's folder; for several runs, in the folder that
    contains the first one. ``model`` evaluates each model on its validation images, and shows up to
    ``mistakes`` of its most confident mistakes. Errors: `MissingFileError` (a folder without a
    run), `ConfigError`, `WriteError`.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # Paddle turns all messages on
    runs = [run for folder in folders for run in history.read(Path(folder))]
    default = Path(folders[0]) if len(folders) == 1 else Path(folders[0]).parent
    output = Path(output or default / "report.html")
    if not output.parent.is_dir():
        raise errors.ConfigError(f"--output: {output.parent} is not a folder")
    analyses: list[Analysis | str] = [_analysis(run, model, mistakes) for run in runs]
    pictures: Pictures = {}
    tables = [history.spread(Path(folder)) for folder in folders]
    text = page(runs, analyses, pictures, list(filter(None, tables)))
    for name, write in pictures.items():
        files.write(output.with_name(f"{output.stem}-{name}.png"), write)
    files.write_text(output, text)
    return output


def _analysis(run: RunHistory, run_model: bool, mistakes: int) -> Analysis | str:
    """Return the analysis of the run's model on its validation images, or why there is none."""
    if not run_model:
        return "The model was not evaluated on the validation images (--no-model)."
    model = run.model
    if model is None:
        return f"The model was not evaluated: there is no model in {run.folder}."
    from bit_paddle.inference import examine, misses

    analyze = {"classification": examine.analyze, "detection": misses.analyze}[run.settings.task]
    try:
        return analyze(run, model, mistakes)
    except errors.BitPaddleError as error:
        if error.exit_status != 2:
            raise
        return f"The model was not evaluated on the validation images: {error}"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = parsing.Parser(
        prog=PROG,
        description="Write one HTML page about runs; it contains all of its pictures.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        type=file_path,
        nargs="+",
        metavar="RUN",
        help="folder of a run, such as bit_logs/pets",
    )
    parser.add_argument(
        "--output",
        type=file_path,
        metavar="FILE.html",
        help="the page (default: report.html in the run's folder)",
    )
    parser.add_argument(
        "--pictures",
        type=whole(0),
        default=MISTAKES,
        metavar="N",
        help="show up to N mistakes and N right predictions; of a detector N wrong detections, N "
        f"missed boxes and N images (default: {MISTAKES})",
    )
    parser.add_argument(
        "--no-model",
        dest="model",
        action="store_false",
        help="show only the run's records; needs neither its model nor its images",
    )
    return parser


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
