"""Heads of a two-stage detector, and the random weights that detectors start from.

The proposal network and the box head are those of Faster R-CNN (arXiv 1506.01497) on a pyramid
(1612.03144), as in Detectron2's base configuration (Base-RCNN-FPN), with GroupNorm and weight
standardization after the 3 x 3 convolution as everywhere here.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from bit_paddle.models.detection.cost import HIDDEN, REGION_SIDE
from bit_paddle.models.detection.pyramid import MAPS, BiasedConv2D
from bit_paddle.models.layers import ZEROS, GroupNormReLU, StdConv2D
from bit_paddle.models.native import plain
from bit_paddle.models.network import dtype_of


class ProposalHead(nn.Layer):
    """A 3 x 3 convolution, then for every anchor a logit (is there an object?) and a box code.

    The convolutions are shared by all levels; the GroupNorms of each level are its own.
    """

    def __init__(self, channels: int, per_place: int):
        super().__init__()
        self.conv = StdConv2D(channels, channels, 3)
        self.norm = nn.LayerList([GroupNormReLU(channels) for _ in range(MAPS)])
        self.objectness = BiasedConv2D(channels, per_place, 1)
        self.codes = BiasedConv2D(channels, 4 * per_place, 1)

    def forward(self, *maps: Tensor) -> Tensor:
        """Return logit and code [N, A, 1 + 4] of the pyramid's ``maps``; float32 of half ones."""
        found = []
        for x, norm in zip(maps, self.norm):
            x = norm(self.conv(x))
            x = x.astype("float32") if x.dtype in plain.HALF else x
            rows = self.objectness.operators.rows
            found.append(
                paddle.concat([rows(self.objectness(x), 1), rows(self.codes(x), 4)], axis=-1)
            )
        return paddle.concat(found, axis=1)


class BoxHead(nn.Layer):
    """Two fully connected layers of 1,024, then the classes and a box code for each of them."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        sizes = [channels * REGION_SIDE**2, HIDDEN, HIDDEN]
        self.hidden = nn.LayerList([_linear(*pair) for pair in zip(sizes, sizes[1:])])
        self.classes = _linear(HIDDEN, classes + 1)
        self.codes = _linear(HIDDEN, 4 * classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [R, K + 1], the last of no object, and box codes [R, K, 4] of regions."""
        x = x.flatten(1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.classes(x), self.codes(x).reshape([x.shape[0], -1, 4])


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, weight_attr=ZEROS, bias_attr=ZEROS)


def reset(
    network: nn.Layer,
    seed: int,
    deviations: Mapping[str, float],
    biases: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Set random weights everywhere in ``network`` but in its backbone.

    They depend only on their names and ``seed``. Layers of ``deviations`` start from N(0, deviation
    squared); other convolutions from Glorot's uniform distribution; other fully connected layers
    from a uniform distribution with the variance 1 / inputs, which Caffe2 and Detectron2 call
    Xavier's. Biases are 0, or as in ``biases``.
    """
    for path, layer in network.named_sublayers():
        if path.startswith("backbone"):
            continue
        if isinstance(layer, (StdConv2D, BiasedConv2D, nn.Linear)):
            random = np.random.default_rng([seed, zlib.crc32(path.encode())])
            shape = layer.weight.shape
            if path in deviations:
                values = random.normal(0, deviations[path], shape)
            else:
                bound = _bound(layer)
                values = random.uniform(-bound, bound, shape)
            _set(layer.weight, values)
        if isinstance(layer, (BiasedConv2D, nn.Linear)):
            _set(layer.bias, np.full(layer.bias.shape, biases.get(path, 0.0)))
        if isinstance(layer, nn.GroupNorm):
            _set(layer.weight, np.ones(layer.weight.shape))
            _set(layer.bias, np.zeros(layer.bias.shape))


def _bound(layer: nn.Layer) -> float:
    shape = layer.weight.shape
    if isinstance(layer, nn.Linear):
        return math.sqrt(3 / shape[0])
    return math.sqrt(6 / (shape[2] * shape[3] * (shape[0] + shape[1])))


def _set(parameter: Tensor, values: np.ndarray) -> None:
    parameter.set_value(values.astype(dtype_of(parameter)))
