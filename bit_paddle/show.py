"""Show data before training on them: ``python -m bit_paddle.show --help``.

The command shows a contact sheet of training views as the model gets them (resized, cropped and
mirrored, but before MixUp), the number of images per class, the sizes of the originals, and the
plan. It needs neither Paddle nor a checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from bit_paddle import errors
from bit_paddle.config import parsing
from bit_paddle.config.saved import load_yaml
from bit_paddle.config.types import BadValue, file_path, whole
from bit_paddle.data import loader
from bit_paddle.data import spec as specs
from bit_paddle.data.labels import counts as label_counts
from bit_paddle.data.readers import registry
from bit_paddle.system import files
from bit_paddle.training.classification.plan import ClassificationPlan, make_plan
from bit_paddle.visual.sheet import caption, draw_views

PROG, TRAIN = "python -m bit_paddle.show", "python -m bit_paddle.train"

MOST = 1000  # views on a sheet

MODEL = "BiT-M-R50x1"  # changes only the plan

ROWS = 20  # classes that are printed
NO_LABEL = "without label"

_EPILOG = f"""\
The command writes sheet.png, per_class.csv and table.txt (the printed text) into --output.

Check on the sheet that the labels are right, and that every view still shows its label. If
mirroring changes a label, train with --no-flip; if cropping does, train with --no-crop. The views
are those of the first steps of training. MixUp is not shown: it blends pairs of these views.

The command also takes all flags of bit_paddle.train, so you can try a training command here first.
--model is optional (default: {MODEL}), and --dry-run prints only the plan. These flags are
explained by {TRAIN} --help:
{{flags}}

