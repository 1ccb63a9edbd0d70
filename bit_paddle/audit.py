"""Look for copies, unusual images and wrong labels: ``python -m bit_paddle.audit --help``.

It needs no Paddle unless --model is given.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from bit_paddle import _make_callable, errors
from bit_paddle.config import parsing, settings
from bit_paddle.config import types as argtypes
from bit_paddle.data import spec as specs
from bit_paddle.data.readers import registry
from bit_paddle.inference import audit as audits
from bit_paddle.inference.arguments import address, data_set
from bit_paddle.inference.audit import HEADER, Audit
from bit_paddle.inference.model import BATCH, TrainedModel
from bit_paddle.inference.trained import find_trained, resolve_trained
from bit_paddle.system import environment, files
from bit_paddle.visual.sheet import draw_beside

PROG = "python -m bit_paddle.audit"

SHOWN = 40  # findings of each kind on the sheet

_EPILOG = f"""\
writes into --output:
  audit.csv    one finding per line, copies across the parts (train, val, test) first
  sheet.png    at most {SHOWN} findings of each kind; a copy stands beside the image that it copies;
               the number of a finding is its line in audit.csv
  exclude.txt  paths for --exclude of bit_paddle.train, or for `exclude:` in a data set's .yaml file

Exact copies have the same content. Near copies are found by a perceptual hash: also if they were
saved again, resized or mirrored. exclude.txt leaves out exact copies, near copies across parts,
unreadable images and images that one colour fills. Of a copy across parts the training image is
left out. All other findings are comments there: look at each on the sheet first, then remove its #.

