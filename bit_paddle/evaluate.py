"""Measure a trained model on the images of a data set: ``python -m bit_paddle.evaluate --help``.

Top-1, top-5 and loss, the accuracy of each class and the confusion matrix, with the preprocessing
that belongs to the checkpoint.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from bit_paddle import errors
from bit_paddle.config import parsing, settings
from bit_paddle.config.types import fraction
from bit_paddle.data import check, loader
from bit_paddle.data import spec as specs
from bit_paddle.data.readers import registry
from bit_paddle.inference import paddle_inference
from bit_paddle.inference.trained import (
    TrainedFile,
    find_trained,
    required_preprocessing,
    resolve_trained,
)
from bit_paddle.runs import folder as runs_folder
from bit_paddle.system import files, progress
from bit_paddle.visual import figures

_EPILOG = """\
writes into --output: metrics.json, per_class.csv, confusion.csv (a row a class, a column a
prediction) and confusion.png

examples:
  python -m bit_paddle.evaluate --model BiT-M-R50x1-CIFAR10 --dataset cifar10
  python -m bit_paddle.evaluate --model bit_logs/pets/model.npz --dataset folder --datadir pets
  python -m bit_paddle.evaluate --model served --amp bf16 --dataset folder --datadir pets
      where `export --format paddle` wrote the folder served
  python -m bit_paddle.evaluate --model bit_logs/pets/model.npz --dataset folder --datadir new \\
      --split all
      all of new/<class>/*, which are no images that it was trained on
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command ``arguments``; `bit_paddle.errors` says what it raises."""
    flags = parser().parse_args(arguments)
    resolve_trained(flags.model)  # a wrong name is answered before anything is read or fetched
    data = registry.open_dataset(flags.dataset, flags.datadir, val_fraction=flags.val_fraction)
    for note in data.notes:
        print(f"note: {note}", file=sys.stderr)
    parts = [data.train, data.val] if flags.split == "all" else [getattr(data, flags.split)]
    if flags.on_bad_image == "skip":
        for number, images in enumerate(parts):
            parts[number], skipped = check.usable(images, flags.workers, every_class=False)
            for fault in skipped:
                print(f"left out: {fault}", file=sys.stderr)
    else:
        check.require_usable([(some, np.arange(len(some))) for some in parts], flags.workers)
    if flags.output:
        files.make_folder(Path(flags.output), "--output")
    trained = find_trained(flags.model, flags.bit_pretrained_dir, flags.crop)
    view = required_preprocessing(trained)
    outputs = match_classes(trained, data.train.classes)
    names = trained.classes or list(data.train.classes)

    paddle_inference.hush()
    from bit_paddle.inference import metrics, predictor

    run = predictor.load(flags, trained)
    batches = itertools.chain.from_iterable(
        loader.evaluation_batches(images, view.crop, flags.batch, flags.workers, view.resize)
        for images in parts
    )
    tally = metrics.Tally()
    confusion = np.zeros((len(names), len(names)), np.int64)  # [class, prediction]
    with progress.progress_bar(desc="evaluation", unit="img", total=sum(map(len, parts))) as bar:
        for batch in batches:
            logits, labels = run(batch.images), outputs[batch.labels]
            tally.add(logits, labels, trained.loss)
            np.add.at(confusion, (labels, logits.argmax(axis=1)), 1)
            bar.update(len(labels))

    print(
        f"{trained.path} on {flags.dataset} {flags.split} ({view}): top-1 {tally.top1:.2%}, "
        f"top-5 {tally.top5:.2%}, loss {tally.loss:.4f} ({tally.images:,} images)",
        flush=True,
    )
    model_name = runs_folder.model_name(trained.path)
    data_name = specs.short_name(flags.dataset, flags.datadir)
    default = f"evaluate-{model_name}-{data_name}-{flags.split}"
    folder = Path(flags.output or files.create_folder("bit_logs", default, "metrics.json"))
    summary = {
        "model": str(trained.path),
        "dataset": flags.dataset,
        "split": flags.split,
        "preprocessing": asdict(view),
        "top1": tally.top1,
        "top5": tally.top5,
        "loss": tally.loss,
        "images": tally.images,
    }
    files.write_text(folder / "metrics.json", json.dumps(summary, indent=2) + "\n")
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
    print(f"results are in {folder}")
    return 0


def match_classes(trained: TrainedFile, classes: Sequence[str]) -> np.ndarray:
    """Return the model's output for each of the data's ``classes``.

    By name for a model of `bit_paddle.train`; the outputs of others are taken to have the order of
    the data's classes. Raises `ConfigError` where the two do not fit.
    """
    if trained.trained_here:
        outputs = {name: output for output, name in enumerate(trained.classes)}
        strangers = [name for name in classes if name not in outputs]
        if strangers:
            raise errors.ConfigError(
                f"{trained.path}: was not trained on {len(strangers)} classes of the data, the "
                f"first is {strangers[0]!r}; {errors.did_you_mean(strangers[0], outputs)}"
            )
        return np.array([outputs[name] for name in classes])
    if len(classes) != trained.outputs:
        raise errors.ConfigError(
            f"{trained.path}: its head has {trained.outputs} outputs, but the data have "
            f"{len(classes)} classes ({', '.join(classes[:4])} …)"
        )
    return np.arange(len(classes))


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
    parser.add_argument("--dataset", required=True, help=settings.help_of("dataset"))
    parser.add_argument("--datadir", help=settings.help_of("datadir"))
    parser.add_argument(
        "--val_fraction", type=fraction, metavar="X", help=settings.help_of("val_fraction")
    )
    parser.add_argument(
        "--on_bad_image",
        choices=check.CHOICES,
        default="error",
        help=settings.help_of("on_bad_image"),
    )
    parser.add_argument(
        "--split",
        choices=("val", "train", "all"),
        default="val",
        help="val: the validation images, those that training holds out where a folder or list has "
        "none. train: the training images. all: both (default: val)",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder of the results (default: below bit_logs)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
