"""Proposals: boxes that may hold an object, chosen by the proposal network; and what must be found.

All numbers are those of Detectron2's base configuration (Base-RCNN-FPN; modeling/proposal_generator
and modeling/roi_heads), which follows Faster R-CNN (arXiv 1506.01497). Samples are drawn from a
generator of each image, so they do not depend on the other images of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bit_paddle.models.detection.anchors import (
    NEGATIVE,
    PROPOSAL_MATCHING,
    AnchorShapes,
    Matching,
    map_sides,
    targets_of,
)
from bit_paddle.models.detection.boxes import areas
from bit_paddle.models.detection.cost import REGIONS, TRAINING_REGIONS
from bit_paddle.models.detection.detections import candidates, merged, nms

if TYPE_CHECKING:
    from paddle import Tensor

ANCHORS, PROPOSALS = 256, TRAINING_REGIONS  # of an image that have a loss

POSITIVE_ANCHORS, POSITIVE_PROPOSALS = 0.5, 0.25  # at most this share of them holds an object

BEST_OF_LEVEL = {True: 2000, False: 1000}  # candidates of a level, in training and else

OVERLAP = 0.7  # at which the worse of two candidates of a level is suppressed

MOST = REGIONS  # proposals of an image

# The true boxes are among the proposals, so each has a proposal that overlaps it by 1.
MATCHING = Matching(0.5, 0.5, best_takes_box=False)


def proposals_of(
    found: Tensor,
    anchors: Tensor,
    shapes: AnchorShapes,
    sides: tuple[int, int],
    shown: tuple[int, int],
    training: bool,
) -> np.ndarray:
    """Return at most `MOST` proposals [P, 4] of one image, without gradients, the best first.

    ``found`` [A, 5] are the logits and codes of the ``anchors`` [A, 4] of an image of ``sides``
    (height, width). Its part ``shown`` is no padding: proposals are cut there.
    """
    places = [rows * columns for rows, columns in map_sides(*sides, shapes.levels)]
    ends = np.cumsum(places) * shapes.per_place
    levels = []
    for level, (start, end) in enumerate(zip([0, *ends], ends)):
        part = found[int(start) : int(end)].detach()
        best = candidates(
            part[:, :1],
            part[:, 1:],
            anchors[int(start) : int(end)],
            *shown,
            most=BEST_OF_LEVEL[training],
        )
        levels.append(best._replace(classes=np.full(len(best.scores), level)))
    return nms(merged(levels), OVERLAP, MOST).boxes


class Samples(NamedTuple):
    """The boxes of an image that have a loss, positive and negative ones, and their aims.

    ``indices`` [S] are their places among all; ``boxes`` and ``codes`` are [S, 4], ``classes``
    int64 [S], or `NEGATIVE`. The codes of negative ones are 0.
    """

    indices: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    codes: np.ndarray


def sampled_anchors(boxes: np.ndarray, anchors: np.ndarray, random: np.random.Generator) -> Samples:
    """Return a random choice of the ``anchors`` [A, 4] of an image; 0 is the class of any object.

    ``boxes`` [N, 4] are the objects.
    """
    labels = np.zeros(len(boxes), np.int64)
    matching = PROPOSAL_MATCHING
    return _sampled(boxes, labels, anchors, matching, ANCHORS, POSITIVE_ANCHORS, random)


def sampled_proposals(
    boxes: np.ndarray, labels: np.ndarray, proposals: np.ndarray, random: np.random.Generator
) -> Samples:
    """Return a random choice of the ``proposals`` [P, 4] of an image and of the objects' boxes.

    ``boxes`` [N, 4] are the objects, ``labels`` [N] their classes.
    """
    every = np.concatenate([proposals, boxes.astype(proposals.dtype)])
    return _sampled(boxes, labels, every, MATCHING, PROPOSALS, POSITIVE_PROPOSALS, random)


def with_area(boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return only the boxes that have an area, and their labels: others have no code."""
    large = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(axis=1) & (areas(boxes) > 0)
    return boxes[large], labels[large]


def _sampled(
    boxes: np.ndarray,
    labels: np.ndarray,
    every: np.ndarray,
    matching: Matching,
    count: int,
    share: float,
    random: np.random.Generator,
) -> Samples:
    targets = targets_of(boxes.astype(every.dtype), labels, every, matching)
    positive = np.flatnonzero(targets.classes >= 0)
    negative = np.flatnonzero(targets.classes == NEGATIVE)
    positive = random.permutation(positive)[: int(count * share)]
    negative = random.permutation(negative)[: count - len(positive)]
    indices = np.concatenate([positive, negative])
    return Samples(indices, every[indices], targets.classes[indices], targets.codes[indices])


def joined(samples: Sequence[Samples]) -> Samples:
    """Return the samples of several images as one, in their order."""
    return Samples(*(np.concatenate(parts) for parts in zip(*samples)))
