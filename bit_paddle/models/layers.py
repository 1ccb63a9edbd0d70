"""The layers of `resnetv2`, in the order of the data flow.

Activations are [N, C, H, W], kernels [O, I, H, W]. ``operators`` of a layer is `native.plain`, or
an object with its functions.
"""

from __future__ import annotations

from typing import Any

import paddle
from paddle import Tensor, nn

from bit_paddle.models.architecture import GROUPS
from bit_paddle.models.native import plain

# A checkpoint or `ResNetV2.reset_parameters` fills the parameters.
ZEROS = nn.initializer.Constant(0.0)


class StdConv2D(nn.Layer):
    """A convolution without bias; its kernel is standardized first."""

    operators: Any = plain

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.stride = stride
        self.weight = self.create_parameter(
            [out_channels, in_channels, kernel_size, kernel_size], default_initializer=ZEROS
        )
        self.standardized: Tensor | None = None  # set within Network.standardized_once
        self.folded: Tensor | None = None  # of inference and of frozen parts, without gradients

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        kernel = self.standardized
        if kernel is None and not paddle.is_grad_enabled():
            kernel = self.folded
        if kernel is None:
            kernel = self.operators.standardize(self.weight)
        return self.operators.convolve(x, kernel, self.stride, residual)


class GroupNormReLU(nn.GroupNorm):
    """GroupNorm, then ReLU."""

    operators: Any = plain

    def __init__(self, channels: int):
        super().__init__(GROUPS, channels, epsilon=plain.NORM_EPSILON)

    def forward(
        self, x: Tensor, twice: bool = False, beside: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the activated ``x``.

        ``twice`` returns the result twice, for two users; ``beside`` returns the result and ``x``.
        In both cases the gradients of the two users are added.
        """
        if twice:
            return self.operators.norm_relu_twice(x, self)
        return (self.operators.norm_relu_beside if beside else self.operators.norm_relu)(x, self)


class RootBlock(nn.Layer):
    """A convolution and a pool, both with stride 2: [N, 3, H, W] to about [N, C, H/4, W/4]."""

    operators: Any = plain

    def __init__(self, channels: int):
        super().__init__()
        self.conv = StdConv2D(3, channels, kernel_size=7, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.operators.pool(self.conv(x))


class PreActivationConv(nn.Layer):
    """GroupNorm, ReLU, convolution."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.norm = GroupNormReLU(in_channels)
        self.conv = StdConv2D(in_channels, out_channels, kernel_size, stride)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.conv(self.norm(x), residual)


class Projection(nn.Layer):
    """The 1x1 convolution of a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv = StdConv2D(in_channels, out_channels, kernel_size=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Bottleneck(nn.Layer):
    """A residual unit: convolutions ``a`` 1x1, ``b`` 3x3 with the stride, ``c`` 1x1, a shortcut."""

    def __init__(self, in_channels: int, middle: int, stride: int, project: bool):
        super().__init__()
        if project:
            self.proj = Projection(in_channels, 4 * middle, stride)
        self.project = project
        self.a = PreActivationConv(in_channels, middle, kernel_size=1)
        self.b = PreActivationConv(middle, middle, kernel_size=3, stride=stride)
        self.c = PreActivationConv(middle, 4 * middle, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.project:  # the projection takes the activated input
            return self._after_norm(*self.a.norm(x, twice=True))
        return self._after_norm(*self.a.norm(x, beside=True))

    def of_activated(self, x: Tensor) -> Tensor:
        """Return the output for an input that ``a.norm`` has activated already."""
        return self._after_norm(x, x)

    def _after_norm(self, activated: Tensor, shortcut: Tensor) -> Tensor:
        if self.project:
            shortcut = self.proj(shortcut)
        return self.c(self.b(self.a.conv(activated)), shortcut)
