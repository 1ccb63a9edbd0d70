"""Estimate the memory and time of a run on a GPU: ``python -m bit_paddle.plan --help``.

The estimate has parameters, operations, memory by part, the split of a batch and the time. It comes
from the model's shape, the data set's published size and BiT-HyperRule. It needs neither Paddle nor
a published checkpoint, and opens the data only if their size is not known.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bit_paddle import errors
from bit_paddle.config import parsing
from bit_paddle.config.saved import load_yaml
from bit_paddle.config.settings import Settings
from bit_paddle.config.types import whole
from bit_paddle.data import spec as specs
from bit_paddle.data.readers import registry
from bit_paddle.data.readers.registry import Known
from bit_paddle.models import published
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.recipes.recipe import SIDES
from bit_paddle.system.hub import Repository
from bit_paddle.training.classification import frozen
from bit_paddle.training.classification.plan import (
    make_plan,
    resolution_of,
    resolution_reason,
)
from bit_paddle.training.classification.rows import index_rows
from bit_paddle.training.classification.teacher import Teacher
from bit_paddle.training.classification.teacher import find as find_teacher
from bit_paddle.training.estimate import GIB, Sizes, describe
from bit_paddle.training.plan import schedule_of

PROG, TRAIN = "python -m bit_paddle.plan", "python -m bit_paddle.train"

_EPILOG = f"""\
The command also takes all flags of bit_paddle.train, so you can try a training command here first;
it needs neither the data nor the checkpoint. These flags are explained by {TRAIN} --help:
{{flags}}

examples:
  {PROG} --model BiT-M-R152x4 --dataset imagenet2012 --gpu_memory 32 --gpus 4
      shows whether the run fits on four GPUs of 32 GiB, and with which micro-batches
  {PROG} --model BiT-M-R50x1 --dataset cifar10 --images_per_second 500
      shows the time of a run on a GPU that trains on 500 images per second
  {PROG} --model BiT-M-R101x3 --dataset folder --images 40000 --classes 60
      estimates a run on images that are not on this machine
"""


_OWN = ("--gpu_memory", "--gpus", "--images_per_second", "--images", "--classes")


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; return its exit status. Errors: `bit_paddle.errors`."""
    flags, rest = parser().parse_known_args(list(arguments))
    settings, architecture, sizes = sizes_of(rest, flags.images, flags.classes)
    memory, speed = int(flags.gpu_memory * GIB), flags.images_per_second
    teacher = find_teacher(settings)
    print(describe(settings, architecture, sizes, memory, flags.gpus, speed, teacher))
    return 0


# --- The sizes ----------------------------------------------------------------------------------


def sizes_of(
    words: list[str], images: int | None = None, classes: int | None = None
) -> tuple[Settings, Architecture, Sizes]:
    """Return the settings of a training command, its network, and the sizes of its data.

    ``words`` are those of `bit_paddle.train`. ``images`` and ``classes`` are the numbers of the
    data if these are not on this machine. Errors: `bit_paddle.errors`.
    """
    settings, known = _settings(words, images, classes)
    architecture = dataclasses.replace(_architecture(settings), head=settings.head)
    if known:
        sizes = _known_sizes(settings, known, architecture, find_teacher(settings))
    else:
        sizes = _opened_sizes(settings)
    return settings, architecture, sizes


def _settings(
    words: list[str], images: int | None, classes: int | None
) -> tuple[Settings, Known | None]:
    """Return the settings, and the size of the data; None if the data must be opened."""
    chosen = parsing.parser(TRAIN).parse_known_args(words)[0]
    file = load_yaml(chosen.config, "--config") if chosen.config else {}
    dataset, known = str(chosen.dataset or file.get("dataset")), Known()
    with contextlib.suppress(
        errors.BitPaddleError
    ):  # `parsing.parse` reports it with all other faults
        known = registry.known(specs.find(dataset, registry.READERS))
    if known.images is None and images is None and classes is None:
        return parsing.parse(words, TRAIN, _find_or_hint, _OWN)[0], None
    find = functools.partial(registry.find, need_datadir=False)
    settings = parsing.parse(words, TRAIN, find, _OWN, unused=("datadir",))[0]
    known = known._replace(images=images or known.images, classes=classes or known.classes)
    for name, other in (("images", "classes"), ("classes", "images")):
        if getattr(known, name) is None:
            raise errors.ConfigError(
                f"--{name}: is required with --{other}, as --dataset {dataset} is then not opened"
            )
    return settings, known


def _find_or_hint(dataset: str, **overrides: Any) -> specs.DataSpec:
    try:
        return registry.find(dataset, **overrides)
    except registry.DatadirRequired as error:
        raise errors.ConfigError(
            f"{error}; or give --images N and --classes N to estimate without the data"
        ) from error


def _architecture(settings: Settings) -> Architecture:
    model = published.resolve(settings.model, pretrained=not settings.from_scratch)
    if isinstance(model, Repository):
        model = published.obtain(model)
    if isinstance(model, Path):
        with CheckpointFile(model) as file:
            return file.architecture()
    return model.architecture if isinstance(model, published.Entry) else model


def _known_sizes(
    settings: Settings, known: Known, architecture: Architecture, teacher: Teacher | None = None
) -> Sizes:
    """Return the sizes for data of a known size; `make_plan` does the same for opened data."""
    images, few = known.images, settings.examples_per_class
    images -= images // settings.folds if settings.folds else 0
    if few is not None and few * known.classes > images:
        raise errors.ConfigError(
            f"--examples_per_class {few}: {known.classes:,} classes have {images:,} training "
            f"images, {images // known.classes:,} each on average"
        )
    images = images if few is None else few * known.classes
    spec = specs.find(settings.dataset, registry.READERS)
    crops = spec.random_crop if settings.random_crop is None else settings.random_crop
    flip = spec.flip if settings.flip is None else settings.flip
    resolution = resolution_of(
        settings, *SIDES[known.resolution or "large"], architecture.name, crops, teacher
    )
    reason = resolution_reason(settings, None, known.resolution, crops, teacher)
    schedule = schedule_of(settings, images)
    fixed = not (crops or flip or settings.recipe.mixup_alpha(images))
    classes = teacher.file.outputs if teacher else known.classes
    return Sizes(images, classes, "not opened", resolution, reason, schedule, fixed)


def _opened_sizes(settings: Settings) -> Sizes:
    plan = make_plan(dataclasses.replace(settings, name=None), fetch=False)
    classes, reason = len(plan.data.train.classes), plan.resolution_reason
    sizes, fixed = (len(plan.subset), classes, "opened"), frozen.has_fixed_views(plan)
    return Sizes(*sizes, plan.resolution, reason, plan.schedule, fixed, index_rows(plan))


# --- The command line ---------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's own flags."""
    parser = parsing.outer_parser(
        PROG,
        usage=f"{PROG} --model NAME --dataset NAME [--gpu_memory GiB] [--gpus N]\n"
        "         [--images_per_second X] [--images N] [--classes N] [any flag of "
        "bit_paddle.train]",
        description="Estimate a run on GPUs before it starts: parameters, operations, memory by "
        "part, the split\nof a batch, and the time. Loads no Paddle and downloads no checkpoint.",
        epilog=_EPILOG,
    )
    parsing.add_gpu_flags(parser)
    for flag in ("images", "classes"):
        kind = "training images" if flag == "images" else flag
        parser.add_argument(
            f"--{flag}",
            type=whole(1),
            metavar="N",
            help=f"number of {kind}, if the data are not on this machine",
        )
    return parser


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
