"""Estimate a run: parameters, operations, memory, the split of a batch, the time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from bit_paddle.config.run_settings import RunSettings
from bit_paddle.config.settings import Settings
from bit_paddle.config.types import AUTO
from bit_paddle.models import cost, heads
from bit_paddle.models.architecture import Architecture
from bit_paddle.recipes import hyperrule
from bit_paddle.system.text import plural
from bit_paddle.training import traffic
from bit_paddle.training.classification.demand import demand_of
from bit_paddle.training.classification.rows import few_shot, resolution_row
from bit_paddle.training.classification.teacher import Teacher
from bit_paddle.training.description import aligned, learns_rows

GIB, MIB = 2**30, 2**20  # bytes

RECOMPUTE = ("off", "unit", "block")


class Sizes(NamedTuple):
    """The sizes of a run's data, and the rule's choices for them."""

    images: int  # training images, after few-shot selection
    classes: int
    origin: str  # source of these two numbers
    resolution: hyperrule.Resolution
    reason: str  # of the resolution
    schedule: hyperrule.Schedule
    fixed_views: bool  # every step sees an image in the same view
    index: Sequence[tuple[str, str]] = ()  # the line on an index of shards, if there is one


# --- The plan -----------------------------------------------------------------------------------


def describe(
    settings: Settings,
    architecture: Architecture,
    sizes: Sizes,
    memory: int,
    gpus: int = 1,
    images_per_second: float | None = None,
    teacher: Teacher | None = None,
) -> str:
    """Return the estimate for ``gpus`` GPUs with ``memory`` bytes each, as aligned lines.

    ``images_per_second`` is the training speed of one GPU.
    """
    sides, steps = [sizes.resolution.side(step) for step in range(2)], sizes.schedule.steps
    total, learn = steps * settings.batch, settings.learn
    operations, in_training = (
        sum(counted(side) for side in sides) / len(sides) / 1e9
        for counted in (
            partial(cost.multiply_adds, architecture, classes=sizes.classes),
            partial(cost.training_multiply_adds, architecture, classes=sizes.classes, learn=learn),
        )
    )
    with_recompute = in_training + (in_training - operations) / 2  # learned parts forward again
    few = few_shot(settings)
    few = f" ({few})" if few else ""
    by_rule = "" if settings.steps else ", by the rule"
    rows = [
        (
            "model",
            f"{architecture.name}: {architecture.parameters(sizes.classes):,} parameters with a "
            f"{heads.noun(architecture.head)} of {sizes.classes:,} outputs",
        ),
        (
            "data",
            f"{settings.dataset}, {sizes.origin}: {sizes.images:,} training images{few}, "
            f"{sizes.classes:,} classes",
        ),
        *([("teacher", teacher.described(sizes.resolution.crop))] if teacher else []),
        resolution_row(sizes.resolution, sizes.reason),
        (
            "schedule",
            f"{steps:,} steps of {settings.batch} images{by_rule}: {total:,} images, "
            f"{total / sizes.images:,.1f} epochs",
        ),
        (
            "operations",
            f"{operations:,.1f} G multiply-adds per image forward, about {in_training:,.1f} G "
            "in training,",
        ),
        (
            "",
            f"{with_recompute:,.1f} G with --recompute. Counted are the convolutions and the",
        ),
        ("", "head; not GroupNorm, ReLU, pooling, additions, and the kernels' standardization"),
        *learns_rows(architecture, sizes.classes, learn),
        *_remembered_rows(architecture, sizes, learn),
        *sizes.index,
        *gpu_rows(
            settings,
            demand_of(settings, architecture, sizes.resolution.largest, sizes.classes, teacher),
            steps,
            memory,
            gpus,
            images_per_second,
        ),
    ]
    return aligned(rows)


def gpu_rows(
    settings: RunSettings,
    demand: cost.Demand,
    steps: int,
    memory: int,
    gpus: int,
    images_per_second: float | None,
) -> list[tuple[str, str]]:
    """Return the lines on memory, micro-batches and time; the arguments are those of `describe`."""
    rows = [
        *_memory_rows(settings, demand, memory, gpus),
        *_split_rows(settings, demand, memory, gpus),
        *traffic.rows(settings, demand, gpus),
        ("time", _time(settings, steps, gpus, images_per_second)),
    ]
    if settings.runs > 1:
        rows.append(("runs", f"{settings.runs}: the steps and the time are those of one run"))
    return rows


def _remembered_rows(architecture: Architecture, sizes: Sizes, learn: str) -> list[tuple[str, str]]:
    """Return the lines on frozen parts that are computed once per image; see `frozen`."""
    if learn == "all" or not sizes.fixed_views or architecture.head == heads.LOCAL:
        return []
    crop, classes = sizes.resolution.crop, sizes.classes
    size = sizes.images * cost.boundary_bytes(architecture, crop, learn) / 1e6
    forward = cost.multiply_adds(architecture, crop, classes)
    backward = cost.training_multiply_adds(architecture, crop, classes, learn) - forward
    step = f"{1.5 * backward / 1e9:,.1f}" if backward >= 1e8 else "less than 0.1"
    lines = (
        "the views are fixed: frozen parts are computed once per image, if their outputs",
        f"({size:,.1f} MB) fit into the cache (--cache_gb). A step then takes {step} G per image",
    )
    return [("", line) for line in lines]


def _memory_rows(
    settings: RunSettings, demand: cost.Demand, memory: int, gpus: int
) -> list[tuple[str, str]]:
    """Return the lines on the memory of a GPU: used by each part, and left, per precision."""
    shared = gpus if settings.shard else 1
    full, half = (demand.parts(half, shared) for half in (False, True))
    rows = [(part, full.get(part, 0), size) for part, size in half.items()]
    left = [memory - sum(parts.values()) for parts in (full, half)]
    room = [cost.room_beside(parts, memory) for parts in (full, half)]
    lines = [
        f"{title:22}" + "".join(f"{size / GIB:8.2f} GiB" for size in sizes)
        for title, *sizes in [*rows, ("left", *left), ("for activations", *room)]
    ]
    if left[_half(settings)] < 0:
        lines[-2] += ": does not fit, even without an image"
    else:
        lines[-1] += f", {cost.PLANNED:.0%} of it; the rest is a reserve"
    if gpus > 1 and not settings.shard:
        saved = full["momentum"] - demand.parts(False, gpus)["momentum"]
        lines.append(f"--shard: GPUs share the momentum, which leaves {saved / GIB:.2f} GiB more")
    head = f"{memory / GIB:g} GiB on {_each_gpu(gpus)} (2^30 bytes). Training takes"
    return [
        ("memory", head),
        ("", f"{'':22}{'--amp off':>12}{'fp16, bf16':>12}"),
        *(("", line) for line in lines),
    ]


def _split_rows(
    settings: RunSettings, demand: cost.Demand, memory: int, gpus: int
) -> list[tuple[str, str]]:
    """Return a line on the split per precision and --recompute, and one for the settings."""
    share, shared = -(-settings.batch // gpus), gpus if settings.shard else 1
    lines = ["--amp       --recompute  MiB/image     fit  per micro-batch  micro-batches"]
    verdict = ""
    for half in (False, True):
        room = cost.room_beside(demand.parts(half, shared), memory)
        for recompute in RECOMPUTE:
            chosen = (half, recompute) == (_half(settings), settings.recompute)
            size = demand.activations(recompute, half)
            fits = room // size
            parts = settings.batch_split
            if parts == AUTO:
                parts = cost.parts_of(share, fits)
            images = -(-share // parts)
            lines.append(
                f"{'fp16, bf16' if half else 'off':10}  {recompute:11}  {size / MIB:9,.1f}  "
                f"{fits:6,}  {images:15,}  {parts:13,}"
                + ("" if fits >= images else "  too much")
                + ("  <-" if chosen else "")
            )
            if chosen:
                verdict = (
                    f"{settings.batch} images per step, {share} per GPU: {images} per micro-batch, "
                    f"{plural(parts, 'micro-batch')}"
                )
                if not fits:
                    verdict += "; no image fits"
                elif fits < images:
                    verb = "fits" if fits == 1 else "fit"
                    verdict += f"; only {plural(fits, 'image')} {verb}"
    lines.append(
        "Half precision is estimated, not measured. A run on a GPU finds its split by trial"
    )
    return [("activations", lines[0]), *(("", line) for line in lines[1:]), ("split", verdict)]


def _half(settings: RunSettings) -> bool:
    """Return whether to plan for half precision, which --amp auto chooses on most GPUs."""
    return settings.amp != "off"


def _time(settings: RunSettings, steps: int, gpus: int, images_per_second: float | None) -> str:
    """Return the time of the run; without ``images_per_second`` the way to measure it."""
    share = -(-settings.batch // gpus)
    if images_per_second is None:
        shared = f", divided by {gpus}" if gpus > 1 else ""
        return (
            f"{steps * share:,} images on {'each' if gpus > 1 else 'the'} GPU. For the hours give "
            f"--images_per_second X of one GPU:\n{'':14}metrics.jsonl has it after "
            f"{settings.prog.removeprefix('python -m ')} with --steps 20 --no-save{shared}"
        )
    seconds = steps * share / images_per_second
    return (
        f"{format_duration(seconds)} of training, at {images_per_second:g} images/s on "
        f"{_each_gpu(gpus)}; validation is not included"
    )


def _each_gpu(gpus: int) -> str:
    return f"each of {gpus} GPUs" if gpus > 1 else "the GPU"


def format_duration(seconds: float) -> str:
    """Return ``seconds`` in readable units: 45 s, 12 min, 3 h 05 min, 4 days 6 h."""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = round(minutes / 60)
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{hours // 24:,} days {hours % 24} h"
