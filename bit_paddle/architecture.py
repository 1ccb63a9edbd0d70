"""The shape of a ResNetV2 as Big Transfer has it: units, width, and what follows from them."""

from __future__ import annotations

import re
from dataclasses import dataclass

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

    def activations(self, crop: int) -> int:
        """Return how many numbers a training pass keeps of an image of side ``crop``.

        Every GroupNorm's and ReLU's output, every convolution's, and every sum.
        """
        side, channels = -(-crop // 4), self.root_channels
        total = (
            8 * channels * side**2 + channels * side**2
        )  # the root's at stride 2, padded, pooled
        for block, units in enumerate(self.units):
            middle = self.root_channels * 2**block
            for unit in range(units):
                before = side**2
                if block and not unit:
                    side = -(-side // 2)
                after = side**2
                total += before * (2 * channels + 3 * middle) + after * (3 * middle + 8 * middle)
                total += 4 * middle * after * (unit == 0)  # the projection
                channels = 4 * middle
        return total

    @classmethod
    def parse(cls, name: str) -> Architecture | None:
        """Return the architecture that ``R<layers>x<width>`` names, or None if it names none."""
        match = re.fullmatch(r"R(\d+)x(\d+(?:\.\d+)?)", name)
        if match is None or int(match[1]) not in UNITS:
            return None
        return cls(UNITS[int(match[1])], float(match[2]))
