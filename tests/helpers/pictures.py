"""Small pictures that differ as photographs do: clouds of colour by a seed."""

from pathlib import Path

import numpy as np
from PIL import Image


def cloud(seed: int, width: int = 96, height: int = 80) -> Image.Image:
    few = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), np.uint8)
    return Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC)


def fill(folder: Path, counts: dict[str, int], seed: int = 0) -> list[str]:
    """Write so many clouds into each folder, such as train/cat; return their paths below it."""
    paths = []
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            path = f"{name}/{number}.jpg"
            cloud(seed + len(paths)).save(folder / path, quality=90)
            paths.append(path)
    return paths
