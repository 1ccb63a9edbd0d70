"""Show data before training on them: ``python -m bit_paddle.show --help``.

A contact sheet of training views as the model gets them, resized, cropped and mirrored, but before
MixUp, which blends pairs of them in training; the images of each class; the sizes of the originals;
and the plan that the rule makes of all this. Neither Paddle nor a checkpoint is needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from bit_paddle import errors
from bit_paddle.config import parsing
from bit_paddle.config.settings import load_yaml
from bit_paddle.config.types import BadValue, whole
from bit_paddle.data import loader
from bit_paddle.data import spec as specs
from bit_paddle.data.readers import registry
from bit_paddle.system import files
from bit_paddle.training.plan import Plan, make_plan
from bit_paddle.visual.sheet import draw_views

PROG, TRAIN = "python -m bit_paddle.show", "python -m bit_paddle.train"

MOST = 1000  # views on a sheet

MODEL = "BiT-M-R50x1"  # matters to the plan alone

ROWS = 20  # classes that are printed

_EPILOG = f"""\
Writes into --output: sheet.png, per_class.csv, and table.txt, which is what is printed.

Check on the sheet that the labels are right, and that a view is still what its label says: where a
mirrored one is not, train with --no-flip; where a part is not the whole, with --no-crop. The views
are those of the first step (or steps) of training. MixUp is not shown: it blends pairs of them.

All flags of bit_paddle.train are taken too, so that its command can be tried here first. --model
may be left out (default: {MODEL}), and --dry-run prints the plan alone. They are explained by
{TRAIN} --help:
{{flags}}

examples:
  {PROG} --dataset folder --datadir pets
      shows what the rule makes of pets/train/<class>/*.jpg and pets/val/<class>/*.jpg
  {PROG} --dataset folder --datadir pets --examples_per_class 5
      shows views of the few-shot choice alone
  {PROG} --dataset list --datadir signs --no-flip --images 100
      shows 100 views, none of them mirrored
  {PROG} --config configs/cifar10_R50x1.yaml --output /tmp/cifar
      shows what a file's run would train on
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command ``arguments``; `bit_paddle.errors` says what it raises."""
    flags, rest = parser().parse_known_args(list(arguments))
    known = parsing.parser(TRAIN).parse_known_args(rest)[0]
    if known.model is None and not (known.config and _names_model(known.config)):
        rest = ["--model", MODEL, *rest]
    settings, request = parsing.parse(rest, TRAIN, registry.find, ("--output", "--images"))
    settings = dataclasses.replace(settings, name=None)  # no run's folder is written
    plan = make_plan(settings, fetch=False)
    described = plan.describe()
    if request.dry_run:
        print(described)
        return 0
    if flags.output:
        files.make_folder(Path(flags.output), "--output")
    counts = count_images(plan)
    text = f"{table(counts)}\n\n{sizes(plan)}\n\n{described}\n"
    sheet = draw_views(views(plan, flags.images), flags.images, plan.data.train.classes)

    name = f"show-{specs.short_name(settings.dataset, settings.datadir)}"
    folder = Path(flags.output or files.create_folder(settings.logdir, name, "table.txt"))
    files.write_text(folder / "table.txt", text)
    rows = [("label", "class", "train_used", "train_all", "val")]
    rows += [(label, *row) for label, row in enumerate(counts)]
    files.write_text(folder / "per_class.csv", "".join(map(files.csv_line, rows)))
    files.write(folder / "sheet.png", lambda stream: sheet.save(stream, format="PNG"))
    before = ", before MixUp," if plan.mixup_alpha else ""
    print(f"{text}\n{flags.images} training views{before} are in {folder / 'sheet.png'}")
    return 0


def count_images(plan: Plan) -> list[tuple[str, int, int, int]]:
    """Return (class, training images used, all training images, validation images) of each."""
    train, val = plan.data.train, plan.data.val
    columns = (
        np.bincount(labels, minlength=len(train.classes)).tolist()
        for labels in (train.labels[plan.subset], train.labels, val.labels)
    )
    return list(zip(train.classes, *columns))


def table(counts: Sequence[tuple[str, int, int, int]]) -> str:
    """Return the first of ``counts`` as aligned lines, and the sum and the range of all."""
    titles = {f"all {len(counts):,} classes": sum, "fewest in a class": min, "most in a class": max}
    totals = [(title, *map(of, list(zip(*counts))[1:])) for title, of in titles.items()]
    rows = [*counts[:ROWS], *totals]
    width = max(len(row[0]) for row in rows)
    lines = [f"{row[0]:{width}}" + "".join(f"  {n:10,}" for n in row[1:]) for row in rows]
    head = f"{'class':{width}}  train used   train all         val"
    more = [f"… {len(counts) - ROWS:,} more in per_class.csv"] if len(counts) > ROWS else []
    rule = "-" * len(head)
    return "\n".join([head, rule, *lines[:-3], *more, rule, *lines[-3:]])


def sizes(plan: Plan) -> str:
    """Return a line on the sizes of the originals that the plan's resolution comes from."""
    found = registry.sizes(plan.data.train, plan.subset)
    ends = {"min": found[0], "median": found[len(found) // 2], "max": found[-1]}
    listed = ", ".join(f"{title} {height} x {width}" for title, (height, width) in ends.items())
    return f"originals, height x width, by area: {listed} (of {len(found)} training images)"


def views(plan: Plan, count: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (pixels uint8 [3, crop, crop], label) of the first ``count`` training views."""
    batch = plan.settings.batch
    steps = loader.training_batches(
        plan.data.train,
        plan.subset,
        plan.resolution,
        batch,
        plan.settings.seed,
        plan.settings.workers,
        plan.flip,
        memory=plan.cache_bytes,
        inception=plan.inception,
        world_size=max(1, batch // count),  # as if for many processes: the first one's share is all
    )
    with closing(steps):
        parts = itertools.chain.from_iterable(step.micro_batches(1) for step in steps)
        every = (pair for part in parts for pair in zip(part.images, part.labels.tolist()))
        yield from itertools.islice(every, count)


def _views(word: str) -> int:
    count = whole(1)(word)
    if count > MOST:
        raise BadValue(f"is {count}, expected at most {MOST}: it is a sheet to look at")
    return count


def _names_model(path: str) -> bool:
    """Tell whether a --config file has a model; what is wrong with it `cli.parse` says."""
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
        description="Show data before training on them: a contact sheet of training views as the "
        "model gets\nthem (resized, cropped, mirrored), the images of each class, the sizes of the "
        "originals, and\nthe plan. Loads no Paddle and downloads no checkpoint.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder of the results (default: below --logdir, bit_logs)"
    )
    parser.add_argument(
        "--images", type=_views, default=64, metavar="N", help="views, at most 1000 (default: 64)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
