"""The plan of a classification in words: one function per row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bit_paddle.data import loader
from bit_paddle.data.shards.images import ShardImages
from bit_paddle.models import heads
from bit_paddle.recipes import hyperrule
from bit_paddle.system.text import plural
from bit_paddle.training import description
from bit_paddle.training.classification import frozen

if TYPE_CHECKING:
    from bit_paddle.config.settings import Settings
    from bit_paddle.training.classification.plan import ClassificationPlan

LARGE_RATIO = 10  # of the largest to the smallest class: from here on the plan names --balance


def rows(plan: ClassificationPlan) -> list[tuple[str, str]]:
    """Return the plan as a (title, text) per line."""
    settings = plan.settings
    lines = [
        ("model", _model(plan)),
        ("weights", description.weights(plan)),
        *description.learns_rows(plan.architecture, len(plan.data.train.classes), settings.learn),
        *([("teacher", plan.teacher.described(plan.resolution.crop))] if plan.teacher else []),
        ("data", _data(plan)),
        ("classes", _classes(plan)),
        (
            "originals",
            "{} x {} pixels (median by area, of a sample)".format(*plan.image_size),
        ),
        resolution_row(plan.resolution, plan.resolution_reason),
        ("preprocessing", _preprocessing(plan)),
        *description.recipe_rows(plan, len(plan.subset)),
        ("MixUp", settings.recipe.mixup_reason(len(plan.subset))),
        ("memory", _memory(plan)),
        *index_rows(plan),
        ("loss", _loss(plan)),
        *description.run_rows(plan),
    ]
    if settings.folds and not settings.fold:
        lines.append(
            (
                "runs",
                f"{settings.folds}, one per fold, {plan.steps_of_all_folds:,} steps in all. This "
                "is the plan of the first. The accuracy over all images is reported",
            )
        )
    lines += description.repeats_rows(settings, "accuracy")
    return [*lines, *(("note", note) for note in plan.notes())]


def resolution_row(resolution: hyperrule.Resolution, reason: str) -> tuple[str, str]:
    """Return the line on the resolution."""
    also = f"; training crops of {resolution.alternate} in every second step"
    row = f"{resolution.precrop} -> {resolution.crop}, {reason}"
    return "resolution", row + (also if resolution.alternate else "")


def few_shot(settings: Settings) -> str:
    """Return the few-shot selection in words, "" if all images are used."""
    number = settings.examples_per_class
    return f"{number} per class" if number else ""


def _model(plan: ClassificationPlan) -> str:
    noun, outputs = heads.noun(plan.architecture.head), f"{len(plan.data.train.classes)} outputs"
    last = "starting at zero" if noun == "head" else "whose last layer starts at zero"
    head = f"a new {noun} of {outputs} {last}"
    if plan.keeps_head:
        head = f"the {noun} of {outputs} in the file of its weights, whose classes are the same"
    elif plan.settings.recipe.keeps_head and plan.checkpoint is not None:
        head += f": the file of its weights has no such {noun} for these classes"
    return f"{plan.architecture.name}, {plan.architecture.features} features, {head}"


def _data(plan: ClassificationPlan) -> str:
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


def _test_images(plan: ClassificationPlan) -> str:
    return f"{len(plan.data.test):,} test images, " if plan.data.test else ""


def _classes(plan: ClassificationPlan) -> str:
    """Return the largest and the smallest class; classes without training images are counted."""
    if not plan.labelled:
        return "the teacher's; images have no such labels, so validation measures the agreement"
    counts, names = plan.class_counts, plan.data.train.classes
    used = counts[counts > 0]
    if not len(used):
        return "no training image has a label"
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
    if plan.several:
        return f"{row}; {_label_numbers(plan)}"
    if ratio >= LARGE_RATIO and not plan.settings.balance:
        row += "; --balance 0.5 gives rare classes more weight"
    return row


def _label_numbers(plan: ClassificationPlan) -> str:
    """Return how many labels an image has."""
    numbers = plan.data.train.labels[plan.subset].lengths
    row = f"{numbers.min()} to {numbers.max()} labels per image, mean {numbers.mean():.3g}"
    without = int((numbers == 0).sum())
    return row + (f"; {plural(without, 'image')} without any" if without else "")


def index_rows(plan: ClassificationPlan) -> list[tuple[str, str]]:
    """Return the line on the memory of an index of shards, if there is one."""
    every = (plan.data.train, plan.data.val, plan.data.test)
    parts = [part for part in every if isinstance(part, ShardImages)]
    if not parts:
        return []
    mapped = sum({part.index.digest: part.index.mapped for part in parts}.values())
    orders = 3 * plan.subset.nbytes  # the images that are used, in the order of two epochs
    own = sum(part.held_bytes for part in parts) + orders
    row = (
        f"{mapped / 1e6:,.1f} MB of files, which are mapped: all processes share what is read of "
        f"them. Each process holds {own / 1e6:,.1f} MB itself, for labels and orders"
    )
    return [("index", row)]


def _loss(plan: ClassificationPlan) -> str:
    if plan.teacher is not None:
        return "KL(teacher || student) at temperature 1, no label loss"
    row = f"{plan.settings.loss} cross-entropy"
    if plan.several:
        return (
            f"{row}, because an image may have several labels; the bias of a new head starts at "
            f"{plan.head_bias:.3g}, the log-odds of a label"
        )
    weights = plan.class_weights
    if weights is not None:
        used = weights[plan.class_counts > 0]
        row += (
            f"; an image weighs {used.min():.3g} (largest class) to {used.max():.3g} (smallest), "
            f"mean 1 (--balance {plan.settings.balance:g})"
        )
    return row


def _preprocessing(plan: ClassificationPlan) -> str:
    precrop, crop = plan.resolution.precrop, plan.resolution.crop
    if plan.inception:
        training = (
            f"crop of 5 to 100 % of the area, 3:4 to 4:3, resized to {crop} x {crop} (bilinear)"
        )
        if other := plan.resolution.alternate:
            training += f", to {other} x {other} in every second step"
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


def _memory(plan: ClassificationPlan) -> str:
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
