"""Measure a trained model on the images of a data set: ``python -m bit_paddle.evaluate --help``.

It measures accuracies, scores per class, calibration and the confusion matrix, with the
preprocessing of the checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bit_paddle import _make_callable, api, errors
from bit_paddle.config import parsing, settings
from bit_paddle.config.types import file_path, fraction, whole
from bit_paddle.data import check
from bit_paddle.data import spec as specs
from bit_paddle.data.preprocessing import FILTERS, Preprocessing
from bit_paddle.inference import comparison, views
from bit_paddle.inference.arguments import data_set
from bit_paddle.inference.evaluation import SPLITS
from bit_paddle.inference.label_evaluation import LabelEvaluation
from bit_paddle.inference.trained import resolve_trained
from bit_paddle.runs import folder as runs_folder
from bit_paddle.system import files, processes
from bit_paddle.visual import label_results, results

_EPILOG = """\
writes into --output:
  metrics.json                   all scores, with 95% intervals
  per_class.csv                  accuracy, precision, recall, F1, AUC, average precision
  predictions.csv                per image: path, label, and the first five classes
  reliability.png                does the highest probability equal the accuracy?
  confusion.csv, confusion.png   rows: classes, columns: predictions; up to 2,000 classes
  of images with several labels: metrics.json, per_class.csv (per label), predictions.csv
  with --compare: comparison.json (both models' scores), differences.csv, differences.png; of
  images with several labels comparison.json, differences.csv (per label)

examples:
  python -m bit_paddle.evaluate --model BiT-M-R50x1-CIFAR10 --dataset cifar10
  python -m bit_paddle.evaluate --model bit_logs/pets/model.npz --dataset folder --datadir pets
  python -m bit_paddle.evaluate --model served --amp bf16 --dataset folder --datadir pets
      `export --format paddle` wrote the folder served
  python -m bit_paddle.evaluate --model bit_logs/pets/model.npz --dataset folder --datadir new \\
      --split all
      measures all images new/<class>/*; the model was not trained on them
  python -m bit_paddle.evaluate --model bit_logs/one --compare bit_logs/two --dataset pets/
      is two better than one?
  python -m bit_paddle.evaluate --model bit_logs/pets --dataset pets/ --calibrate
  python -m bit_paddle.evaluate --model bit_logs/pets --dataset pets/ --split test
      the calibrated scores are honest on images that did not fit the temperature
  python -m bit_paddle.evaluate --model bit_logs/pets --dataset pets/ --strangers landscapes/
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; return its exit status. Raises `bit_paddle.errors`."""
    flags = parser().parse_args(arguments)
    processes.end_with_parent()
    view = _view(flags.crop, flags.resize, flags.filter)
    resolve_trained(flags.model)  # report a wrong name before reading or downloading anything
    if words := views.parse(flags.views):
        print(views.note(words), file=sys.stderr)
    if flags.compare and flags.calibrate:
        raise errors.ConfigError("--calibrate: takes one model; omit --compare")
    if flags.compare:
        resolve_trained(flags.compare)
    if flags.output:
        files.make_folder(Path(flags.output), "--output")
    measure = partial(
        api.evaluate,
        data=flags.dataset,
        split=flags.split,
        datadir=flags.datadir,
        val_fraction=flags.val_fraction,
        separator=flags.separator,
        group=flags.group,
        exclude=flags.exclude,
        on_bad_image=flags.on_bad_image,
        batch=flags.batch,
        workers=flags.workers,
        views=flags.views,
        device=flags.device,
        amp=flags.amp,
        runtime=flags.runtime,
        crop=view,
        directory=flags.bit_pretrained_dir,
    )
    result = measure(flags.model, calibrate=flags.calibrate, strangers=flags.strangers)
    subject = f"{result.model} on {flags.dataset} {flags.split}"
    print(f"{subject} ({result.preprocessing}): {result}", flush=True)
    write = label_results if isinstance(result, LabelEvaluation) else results
    print(write.in_words(result), flush=True)
    model_name = runs_folder.model_name(result.model)
    data_name = specs.short_name(flags.dataset, flags.datadir)
    default = f"evaluate-{model_name}-{data_name}-{flags.split}"
    folder = Path(flags.output or files.create_folder("bit_logs", default, "metrics.json"))
    _, datadir = data_set(flags.dataset, flags.datadir)
    write.write_results(result, flags.dataset, flags.split, folder, datadir)
    if flags.compare:
        found = comparison.compare(result, measure(flags.compare))
        print(f"compared with {found.b.model}: {found}", flush=True)
        write.write_comparison(found, folder, datadir)
    print(f"results are in {folder}")
    return 0


def _view(crop: int | None, resize: int | None, filter: str | None) -> int | Preprocessing | None:
    """Return the preprocessing that the flags ask for; None for that of the model."""
    if resize is None and filter is None:
        return crop
    if crop is None or resize is None:
        raise errors.ConfigError("--resize needs --crop, and --filter needs both")
    return Preprocessing(crop, resize, filter or Preprocessing.filter, centre="even")


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
    parsing.add_runtime_flag(parser)
    parser.add_argument(
        "--dataset", type=file_path, required=True, help=settings.help_of("dataset")
    )
    parser.add_argument("--datadir", type=file_path, help=settings.help_of("datadir"))
    parser.add_argument(
        "--val_fraction", type=fraction, metavar="X", help=settings.help_of("val_fraction")
    )
    parser.add_argument("--separator", metavar="WORD", help=settings.help_of("separator"))
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
    parser.add_argument(
        "--resize",
        type=whole(32),
        metavar="N",
        help="scale the shorter side to N pixels and crop the centre to --crop, as timm does; "
        "without it --crop squashes the image, as BiT does",
    )
    parser.add_argument(
        "--filter", choices=FILTERS, help="filter of Pillow for --resize (default: bilinear)"
    )
    parser.add_argument("--views", metavar="WORDS", help=views.HELP)
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="fit a temperature on these images, which divides the logits so that probabilities "
        "mean what they say, and the thresholds of `predict --unknown` (with several labels per "
        "image also of `predict --threshold auto`); write them into the model's .npz file. Use "
        "images that the model was not trained on. The accuracy stays. Later calls print both",
    )
    parser.add_argument(
        "--strangers",
        type=file_path,
        metavar="DIR",
        help="folder of images of other things, at any depth: does the model notice that they show "
        "none of its classes? AUROC, and the share that passes where 95%% of the data pass, for "
        "the highest probability, the highest logit and the energy (log of the sum of exp(logit)). "
        "With --compare, of the first model",
    )
    parser.add_argument(
        "--compare",
        type=file_path,
        metavar="MODEL",
        help="second model, as for --model, to compare with on the same images: McNemar's test, "
        "the difference in top-1 with its 95%% interval, and the images where they differ. With "
        "several labels per image: the differences of the three scores with 95%% intervals",
    )
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
