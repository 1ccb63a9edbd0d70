"""From a detector's outputs to its detections: decoding, the best, suppression, merged views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bit_paddle.models.detection.boxes import areas, decode, iou

if TYPE_CHECKING:
    from paddle import Tensor

CANDIDATES = 5000  # (anchor, class) pairs of an image that are decoded

OVERLAP = 0.5  # at which the lower of two boxes of a class is suppressed

MOST = 100  # detections of an image, as COCO's evaluation counts

SIGMA = 0.5  # of soft-NMS

LEAST = 1e-3  # a score that soft-NMS drops


class Detections(NamedTuple):
    """The detections of one image: boxes [D, 4] in its pixels, scores [D], classes int64 [D]."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def chosen(self, indices: np.ndarray) -> Detections:
        """Return only the detections of ``indices``."""
        return Detections(self.boxes[indices], self.scores[indices], self.classes[indices])


# --- One view -----------------------------------------------------------------------------------


def candidates(
    logits: Tensor,
    codes: Tensor,
    anchors: Tensor,
    height: float,
    width: float,
    most: int = CANDIDATES,
    softmax: bool = False,
) -> Detections:
    """Return the ``most`` likely (anchor, class) pairs of one image, the likeliest first.

    ``logits`` are [A, K], ``anchors`` [A, 4], and ``codes`` [A, 4], or [A, K, 4] if each class has
    its own. The probabilities are the sigmoids of the logits. With ``softmax`` the logits are
    [A, K + 1], and the last one stands for no object. Boxes are cut to an image of ``height`` x
    ``width`` pixels; those without area there, such as boxes in the padding, are left out.
    """
    import paddle
    import paddle.nn.functional as F

    logits = F.log_softmax(logits)[:, :-1] if softmax else logits
    flat = logits.flatten()
    best, places = paddle.topk(flat, min(most, flat.size))
    rows = places // logits.shape[1]
    of_pairs = places if codes.ndim == 3 else rows
    boxes = decode(
        paddle.gather(codes.reshape([-1, 4]), of_pairs), paddle.gather(anchors, rows)
    ).numpy()
    boxes = boxes.clip(0, np.array([width, height, width, height], boxes.dtype))
    classes = (places % logits.shape[1]).numpy()
    scores = paddle.exp(best) if softmax else F.sigmoid(best)
    every = Detections(boxes, scores.numpy(), classes)
    return every.chosen(np.flatnonzero(areas(boxes) > 0))


def merged(views: Sequence[Detections]) -> Detections:
    """Return the detections of all ``views`` of an image together, for a suppression.

    Their boxes must be in pixels of the image (`data.boxes.views.View.restored`).
    """
    return Detections(*(np.concatenate(parts) for parts in zip(*views)))


# --- Suppression --------------------------------------------------------------------------------


def nms(found: Detections, overlap: float = OVERLAP, most: int = MOST) -> Detections:
    """Return at most ``most`` detections, the best first.

    Of two of a class that overlap by more than ``overlap`` (IoU), only the better one stays.
    """
    import paddle
    from paddle.vision import ops

    def keep(one: Detections) -> tuple[np.ndarray, np.ndarray]:
        kept = ops.nms(paddle.to_tensor(one.boxes), overlap).numpy()
        return kept, one.scores[kept]

    return _by_class(found, keep, most)


def soft_nms(
    found: Detections, sigma: float = SIGMA, least: float = LEAST, most: int = MOST
) -> Detections:
    """Return at most ``most`` detections, the best first, with scores that overlaps have lowered.

    Each detection multiplies the scores of the lower ones of its class by exp(-IoU² / ``sigma``),
    as in arXiv 1704.04503; scores below ``least`` are dropped.
    """

    def keep(one: Detections) -> tuple[np.ndarray, np.ndarray]:
        scores, kept, kept_scores = one.scores.copy(), [], []
        while len(kept) < most and scores.max() >= least:
            best = scores.argmax()
            kept.append(best)
            kept_scores.append(scores[best])
            scores *= np.exp(-(iou(one.boxes[[best]], one.boxes)[0] ** 2) / sigma)
            scores[best] = -1  # and negative for good
        return np.array(kept, np.int64), np.array(kept_scores, scores.dtype)

    return _by_class(found, keep, most)


def _by_class(
    found: Detections, keep: Callable[[Detections], tuple[np.ndarray, np.ndarray]], most: int
) -> Detections:
    """Return what ``keep`` chooses (indices, scores) of each class, the best ``most`` of all."""
    found = found.chosen(np.argsort(-found.scores, kind="stable"))
    kept, scores = [np.zeros(0, np.int64)], [found.scores[:0]]
    for label in np.unique(found.classes):
        places = np.flatnonzero(found.classes == label)
        indices, new_scores = keep(found.chosen(places))
        kept.append(places[indices])
        scores.append(new_scores)
    every, every_score = np.concatenate(kept), np.concatenate(scores)
    order = np.lexsort((every, -every_score))[:most]
    return found.chosen(every[order])._replace(scores=every_score[order])
