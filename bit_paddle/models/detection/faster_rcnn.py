"""Faster R-CNN (arXiv 1506.01497) on a pyramid (1612.03144) on a BiT network.

Its numbers are those of Detectron2's base configuration (Base-RCNN-FPN), but that P6 is a
convolution of P5 instead of every second pixel of it, that every map has a GroupNorm, and that the
losses are divided by the most samples an image may have, instead of by how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from bit_paddle.models.detection import heads, proposals
from bit_paddle.models.detection.anchors import AnchorShapes, anchors_of, for_proposals
from bit_paddle.models.detection.boxes import areas
from bit_paddle.models.detection.cost import CHANNELS
from bit_paddle.models.detection.detections import Detections, candidates
from bit_paddle.models.detection.pyramid import Pyramid
from bit_paddle.models.detection.regions import regions
from bit_paddle.models.native import plain
from bit_paddle.models.network import dtype_of
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.models.stages import WithBackbone

LEVELS = range(2, 6)  # of the maps that regions are taken from, P2 to P5

CODE_WEIGHTS = np.array([10.0, 10, 5, 5])  # factors of the box head's codes

# A region of 224 pixels a side, as in the classification that networks are pre-trained on, is taken
# from P4 (arXiv 1612.03144, equation 1).
USUAL_SIDE, USUAL_LEVEL = 224, 4


class Losses(NamedTuple):
    """The losses of the anchors and of the proposals, [] each; their sum is to be minimized."""

    objectness: Tensor
    anchors: Tensor
    classes: Tensor
    boxes: Tensor


class FasterRCNN(WithBackbone):
    """A detector of ``classes`` classes in two stages on ``backbone``, a network without head.

    Images are [N, 3, H, W], RGB in [-1, 1]. ``regions`` is one of `regions.METHODS`. All parameters
    but those of the backbone start from random numbers that depend only on their names and
    ``seed``.
    """

    def __init__(
        self,
        backbone: ResNetV2,
        classes: int,
        *,
        channels: int = CHANNELS,
        shapes: AnchorShapes | None = None,
        regions: str = "align",
        seed: int = 0,
    ):
        super().__init__(backbone)
        self.classes, self.regions = classes, regions
        self.shapes = for_proposals() if shapes is None else shapes
        self.pyramid = Pyramid(backbone.architecture.channels, channels)
        self.proposal_head = heads.ProposalHead(channels, self.shapes.per_place)
        self.box_head = heads.BoxHead(channels, classes)
        self.reset_heads(seed)
        self.compute_with(backbone.operators)

    def reset_heads(self, seed: int = 0) -> None:
        """Set random weights everywhere but in the backbone."""
        deviations = {
            "proposal_head.objectness": 0.01,
            "proposal_head.codes": 0.01,
            "box_head.classes": 0.01,
            "box_head.codes": 0.001,
        }
        heads.reset(self, seed, deviations)
        self._fold()

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the maps of `LEVELS` [N, C, h, w], and the proposal head's output [N, A, 5]."""
        maps = self.pyramid(self.backbone.stages(images, activated=True))
        if self.training and self.recompute != "off":
            found = plain.recompute(self.proposal_head, *maps)
        else:
            found = self.proposal_head(*maps)
        maps = [self.backbone.operators.leave(x) for x in maps[: len(LEVELS)]]
        return [x.astype("float32") if x.dtype in plain.HALF else x for x in maps], found

    def losses(
        self,
        images: Tensor,
        boxes: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        shown: Sequence[tuple[int, int]],
        seeds: Sequence[int],
        normalizer: float,
    ) -> Losses:
        """Return the losses of ``images`` with gradients.

        ``boxes`` [n, 4] and ``labels`` [n] are the objects of each image, without crowds, in its
        pixels; boxes without area are left out. ``shown`` are the (height, width) of each image
        that are no padding. Each seed chooses the samples of its image. ``normalizer`` is the
        number of images in the whole batch; so the losses of its parts add up to its loss.
        """
        objects = [proposals.with_area(*one) for one in zip(boxes, labels)]
        randoms = [np.random.default_rng(seed) for seed in seeds]
        maps, found = self(images)
        anchors = self._anchors(images, found)
        chosen = [
            proposals.sampled_anchors(one, anchors, random)
            for (one, _), random in zip(objects, randoms)
        ]
        anchor_losses = _anchor_losses(found, chosen)
        proposed = self._proposals(images, found, anchors, shown)
        samples = [
            proposals.sampled_proposals(*one, *rest)
            for one, *rest in zip(objects, proposed, randoms)
        ]
        box_losses = self._box_losses(maps, samples)
        sums = [one / (proposals.ANCHORS * normalizer) for one in anchor_losses]
        sums += [one / (proposals.PROPOSALS * normalizer) for one in box_losses]
        return Losses(*sums)

    def candidates(self, images: Tensor, shown: Sequence[tuple[int, int]]) -> list[Detections]:
        """Return the detections in each of ``images`` [N, 3, H, W] before any suppression.

        ``shown`` are the (height, width) of each image that are no padding: boxes are cut there.
        """
        maps, found = self(images)
        proposed = self._proposals(images, found, self._anchors(images, found), shown)
        ends = np.cumsum([len(one) for one in proposed])
        logits, codes = self._regarded(maps, proposed)
        codes = codes / paddle.to_tensor(CODE_WEIGHTS, codes.dtype)
        detections = []
        for one, size, end in zip(proposed, shown, ends.tolist()):
            part = slice(end - len(one), end)
            placed = paddle.to_tensor(one)
            detections.append(candidates(logits[part], codes[part], placed, *size, softmax=True))
        return detections

    def _anchors(self, images: Tensor, found: Tensor) -> np.ndarray:
        return anchors_of(*images.shape[2:], self.shapes, np.dtype(dtype_of(found)))

    @paddle.no_grad()
    def _proposals(
        self,
        images: Tensor,
        found: Tensor,
        anchors: np.ndarray,
        shown: Sequence[tuple[int, int]],
    ) -> list[np.ndarray]:
        """Return the proposals [P, 4] of each image; without any, the whole of what is shown."""
        sides, placed = tuple(images.shape[2:]), paddle.to_tensor(anchors)
        proposed = [
            proposals.proposals_of(one, placed, self.shapes, sides, size, self.training)
            for one, size in zip(found, shown)
        ]
        whole = [np.array([[0, 0, width, height]], anchors.dtype) for height, width in shown]
        return [one if len(one) else other for one, other in zip(proposed, whole)]

    def _regarded(
        self, maps: Sequence[Tensor], boxes: Sequence[np.ndarray]
    ) -> tuple[Tensor, Tensor]:
        """Return the box head's outputs for the ``boxes`` [R_n, 4] of each image, in order."""
        levels = [levels_of(one) for one in boxes]
        parts = [
            regions(
                x,
                [one[at == level] for one, at in zip(boxes, levels)],
                2**level,
                self.regions,
            )
            for level, x in zip(LEVELS, maps)
            if any((at == level).any() for at in levels)
        ]
        places = paddle.to_tensor(np.argsort(np.argsort(np.concatenate(levels), kind="stable")))
        logits, codes = self.box_head(paddle.concat(parts))
        return paddle.gather(logits, places), paddle.gather(codes, places)

    def _box_losses(
        self, maps: Sequence[Tensor], samples: Sequence[proposals.Samples]
    ) -> tuple[Tensor, Tensor]:
        """Return the sums over all samples of the losses of their classes and of their boxes."""
        logits, codes = self._regarded(maps, [one.boxes for one in samples])
        every = proposals.joined(samples)
        positive = every.classes >= 0
        classes = paddle.to_tensor(np.where(positive, every.classes, self.classes))
        rows = np.arange(len(positive)) * self.classes + every.classes.clip(0)
        codes = paddle.gather(codes.reshape([-1, 4]), paddle.to_tensor(rows))
        targets = every.codes * CODE_WEIGHTS
        return (
            F.cross_entropy(logits, classes, reduction="sum"),
            _absolute(codes, targets, positive),
        )


