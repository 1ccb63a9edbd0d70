"""The losses of a detector: focal loss of the classes, Huber or GIoU loss of the boxes.

All are sums over the anchors, divided by a ``normalizer`` that the caller counts: the positive
anchors of the whole batch, plus 1. So the losses of the parts of a batch add up to its loss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from bit_paddle.models.detection.anchors import IGNORED
from bit_paddle.models.detection.boxes import decode
from bit_paddle.models.native import plain

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss; the paper names them

DELTA = 0.1  # where the Huber loss becomes linear


class Losses(NamedTuple):
    """The losses of the classes and of the boxes, [] each; their sum is the loss to minimize."""

    classes: Tensor
    boxes: Tensor


def losses(
    logits: Tensor,
    codes: Tensor,
    target_classes: Tensor,
    target_codes: Tensor,
    anchors: Tensor,
    normalizer: float,
    box_loss: str = "huber",
) -> Losses:
    """Return the losses of a detector's outputs, with gradients.

    The outputs are ``logits`` [N, A, K] and box ``codes`` [N, A, 4]. The targets [N, A] and
    [N, A, 4] are those of `anchors.targets_of`, for the same ``anchors`` [A, 4]. ``box_loss`` is a
    key of `BOX_LOSSES`.
    """
    boxes = BOX_LOSSES[box_loss]
    # One image after another: the intermediates of one take eight times the memory of its logits.
    images = zip(logits.unbind(), target_classes.unbind())
    return Losses(
        sum(focal(*image) for image in images) / normalizer,
        boxes.sum(codes, target_codes, target_classes >= 0, anchors) * (boxes.weight / normalizer),
    )


def focal(logits: Tensor, classes: Tensor, alpha: float = ALPHA, gamma: float = GAMMA) -> Tensor:
    """Return the sum [] of the focal losses (arXiv 1708.02002) over all anchors and classes.

    ``logits`` are [..., K], ``classes`` int64 [...]; a negative class means no class, and `IGNORED`
    no loss. Only the logits are saved for the gradients.
    """
    return plain.recompute(partial(_focal, classes=classes, alpha=alpha, gamma=gamma), logits)


def _focal(logits: Tensor, classes: Tensor, alpha: float, gamma: float) -> Tensor:
    classes = classes.unsqueeze(-1)
    right = classes == paddle.arange(logits.shape[-1])
    wrong_by = paddle.where(right, -logits, logits)  # its sigmoid is the probability of the error
    weights = alpha * right.astype(logits.dtype) + (1 - alpha) * (~right).astype(logits.dtype)
    weights = weights * (classes != IGNORED).astype(logits.dtype)
    modulator = paddle.exp(gamma * F.log_sigmoid(wrong_by))
    return (weights * modulator * -F.log_sigmoid(-wrong_by)).sum()


def huber(codes: Tensor, targets: Tensor, positive: Tensor, anchors: Tensor) -> Tensor:
    """Return the sum [] of the Huber losses of positive anchors, a mean over the 4 numbers of each.

    Numbers whose target is exactly 0 are left out, as in the code that the paper names.
    """
    errors = (codes - targets).abs() * (targets != 0).astype(codes.dtype)
    quadratic = errors.clip(max=DELTA)
    return (quadratic * (errors - quadratic / 2)).sum() / 4


def giou(codes: Tensor, targets: Tensor, positive: Tensor, anchors: Tensor) -> Tensor:
    """Return the sum [] of 1 - GIoU (arXiv 1902.09630) over the positive anchors."""
    boxes, others = decode(codes, anchors), decode(targets, anchors)
    shared = _area(
        paddle.maximum(boxes[..., :2], others[..., :2]),
        paddle.minimum(boxes[..., 2:], others[..., 2:]),
    )
    hull = _area(
        paddle.minimum(boxes[..., :2], others[..., :2]),
        paddle.maximum(boxes[..., 2:], others[..., 2:]),
    )
    union = _area(boxes[..., :2], boxes[..., 2:]) + _area(others[..., :2], others[..., 2:]) - shared
    generalized = shared / union - (hull - union) / hull
    return ((1 - generalized) * positive.astype(codes.dtype)).sum()


def _area(starts: Tensor, ends: Tensor) -> Tensor:
    sides = (ends - starts).clip(min=0)
    return sides[..., 0] * sides[..., 1]


class BoxLoss(NamedTuple):
    """A loss of boxes: its weight beside the focal loss, and its sum over the anchors."""

    weight: float
    sum: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


BOX_LOSSES = {"huber": BoxLoss(50.0, huber), "giou": BoxLoss(1.0, giou)}
