"""The cost of a RetinaNet: operations and parameters, without Paddle."""

from __future__ import annotations

from bit_paddle.models import cost
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.detection.anchors import LEVELS, map_sides

CHANNELS, DEPTH = 256, 4  # of the pyramid's maps; convolutions of a tower

PER_PLACE = 9  # anchors


def multiply_adds(
    architecture: Architecture,
    side: int,
    classes: int,
    channels: int = CHANNELS,
    depth: int = DEPTH,
    p6_from_c5: bool = False,
) -> int:
    """Return the multiply-adds of a forward pass for one image of ``side`` x ``side`` pixels.

    Only convolutions are counted, as in `cost.multiply_adds`.
    """
    places = [rows * columns for rows, columns in map_sides(side, side)]
    stages = architecture.channels[1:]
    lateral = sum(count * at * channels for count, at in zip(stages, places))
    output = sum(_kernel(channels, channels) * at for at in places[: len(stages)])
    coarse = _kernel(stages[-1] if p6_from_c5 else channels, channels) * places[-2]
    coarse += _kernel(channels, channels) * places[-1]
    heads = _heads(classes, channels, depth) * sum(places)
    return cost.multiply_adds(architecture, side) + lateral + output + coarse + heads


def parameters(
    architecture: Architecture,
    classes: int,
    channels: int = CHANNELS,
    depth: int = DEPTH,
    p6_from_c5: bool = False,
) -> int:
    """Return the number of parameters."""
    stages = architecture.channels[1:]
    lateral = sum(count * channels + channels for count in stages)
    output = _kernel(channels, channels) * (len(stages) + 1)  # and P7
    coarse = _kernel(stages[-1] if p6_from_c5 else channels, channels)
    norms = 2 * channels * len(LEVELS) * (1 + 2 * depth)
    biases = PER_PLACE * (classes + 4)
    heads = _heads(classes, channels, depth) + biases
    return architecture.parameters() + lateral + output + coarse + norms + heads


def _heads(classes: int, channels: int, depth: int) -> int:
    """Return the weights in the kernels of both towers."""
    return 2 * depth * _kernel(channels, channels) + _kernel(channels, PER_PLACE * (classes + 4))


def _kernel(inputs: int, outputs: int) -> int:
    return 9 * inputs * outputs
