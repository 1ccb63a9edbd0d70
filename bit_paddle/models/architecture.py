"""The shapes of BiT's ResNetV2: units, widths and the number of parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from bit_paddle.errors import ConfigError, did_you_mean
from bit_paddle.models import heads

UNITS = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}

GROUPS = heads.GROUPS  # in every GroupNorm

FEATURES_PER_WIDTH = 2048  # channels of the pre-logits of a network of width 1

STRIDES = (4, 8, 16, 32)  # of the four blocks' outputs

PARTS = ("root_block", "block1", "block2", "block3", "block4", "norm", "head")  # of a network

# What can learn: everything, or one of these parts and all parts after it. The kernels of the root
# and the last norm cannot be chosen alone.
LEARN = ("all", "head", "block4", "block3", "block2", "block1")


def frozen_parts(learn: str) -> tuple[str, ...]:
    """Return the `PARTS` that do not learn, for a word of `LEARN`; else raise `ConfigError`."""
    if learn not in LEARN:
        raise ConfigError(f"learn: is {learn!r}: {did_you_mean(learn, LEARN)}")
    return () if learn == "all" else PARTS[: PARTS.index(learn)]


class Unit(NamedTuple):
    """A bottleneck unit: its block and its sizes.

    ``channels``, ``middle`` and ``out`` count the channels of its input, its 3x3 convolution ``b``
    and its output; ``before`` and ``after`` count the pixels before and after ``b``. ``project``:
    its shortcut has a convolution.
    """

    block: int
    project: bool
    channels: int
    middle: int
    out: int
    before: int
    after: int

    @property
    def kernels(self) -> int:
        """Number of weights in the kernels of ``a``, ``b``, ``c`` and the projection."""
        projection = self.channels * self.out if self.project else 0
        return self.middle * (self.channels + 9 * self.middle + self.out) + projection

    @property
    def parameters(self) -> int:
        """Number of weights in the kernels and in the three GroupNorms."""
        return self.kernels + 2 * (self.channels + 2 * self.middle)

    @property
    def tensors(self) -> list[int]:
        """The numbers in each of its parameters: three GroupNorms, then the kernels."""
        norms = [self.channels] * 2 + [self.middle] * 4
        kernels = [self.channels * self.middle, 9 * self.middle**2, self.middle * self.out]
        return norms + kernels + [self.channels * self.out] * self.project

    @property
    def part(self) -> str:
        """The name of its block among `PARTS`."""
        return PARTS[1 + self.block]


@dataclass(frozen=True)
class Architecture:
    """A ResNetV2: the number of units in each of its four blocks, and a factor for all widths.

    ``head`` is the kind of its head, see `heads`; it is not used in a network without outputs.
    """

    units: tuple[int, ...]
    width: float = 1
    head: str = heads.LINEAR

    def __post_init__(self) -> None:
        if len(self.units) != 4 or not all(isinstance(n, int) and n > 0 for n in self.units):
            raise ConfigError(f"units {self.units}: expected four positive numbers, one per block")
        if self.width <= 0 or (64 * self.width) % GROUPS:
            raise ConfigError(
                f"width {self.width:g}: its {64 * self.width:g} root channels do not "
                f"divide into the {GROUPS} groups of GroupNorm; take a multiple of 0.5"
            )
        try:
            heads.parse(self.head)
        except ConfigError as fault:
            raise ConfigError(f"head: {fault}") from None

    @property
    def name(self) -> str:
        """The name, such as ``R50x1``; the number of layers includes the root and the head."""
        return f"R{3 * sum(self.units) + 2}x{self.width:g}"

    @property
    def root_channels(self) -> int:
        return int(64 * self.width)

    @property
    def features(self) -> int:
        """Channels of the pre-logits."""
        return int(FEATURES_PER_WIDTH * self.width)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the four blocks' outputs."""
        return tuple(4 * self.root_channels * 2**block for block in range(4))

    @property
    def kernels(self) -> int:
        """Number of weights in all standardized kernels, without the head."""
        return 7 * 7 * 3 * self.root_channels + sum(unit.kernels for unit in self.every_unit())

    def parameters(self, classes: int = 0) -> int:
        """Return the number of parameters with a head of ``classes`` outputs (0: no head)."""
        return sum(self.parameters_of(part, classes) for part in PARTS)

    def parameters_of(self, part: str, classes: int = 0) -> int:
        """Return the number of parameters of one of `PARTS`."""
        if part == "head":
            return heads.parameters(self.head, self.features, classes)
        if part == "norm":
            return 2 * self.features
        if part == "root_block":
            return 7 * 7 * 3 * self.root_channels
        return sum(unit.parameters for unit in self.every_unit() if unit.part == part)

    def learned_parameters(self, classes: int, learn: str) -> int:
        """Return the number of parameters that learn, for a word of `LEARN`."""
        frozen = frozen_parts(learn)
        return sum(self.parameters_of(part, classes) for part in PARTS if part not in frozen)

    def learned_tensors(self, classes: int, learn: str) -> list[int]:
        """Return the numbers in each parameter that learns, for a word of `LEARN`."""
        parts: dict[str, list[int]] = {part: [] for part in PARTS}
        parts["root_block"] = [7 * 7 * 3 * self.root_channels]
        for unit in self.every_unit():
            parts[unit.part] += unit.tensors
        parts["norm"] = [self.features] * 2
        parts["head"] = [
            math.prod(shape) for _, shape in heads.shapes(self.head, self.features, classes)
        ]
        frozen = frozen_parts(learn)
        return [size for part in PARTS if part not in frozen for size in parts[part]]

    def every_unit(self, crop: int = 32) -> Iterator[Unit]:
        """Yield the units from root to head, for images of side ``crop``."""
        side, channels = half_of(half_of(crop)), self.root_channels
        for block, units in enumerate(self.units):
            middle = self.root_channels * 2**block
            for number in range(units):
                before = side**2
                if block and not number:
                    side = half_of(side)
                yield Unit(block, number == 0, channels, middle, 4 * middle, before, side**2)
                channels = 4 * middle

    @classmethod
    def parse(cls, name: str) -> Architecture | None:
        """Return the architecture called ``R<layers>x<width>``; None for any other ``name``."""
        match = re.fullmatch(r"R(\d+)x(\d+(?:\.\d+)?)", name)
        if match is None or int(match[1]) not in UNITS:
            return None
        return cls(UNITS[int(match[1])], float(match[2]))


def half_of(side: int) -> int:
    """Return the side after a stride of 2; the network's paddings always round it up."""
    return -(-side // 2)
