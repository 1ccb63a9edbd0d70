"""The layers of `resnetv2`, in the order of the data flow.

Activations are [N, C, H, W], kernels [O, I, H, W]. ``operators`` of a layer is `native.plain`, or
an object with its functions.
"""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from bit_paddle.models import heads
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
            ahead = not self.training and self.operators.STANDARDIZES_AHEAD
            if self.folded is None and ahead:
                self.folded = self.operators.standardize(self.weight)
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

    def in_order(self) -> list[Tensor]:
        """Return the parameters in the order of the data, see `native.plain.prepare`."""
        parameters: list[Tensor] = []
        for part in (self.a, self.b, self.c):
            parameters += [part.norm.weight, part.norm.bias]
            if self.project and part is self.a:
                parameters.append(self.proj.conv.weight)
            parameters.append(part.conv.weight)
        return parameters

    def of_activated(self, x: Tensor) -> Tensor:
        """Return the output for an input that ``a.norm`` has activated already."""
        return self._after_norm(x, x)

    def _after_norm(self, activated: Tensor, shortcut: Tensor) -> Tensor:
        if self.project:
            shortcut = self.proj(shortcut)
        return self.c(self.b(self.a.conv(activated)), shortcut)


# --- Heads --------------------------------------------------------------------------------------

# Each has `pool`, without parameters, which belongs to the frozen parts if all but the head is
# frozen; `joined`, which makes the input of the last layer; and `linear`, the last layer.


class LinearHead(nn.Linear):
    """The paper's head: the mean over the image, then a linear layer."""

    operators: Any = plain

    def __init__(self, features: int, classes: int):
        super().__init__(features, classes, ZEROS, ZEROS)

    @property
    def linear(self) -> nn.Linear:
        return self

    def pool(self, last: Tensor) -> Tensor:
        """Return what the head takes of the last stage after its norm."""
        return self.operators.average(last)

    def joined(self, pooled: Tensor) -> Tensor:
        """Return the input [N, inputs] of the last layer, of a result of `pool`."""
        return pooled

    def maps(self, last: Tensor) -> Tensor:
        """Return maps [N, inputs, h, w] whose averages are the input of the last layer."""
        return self.operators.leave(last)


class MaxMeanHead(nn.Layer):
    """The maximum and the mean over the image, joined, then a linear layer."""

    operators: Any = plain

    def __init__(self, head: str, features: int, classes: int):
        super().__init__()
        self._last = heads.last_name(head)
        last = nn.Linear(heads.inputs(head, features), classes, ZEROS, ZEROS)
        self.add_sublayer(self._last, last)

    @property
    def linear(self) -> nn.Linear:
        return getattr(self, self._last)

    def pool(self, last: Tensor) -> Tensor:
        return paddle.concat([self.operators.maximum(last), self.operators.average(last)], axis=1)

    def joined(self, *pooled: Tensor) -> Tensor:
        return pooled[0]

    def forward(self, *pooled: Tensor) -> Tensor:
        return self.linear(self.joined(*pooled))

    def maps(self, last: Tensor) -> Tensor:
        """Return maps as `LinearHead` does; a maximum stands where it is, times all places."""
        last = self.operators.leave(last)
        last = last.astype("float32") if last.dtype in plain.HALF else last
        flat = last.flatten(2)
        places = flat.shape[2]
        peaks = flat * F.one_hot(flat.argmax(axis=2), places).astype(flat.dtype) * places
        return paddle.concat([peaks.reshape(last.shape), last], axis=1)


class ConvHead(MaxMeanHead):
    """A 1x1 convolution, GroupNorm and ReLU, then the mean and a linear layer.

    The kernel is standardized as all others are. Without the norm, its results would be as large as
    the square root of its inputs; without ReLU, the two linear layers would be one.
    """

    def __init__(self, head: str, features: int, classes: int):
        super().__init__(head, features, classes)
        self.projection = ConvNorm(features, heads.channels_of(head))

    def pool(self, last: Tensor) -> Tensor:
        return last

    def joined(self, *pooled: Tensor) -> Tensor:
        return self.operators.average(self.projection(pooled[0]))

    def maps(self, last: Tensor) -> Tensor:
        return self.operators.leave(self.projection(last))


class ConvNorm(nn.Layer):
    """Convolution 1x1, GroupNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = StdConv2D(in_channels, out_channels, kernel_size=1)
        self.norm = GroupNormReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class LocalHead(MaxMeanHead):
    """`MaxMeanHead`, joined with a weighted mean of stage 3, whose places are twice as fine.

    The weights are an attention over these places: the softmax of a score that is linear in the
    activations of stage 3 and in those of the last stage, upsampled (nearest neighbour).
    """

    def __init__(self, head: str, features: int, classes: int):
        super().__init__(head, features, classes)
        for stage, channels in (("3", features // 2), ("4", features)):
            score = nn.Conv2D(channels, 1, 1, weight_attr=ZEROS, bias_attr=False)
            self.add_sublayer(f"attention{stage}", score)

    def attention(self, third: Tensor, last: Tensor) -> Tensor:
        """Return the weights [N, 1, h, w] of the places of stage 3; their sum is 1."""
        third, last = self._wide(third), self._wide(last)
        return self._weights(third, last).reshape([third.shape[0], 1, *third.shape[2:]])

    def joined(self, *pooled: Tensor) -> Tensor:
        third, last = map(self._wide, pooled)
        weights = self._weights(third, last).transpose([0, 2, 1])
        attended = paddle.matmul(third.flatten(2), weights).squeeze(2)
        return paddle.concat([self.pool(pooled[1]), attended], axis=1)

    def _weights(self, third: Tensor, last: Tensor) -> Tensor:
        """Return `attention` as [N, 1, h w], of maps [N, C, H, W]."""
        shape = third.shape if paddle.in_dynamic_mode() else paddle.shape(third)
        # Not F.interpolate: in an exported model, oneDNN does not take its attributes (3.3.1).
        square = paddle.ones([1, 1, 2, 2], last.dtype)
        upsampled = F.conv2d_transpose(self.attention4(last), square, stride=2)
        scores = self.attention3(third) + upsampled[:, :, : shape[2], : shape[3]]
        return F.softmax(scores.flatten(2), axis=2)

    def _wide(self, x: Tensor) -> Tensor:
        """Return ``x`` as [N, C, H, W], and in float32 if it is in half precision."""
        x = self.operators.leave(x)
        return x.astype("float32") if x.dtype in plain.HALF else x


def head_of(head: str, features: int, classes: int) -> nn.Layer:
    """Return the layer of a kind of head, see `heads`."""
    if head == heads.LINEAR:
        return LinearHead(features, classes)
    kinds = {heads.MAX_MEAN: MaxMeanHead, heads.LOCAL: LocalHead}
    return kinds.get(head, ConvHead)(head, features, classes)
