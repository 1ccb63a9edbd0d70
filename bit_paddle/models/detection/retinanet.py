"""RetinaNet (arXiv 1708.02002) on a BiT network, as section 3.7 of the paper (1912.11370) has it.

The heads are those of the code that the paper names, with GroupNorm and weight standardization in
place of its batch norm: two towers of four convolutions, shared by the levels, while the norms of
each level are its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import paddle
from paddle import Tensor, nn

from bit_paddle.models.detection import heads
from bit_paddle.models.detection.anchors import LEVELS, SHAPES, AnchorShapes, anchors_of
from bit_paddle.models.detection.cost import CHANNELS, DEPTH
from bit_paddle.models.detection.detections import Detections, candidates
from bit_paddle.models.detection.pyramid import BiasedConv2D, Pyramid
from bit_paddle.models.layers import GroupNormReLU, StdConv2D
from bit_paddle.models.native import plain
from bit_paddle.models.network import dtype_of
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.models.stages import WithBackbone

PRIOR = 0.01  # probability of each class at each anchor before training


class Tower(nn.Layer):
    """``depth`` convolutions, and one that predicts ``size`` numbers for every anchor."""

    def __init__(self, channels: int, depth: int, per_place: int, size: int):
        super().__init__()
        self.size = size
        self.conv = nn.LayerList([StdConv2D(channels, channels, 3) for _ in range(depth)])
        self.norm = nn.LayerList(
            [nn.LayerList([GroupNormReLU(channels) for _ in range(depth)]) for _ in LEVELS]
        )
        self.predict = BiasedConv2D(channels, per_place * size, 3)

    def forward(self, *maps: Tensor) -> Tensor:
        """Return the predictions [N, A, size] of the pyramid's ``maps``; float32 of half ones."""
        found = []
        for x, norms in zip(maps, self.norm):
            for conv, norm in zip(self.conv, norms):
                x = norm(conv(x))
            x = x.astype("float32") if x.dtype in plain.HALF else x
            found.append(self.predict.operators.rows(self.predict(x), self.size))
        return paddle.concat(found, axis=1)


class RetinaNet(WithBackbone):
    """A detector of ``classes`` classes on ``backbone``, a network without head.

    ``detector(images)`` returns logits [N, A, classes] and box codes [N, A, 4] of the anchors
    (`anchors.anchors_of`); images are [N, 3, H, W], RGB in [-1, 1]. All parameters but those of the
    backbone start from random numbers that depend only on their names and ``seed``.
    """

    def __init__(
        self,
        backbone: ResNetV2,
        classes: int,
        *,
        channels: int = CHANNELS,
        depth: int = DEPTH,
        shapes: AnchorShapes = SHAPES["tpu"],
        p6_from_c5: bool = False,
        seed: int = 0,
    ):
        super().__init__(backbone)
        self.classes, self.shapes = classes, shapes
        self.pyramid = Pyramid(backbone.architecture.channels[1:], channels, p6_from_c5)
        self.class_tower = Tower(channels, depth, shapes.per_place, classes)
        self.box_tower = Tower(channels, depth, shapes.per_place, 4)
        self.reset_heads(seed)
        self.compute_with(backbone.operators)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.pyramid(self.backbone.stages(images, activated=True, skip=1))
        if self.training and self.recompute != "off":
            # A whole tower at once: its levels share kernels, and thus a part of the graph.
            return tuple(plain.recompute(one, *maps) for one in (self.class_tower, self.box_tower))
        return self.class_tower(*maps), self.box_tower(*maps)

    def candidates(self, images: Tensor, shown: Sequence[tuple[int, int]]) -> list[Detections]:
        """Return the detections in each of ``images`` [N, 3, H, W] before any suppression.

        ``shown`` are the (height, width) of each image that are no padding: boxes are cut there.
        """
        logits, codes = self(images)
        anchors = anchors_of(*images.shape[2:], self.shapes, dtype_of(logits))
        placed = paddle.to_tensor(anchors)
        return [candidates(*one, placed, *size) for *one, size in zip(logits, codes, shown)]

    def reset_heads(self, seed: int = 0) -> None:
        """Set random weights everywhere but in the backbone."""
        prior = -math.log((1 - PRIOR) / PRIOR)
        deviations = {"class_tower.predict": 0.01, "box_tower.predict": 0.01}
        heads.reset(self, seed, deviations, {"class_tower.predict": prior})
        self._fold()
