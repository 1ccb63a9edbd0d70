"""The worst mistakes of a detector: wrong detections with high scores, and missed boxes.

`analyze` is for detectors what `examine.analyze` is for classifiers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bit_paddle.data.boxes import parts
from bit_paddle.data.boxes.annotations import BoxedImages
from bit_paddle.inference.average_precision import MISSED, Outcome
from bit_paddle.inference.detecting import Measured, open_detector
from bit_paddle.models.detection.boxes import areas, iou
from bit_paddle.models.detection.detections import Detections
from bit_paddle.runs.history import RunHistory

NEAR = 0.1  # the overlap (IoU) from which a wrong detection is one at a wrong place


class Mistake(NamedTuple):
    """A mistake in an image: a ``box`` of a class ``label`` that is wrong, or ``missed``.

    ``title`` has its class, and the score of a detection; ``reason`` is what is wrong, in words.
    """

    image: int
    box: tuple[float, ...]
    label: int
    missed: bool
    title: str
    reason: str


class Analysis(NamedTuple):
    """What a detector found, and what to look at: mistakes, and whole images by their numbers."""

    measured: Measured
    wrong: list[Mistake]
    missed: list[Mistake]
    shown: list[int]


def analyze(run: RunHistory, model: Path, count: int) -> Analysis:
    """Measure ``model`` on the validation images of ``run``, and return at most ``count`` of each.

    Errors: those of `parts.open_parts`, `open_detector` and `DetectorModel.measure`.
    """
    settings = run.settings
    images = parts.open_parts(**settings.data_options).val
    if settings.on_bad_image == "skip":
        images, _ = parts.usable(images, settings.workers)
    detector = open_detector(model, settings.device)
    return analysis_of(detector.measure(images, workers=settings.workers), count)


def analysis_of(measured: Measured, count: int) -> Analysis:
    """Return at most ``count`` mistakes of each kind, and as many images, evenly spaced."""
    found = (measured.images, measured.found, measured.scores.outcomes, count)
    last = len(measured.images) - 1
    shown = np.unique(np.linspace(0, last, min(count, last + 1)).astype(int)).tolist()
    return Analysis(measured, wrong_finds(*found), missed_boxes(*found), shown)


def wrong_finds(
    images: BoxedImages, found: Sequence[Detections], outcomes: Sequence[Outcome], most: int
) -> list[Mistake]:
    """Return at most ``most`` wrong detections, those with the highest scores first."""
    places = [
        (-one.scores[number], image, number)
        for image, (one, outcome) in enumerate(zip(found, outcomes))
        for number in np.flatnonzero(outcome.wrong)
    ]
    mistakes = []
    for score, image, number in sorted(places)[:most]:
        box, label = found[image].boxes[number], int(found[image].classes[number])
        title = f"{images.classes[label]} {-score:.0%}"
        reason = _reason(images, image, box, label)
        mistakes.append(Mistake(image, tuple(box.tolist()), label, False, title, reason))
    return mistakes


def missed_boxes(
    images: BoxedImages, found: Sequence[Detections], outcomes: Sequence[Outcome], most: int
) -> list[Mistake]:
    """Return at most ``most`` boxes that were missed or found with low scores only.

    Those without any right detection come first, the largest of them first; then those whose
    detection has a score below 0.5, the lowest first.
    """
    places = []
    for image, (boxes, one, outcome) in enumerate(zip(images.boxes, found, outcomes)):
        for number, (finder, area) in enumerate(zip(outcome.finders, areas(boxes))):
            if finder == MISSED:
                places.append((0.0, -area, image, number))
            elif finder >= 0 and one.scores[finder] < 0.5:
                places.append((one.scores[finder], 0.0, image, number))
    mistakes = []
    for score, _, image, number in sorted(places)[:most]:
        box, label = images.boxes[image][number], int(images.labels[image][number])
        reason = f"found at {score:.1%} only" if score else "missed"
        mistakes.append(
            Mistake(image, tuple(box.tolist()), label, True, images.classes[label], reason)
        )
    return mistakes


def _reason(images: BoxedImages, image: int, box: np.ndarray, label: int) -> str:
    """Return why ``box`` is wrong as a detection of the class ``label``."""
    known = ~images.crowd[image]
    labels = images.labels[image][known]
    overlaps = iou(box[None], images.boxes[image][known])[0]
    own, others = overlaps * (labels == label), overlaps * (labels != label)
    if own.max(initial=0) >= 0.5:
        return "found twice"
    if others.max(initial=0) >= 0.5:
        return f"is {images.classes[labels[others.argmax()]]}"
    if own.max(initial=0) >= NEAR:
        return f"overlap of {math.floor(100 * own.max()) / 100:.2f} only"
    return "no true box there"