examples:
  {PROG} --dataset folder --datadir pets
      looks for copies and unusual images in pets/train and pets/val
  {PROG} --dataset folder --datadir pets --model BiT-Mini
      also names the labels that the other images contradict, the most suspicious first
  {PROG} --dataset folder --datadir pets --predictions bit_logs/folds/predictions.csv
      judges the labels by the models of a cross-validation (--folds)
  python -m bit_paddle.train --model BiT-Mini --dataset folder --datadir pets \\
      --exclude bit_logs/audit-pets/exclude.txt
      trains without the images that the file names
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; return its exit status. Errors: `bit_paddle.errors`."""
    flags = parser().parse_args(arguments)
    if flags.output:
        files.make_folder(Path(flags.output), "--output")
    result = audit(
        flags.dataset,
        datadir=flags.datadir,
        val_fraction=flags.val_fraction,
        separator=flags.separator,
        group=flags.group,
        exclude=flags.exclude,
        model=flags.model,
        predictions=flags.predictions,
        workers=flags.workers,
        directory=flags.bit_pretrained_dir,
    )
    name = f"audit-{specs.short_name(flags.dataset, flags.datadir)}"
    folder = Path(flags.output or files.create_folder("bit_logs", name, "audit.csv"))
    write_results(result, folder)
    print(f"{result}\nresults are in {folder}: audit.csv, sheet.png, exclude.txt")
    return 0


def audit(
    data: str | os.PathLike,
    *,
    datadir: str | os.PathLike | None = None,
    val_fraction: float | None = None,
    separator: str | None = None,
    group: str | None = None,
    exclude: str | os.PathLike | None = None,
    model: TrainedModel | str | os.PathLike | None = None,
    predictions: str | os.PathLike | None = None,
    workers: int | None = None,
    directory: str | os.PathLike | None = None,
) -> Audit:
    """Look for copies, unusual images and wrong labels in a data set; return what is found.

    ``data``, ``datadir``, ``val_fraction``, ``separator``, ``group``, ``exclude`` and ``directory``
    are those of `bit_paddle.evaluate`. ``model`` is a result of `load` or an argument of it: its
    features find more near copies, and labels that the other images contradict. ``predictions`` is
    the predictions.csv of a run with ``folds``, which judges labels too. Where an image may have
    several labels, they are not judged. ``workers`` threads decode images (None: one per processor,
    at most 8).

    Errors: `ConfigError` (also if the package ImageHash is missing), `MissingFileError`,
    `DataError`, `CheckpointError`, `DownloadError`.

        found = bit_paddle.audit("my_images/", model="BiT-Mini")
        [(copy.path, copy.other) for copy in found.of("near copy")]
    """
    if model is not None and not isinstance(model, TrainedModel):
        resolve_trained(address(model))  # report a wrong name before reading data
    dataset, folder = data_set(data, datadir)
    options = {"val_fraction": val_fraction, "separator": separator}
    options |= {"group": group, "exclude": exclude}
    opened = registry.open_dataset(dataset, folder, **options)
    for note in opened.notes:
        print(f"note: {note}", file=sys.stderr)
    if model is not None and not isinstance(model, TrainedModel):
        model = TrainedModel(find_trained(address(model), directory, None), head=False)
    workers = min(8, environment.cpu_count()) if workers is None else workers
    return audits.audit(opened, workers, model, BATCH, predictions)


def write_results(result: Audit, folder: Path) -> None:
    """Write audit.csv, sheet.png and exclude.txt into ``folder``. Raises `WriteError`."""
    rows = [HEADER, *((*one[:6], f"{one.score:.4f}", one.why) for one in result.findings)]
    files.write_text(folder / "audit.csv", "".join(map(files.csv_line, rows)))
    lines = "".join(f"{line}\n" for line in result.exclude_lines())
    content = lines.encode(errors="surrogateescape")  # names of files as they are
    files.write(folder / "exclude.txt", lambda stream: stream.write(content))
    sheet = draw_sheet(result)
    files.write(folder / "sheet.png", lambda stream: sheet.save(stream, format="PNG"))


def draw_sheet(result: Audit) -> Image.Image:
    """Return a sheet of the first findings of each kind; a copy has its original beside it.

    A caption begins with the line of the finding in audit.csv.
    """
    tiles, shown = [], Counter[str]()
    for line, one in enumerate(result.findings, 2):
        shown[one.kind] += 1
        if shown[one.kind] > SHOWN:
            continue
        text = f"{one.kind}: {one.why}"
        if one.kind.endswith("copy"):
            text = f"{one.part}, {one.other_part}: {one.why}"
        elif one.kind == "label":
            text = f"{one.label}? {one.why}"
        other = result.open_image[one.other] if one.other else None
        tiles.append((result.open_image[one.path], other, f"{line}. {text}"))
    return draw_beside(tiles)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = parsing.Parser(prog=PROG, description=__doc__.split(":")[0] + ".", epilog=_EPILOG)
    parser.add_argument(
        "--dataset", type=argtypes.file_path, required=True, help=settings.help_of("dataset")
    )
    parser.add_argument("--datadir", type=argtypes.file_path, help=settings.help_of("datadir"))
    parser.add_argument(
        "--model",
        type=argtypes.file_path,
        help=f"model whose features find more copies and judge the labels: {argtypes.MODELS} "
        "(default: none; labels are not judged)",
    )
    parser.add_argument(
        "--predictions",
        type=argtypes.file_path,
        metavar="FILE",
        help="predictions.csv of a cross-validation (--folds), which judges the labels too",
    )
    for name, metavar, kind in (
        ("val_fraction", "X", argtypes.fraction),
        ("separator", "WORD", str),
        ("group", "WORD", str),
        ("exclude", "FILE", argtypes.file_path),
        ("bit_pretrained_dir", "DIR", argtypes.file_path),
    ):
        help = settings.help_of(name)
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=help)
    parser.add_argument(
        "--workers",
        type=argtypes.whole(1),
        default=min(8, environment.cpu_count()),
        metavar="N",
        help="threads that decode images",
    )
    parser.add_argument(
        "--output",
        type=argtypes.file_path,
        metavar="DIR",
        help="folder for the results (default: a new folder in bit_logs)",
    )
    return parser


_make_callable(__name__, audit)

if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
