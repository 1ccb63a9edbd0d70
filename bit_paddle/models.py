"""ResNetV2 with GroupNorm and weight standardization, as Big Transfer trains it (arXiv 1912.11370).

Activations are [N, C, H, W], kernels [O, I, H, W]. Written in the order in which data flows.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.autograd import PyLayer

from bit_paddle.architecture import GROUPS, Architecture

STANDARDIZATION_EPSILON = 1e-10  # timm and Hugging Face use 1e-8
NORM_EPSILON = 1e-5
AMP = {"fp16": paddle.float16, "bf16": paddle.bfloat16}  # of activations between the layers
_ZEROS = nn.initializer.Constant(
    0.0
)  # parameters are filled from a checkpoint or by `reset_parameters`


def in_float32(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return ``function(*inputs)`` in their precision, computed in float32 where that is half."""
    dtype = inputs[0].dtype
    if dtype not in AMP.values():
        return function(*inputs)
    return function(*(one.astype("float32") for one in inputs)).astype(dtype)


def as_tensor_cores(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return ``function(*inputs)`` in their precision, on any device.

    Paddle has no such kernels in half precision for a CPU. There the sums are made in float32, as
    those of a tensor core are, and the result is rounded: no faster, but the same arithmetic.
    """
    half = inputs[0].dtype in AMP.values()
    if half and inputs[0].place.is_cpu_place():
        return in_float32(function, *inputs)
    return function(*inputs)


class _Recomputed(PyLayer):
    """``function(x)``, of which a backward pass keeps ``x`` alone and computes the rest again.

    Paddle's own `recompute` does that too; but Paddle never frees what it hands to a layer whose
    backward pass fails, and here that fails where memory runs out, to be tried again with less.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        output = function(x)
        ctx.x, ctx.function = x, function  # last: Paddle never frees the ctx of what fails
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, ctx.x = ctx.x.detach(), None
        x.stop_gradient = False
        try:
            with paddle.enable_grad():
                output = ctx.function(x)
            paddle.autograd.backward([output], [gradient])
        except Exception:
            gradient._clear_data()
            raise
        return x.grad


def recompute(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``function(x)``, keeping only ``x`` for the gradients where they are wanted."""
    return _Recomputed.apply(x, function) if paddle.is_grad_enabled() else function(x)


def standardize(weight: Tensor) -> Tensor:
    """Return ``weight`` [O, I, H, W] with mean 0 and variance 1 over each output's [I, H, W].

    One fused operation instead of the four of its formula, (w - mean) / sqrt(var +
    1e-10) with the biased variance. The epsilon underflows in half precision, so that is widened
    to float32.
    """
    if weight.dtype in AMP.values():
        weight = weight.astype("float32")
    flat = weight.reshape([1, weight.shape[0], -1])
    return F.instance_norm(flat, eps=STANDARDIZATION_EPSILON).reshape(weight.shape)


class StdConv2D(nn.Layer):
    """Convolution without bias, whose kernel is standardized first."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.stride, self.padding = stride, kernel_size // 2
        self.weight = self.create_parameter(
            [out_channels, in_channels, kernel_size, kernel_size], default_initializer=_ZEROS
        )
        self.standardized: Tensor | None = None  # set within ResNetV2.standardized_once

    def forward(self, x: Tensor) -> Tensor:
        kernel = standardize(self.weight) if self.standardized is None else self.standardized
        convolve = partial(F.conv2d, stride=self.stride, padding=self.padding)
        return as_tensor_cores(convolve, x, kernel.astype(x.dtype))


class GroupNormReLU(nn.GroupNorm):
    """GroupNorm, then ReLU."""

    def __init__(self, channels: int):
        super().__init__(GROUPS, channels, epsilon=NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in AMP.values():  # float32 inside, of which nothing is kept for the gradients
            return recompute(partial(in_float32, self._forward), x)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        return F.relu(self._scaled_by_hand(x) if self._loses_gradients(x) else super().forward(x))

    def _loses_gradients(self, x: Tensor) -> bool:
        """Whether Paddle's kernel would miss the gradient of a scale.

        That of a CPU takes the normalized input from (output - bias) / scale, so it finds nothing
        for a scale of zero, and rounding errors for one that is small beside its bias.
        """
        if not (self.training and x.place.is_cpu_place()):
            return False
        return bool((self.weight.abs() <= 1e-3 * self.bias.abs()).any())

    def _scaled_by_hand(self, x: Tensor) -> Tensor:
        normalized = F.instance_norm(x.reshape([x.shape[0], GROUPS, -1]), eps=NORM_EPSILON)
        scale, bias = self.weight.reshape([-1, 1, 1]), self.bias.reshape([-1, 1, 1])
        return normalized.reshape(x.shape) * scale + bias


class RootBlock(nn.Layer):
    """Strides 2 and 2: [N, 3, H, W] to about [N, C, H/4, W/4]."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = StdConv2D(3, channels, kernel_size=7, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return in_float32(self._pool, self.conv(x))  # not every GPU build pools bf16

    def _pool(self, x: Tensor) -> Tensor:
        x = F.pad(x, [1, 1, 1, 1])  # zeros compete in the pool; max_pool2d's padding would not
        return F.max_pool2d(x, kernel_size=3, stride=2)


class PreActivationConv(nn.Layer):
    """GroupNorm, ReLU, convolution."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.norm = GroupNormReLU(in_channels)
        self.conv = StdConv2D(in_channels, out_channels, kernel_size, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


class Projection(nn.Layer):
    """The 1x1 convolution of a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv = StdConv2D(in_channels, out_channels, kernel_size=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Bottleneck(nn.Layer):
    """Convolutions ``a`` 1x1, ``b`` 3x3 with the stride, ``c`` 1x1, around a shortcut."""

    def __init__(self, in_channels: int, middle: int, stride: int, project: bool):
        super().__init__()
        if project:
            self.proj = Projection(in_channels, 4 * middle, stride)
        self.project = project
        self.a = PreActivationConv(in_channels, middle, kernel_size=1)
        self.b = PreActivationConv(middle, middle, kernel_size=3, stride=stride)
        self.c = PreActivationConv(middle, 4 * middle, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.a.norm(x)
        shortcut = (
            self.proj(activated) if self.project else x
        )  # the projection sees the activated input
        return as_tensor_cores(paddle.add, self.c(self.b(self.a.conv(activated))), shortcut)


class ResNetV2(nn.Layer):
    """The network of ``architecture`` with a linear head of ``num_classes`` outputs (0: no head).

    ``model(images)`` gives logits [N, num_classes], or the features [N, C] without a head; images
    are [N, 3, H, W], RGB in [-1, 1], of any size from 32 x 32 on. Kernels are zero until
    `reset_parameters` or a checkpoint fills them. Where ``recompute`` is "unit" or "block",
    training keeps the inputs of these alone and computes what is inside again for the gradients,
    bit for bit: more time for less memory. Where ``amp`` is "fp16" or "bf16", training rounds to
    that what goes from layer to layer, and what convolutions multiply; standardization,
    GroupNorm, sums, pooling over the image and the head are float32, as are the parameters and
    their gradients.
    """

    def __init__(self, architecture: Architecture, num_classes: int = 0):
        super().__init__()
        self.architecture, self.num_classes = architecture, num_classes
        self.recompute = "off"  # or "unit" or "block": what of it is computed again for gradients
        self.amp = "off"  # or a key of AMP
        channels = architecture.root_channels
        self.root_block = RootBlock(channels)
        for block, units in enumerate(architecture.units):
            middle = architecture.root_channels * 2**block
            layers = nn.Sequential()
            for unit in range(units):
                stride = 2 if block > 0 and unit == 0 else 1
                layers.add_sublayer(
                    f"unit{unit + 1:02d}", Bottleneck(channels, middle, stride, project=unit == 0)
                )
                channels = 4 * middle
            self.add_sublayer(f"block{block + 1}", layers)
        self.norm = GroupNormReLU(channels)
        if num_classes:
            self.head = nn.Linear(channels, num_classes, weight_attr=_ZEROS, bias_attr=_ZEROS)

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of the four blocks, at strides 4, 8, 16 and 32, not activated."""
        stages = []
        if self.training and self.amp != "off":
            x = x.astype(AMP[self.amp])
        x = self.root_block(x)  # [N, 64 w, H/4, W/4]
        for block in (self.block1, self.block2, self.block3, self.block4):
            for part in block if self.recompute == "unit" else [block]:
                again = self.training and self.recompute != "off"
                x = recompute(part, x) if again else part(x)
            stages.append(x)  # [N, 256 w, H/4, W/4] … [N, 2048 w, H/32, W/32]
        return stages

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the pre-logits [N, C]: the last stage, activated and averaged over space."""
        x = self.norm(self.forward_stages(x)[-1])
        if x.dtype in AMP.values():
            x = x.astype("float32")
        return x.mean(axis=[2, 3])

    def forward(self, x: Tensor) -> Tensor:
        features = self.forward_features(x)
        return self.head(features) if self.num_classes else features

    @contextmanager
    def standardized_once(self) -> Iterator[Callable[[], None]]:
        """Standardize every kernel once for all passes inside, instead of once a pass.

        Backward passes inside add up their gradients at the standardized kernels. Call what this
        yields before the last of them: that one takes each sum on, back through the
        standardization, to the kernel itself. The result is that of the plain passes, as the
        standardization depends on the kernels alone. The kernels must not change inside. Without a
        last pass, the gradients inside are dropped.
        """
        convolutions = [layer for layer in self.sublayers() if isinstance(layer, StdConv2D)]
        standardized = [standardize(convolution.weight) for convolution in convolutions]
        for convolution, kernel in zip(convolutions, standardized):
            convolution.standardized = kernel.detach()  # a leaf: micro-batches' gradients meet here
            convolution.standardized.stop_gradient = kernel.stop_gradient

        def last_pass() -> None:
            for convolution, kernel in zip(convolutions, standardized):
                if not kernel.stop_gradient:
                    kernel.register_hook(partial(_with_earlier, convolution.standardized))
                convolution.standardized = kernel

        try:
            yield last_pass
        finally:
            for convolution in convolutions:
                convolution.standardized = None

    def reset_parameters(self, seed: int = 0) -> None:
        """Fill in random kernels (He's normal, by fan-in), identity GroupNorms and a zero head.

        A kernel depends on its name and ``seed`` alone, not on the device or Paddle's version.
        """
        for name, parameter in self.named_parameters():
            if name.startswith("head."):
                parameter.set_value(
                    np.zeros(parameter.shape, np.float32).astype(_numpy_type(parameter))
                )
            elif name.endswith("conv.weight"):
                generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
                values = generator.standard_normal(parameter.shape, np.float32)
                values *= np.float32(np.sqrt(2.0 / np.prod(parameter.shape[1:])))
                parameter.set_value(values.astype(_numpy_type(parameter)))
            else:
                parameter.set_value(
                    np.full(parameter.shape, name.endswith("weight"), _numpy_type(parameter))
                )


def _with_earlier(leaf: Tensor, gradient: Tensor) -> Tensor:
    """Return ``gradient`` plus that of ``leaf``, which is given back to the memory."""
    if leaf.grad is None:
        return gradient
    total = gradient + leaf.grad
    leaf.clear_gradient(False)  # frees it; Paddle heeds no keyword here
    return total


def _numpy_type(parameter: Tensor) -> str:
    return str(parameter.dtype).rpartition(".")[2]
