"""A plan in words: one function per row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from bit_paddle import __version__
from bit_paddle.data import loader
from bit_paddle.models import published
from bit_paddle.models.architecture import PARTS, Architecture, frozen_parts
from bit_paddle.recipes import hyperrule
from bit_paddle.system import environment
from bit_paddle.system.text import plural
from bit_paddle.training import frozen

if TYPE_CHECKING:
    from bit_paddle.config.settings import Settings
    from bit_paddle.training.plan import Plan

_HALF = "half precision between layers and in convolutions, float32 elsewhere"

_PRECISION = {
    "off": "float32",
    "auto": f"float32 on a CPU; on a GPU with tensor cores {_HALF}",
    "bf16": f"bf16: {_HALF}",
    "fp16": f"fp16: {_HALF}, loss scaled",
}


LARGE_RATIO = 10  # of the largest to the smallest class: from here on the plan names --balance


def headline(batch: int, where: str, amp: str, processes: int, batch_split: int) -> str:
    """Return the line of a run's log with versions, device, processors and micro-batches."""
    line = f"bit_paddle {__version__}, {where}, {environment.cpu_count()} processors"
    if processes > 1:
        line += f" for each of {processes}"
    line += f"; {batch} images per step, in {plural(processes * batch_split, 'part')}"
    return line if amp == "off" else f"{line}, in {amp}"


def aligned(rows: Iterable[tuple[str, str]]) -> str:
    """Return (title, text) pairs as aligned lines."""
    return "\n".join(f"{title:14}{text}" for title, text in rows)


def resolution_row(resolution: hyperrule.Resolution, reason: str) -> tuple[str, str]:
    """Return the line on the resolution."""
    return "resolution", f"{resolution.precrop} -> {resolution.crop}, {reason}"


def learns_rows(architecture: Architecture, classes: int, learn: str) -> list[tuple[str, str]]:
    """Return the line on what learns; without frozen parts there is none."""
    frozen = frozen_parts(learn)
    if not frozen:
        return []
    parts = ", ".join(part for part in PARTS if part not in frozen)
    counts = architecture.learned_parameters(classes, learn), architecture.parameters(classes)
    learned, every = (f"{count / 1e6:#.3g}".rstrip(".") for count in counts)
    return [("learns", f"{parts}: {learned} of {every} million weights")]


def few_shot(settings: Settings) -> str:
    """Return the few-shot selection in words, "" if all images are used."""
    number = settings.examples_per_class
    return f"{number} per class" if number else ""


def rows(plan: Plan) -> list[tuple[str, str]]:
    """Return the plan as a (title, text) per line."""
    settings = plan.settings
    lines = [
        ("model", _model(plan)),
        ("weights", _weights(plan)),
        *learns_rows(plan.architecture, len(plan.data.train.classes), settings.learn),
        ("data", _data(plan)),
        ("classes", _classes(plan)),
        (
            "originals",
            "{} x {} pixels (median by area, of a sample)".format(*plan.image_size),
        ),
        resolution_row(plan.resolution, plan.resolution_reason),
        ("preprocessing", _preprocessing(plan)),
        ("schedule", _schedule(plan)),
        ("batch", _batch(plan)),
        ("precision", _PRECISION[settings.amp]),
        ("MixUp", settings.recipe.mixup_reason(len(plan.subset))),
        ("memory", _memory(plan)),
        ("loss", _loss(plan)),
        ("optimizer", _optimizer(plan)),
        ("validation", _validation(plan)),
        *([("test", _test(plan))] if plan.data.test else []),
        ("checkpoints", _checkpoints(plan)),
        ("files", _files(plan)),
    ]
    if settings.nproc > 1:
        lines.append(("processes", _processes(plan)))
    if settings.folds and not settings.fold:
        lines.append(
            (
                "runs",
                f"{settings.folds}, one per fold, {plan.steps_of_all_folds:,} steps in all. This "
                "is the plan of the first. The accuracy over all images is reported",
            )
        )
    if settings.repeats > 1:
        last = settings.seed + settings.repeats - 1
        lines.append(
            (
                "runs",
                f"{settings.repeats}, seeds {settings.seed} to {last}; reports lowest, median and "
                "highest accuracy",
            )
        )
    return [*lines, *(("note", note) for note in plan.notes())]


def _model(plan: Plan) -> str:
    return (
        f"{plan.architecture.name}, {plan.architecture.features} features, a new head of "
        f"{len(plan.data.train.classes)} outputs starting at zero"
    )


def _weights(plan: Plan) -> str:
    if plan.start.checkpoints:
        newest = plan.start.checkpoints[0]
        return f"{newest.path}: the run resumes after step {newest.progress.step}"
    if plan.checkpoint is None:
        return f"random, by seed {plan.settings.seed}"
    if plan.checkpoint.exists():
        return str(plan.checkpoint)
    entry = published.find(plan.settings.model)
    return f"{plan.checkpoint}, not downloaded yet: {entry.bytes / 1e9:.2f} GB from {entry.url}"


def _data(plan: Plan) -> str:
    settings, classes = plan.settings, plan.data.train.classes
    folder = f" in {settings.datadir}" if settings.datadir else ""
    few = few_shot(settings)
    if few:
        few = f", {few} by seed {settings.examples_per_class_seed}"
    more = ", …" if len(classes) > 4 else ""
    return (
        f"{settings.dataset}{folder}: {len(plan.subset):,} training images{few}, "
        f"{len(plan.data.val):,} validation images{_fold(settings)}, {_test_images(plan)}"
        f"{len(classes)} classes "
        f"({', '.join(classes[:4])}{more})"
    )


