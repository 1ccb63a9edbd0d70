"""What a run takes, before there is a GPU for it: ``python -m bit_paddle.plan --help``.

Parameters, operations, memory by part, the split of a batch and the time, from the model's shape,
the data set's published size and BiT-HyperRule. Needs neither Paddle nor a published checkpoint,
and the data only where their size is not known.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bit_paddle import argtypes, catalog, cli, config, errors, hyperrule, npz, upstream
from bit_paddle.architecture import PLANNED, Architecture
from bit_paddle.data import readers
from bit_paddle.data import spec as specs
from bit_paddle.planning import make_plan, resolution_of, schedule_of

PROG, TRAIN = "python -m bit_paddle.plan", "python -m bit_paddle.train"
GIB, MIB = 2**30, 2**20  # bytes
RECOMPUTE = ("off", "unit", "block")
_EPILOG = f"""\
All flags of bit_paddle.train are taken too, so that its command can be tried here first; neither
its data nor its checkpoint have to be there. They are explained by {TRAIN} --help:
{{flags}}

examples:
  {PROG} --model BiT-M-R152x4 --dataset imagenet2012 --gpu_memory 32 --gpus 4
      shows whether four GPUs of 32 GiB can do it, and in what parts
  {PROG} --model BiT-M-R50x1 --dataset cifar10 --images_per_second 500
      shows how long it takes where a GPU trains on 500 images a second
  {PROG} --model BiT-M-R101x3 --dataset folder --images 40000 --classes 60
      plans for images that are elsewhere
"""


class Known(NamedTuple):
    """What is known of a data set without reading it; ``images`` are for training."""

    images: int | None = None
    classes: int | None = None
    resolution: str | None = None  # small or large of BiT-HyperRule


#: By reader and, where there are several, the list of training images; sizes as published.
KNOWN = {
    ("imagenet2012", None): Known(1_281_167, 1000, "large"),
    ("cifar10", None): Known(50_000, 10, "small"),
    ("cifar100", None): Known(50_000, 100, "small"),
    ("oxford_flowers102", None): Known(1_020, 102, "large"),
    ("oxford_iiit_pet", None): Known(3_680, 37, "large"),
    ("list", "train800val200.txt"): Known(1_000),  # VTAB-1k, whose files in configs/data say more
}
_OWN = ("--gpu_memory", "--gpus", "--images_per_second", "--images", "--classes")
_SIDES = {"small": (32, 32), "large": (512, 512)}  # of originals, for the rule


class Task(NamedTuple):
    """What a run would train on, and what the rule makes of it."""

    images: int  # of the training set, after few-shot selection
    classes: int
    origin: str  # where these two are from
    resolution: hyperrule.Resolution
    reason: str  # of the resolution
    schedule: hyperrule.Schedule


def main(arguments: Sequence[str]) -> int:
    """Run the command ``arguments``; `bit_paddle.errors` says what it raises."""
    flags, rest = _parser().parse_known_args(list(arguments))
    settings, known = _settings(rest, flags.images, flags.classes)
    architecture = _architecture(settings)
    task = _known_task(settings, known, architecture) if known else _opened_task(settings)
    memory = int(flags.gpu_memory * GIB)
    print(describe(settings, architecture, task, memory, flags.gpus, flags.images_per_second))
    return 0


# --- What is asked for --------------------------------------------------------------------------


def _settings(
    words: list[str], images: int | None, classes: int | None
) -> tuple[config.Settings, Known | None]:
    """Return the settings, and the data's size, or None where they are to be opened."""
    given = cli.parser(TRAIN).parse_known_args(words)[0]
    file = config.load_yaml(given.config, "--config") if given.config else {}
    dataset, found = str(given.dataset or file.get("dataset")), None
    with contextlib.suppress(errors.BitPaddleError):  # `cli.parse` says it, with other faults
        spec = specs.find(dataset, readers.READERS)
        found = KNOWN.get((spec.reader, spec.train))
        if images or classes:
            found = found or Known()
    if found is None:
        try:
            return cli.parse(words, TRAIN, readers.find, _OWN)[0], None
        except errors.ConfigError as error:
            if "--datadir: is required" not in str(error):
                raise
            raise errors.ConfigError(
                f"{error}\nOr give --images N and --classes N, with which no data are opened"
            ) from error

    def find(dataset: str, **given: Any) -> object:
        there = "." if spec.reader in readers.DATADIR else None  # wherever it is
        return readers.find(dataset, **{**given, "datadir": there})

    settings = cli.parse([*words, "--datadir", "none"], TRAIN, find, _OWN)[0]
    known = Known(
        images or found.images,
        classes or (len(spec.classes) if spec.classes else found.classes),
        spec.resolution or found.resolution,
    )
    for name, other in (("images", "classes"), ("classes", "images")):
        if getattr(known, name) is None:
            raise errors.ConfigError(
                f"--{name}: is required too: with --{other}, --dataset {dataset} is not opened"
            )
    return settings, known


