"""Anchors of the pyramid's levels, and which of them must find a box.

There are two recipes by name. "tpu" is the code that the paper names (tensorflow/tpu,
models/official/retinanet: anchors.py, argmax_matcher.py); "detectron" is that of Detectron2, and of
the paper of RetinaNet (arXiv 1708.02002).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from bit_paddle.models.detection.boxes import encode, iou

LEVELS = range(3, 8)  # of RetinaNet's pyramid, P3 to P7; the stride of level l is 2^l

SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))  # of RetinaNet's anchors at one place

NEGATIVE, IGNORED = -1, -2  # anchors that must find nothing, and that have no loss


@dataclass(frozen=True)
class AnchorShapes:
    """The anchors at each place of the ``levels``: every aspect in every one of the ``scales``.

    ``aspects`` are factors of width and height. The first place of a level has its centre at
    ``offset`` strides. ``base`` is the side of the square anchor of scale 1 in strides.
    """

    aspects: tuple[tuple[float, float], ...]
    offset: float
    base: float = 4.0
    scales: tuple[float, ...] = SCALES
    levels: range = LEVELS

    @property
    def per_place(self) -> int:
        """The number of anchors at one place."""
        return len(self.scales) * len(self.aspects)

    def sides(self) -> np.ndarray:
        """Return the (width, height) of the anchors at one place in strides."""
        factors = [[scale * x, scale * y] for scale in self.scales for x, y in self.aspects]
        return self.base * np.array(factors)


SHAPES = {
    # 1.4 x 0.7 has 0.98 of the area of the square
    "tpu": AnchorShapes(((1.0, 1.0), (1.4, 0.7), (0.7, 1.4)), offset=0.5),
    "detectron": AnchorShapes(((2**0.5, 0.5**0.5), (1.0, 1.0), (0.5**0.5, 2**0.5)), offset=0.0),
}


PROPOSAL_LEVELS = range(2, 7)  # of Faster R-CNN's pyramid, P2 to P6


def for_proposals(shapes: AnchorShapes = SHAPES["detectron"]) -> AnchorShapes:
    """Return the anchors of Faster R-CNN's proposal network, in one scale.

    Its smallest square anchor is that of ``shapes`` in pixels: the finest stride is half as large.
    """
    return replace(shapes, base=2 * shapes.base, scales=(1.0,), levels=PROPOSAL_LEVELS)


@dataclass(frozen=True)
class Matching:
    """Overlaps (IoU) at which an anchor must find a box.

    An anchor is positive at an overlap of ``positive`` or more with its nearest box, negative below
    ``negative``, and ignored between. The best anchor of each box is positive in any case. If
    ``best_takes_box``, it must find that box; if two boxes share their best anchor, the first of
    them. Otherwise it must find its own nearest box, and anchors that are equally good count all.
    """

    positive: float
    negative: float
    best_takes_box: bool


MATCHINGS = {
    "tpu": Matching(0.5, 0.5, best_takes_box=True),
    "detectron": Matching(0.5, 0.4, best_takes_box=False),
}

PROPOSAL_MATCHING = Matching(0.7, 0.3, best_takes_box=False)  # of Faster R-CNN, by both recipes


class Targets(NamedTuple):
    """The aims of A anchors: classes int64 [A], `NEGATIVE` or `IGNORED`; box codes [A, 4].

    The codes of anchors without a box are 0.
    """

    classes: np.ndarray
    codes: np.ndarray


def map_sides(height: int, width: int, levels: range = LEVELS) -> list[tuple[int, int]]:
    """Return the (height, width) of each level's map, for an image of these sides in pixels."""
    return [(-(-height // 2**level), -(-width // 2**level)) for level in levels]


def anchors_of(
    height: int, width: int, shapes: AnchorShapes, dtype: type = np.float32
) -> np.ndarray:
    """Return the anchors [A, 4] of an image of these sides, as ``dtype``.

    The order is that of the heads' outputs: level, row, column, scale, aspect.
    """
    levels = []
    for level, (rows, columns) in zip(shapes.levels, map_sides(height, width, shapes.levels)):
        y, x = np.mgrid[:rows, :columns] + shapes.offset
        centres = np.stack([x, y], axis=-1)[:, :, None] * 2**level  # [rows, columns, 1, 2]
        halves = shapes.sides() * (2**level / 2)  # [per place, 2]
        levels.append(np.concatenate([centres - halves, centres + halves], axis=-1).reshape(-1, 4))
    return np.concatenate(levels).astype(dtype)


def reach(boxes: np.ndarray, height: int, width: int, shapes: AnchorShapes) -> np.ndarray:
    """Return the overlap (IoU) [N] of each of ``boxes`` with its best anchor, in an image's pixels.

    Anchors of one shape overlap the less, the farther they are in either direction. So only the
    nearest place of each level is looked at, and a million boxes take seconds.
    """
    best = np.zeros(len(boxes))
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    for level, (rows, columns) in zip(shapes.levels, map_sides(height, width, shapes.levels)):
        places = np.rint(centres / 2**level - shapes.offset).clip(0, [columns - 1, rows - 1])
        apart = np.abs(centres - (places + shapes.offset) * 2**level)
        for anchor in shapes.sides() * 2**level:
            ends = np.minimum(sides / 2, apart + anchor / 2) - np.maximum(
                -sides / 2, apart - anchor / 2
            )
            shared = ends.clip(0).prod(axis=1)
            union = sides.prod(axis=1) + anchor.prod() - shared
            best = np.maximum(best, shared / union)
    return best


def assign(boxes: np.ndarray, anchors: np.ndarray, matching: Matching) -> np.ndarray:
    """Return the index of the box [A] that each anchor must find, or `NEGATIVE`, or `IGNORED`.

    A box that overlaps no anchor, such as a box without area, is found by none.
    """
    best = np.zeros(len(anchors), anchors.dtype)
    nearest = np.full(len(anchors), NEGATIVE)
    forced: dict[int, int] = {}
    x1, y1, x2, y2 = np.ascontiguousarray(anchors.T)
    for number, box in enumerate(boxes):
        # Few of the 200,000 anchors of a large image touch a box: this is ten times as fast.
        touching = np.flatnonzero((x1 < box[2]) & (x2 > box[0]) & (y1 < box[3]) & (y2 > box[1]))
        overlaps = iou(box[None], anchors[touching])[0]
        better = overlaps > best[touching]
        best[touching[better]], nearest[touching[better]] = overlaps[better], number
        highest = overlaps.max(initial=0)
        if highest > 0:
            places = touching[overlaps == highest]
            for place in places[:1] if matching.best_takes_box else places:
                forced.setdefault(place, number)
    assigned = np.where(best < matching.positive, IGNORED, nearest)
    assigned[best < matching.negative] = NEGATIVE
    for place, number in forced.items():
        assigned[place] = number if matching.best_takes_box else nearest[place]
    return assigned


def targets_of(
    boxes: np.ndarray, labels: np.ndarray, anchors: np.ndarray, matching: Matching
) -> Targets:
    """Return the aims of ``anchors`` [A, 4] in an image with ``boxes`` [N, 4] of ``labels`` [N].

    Leave crowds out of the boxes: both recipes do, and take the anchors on them for negative.
    """
    assigned = assign(boxes, anchors, matching)
    positive = assigned >= 0
    classes, codes = assigned.copy(), np.zeros_like(anchors)
    classes[positive] = np.asarray(labels, np.int64)[assigned[positive]]
    codes[positive] = encode(boxes[assigned[positive]], anchors[positive])
    return Targets(classes, codes)
