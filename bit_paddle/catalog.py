"""Every published BiT checkpoint: name, architecture, outputs and file.

Names, files and heads are those of https://storage.googleapis.com/bit_models/ and of the
distillation paper (arXiv 2106.05237).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from bit_paddle.errors import ConfigError, MissingFileError, did_you_mean

BASE_URL = "https://storage.googleapis.com/bit_models/"

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


#: Parameters of each published architecture without its head, which adds (features + 1) classes.
PARAMETERS = {
    "R50x1": 23_500_352,
    "R50x3": 211_174_080,
    "R101x1": 42_492_480,
    "R101x3": 381_789_888,
    "R152x2": 232_238_208,
    "R152x4": 928_340_224,
}


@dataclass(frozen=True)
class Entry:
    """One published file."""

    name: str
    architecture: Architecture
    classes: int
    file: str

    @property
    def url(self) -> str:
        return BASE_URL + self.file


def _entries() -> list[Entry]:
    architectures = {name: Architecture.parse(name) for name in PARAMETERS}
    entries = []
    for upstream, classes in (("S", 1000), ("M", 21843)):
        for name, architecture in architectures.items():
            entries.append(
                Entry(f"BiT-{upstream}-{name}", architecture, classes, f"BiT-{upstream}-{name}.npz")
            )
    for name, architecture in architectures.items():
        entries.append(
            Entry(f"BiT-M-{name}-ILSVRC2012", architecture, 1000, f"BiT-M-{name}-ILSVRC2012.npz")
        )
    entries.append(
        Entry("BiT-M-R50x1-CIFAR10", architectures["R50x1"], 10, "BiT-M-R50x1-CIFAR10.npz")
    )
    return entries


CATALOG = {entry.name: entry for entry in _entries()}


def find(name: str) -> Entry:
    """Return the entry called ``name``; a `ConfigError` names the nearest if there is none."""
    if name in CATALOG:
        return CATALOG[name]
    if name.startswith("BiT-L"):
        raise ConfigError(
            f"{name}: BiT-L was pre-trained on JFT-300M, which is not public, and was "
            "never released; the largest that can be had is BiT-M-R152x4"
        )
    raise ConfigError(f"unknown model {name!r}: {did_you_mean(name, CATALOG)}")


def cache_dir() -> Path:
    """Return the folder of downloads: ``BIT_PADDLE_HOME``, else ``~/.cache/bit_paddle``."""
    return Path(os.environ.get("BIT_PADDLE_HOME") or Path.home() / ".cache" / "bit_paddle")


def locate(entry: Entry, directory: str | os.PathLike | None = None) -> Path:
    """Return where the file of ``entry`` is: in ``directory``, else the working or cache folder.

    Raises `MissingFileError`, with the address to download it from.
    """
    folders = [Path(directory)] if directory else [Path("."), cache_dir()]
    file = Path(entry.file).name
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    raise MissingFileError(
        f"{entry.name}: {file} is not in {' or '.join(map(str, folders))}; "
        f"download {entry.url} into it, or name another folder with "
        "--bit_pretrained_dir"
    )


def is_path(model: str) -> bool:
    """Tell whether ``model`` is a file's path rather than a name."""
    return model.endswith(".npz") or os.sep in model


def resolve(
    model: str, directory: str | os.PathLike | None = None, pretrained: bool = True
) -> tuple[Architecture | None, Path | None]:
    """Return (architecture, checkpoint file) for a path, a published name or ``R<layers>x<width>``.

    The architecture of a path is None: the file tells it. The file is None where random weights are
    asked for. Errors: `ConfigError`, `MissingFileError`.
    """
    if is_path(model):
        if not Path(model).is_file():
            raise MissingFileError(f"{model}: no such checkpoint file")
        return None, Path(model)
    architecture = Architecture.parse(model)
    if architecture is None:
        entry = find(model)
        return entry.architecture, locate(entry, directory) if pretrained else None
    if pretrained:
        published = [name for name in CATALOG if architecture.name in name.split("-")]
        raise ConfigError(
            f"{model} is an architecture, without weights: "
            + (f"take a checkpoint ({', '.join(published[:2])} …), or " if published else "")
            + "ask for random weights with --from_scratch"
        )
    return architecture, None
