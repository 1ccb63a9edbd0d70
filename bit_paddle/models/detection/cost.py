"""The cost of a RetinaNet: operations, parameters and memory, without Paddle."""

from __future__ import annotations

import math

from bit_paddle.models import cost
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.detection.anchors import LEVELS, map_sides

CHANNELS, DEPTH = 256, 4  # of the pyramid's maps; convolutions of a tower

PER_PLACE = 9  # anchors

HIDDEN = 1024  # units of each of the two layers of Faster R-CNN's box head


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


def activations(
    architecture: Architecture,
    sides: tuple[int, int],
    classes: int,
    channels: int = CHANNELS,
    depth: int = DEPTH,
    recompute: str = "off",
    half: bool = False,
    learn: str = "all",
) -> int:
    """Return an estimate of the bytes of activations per image of ``sides`` (height, width).

    It is the sum of the backbone's peak (`cost.activations`), and of what the pyramid and the heads
    save for the backward pass: an upper bound, as the heads are done before the backbone's peak. A
    convolution saves its input; a GroupNorm with ReLU saves input, result and activated result, in
    ``half`` precision only the first and the last. Losses take logits and their gradients. On a CPU
    it is 1 to 1.2 times what Paddle allocates, and up to 1.4 times with ``recompute``; ``half`` is
    not measured.
    """
    height, width = sides
    backbone = cost.activations(
        architecture, round(math.sqrt(height * width)), recompute, half, learn
    )
    places = [rows * columns for rows, columns in map_sides(height, width)]
    per_number = 2 * cost.HALF if half else 3 * cost.FLOAT
    pyramid = per_number * channels * sum(places)
    towers = per_number * channels * depth * sum(places) * (1 if recompute != "off" else 2)
    outputs = 3 * cost.FLOAT * PER_PLACE * (classes + 4) * sum(places)
    stages = zip(architecture.channels[1:], places)
    laterals = (cost.HALF if half else cost.FLOAT) * sum(count * at for count, at in stages)
    return backbone + laterals + pyramid + towers + outputs


def training_memory(
    architecture: Architecture,
    heads: int,
    half: bool = False,
    shared: int = 1,
    learn: str = "all",
) -> dict[str, int]:
    """Return {part: bytes} of all that training holds without activations.

    It is that of the backbone (`cost.training_memory`), and of ``heads`` more parameters: those of
    the pyramid and of the heads, which always learn.
    """
    parts = cost.training_memory(architecture, 0, half, shared, learn)
    more = {"momentum": -(-cost.FLOAT * heads // shared), "kernels in half": cost.HALF * heads}
    return {part: size + more.get(part, cost.FLOAT * heads) for part, size in parts.items()}


def _heads(classes: int, channels: int, depth: int) -> int:
    """Return the weights in the kernels of both towers."""
    return 2 * depth * _kernel(channels, channels) + _kernel(channels, PER_PLACE * (classes + 4))


def _kernel(inputs: int, outputs: int) -> int:
    return 9 * inputs * outputs
