"""The feature pyramid, P3 to P7 or P2 to P6 (arXiv 1612.03144, 1708.02002), on a network's stages.

The order of the layers is that of the code that the paper names (tensorflow/tpu,
models/official/retinanet). Wherever it has a batch norm after a convolution, there are GroupNorm
and weight standardization here, as in the network itself; the paper does not tell what it had.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from bit_paddle.models.architecture import GROUPS
from bit_paddle.models.layers import ZEROS, StdConv2D
from bit_paddle.models.native import plain

MAPS = 5  # of a pyramid


class BiasedConv2D(nn.Layer):
    """A plain convolution with a bias, not standardized."""

    operators: Any = plain

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        shape = [out_channels, in_channels, kernel_size, kernel_size]
        self.weight = self.create_parameter(shape, default_initializer=ZEROS)
        self.bias = self.create_parameter([out_channels], is_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.operators.add_bias(self.operators.convolve(x, self.weight, 1), self.bias)


class GroupNorm(nn.GroupNorm):
    """GroupNorm without ReLU."""

    operators: Any = plain

    def __init__(self, channels: int):
        super().__init__(GROUPS, channels, epsilon=plain.NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return self.operators.normalize(x, self)


class Pyramid(nn.Layer):
    """Five maps of ``channels`` channels of the activated stages, whose channels are ``stages``.

    Of C3, C4 and C5 the maps are P3 to P7, of C2 to C5 they are P2 to P6. Each map has its own
    GroupNorm at the end, without ReLU. P6 is computed from P5, as in the code that the paper names,
    or from C5, as in Detectron2; P7 from P6.
    """

    operators: Any = plain

    def __init__(self, stages: Sequence[int], channels: int = 256, p6_from_c5: bool = False):
        super().__init__()
        self.p6_from_c5 = p6_from_c5
        self.lateral = nn.LayerList([BiasedConv2D(one, channels, 1) for one in stages])
        self.output = nn.LayerList([StdConv2D(channels, channels, 3) for _ in stages])
        self.p6 = StdConv2D(stages[-1] if p6_from_c5 else channels, channels, 3, stride=2)
        self.p7 = StdConv2D(channels, channels, 3, stride=2) if len(stages) == 3 else None
        self.norm = nn.LayerList([GroupNorm(channels) for _ in range(MAPS)])
        # A standardized kernel multiplies a deviation by the root of its inputs, here 48. Before
        # the norms, three in a row would reach the largest float16. The norms undo any factor.
        self.shrink = (9 * channels) ** -0.5

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps of the ``stages``; all as the operators lay them out."""
        maps = [lateral(stage) for lateral, stage in zip(self.lateral, stages)]
        for level in reversed(range(len(maps) - 1)):
            maps[level] = self.operators.add_upsampled(maps[level], maps[level + 1])
        maps = [output(x) for output, x in zip(self.output, maps)]
        maps.append(self.p6(stages[-1] if self.p6_from_c5 else self._shrunk(maps[-1])))
        if self.p7 is not None:
            maps.append(self.p7(plain.in_float32(F.relu, self._shrunk(maps[-1]))))
        return [norm(x) for norm, x in zip(self.norm, maps)]

    def _shrunk(self, x: Tensor) -> Tensor:
        return plain.in_float32(partial(paddle.scale, scale=self.shrink), x)
