"""A network without head that returns its feature maps, as a backbone for other tasks."""

from __future__ import annotations

from paddle import Tensor

from bit_paddle.models.architecture import STRIDES
from bit_paddle.models.layers import StdConv2D
from bit_paddle.models.network import Network
from bit_paddle.models.resnetv2 import ResNetV2


class Stages(Network):
    """The four feature maps of ``backbone``, for detectors and segmenters.

    ``stages(images)`` returns a list of maps [N, channels[k], H / strides[k], W / strides[k]]; odd
    sides are rounded up. The maps are sums before activation, or, if ``activated``, after the
    GroupNorm and ReLU that the network itself applies to them.
    """

    def __init__(self, backbone: ResNetV2, activated: bool = False):
        super().__init__()
        self.backbone, self.activated = backbone, activated
        self.channels, self.strides = backbone.architecture.channels, STRIDES

    def frozen_convolutions(self) -> list[StdConv2D]:
        return self.backbone.frozen_convolutions()

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.backbone.forward_stages(x, self.activated)