def levels_of(boxes: np.ndarray) -> np.ndarray:
    """Return for each of ``boxes`` [R, 4] which of `LEVELS` its region is taken from, int64 [R]."""
    sides = np.sqrt(areas(boxes))
    levels = np.floor(USUAL_LEVEL + np.log2(sides / USUAL_SIDE + 1e-8))
    return levels.clip(LEVELS[0], LEVELS[-1]).astype(np.int64)


def _anchor_losses(found: Tensor, samples: Sequence[proposals.Samples]) -> tuple[Tensor, Tensor]:
    """Return the sums over the sampled anchors of the losses of their logits and of their boxes."""
    per_image = found.shape[1]
    places = [number * per_image + one.indices for number, one in enumerate(samples)]
    rows = paddle.gather(found.reshape([-1, 5]), paddle.to_tensor(np.concatenate(places)))
    every = proposals.joined(samples)
    positive = every.classes >= 0
    targets = paddle.to_tensor(positive.astype(dtype_of(rows)))
    objectness = F.binary_cross_entropy_with_logits(rows[:, 0], targets, reduction="sum")
    return objectness, _absolute(rows[:, 1:], every.codes, positive)


def _absolute(codes: Tensor, targets: np.ndarray, positive: np.ndarray) -> Tensor:
    """Return the sum [] of the absolute errors of the positive ``codes`` [S, 4]."""
    errors = (codes - paddle.to_tensor(targets, codes.dtype)).abs()
    return (errors * paddle.to_tensor(positive[:, None], codes.dtype)).sum()
