"""Make the data of the stand-in claims, which prove `bit_paddle reproduce` without a GPU.

    python scripts/benchmarks/stand_ins.py --photos DIR --output stand-in
    bit_paddle reproduce stand-in --datadir cifar10=DIR vtab-1k=stand-in --name stand-in

DIR holds CIFAR-10 in its official layout. The output has three tasks of VTAB-1k in their published
layout, made from other real images: svhn and dsprites-xpos from scikit-learn's handwritten digits,
eurosat from photos of CIFAR-10. These accuracies say nothing about VTAB-1k.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from bit_paddle.data.readers import registry

TRAIN, TEST = "train800val200", "test"

SIDE, STEP = 64, 3  # pixels of an image of dsprites-xpos, and between two positions


def write_task(folder: Path, pixels: np.ndarray, labels: np.ndarray, test: int) -> None:
    """Write images uint8 [N, H, W, C] with labels [N]; the last ``test`` ones are for the test."""
    cut = len(labels) - test
    for part, rows in ((TRAIN, range(cut)), (TEST, range(cut, len(labels)))):
        place = folder / "images" / part
        place.mkdir(parents=True, exist_ok=True)
        lines = []
        for number, row in enumerate(rows):
            Image.fromarray(pixels[row]).save(place / f"{number:06}.png")
            lines.append(f"images/{part}/{number:06}.png {labels[row]}\n")
        (folder / f"{part}.txt").write_text("".join(lines))


def shuffled(images, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return ``count`` images of a data set as pixels [N, H, W, 3], and their labels [N]."""
    rows = random.permutation(len(images))[:count]
    pixels = np.stack([np.asarray(images.image(row).convert("RGB")) for row in rows])
    return pixels, np.asarray(images.labels)[rows]


def positions(digits: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return ``digits`` [N, H, W, 3] pasted at one of 16 x positions, and that number, [N]."""
    labels = np.arange(len(digits)) % 16
    pixels = np.zeros((len(digits), SIDE, SIDE, 3), np.uint8)
    for canvas, digit, label in zip(pixels, digits, labels):
        large = np.asarray(Image.fromarray(digit).resize((16, 16)))
        y = int(random.integers(0, SIDE - 16))
        canvas[y : y + 16, STEP * label : STEP * label + 16] = large
    return pixels, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--photos", required=True, help="folder of CIFAR-10's official archive")
    parser.add_argument("--output", type=Path, required=True, help="folder of the three tasks")
    flags = parser.parse_args()
    random = np.random.default_rng(0)
    digits = registry.open_dataset("digits")
    photos = registry.open_dataset("cifar10", flags.photos)
    pixels, labels = shuffled(digits.train, len(digits.train), random)
    more, their = shuffled(digits.val, len(digits.val), random)
    pixels, labels = np.concatenate([pixels, more]), np.concatenate([labels, their])
    write_task(flags.output / "svhn", pixels[:1500], labels[:1500], 500)
    write_task(flags.output / "dsprites_loc", *positions(pixels[:1500], random), 500)
    write_task(flags.output / "eurosat", *shuffled(photos.train, 1500, random), 500)


if __name__ == "__main__":
    main()
