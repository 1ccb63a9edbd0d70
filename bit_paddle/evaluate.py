"""Measure a trained model on the images of a data set: ``python -m bit_paddle.evaluate --help``.

It measures top-1, top-5, balanced accuracy, loss, the accuracy per class and the confusion matrix,
with the preprocessing of the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from bit_paddle import _make_callable, api, errors
from bit_paddle.config import parsing, settings
from bit_paddle.config.types import file_path, fraction
from bit_paddle.data import check
from bit_paddle.data import spec as specs
from bit_paddle.inference import views
from bit_paddle.inference.evaluation import SPLITS, Evaluation
from bit_paddle.inference.trained import resolve_trained
from bit_paddle.runs import folder as runs_folder
from bit_paddle.system import files
from bit_paddle.visual import figures

_EPILOG = """\
writes into --output: metrics.json, per_class.csv, confusion.csv (one row per class, one column per
prediction) and confusion.png

examples:
  python -m bit_paddle.evaluate --model BiT-M-R50x1-CIFAR10 --dataset cifar10
  python -m bit_paddle.evaluate --model bit_logs/pets/model.npz --dataset folder --datadir pets
  python -m bit_paddle.evaluate --model served --amp bf16 --dataset folder --datadir pets
      `export --format paddle` wrote the folder served
  python -m bit_paddle.evaluate --model bit_logs/pets/model.npz --dataset folder --datadir new \\
      --split all
      measures all images new/<class>/*; the model was not trained on them
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; return its exit status. Raises `bit_paddle.errors`."""
    flags = parser().parse_args(arguments)
    resolve_trained(flags.model)  # report a wrong name before reading or downloading anything
    if words := views.parse(flags.views):
        print(views.note(words), file=sys.stderr)
    if flags.output:
        files.make_folder(Path(flags.output), "--output")
    result = api.evaluate(
        flags.model,
        flags.dataset,
        flags.split,
        datadir=flags.datadir,
        val_fraction=flags.val_fraction,
        group=flags.group,
        exclude=flags.exclude,
        on_bad_image=flags.on_bad_image,
        batch=flags.batch,
        workers=flags.workers,
        views=flags.views,
        device=flags.device,
        amp=flags.amp,
        crop=flags.crop,
        directory=flags.bit_pretrained_dir,
    )
    subject = f"{result.model} on {flags.dataset} {flags.split}"
    print(f"{subject} ({result.preprocessing}): {result}", flush=True)
    model_name = runs_folder.model_name(result.model)
    data_name = specs.short_name(flags.dataset, flags.datadir)
    default = f"evaluate-{model_name}-{data_name}-{flags.split}"
    folder = Path(flags.output or files.create_folder("bit_logs", default, "metrics.json"))
    write_results(result, flags.dataset, flags.split, folder)
    print(f"results are in {folder}")
    return 0


def write_results(result: Evaluation, dataset: str, split: str, folder: Path) -> None:
    """Write metrics.json, per_class.csv, confusion.csv and confusion.png into ``folder``.

    Raises `WriteError`.
    """
    summary = {
        "model": str(result.model),
        "dataset": dataset,
        "split": split,
        "preprocessing": asdict(result.preprocessing),
        "views": list(result.views),
        "top1": result.top1,
        "top5": result.top5,
        "balanced_accuracy": result.balanced_accuracy,
        "loss": result.loss,
        "images": result.images,
    }
    files.write_text(folder / "metrics.json", json.dumps(summary, indent=2) + "\n")
    confusion, names = result.confusion, result.classes
    counts, right = confusion.sum(axis=1), confusion.diagonal()
    accuracies = (f"{hits / count:.4f}" if count else "" for hits, count in zip(right, counts))
    rows = zip(names, counts, right, accuracies)
    table = [("class", "images", "right", "accuracy"), *rows]
    files.write_text(folder / "per_class.csv", "".join(map(files.csv_line, table)))
    rows = ((name, *row) for name, row in zip(names, confusion))
    table = [("class", *names), *rows]
    files.write_text(folder / "confusion.csv", "".join(map(files.csv_line, table)))
    draw = partial(figures.draw_confusion, confusion, names)
    files.write(folder / "confusion.png", draw)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = parsing.Parser(
        prog="python -m bit_paddle.evaluate",
        description=__doc__.split(":")[0] + ".",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parsing.add_flags(parser)
    parser.add_argument(
        "--dataset", type=file_path, required=True, help=settings.help_of("dataset")
    )
    parser.add_argument("--datadir", type=file_path, help=settings.help_of("datadir"))
    parser.add_argument(
        "--val_fraction", type=fraction, metavar="X", help=settings.help_of("val_fraction")
    )
    parser.add_argument("--group", metavar="WORD", help=settings.help_of("group"))
    parser.add_argument(
        "--exclude", type=file_path, metavar="FILE", help=settings.help_of("exclude")
    )
    parser.add_argument(
        "--on_bad_image",
        choices=check.CHOICES,
        default="error",
        help=settings.help_of("on_bad_image"),
    )
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="val",
        help="val: the validation images; if a folder or list has none, the images that training "
        "holds out. train: the training images. test: the test images, which training never uses. "
        "all: all of these (default: val)",
    )
    parser.add_argument("--views", metavar="WORDS", help=views.HELP)
    parser.add_argument(
        "--output",
        type=file_path,
        metavar="DIR",
        help="folder for the results (default: a new folder in bit_logs)",
    )
    return parser


_make_callable(__name__, api.evaluate)

if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