def _fold(settings: Settings) -> str:
    return f" (fold {settings.fold or 1} of {settings.folds})" if settings.folds else ""


def _test_images(plan: Plan) -> str:
    return f"{len(plan.data.test):,} test images, " if plan.data.test else ""


def _classes(plan: Plan) -> str:
    """Return the largest and the smallest class; classes without training images are counted."""
    counts, names = plan.class_counts, plan.data.train.classes
    used = counts[counts > 0]
    largest, smallest = int(used.max()), int(used.min())
    ratio = largest / smallest
    row = f"largest : smallest class = {ratio:.3g} : 1, "
    if largest == smallest:
        row += f"{plural(largest, 'training image')} per class"
    else:
        first, last = (names[np.flatnonzero(counts == count)[0]] for count in (largest, smallest))
        row += f"{plural(largest, 'training image')} of {first}, {smallest:,} of {last}"
    if len(used) < len(counts):
        row += f"; {plural(len(counts) - len(used), 'class')} without training images"
    if ratio >= LARGE_RATIO and not plan.settings.balance:
        row += "; --balance 0.5 gives rare classes more weight"
    return row


def _loss(plan: Plan) -> str:
    row = f"{plan.settings.loss} cross-entropy"
    weights = plan.class_weights
    if weights is not None:
        used = weights[plan.class_counts > 0]
        row += (
            f"; an image weighs {used.min():.3g} (largest class) to {used.max():.3g} (smallest), "
            f"mean 1 (--balance {plan.settings.balance:g})"
        )
    return row


def _preprocessing(plan: Plan) -> str:
    precrop, crop = plan.resolution.precrop, plan.resolution.crop
    if plan.inception:
        training = (
            f"crop of 5 to 100 % of the area, 3:4 to 4:3, resized to {crop} x {crop} (bilinear)"
        )
    else:
        training = f"resize to {precrop} x {precrop} (bilinear)"
        if plan.crops:
            training += f", random crop of {crop}"
    if plan.flip:
        training += ", random flip"
    validation = f"resize to {crop} x {crop}"
    if plan.resize is not None:
        validation = f"resize the shorter side to {plan.resize}, centre of {crop}"
    scaled = "x / 127.5 - 1"
    return f"training: {training}, {scaled}; validation: {validation}, {scaled}"


def _schedule(plan: Plan) -> str:
    settings, schedule = plan.settings, plan.schedule
    length = ""
    if settings.epochs is not None:
        length = f" ({settings.epochs} epochs)"
    elif settings.steps is not None:
        length = " (--steps; the rule's proportions)"
    return (
        f"{schedule.steps:,} steps{length}: warm-up of {plural(schedule.warmup, 'step')} to "
        f"learning rate {settings.base_lr:g}, divided by 10 after steps "
        f"{', '.join(map(str, schedule.drops))}"
    )


def _batch(plan: Plan) -> str:
    row = f"{plan.settings.batch} images per step, split: {plan.settings.batch_split}"
    if len(plan.subset) < plan.settings.batch:
        row += ", sampled with replacement: the training set is smaller"
    return row


def _memory(plan: Plan) -> str:
    if frozen.are_remembered(plan):
        size = frozen.bytes_of(plan)
        return (
            f"{size / 1e6:,.1f} MB for the outputs of the frozen parts, computed once per image: "
            "the views are fixed"
        )
    if plan.inception:
        return "originals are decoded again in each epoch: nothing is cached"
    size = loader.resized_bytes(len(plan.subset), plan.resolution.precrop)
    if size <= plan.cache_bytes:
        return f"{size / 1e6:,.1f} MB for the cache of resized training images"
    return (
        f"resized training images ({size / 1e6:,.1f} MB) do not fit in the cache: they are decoded "
        "again in each epoch; --cache_gb sets the size of the cache"
    )


def _optimizer(plan: Plan) -> str:
    decay = "no weight decay"
    if plan.settings.weight_decay:
        decay = f"weight decay {plan.settings.weight_decay:g} of kernels"
    return f"SGD, momentum {hyperrule.MOMENTUM}, {decay}"


def _validation(plan: Plan) -> str:
    if plan.settings.eval_every:
        return f"every {plan.settings.eval_every} steps and at the end, on all validation images"
    return "at the end, on all validation images"


def _test(plan: Plan) -> str:
    models = "the best and the last model" if plan.settings.save else "the last model"
    return f"once, at the end, on all test images, with {models}; they decide nothing"


def _checkpoints(plan: Plan) -> str:
    if not plan.settings.save:
        return "none (--no-save)"
    every = plan.settings.save_every
    every = f"{every[:-1]} minutes" if every.endswith("m") else f"{every} steps"
    return f"every {every}; the newest {plan.settings.keep} and the best are kept"


def _files(plan: Plan) -> str:
    if plan.settings.runs > 1:
        kind = "folds.txt, folds.json, predictions.csv" if plan.settings.folds else None
        return f"{plan.start.folder}/: {kind or 'repeats.txt, repeats.json'}, a folder per run"
    names = "train.log, metrics.jsonl, VisualDL, config.yaml, result.json"
    if plan.settings.save:
        names += ", checkpoints, model.npz"
    return f"{plan.start.folder}/: {names}"


def _processes(plan: Plan) -> str:
    row = f"{plan.settings.nproc}, each with a share of every batch"
    if plan.settings.shard:
        row += ", of the summed gradients and of the momentum"
    return row
