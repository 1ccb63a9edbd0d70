"""The cost of a detector: operations, parameters and memory, without Paddle."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bit_paddle.models import cost
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.detection.anchors import LEVELS, PROPOSAL_LEVELS, map_sides

CHANNELS, DEPTH = 256, 4  # of the pyramid's maps; convolutions of a tower

PER_PLACE = 9  # anchors

# Of Faster R-CNN: side of a region in numbers, units of both layers of the box head, anchors, and
# the most regions of an image, in training and else.
REGION_SIDE, HIDDEN, PROPOSALS_PER_PLACE = 7, 1024, 3
TRAINING_REGIONS, REGIONS = 512, 1000

METHODS = ("align", "pool")  # how `regions` takes a region from a map


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
    places = _places((side, side), LEVELS)
    pyramid = _pyramid(architecture.channels[1:], places, channels, p6_from_c5)
    heads = _heads(classes, channels, depth) * sum(places)
    return cost.multiply_adds(architecture, side) + pyramid + heads


def parameters(
    architecture: Architecture,
    classes: int,
    channels: int = CHANNELS,
    depth: int = DEPTH,
    p6_from_c5: bool = False,
) -> int:
    """Return the number of parameters."""
    stages = architecture.channels[1:]
    pyramid = _pyramid(stages, [1] * len(LEVELS), channels, p6_from_c5) + channels * len(stages)
    norms = 2 * channels * len(LEVELS) * (1 + 2 * depth)
    biases = PER_PLACE * (classes + 4)
    heads = _heads(classes, channels, depth) + biases
    return architecture.parameters() + pyramid + norms + heads


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
    places = _places(sides, LEVELS)
    towers = depth * (1 if recompute != "off" else 2)
    outputs = 3 * cost.FLOAT * PER_PLACE * (classes + 4) * sum(places)
    maps = _maps(architecture.channels[1:], places, channels, 1 + towers, half)
    return _backbone(architecture, sides, recompute, half, learn) + maps + outputs


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


# --- Faster R-CNN -------------------------------------------------------------------------------


def two_stage_multiply_adds(
    architecture: Architecture,
    side: int,
    classes: int,
    channels: int = CHANNELS,
    regions: int = REGIONS,
) -> int:
    """Return the multiply-adds of Faster R-CNN's forward pass for one image.

    ``regions`` is the number of its regions that are classified. Convolutions and fully connected
    layers are counted.
    """
    places = _places((side, side), PROPOSAL_LEVELS)
    pyramid = _pyramid(architecture.channels, places, channels)
    proposals = _proposals(channels) * sum(places)
    boxes = _box_head(classes, channels) * regions
    return cost.multiply_adds(architecture, side) + pyramid + proposals + boxes


def two_stage_parameters(architecture: Architecture, classes: int, channels: int = CHANNELS) -> int:
    """Return the number of parameters."""
    stages, maps = architecture.channels, len(PROPOSAL_LEVELS)
    pyramid = _pyramid(stages, [1] * maps, channels) + channels * len(stages)
    norms = 2 * channels * maps * 2
    proposals = _proposals(channels) + 5 * PROPOSALS_PER_PLACE
    boxes = _box_head(classes, channels) + 2 * HIDDEN + 5 * classes + 1
    return architecture.parameters() + pyramid + norms + proposals + boxes


def two_stage_activations(
    architecture: Architecture,
    sides: tuple[int, int],
    classes: int,
    channels: int = CHANNELS,
    recompute: str = "off",
    half: bool = False,
    learn: str = "all",
) -> int:
    """Return an estimate of the bytes of activations per image, as `activations` does.

    The box head computes in float32: it takes the maps, and saves regions and hidden units.
    """
    places = _places(sides, PROPOSAL_LEVELS)
    heads = 0 if recompute != "off" else 1
    maps = _maps(architecture.channels, places, channels, 1 + heads, half)
    maps += 2 * cost.FLOAT * channels * sum(places)  # in float32, and their gradients
    outputs = 3 * cost.FLOAT * 5 * PROPOSALS_PER_PLACE * sum(places)
    numbers = 2 * channels * REGION_SIDE**2 + 4 * HIDDEN + 3 * (5 * classes + 1)
    boxes = cost.FLOAT * TRAINING_REGIONS * numbers
    return _backbone(architecture, sides, recompute, half, learn) + maps + outputs + boxes


# --- Parts of both ------------------------------------------------------------------------------


def _places(sides: tuple[int, int], levels: range) -> list[int]:
    return [rows * columns for rows, columns in map_sides(*sides, levels)]


def _pyramid(
    stages: Sequence[int], places: Sequence[int], channels: int, p6_from_c5: bool = False
) -> int:
    """Return the multiply-adds of the pyramid; with one place a level, the weights of kernels."""
    lateral = sum(count * at * channels for count, at in zip(stages, places))
    inputs = [channels] * len(places)
    inputs[len(stages)] = stages[-1] if p6_from_c5 else channels
    return lateral + sum(_kernel(count, channels) * at for count, at in zip(inputs, places))


def _backbone(
    architecture: Architecture, sides: tuple[int, int], recompute: str, half: bool, learn: str
) -> int:
    side = round(math.sqrt(sides[0] * sides[1]))
    return cost.activations(architecture, side, recompute, half, learn)


def _maps(
    stages: Sequence[int], places: Sequence[int], channels: int, layers: int, half: bool
) -> int:
    """Return the bytes that laterals and so many ``layers`` of convolution and norm save."""
    per_number = 2 * cost.HALF if half else 3 * cost.FLOAT
    laterals = sum(count * at for count, at in zip(stages, places))
    return (cost.HALF if half else cost.FLOAT) * laterals + per_number * channels * layers * sum(
        places
    )


def _proposals(channels: int) -> int:
    """Return the weights in the kernels of the proposal head."""
    return _kernel(channels, channels) + channels * 5 * PROPOSALS_PER_PLACE


def _box_head(classes: int, channels: int) -> int:
    """Return the weights of the box head but its biases."""
    return HIDDEN * (channels * REGION_SIDE**2 + HIDDEN + 5 * classes + 1)


def _heads(classes: int, channels: int, depth: int) -> int:
    """Return the weights in the kernels of both towers."""
    return 2 * depth * _kernel(channels, channels) + _kernel(channels, PER_PLACE * (classes + 4))


def _kernel(inputs: int, outputs: int) -> int:
    return 9 * inputs * outputs
