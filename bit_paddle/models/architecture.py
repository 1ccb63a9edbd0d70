"""The shape of a ResNetV2 as Big Transfer has it: units, width, and what follows from them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from bit_paddle.errors import ConfigError

UNITS = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}

GROUPS = 32  # of every GroupNorm

FEATURES_PER_WIDTH = 2048  # channels of the pre-logits of a network of width 1

FLOAT, HALF = 4, 2  # bytes

PLANNED = 0.7  # the share for activations of what memory a model leaves; see `Architecture.room`


class Unit(NamedTuple):
    """A bottleneck unit: channels in, in the middle and out, and pixels before and after ``b``."""

    block: int
    project: bool
    channels: int
    middle: int
    out: int
    before: int
    after: int

    @property
    def kernels(self) -> int:
        """Numbers in the kernels of ``a``, ``b``, ``c`` and the projection."""
        projection = self.channels * self.out if self.project else 0
        return self.middle * (self.channels + 9 * self.middle + self.out) + projection

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of its convolutions."""
        at_output = self.middle * (9 * self.middle + self.out)
        at_output += self.channels * self.out if self.project else 0
        return self.channels * self.middle * self.before + at_output * self.after

    def kept(self, half: bool = False) -> int:
        """Return the bytes that a backward pass through it needs, beside its input.

        GroupNorm keeps its input, its output, and mean and variance of its groups; ReLU its output;
        a convolution its input, which is a ReLU's output. A sum keeps nothing, so that the outputs
        of ``c`` and of the projection go at once. In half precision GroupNorm and ReLU keep their
        input alone, and compute the rest again.
        """
        a, b, c = self.channels * self.before, self.middle * self.before, self.middle * self.after
        if half:
            return HALF * (a + 2 * b + 2 * c)
        return FLOAT * (2 * a + 3 * b + 3 * c + 3 * 2 * GROUPS)

    def in_flight(self, half: bool = False) -> int:
        """Return the bytes of gradients that are there at once where a backward pass enters it.

        Those of the sum, of the output of ``c`` or of the projection, and of their inputs; in half
        precision also what a GroupNorm computes again in float32.
        """
        output = self.out * self.after
        shortcut = max(output, self.channels * self.before) if self.project else output
        gradients = output + shortcut + self.middle * self.after
        if not half:
            return FLOAT * gradients
        return HALF * gradients + norm_in_float32(max(self.channels, self.middle) * self.before)


def norm_in_float32(size: int) -> int:
    """Return the bytes that GroupNorm and ReLU of half numbers take on their way back.

    Input, normalized and activated numbers, and the gradients of these three, all in float32.
    """
    return 6 * FLOAT * size


