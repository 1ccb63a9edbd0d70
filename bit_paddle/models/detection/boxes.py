"""Boxes: overlaps, and their code relative to anchors.

Boxes are [N, 4]: x1, y1, x2, y2 in pixels. A box of x1 = 0 and x2 = 2 is 2 pixels wide.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from paddle import Tensor

LARGEST_LOG_RATIO = math.log(1000 / 16)  # of a decoded side to its anchor's: exp stays finite


def areas(boxes: np.ndarray) -> np.ndarray:
    """Return the areas [N] of ``boxes`` [N, 4] in square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersection over union [N, M] of ``boxes`` [N, 4] and ``others`` [M, 4].

    Two boxes without area have an overlap of 0.
    """
    starts = np.maximum(boxes[:, None, :2], others[:, :2])
    ends = np.minimum(boxes[:, None, 2:], others[:, 2:])
    sides = (ends - starts).clip(0)
    shared = sides[..., 0] * sides[..., 1]
    union = areas(boxes)[:, None] + areas(others) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def encode(boxes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Return the code [N, 4] of ``boxes`` relative to ``anchors``; both must have an area.

    The code has the offset of the centre in sides of the anchor (x, y), and the logarithm of the
    ratio of the sides (width, height), as in Faster R-CNN (arXiv 1506.01497, section 3.1.2).
    """
    sides, anchor_sides = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
    offsets = (boxes[:, :2] - anchors[:, :2] + (sides - anchor_sides) / 2) / anchor_sides
    return np.concatenate([offsets, np.log(sides / anchor_sides)], axis=1)


def decode(codes: Tensor, anchors: Tensor) -> Tensor:
    """Return the boxes [..., 4] of ``codes`` [..., 4] relative to ``anchors`` [..., 4].

    This is the inverse of `encode` in Paddle, with gradients. A side is at most 62.5 sides of the
    anchor.
    """
    import paddle

    anchor_sides = anchors[..., 2:] - anchors[..., :2]
    centres = anchors[..., :2] + anchor_sides / 2 + codes[..., :2] * anchor_sides
    halves = paddle.exp(codes[..., 2:].clip(max=LARGEST_LOG_RATIO)) * anchor_sides / 2
    return paddle.concat([centres - halves, centres + halves], axis=-1)
