"""The plan of a detection in words: one function per row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bit_paddle.data.boxes.annotations import BoxedImages
from bit_paddle.data.boxes.loader import decoded_bytes
from bit_paddle.data.boxes.parts import class_counts
from bit_paddle.models.architecture import frozen_parts
from bit_paddle.system.text import plural
from bit_paddle.training import description

if TYPE_CHECKING:
    from bit_paddle.training.detection.plan import DetectionPlan


TITLES = {"retinanet": "RetinaNet", "faster_rcnn": "Faster R-CNN"}


def rows(plan: DetectionPlan) -> list[tuple[str, str]]:
    """Return the plan as a (title, text) per line."""
    lines = [
        ("model", _model(plan)),
        ("weights", _weights(plan)),
        *_learns(plan),
        ("data", _data(plan)),
        ("classes", _classes(plan)),
        ("boxes", _boxes(plan)),
        ("views", _views(plan)),
        ("anchors", _anchors(plan)),
        *description.recipe_rows(plan, len(plan.data.train)),
        ("loss", _loss(plan)),
        ("memory", _memory(plan)),
        *description.run_rows(plan),
        *description.repeats_rows(plan.settings, "average precision"),
    ]
    return [*lines, *(("note", note) for note in plan.notes())]


def _model(plan: DetectionPlan) -> str:
    settings, architecture, (height, width) = plan.settings, plan.architecture, plan.sides
    heads = f"heads of {settings.depth} convolutions"
    if settings.detector == "faster_rcnn":
        heads = f"RoI {settings.regions}"
    operations = plan.detector.multiply_adds(architecture, round((height * width) ** 0.5))
    return (
        f"{TITLES[settings.detector]} on {architecture.name}: pyramid of {settings.channels} "
        f"channels, {heads}; {plan.detector.parameters(architecture) / 1e6:,.1f} million weights, "
        f"{operations / 1e9:,.1f} G multiply-adds per image forward"
    )


def _weights(plan: DetectionPlan) -> str:
    row = description.weights(plan)
    if plan.start.checkpoints or plan.checkpoint is None:
        return row
    return f"{row}; random in the pyramid and the heads, by seed {plan.settings.seed}"


def _learns(plan: DetectionPlan) -> list[tuple[str, str]]:
    """Return the line on what learns; without frozen parts there is none."""
    frozen = frozen_parts(plan.settings.learn)
    if not frozen:
        return []
    every = plan.detector.parameters(plan.architecture)
    fixed = sum(plan.architecture.parameters_of(part) for part in frozen)
    return [
        (
            "learns",
            f"{(every - fixed) / 1e6:,.1f} of {every / 1e6:,.1f} million "
            f"weights; {', '.join(frozen)} of the backbone are frozen",
        )
    ]


def _data(plan: DetectionPlan) -> str:
    train, val, test, _ = plan.data
    row = f"{plan.settings.boxes}: {_counted(train, 'training')}, {_counted(val, 'validation')}"
    return f"{row}, {_counted(test, 'test')}" if test else row


def _counted(images: BoxedImages, kind: str) -> str:
    boxes = plural(sum(map(len, images.boxes)), "box")
    return f"{plural(len(images), f'{kind} image')} with {boxes}"


def _classes(plan: DetectionPlan) -> str:
    counts, names = class_counts(plan.data.train), plan.data.train.classes
    order = np.argsort(-counts, kind="stable")
    if len(order) <= 6:
        return ", ".join(f"{names[k]} {counts[k]:,}" for k in order) + " training boxes"
    first, last = order[0], order[-1]
    return (
        f"{len(names):,}: {names[first]} with {counts[first]:,} training boxes, …, "
        f"{names[last]} with {counts[last]:,}"
    )


def _boxes(plan: DetectionPlan) -> str:
    """Return the sides of the training boxes as a detector sees them, and what is special."""
    train = plan.data.train
    low, middle, high = plan.reach.sides
    empty = sum(1 for boxes in train.boxes if not len(boxes))
    crowds = sum(int(crowd.sum()) for crowd in train.crowd)
    row = (
        f"sides of {low:.0f} / {middle:.0f} / {high:.0f} pixels in the view (square root of the "
        "area at 10 / 50 / 90 %)"
    )
    row += f"; {plural(empty, 'training image')} without a box" if empty else ""
    return row + (f"; {plural(crowds, 'crowd')}, left out" if crowds else "")


def _views(plan: DetectionPlan) -> str:
    height, width = plan.sides
    low, high = plan.scales
    row = f"training: {height} x {width} pixels, the longer side of an image {plan.settings.side}"
    if (low, high) != (1.0, 1.0):
        row += f", times {low:g} to {high:g}, then cropped or padded"
    row += ", random flip" if plan.flip else ""
    return (
        f"{row}; validation: images of the same size, each in a view of its own shape; views are "
        "padded to multiples of 128; x / 127.5 - 1"
    )


def _anchors(plan: DetectionPlan) -> str:
    shapes = plan.detector.shapes
    sides = shapes.sides()
    smallest = 2 ** shapes.levels[0] * np.sqrt(sides.prod(axis=1).min())
    largest = 2 ** shapes.levels[-1] * np.sqrt(sides.prod(axis=1).max())
    return (
        f"by the {plan.settings.recipe} recipe, {shapes.per_place} at each place, sides of "
        f"{smallest:.0f} to {largest:.0f} pixels; {plan.reach} overlap one by half or "
        "more"
    )


def _loss(plan: DetectionPlan) -> str:
    if plan.settings.detector == "faster_rcnn":
        return (
            "cross-entropy of objects and classes, absolute errors of the boxes' codes; of 256 "
            "anchors and 512 proposals per image"
        )
    boxes = {"huber": "Huber loss of the boxes' codes", "giou": "1 - GIoU of the boxes"}
    return (
        "focal loss of the classes (alpha 0.25, gamma 2), and "
        f"{boxes[plan.settings.box_loss]}; divided by the positive anchors of the batch, plus 1"
    )


def _memory(plan: DetectionPlan) -> str:
    full, half = (
        plan.demand.activations(plan.settings.recompute, half) / 2**20 for half in (False, True)
    )
    size = decoded_bytes(plan.data.train)
    cached = f"the decoded training images take {size / 1e6:,.1f} MB and are cached"
    if size > plan.cache_bytes:
        cached = (
            f"the decoded training images ({size / 1e6:,.1f} MB) do not fit in the cache: they are "
            "decoded again in each epoch; --cache_gb sets its size"
        )
    targets = "" if plan.settings.detector == "faster_rcnn" else " with the targets of all anchors"
    return (
        f"activations of about {full:,.0f} MiB per image in float32, {half:,.0f} MiB in half "
        f"precision (an estimate); {plan.held_bytes / 1e6:,.1f} MB for the views of two batches"
        f"{targets}; {cached}"
    )