@dataclass(frozen=True)
class Architecture:
    """A ResNetV2: bottleneck units in each of its four blocks, and a factor on every width."""

    units: tuple[int, ...]
    width: float = 1

    def __post_init__(self) -> None:
        if len(self.units) != 4 or not all(isinstance(n, int) and n > 0 for n in self.units):
            raise ConfigError(f"units {self.units}: expected four positive numbers, one a block")
        if self.width <= 0 or (64 * self.width) % GROUPS:
            raise ConfigError(
                f"width {self.width:g}: its {64 * self.width:g} root channels do not "
                f"divide into the {GROUPS} groups of GroupNorm; take a multiple of 0.5"
            )

    @property
    def name(self) -> str:
        """``R50x1`` and so on; layers are counted as the field does, root and head included."""
        return f"R{3 * sum(self.units) + 2}x{self.width:g}"

    @property
    def root_channels(self) -> int:
        return int(64 * self.width)

    @property
    def features(self) -> int:
        """Channels of the pre-logits."""
        return int(FEATURES_PER_WIDTH * self.width)

    # --- What it costs --------------------------------------------------------------------------

    @property
    def kernels(self) -> int:
        """Numbers in all kernels, which are standardized; the head is none of them."""
        return 7 * 7 * 3 * self.root_channels + sum(unit.kernels for unit in self._every_unit())

    def parameters(self, classes: int = 0) -> int:
        """Return how many numbers are learned, with a head of ``classes`` outputs (0: none)."""
        norms = sum(2 * (unit.channels + 2 * unit.middle) for unit in self._every_unit())
        return self.kernels + norms + 2 * self.features + (self.features + 1) * classes

    def multiply_adds(self, crop: int, classes: int = 0) -> int:
        """Return the multiply-adds of a forward pass of an image of side ``crop``.

        Those of the convolutions and of the head, and nothing else: GroupNorm, ReLU, pooling,
        additions and the standardization of kernels (once a step) are not counted. A multiply-add
        is two operations.
        """
        root = 7 * 7 * 3 * self.root_channels * half_of(crop) ** 2
        units = sum(unit.multiply_adds for unit in self._every_unit(crop))
        return root + units + self.features * classes

    def activations(self, crop: int, recompute: str = "off", half: bool = False) -> int:
        """Return how many bytes an image of side ``crop`` takes at the peak of a training pass.

        What is kept for the backward pass, and where more, what is computed again of one unit or
        one block (``recompute``) with the gradients in flight there. By what Paddle's operations
        keep on a CPU, where `scripts/benchmarks/plan.py` measures it; what a kernel needs only
        while it runs (cuDNN's workspace) is not in it. With ``half`` (--amp) it is by what
        `models` keeps, and not measured: a CPU has no half-precision kernels.
        """
        number = HALF if half else FLOAT
        # The image, what max-pooling keeps (the root's output, padded), and the first unit's input.
        padded, pooled = ((half_of(crop) + 2) ** 2, half_of(half_of(crop)) ** 2)
        kept = FLOAT * 3 * crop**2 + self.root_channels * (FLOAT * padded + number * pooled)
        kept += self.root_channels * FLOAT * pooled if half else 0
        every = list(self._every_unit(crop))
        peak = inside = 0
        for unit, following in zip(every, [*every[1:], None]):
            inside += unit.kept(half)
            output = number * unit.out * unit.after
            whole = following is None or following.block > unit.block
            if recompute == "off" or (recompute == "block" and not whole):
                peak = max(peak, kept + inside + output + unit.in_flight(half) if whole else 0)
                inside += output
                continue
            # The output is computed again, and its gradient belongs to the one who asked for it.
            peak = max(peak, kept + inside + 2 * output + unit.in_flight(half))
            kept, inside = kept + output, 0
        # The last GroupNorm, ReLU and mean.
        last = unit.out * unit.after
        end = norm_in_float32(last) if half else FLOAT * (2 * last + 2 * GROUPS)
        return max(peak, kept + inside + end + FLOAT * self.features)

    def training_memory(self, classes: int, half: bool = False, shared: int = 1) -> dict[str, int]:
        """Return {part: bytes} of what training holds at once beside activations.

        In float32, but for the kernels that convolutions multiply in ``half``. Where a batch has
        several micro-batches, the gradients are those at the standardized kernels, and each becomes
        that of its kernel when the last one has passed (`ResNetV2.standardized_once`). ``shared``
        is the number of processes that share the momentum (--shard).
        """
        every, kernels = FLOAT * self.parameters(classes), FLOAT * self.kernels
        parts = {
            "weights": every,
            "gradients": every,
            "momentum": -(-every // shared),
            "standardized kernels": kernels,
        }
        return {**parts, "kernels in half": kernels * HALF // FLOAT} if half else parts

    def room(self, memory: int, classes: int, half: bool = False, shared: int = 1) -> int:
        """Return the bytes to plan with for activations, of a GPU's ``memory`` bytes.

        A share of what `training_memory` leaves: the rest is for CUDA itself, convolutions'
        workspaces, and memory in pieces too small to use.
        """
        left = memory - sum(self.training_memory(classes, half, shared).values())
        return max(0, int(PLANNED * left))

    def fits(self, memory: int, crop: int, recompute: str = "off", half: bool = False) -> int:
        """Return how many images have their activations in ``memory`` bytes."""
        return memory // self.activations(crop, recompute, half)

    def split(
        self, images: int, memory: int, crop: int, recompute: str = "off", half: bool = False
    ) -> int:
        """Return in how many parts to compute ``images``, each with ``memory`` for activations.

        A part is one image where not even one fits.
        """
        return -(-images // min(max(1, self.fits(memory, crop, recompute, half)), images))

    def _every_unit(self, crop: int = 32) -> Iterator[Unit]:
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
        """Return the architecture that ``R<layers>x<width>`` names, or None if it names none."""
        match = re.fullmatch(r"R(\d+)x(\d+(?:\.\d+)?)", name)
        if match is None or int(match[1]) not in UNITS:
            return None
        return cls(UNITS[int(match[1])], float(match[2]))


def half_of(side: int) -> int:
    """Return the side after a stride of 2: all of this network's paddings round it up."""
    return -(-side // 2)