examples:
  {PROG} --dataset folder --datadir pets
      shows views of pets/train/<class>/*.jpg, and the plan of the rule for them
  {PROG} --dataset folder --datadir pets --examples_per_class 5
      shows views of the few-shot selection only
  {PROG} --dataset list --datadir signs --no-flip --images 100
      shows 100 views without mirroring
  {PROG} --config configs/cifar10_R50x1.yaml --output /tmp/cifar
      shows the training views of a published recipe
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; return its exit status. Errors: `bit_paddle.errors`."""
    flags, rest = parser().parse_known_args(list(arguments))
    known = parsing.parser(TRAIN).parse_known_args(rest)[0]
    if known.model is None and not (known.config and _names_model(known.config)):
        rest = ["--model", MODEL, *rest]
    settings, request = parsing.parse(rest, TRAIN, registry.find, ("--output", "--images"))
    settings = dataclasses.replace(settings, name=None)  # no run is started under the name
    plan = make_plan(settings, fetch=False)
    described = plan.describe()
    if request.dry_run:
        print(described)
        return 0
    if flags.output:
        files.make_folder(Path(flags.output), "--output")
    counts = count_images(plan)
    text = f"{table(counts)}\n\n{sizes(plan)}\n\n{described}\n"
    sheet = draw_views(views(plan, flags.images), flags.images)

    name = f"show-{specs.short_name(settings.dataset, settings.datadir)}"
    folder = Path(flags.output or files.create_folder(settings.logdir, name, "table.txt"))
    files.write_text(folder / "table.txt", text)
    rows = [("label", "class", "train_used", "train_all", "val", "test")[: len(counts[0]) + 1]]
    rows += [(label, *row) for label, row in enumerate(counts)]
    files.write_text(folder / "per_class.csv", "".join(map(files.csv_line, rows)))
    files.write(folder / "sheet.png", lambda stream: sheet.save(stream, format="PNG"))
    before = ", before MixUp," if plan.mixup_alpha else ""
    print(f"{text}\n{flags.images} training views{before} are in {folder / 'sheet.png'}")
    return 0


def count_images(plan: ClassificationPlan) -> list[tuple[Any, ...]]:
    """Return (class, used training images, all training images, validation images) per class.

    If the data have test images, their number comes last.
    """
    train, val, test = plan.data.train, plan.data.val, plan.data.test
    parts = [train.labels[plan.subset], train.labels, val.labels, *([test.labels] if test else [])]
    if not plan.labelled:
        return [(NO_LABEL, *map(len, parts))]
    columns = (label_counts(labels, len(train.classes)).tolist() for labels in parts)
    return list(zip(train.classes, *columns))


def table(counts: Sequence[tuple[Any, ...]]) -> str:
    """Return the first rows of ``counts`` as aligned lines, and sum, minimum and maximum of all."""
    totals = {f"all {len(counts):,} classes": sum, "fewest in a class": min, "most in a class": max}
    columns = list(zip(*counts))[1:]
    last = [(title, *map(aggregate, columns)) for title, aggregate in totals.items()]
    rows = [*counts[:ROWS], *last]
    width = max(len(row[0]) for row in rows)
    lines = [f"{row[0]:{width}}" + "".join(f"  {n:10,}" for n in row[1:]) for row in rows]
    head = f"{'class':{width}}  train used   train all         val"
    head += "        test" if len(columns) == 4 else ""
    more = [f"… {len(counts) - ROWS:,} more in per_class.csv"] if len(counts) > ROWS else []
    rule = "-" * len(head)
    return "\n".join([head, rule, *lines[:-3], *more, rule, *lines[-3:]])


def sizes(plan: ClassificationPlan) -> str:
    """Return a line on the smallest, median and largest originals, by area."""
    by_area = registry.sizes(plan.data.train, plan.subset)
    chosen = {"min": by_area[0], "median": by_area[len(by_area) // 2], "max": by_area[-1]}
    listed = ", ".join(f"{title} {height} x {width}" for title, (height, width) in chosen.items())
    return f"originals, height x width, by area: {listed} (of {len(by_area)} training images)"


def views(plan: ClassificationPlan, count: int) -> Iterator[tuple[np.ndarray, str]]:
    """Yield (pixels uint8 [3, crop, crop], caption) of the first ``count`` training views."""
    batch = plan.settings.batch
    steps = loader.training_batches(
        plan.data.train,
        plan.subset,
        dataclasses.replace(plan.resolution, alternate=None),  # a sheet has views of one size
        batch,
        plan.settings.seed,
        plan.settings.workers,
        plan.flip,
        memory=plan.cache_bytes,
        inception=plan.inception,
        world_size=max(1, batch // count),  # only the first process's share is decoded
    )
    with closing(steps):
        parts = itertools.chain.from_iterable(step.micro_batches(1) for step in steps)
        every = (pair for part in parts for pair in zip(part.images, part.labels.tolist()))
        for pixels, labels in itertools.islice(every, count):
            yield pixels, _caption(plan, labels)


def _caption(plan: ClassificationPlan, labels: int | tuple[int, ...]) -> str:
    """Return the text below a view: the name of its label, or of its labels."""
    names = plan.data.train.classes
    if not plan.labelled or labels == ():
        return NO_LABEL
    each = labels if isinstance(labels, tuple) else (labels,)
    return ", ".join(caption(names[label], label) for label in each)


def _views(word: str) -> int:
    count = whole(1)(word)
    if count > MOST:
        raise BadValue(f"is {count}, expected at most {MOST}")
    return count


def _names_model(path: str) -> bool:
    """Return whether a --config file names a model; `parsing.parse` reports the file's faults."""
    try:
        return load_yaml(path).get("model") is not None
    except errors.BitPaddleError:
        return False


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's own flags."""
    parser = parsing.outer_parser(
        PROG,
        usage=f"{PROG} --dataset NAME [--datadir DIR]\n"
        "         [--output DIR] [--images N] [any flag of bit_paddle.train]",
        description="Show the data before training: a contact sheet of training views as the model "
        "gets them\n(resized, cropped, mirrored), the number of images per class, the sizes of the "
        "originals, and\nthe plan. Loads no Paddle and downloads no checkpoint.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--output",
        type=file_path,
        metavar="DIR",
        help="folder for the results (default: a new folder in --logdir)",
    )
    parser.add_argument(
        "--images",
        type=_views,
        default=64,
        metavar="N",
        help="number of views, at most 1000 (default: 64)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