def _architecture(settings: config.Settings) -> Architecture:
    model = catalog.resolve(settings.model, pretrained=not settings.from_scratch)
    if isinstance(model, Path):
        with npz.CheckpointFile(model) as file:
            return file.architecture()
    return model.architecture if isinstance(model, catalog.Entry) else model


def _known_task(settings: config.Settings, known: Known, architecture: Architecture) -> Task:
    """Return what the rule makes of data of a known size, as `make_plan` does of opened data."""
    images, few = known.images, settings.examples_per_class
    if few is not None and few * known.classes > images:
        raise errors.ConfigError(
            f"--examples_per_class {few}: {known.classes:,} classes have {images:,} training "
            f"images, {images // known.classes:,} each on average"
        )
    images = images if few is None else few * known.classes
    crops = specs.find(settings.dataset, readers.READERS).random_crop
    crops = crops if settings.random_crop is None else settings.random_crop
    sides = _SIDES[known.resolution or "large"]
    resolution = resolution_of(settings, *sides, architecture.name, crops)
    reason = (
        f"by the {settings.rule} rule for {known.resolution} images"
        if known.resolution
        else f"by the {settings.rule} rule, if originals are not under 96 x 96 (else: --precrop "
        "160 --crop 128)"
    )
    if settings.rule == upstream.RULE:
        reason = "by the upstream rule"
    if settings.crop is not None:
        reason = "by --precrop and --crop"
    schedule = schedule_of(settings, images)
    return Task(images, known.classes, "not opened", resolution, reason, schedule)


def _opened_task(settings: config.Settings) -> Task:
    plan = make_plan(dataclasses.replace(settings, name=None), fetch=False)
    height, width = plan.image_size
    reason = f"by the {settings.rule} rule for originals of {height} x {width}"
    if plan.data.resolution:
        reason = f"by the {settings.rule} rule for {plan.data.resolution} images"
    if settings.rule == upstream.RULE:
        reason = "by the upstream rule"
    if settings.crop is not None:
        reason = "by --precrop and --crop"
    classes = len(plan.data.train.classes)
    return Task(len(plan.subset), classes, "opened", plan.resolution, reason, plan.schedule)


# --- The plan -----------------------------------------------------------------------------------


def describe(
    settings: config.Settings,
    architecture: Architecture,
    task: Task,
    memory: int,
    gpus: int = 1,
    images_per_second: float | None = None,
) -> str:
    """Return the plan for ``gpus`` of ``memory`` bytes each, as aligned lines.

    ``images_per_second`` are those a GPU trains on.
    """
    crop, precrop, steps = task.resolution.crop, task.resolution.precrop, task.schedule.steps
    total = steps * settings.batch
    operations = architecture.multiply_adds(crop, task.classes) / 1e9
    few = f" ({settings.examples_per_class} a class)" if settings.examples_per_class else ""
    rows = [
        (
            "model",
            f"{architecture.name}: {architecture.parameters(task.classes):,} parameters with a "
            f"head of {task.classes:,} outputs",
        ),
        (
            "data",
            f"{settings.dataset}, {task.origin}: {task.images:,} training images{few}, "
            f"{task.classes:,} classes",
        ),
        ("resolution", f"{precrop} -> {crop}, {task.reason}"),
        (
            "schedule",
            f"{steps:,} steps of {settings.batch} images{'' if settings.steps else ', by the rule'}"
            f": {total:,} images, {total / task.images:,.1f} epochs",
        ),
        (
            "operations",
            f"{operations:,.1f} G multiply-adds an image forward, about {3 * operations:,.1f} G in "
            "training,",
        ),
        ("", f"{4 * operations:,.1f} G with --recompute: of the convolutions and the head. Not"),
        ("", "counted: GroupNorm, ReLU, pooling, additions, and the kernels' standardization"),
        *_memory_rows(settings, architecture, task.classes, memory, gpus),
        *_split_rows(settings, architecture, task, memory, gpus),
        ("time", _time(settings, task, gpus, images_per_second)),
    ]
    return "\n".join(f"{title:14}{text}" for title, text in rows)


def _memory_rows(
    settings: config.Settings, architecture: Architecture, classes: int, memory: int, gpus: int
) -> list[tuple[str, str]]:
    """Return the lines on what each GPU has, holds and has left, in each precision."""
    shared = gpus if settings.shard else 1
    full, half = (architecture.training_memory(classes, half, shared) for half in (False, True))
    rows = [(part, full.get(part, 0), size) for part, size in half.items()]
    left = [memory - sum(parts.values()) for parts in (full, half)]
    room = [architecture.room(memory, classes, half, shared) for half in (False, True)]
    lines = [
        f"{title:22}" + "".join(f"{size / GIB:8.2f} GiB" for size in sizes)
        for title, *sizes in [*rows, ("left", *left), ("for activations", *room)]
    ]
    if left[_half(settings)] < 0:
        lines[-2] += ": does not fit, even without an image"
    else:
        lines[-1] += f", {PLANNED:.0%} of it; CUDA takes some, and gaps"
    if gpus > 1 and not settings.shard:
        saved = full["momentum"] - architecture.training_memory(classes, False, gpus)["momentum"]
        lines.append(f"--shard: GPUs share the momentum, which leaves {saved / GIB:.2f} GiB more")
    of = f"each of {gpus} GPUs" if gpus > 1 else "the GPU"
    head = f"{memory / GIB:g} GiB on {of} (2^30 bytes), of which training takes"
    return [
        ("memory", head),
        ("", f"{'':22}{'--amp off':>12}{'fp16, bf16':>12}"),
        *(("", line) for line in lines),
    ]


