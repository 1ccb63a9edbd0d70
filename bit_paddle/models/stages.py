"""Networks around a ResNetV2 as their backbone, and the simplest: its feature maps."""

from __future__ import annotations

from paddle import Tensor

from bit_paddle.models.architecture import STRIDES, Architecture
from bit_paddle.models.layers import StdConv2D
from bit_paddle.models.network import Network
from bit_paddle.models.resnetv2 import ResNetV2


class WithBackbone(Network):
    """A network around ``backbone``, a `ResNetV2` without head, whose settings are its own."""

    def __init__(self, backbone: ResNetV2):
        super().__init__()
        self.backbone = backbone

    num_classes = 0  # outputs of the backbone's head: it has none

    @property
    def architecture(self) -> Architecture:
        return self.backbone.architecture

    @property
    def amp(self) -> str:
        return self.backbone.amp

    @amp.setter
    def amp(self, amp: str) -> None:
        self.backbone.amp = amp

    @property
    def recompute(self) -> str:
        return self.backbone.recompute

    @recompute.setter
    def recompute(self, recompute: str) -> None:
        self.backbone.recompute = recompute

    @property
    def frozen(self) -> tuple[str, ...]:
        """The names of the backbone's parts that do not learn."""
        return self.backbone.frozen

    def learn_only(self, learn: str) -> None:
        """Freeze the first parts of the backbone; "head" freezes all of it."""
        self.backbone.learn_only(learn)

    def frozen_convolutions(self) -> list[StdConv2D]:
        return self.backbone.frozen_convolutions()


class Stages(WithBackbone):
    """The four feature maps of ``backbone``, for detectors and segmenters.

    ``stages(images)`` returns a list of maps [N, channels[k], H / strides[k], W / strides[k]]; odd
    sides are rounded up. The maps are sums before activation, or, if ``activated``, after the
    GroupNorm and ReLU that the network itself applies to them.
    """

    def __init__(self, backbone: ResNetV2, activated: bool = False):
        super().__init__(backbone)
        self.activated = activated
        self.channels, self.strides = backbone.architecture.channels, STRIDES

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.backbone.forward_stages(x, self.activated)