def _split_rows(
    settings: config.Settings, architecture: Architecture, task: Task, memory: int, gpus: int
) -> list[tuple[str, str]]:
    """Return a line on the split for each way to compute, and one on that asked for."""
    crop, share = task.resolution.crop, -(-settings.batch // gpus)
    shared = gpus if settings.shard else 1
    lines = ["--amp       --recompute  MiB an image  images  a micro-batch  micro-batches"]
    verdict = ""
    for half in (False, True):
        room = architecture.room(memory, task.classes, half, shared)
        for recompute in RECOMPUTE:
            chosen = (half, recompute) == (_half(settings), settings.recompute)
            size = architecture.activations(crop, recompute, half)
            fits = architecture.fits(room, crop, recompute, half)
            parts = settings.batch_split
            if parts == config.AUTO:
                parts = architecture.split(share, room, crop, recompute, half)
            images = -(-share // parts)
            lines.append(
                f"{'fp16, bf16' if half else 'off':10}  {recompute:11}  {size / MIB:12,.1f}  "
                f"{fits:6,}  {images:13,}  {parts:13,}"
                + ("" if fits >= images else "  too much")
                + ("  <-" if chosen else "")
            )
            if chosen:
                verdict = (
                    f"{settings.batch} images a step, {share} on each GPU: {images} a micro-batch, "
                    f"{parts} micro-batch{'es' * (parts > 1)}"
                )
                if fits < images:
                    verdict += f"; but {fits or 'none'} fit{'s' * (fits == 1)}"
    lines.append("Half precision is by estimate, and not measured; a run on a GPU tries for itself")
    return [("activations", lines[0]), *(("", line) for line in lines[1:]), ("split", verdict)]


def _half(settings: config.Settings) -> bool:
    """Whether to plan for half precision, as --amp auto is on most GPUs."""
    return settings.amp != "off"


def _time(settings: config.Settings, task: Task, gpus: int, images_per_second: float | None) -> str:
    """Return how long the run takes, or how to find out."""
    share, steps = -(-settings.batch // gpus), task.schedule.steps
    if images_per_second is None:
        shared = f", divided by {gpus}" if gpus > 1 else ""
        return (
            f"{steps * share:,} images on {'each' if gpus > 1 else 'the'} GPU. For the hours give "
            f"--images_per_second X, of one GPU:\n{'':14}what metrics.jsonl says after "
            f"bit_paddle.train with --steps 20 --no-save{shared}"
        )
    duration = steps * share / images_per_second
    return (
        f"{_duration(duration)} of training, at {images_per_second:g} images/s on "
        f"{f'each of {gpus} GPUs' if gpus > 1 else 'the GPU'}; validation is not in it"
    )


def _duration(seconds: float) -> str:
    """Return ``seconds`` as a person says it: 45 s, 12 min, 3 h 05 min, 4 days 6 h."""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = round(minutes / 60)
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{hours // 24:,} days {hours % 24} h"


# --- The command line ---------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = cli.outer_parser(
        PROG,
        usage=f"{PROG} --model NAME --dataset NAME [--gpu_memory GiB] [--gpus N]\n"
        "         [--images_per_second X] [--images N] [--classes N] [any flag of "
        "bit_paddle.train]",
        description="Show what a run takes before there is a GPU for it: parameters, operations, "
        "memory by part,\nthe split of a batch, and the time. Loads no Paddle and downloads no "
        "checkpoint.",
        epilog=_EPILOG,
    )
    for flag, parse, default, metavar, text in (
        (
            "gpu_memory",
            argtypes.positive,
            32.0,
            "GiB",
            "of one GPU, in units of 2^30 bytes (default: 32)",
        ),
        ("gpus", argtypes.whole(1), 1, "N", "GPUs that share every batch (default: 1)"),
        ("images_per_second", argtypes.positive, None, "X", "that one GPU trains on, for the time"),
        ("images", argtypes.whole(1), None, "N", "training images, where the data are not there"),
        ("classes", argtypes.whole(1), None, "N", "classes, where the data are not there"),
    ):
        parser.add_argument(f"--{flag}", type=parse, default=default, metavar=metavar, help=text)
    return parser


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
