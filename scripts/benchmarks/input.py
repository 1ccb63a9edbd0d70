"""Compare the input pipeline's images per second with a plain Pillow loop as in torchvision.

    python scripts/benchmarks/input.py cifar10 FOLDER       # 32 -> 160 -> 128, in memory
    python scripts/benchmarks/input.py folder FOLDER        # photographs: decode, 512, 480

The baseline does the work of torchvision's transforms in Pillow and NumPy: convert, resize, crop,
flip, ToTensor, Normalize, and stacks a batch. Its speed is that of one process times --workers. Our
pipeline is `loader.training_batches`; "scaled" adds x / 127.5 - 1 in float32, which the device
computes in a real run. "first epoch" decodes and resizes every image; "first epoch, kept" also
keeps them whole in memory for the next epoch, and "cached" reads them from there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import contenders
import numpy as np
from PIL import Image

from bit_paddle.data import loader
from bit_paddle.data.images import ArrayImages, Images
from bit_paddle.data.readers import registry
from bit_paddle.recipes.hyperrule import resolution


def baseline(images: Images, precrop: int, crop: int, batch: int, batches: int) -> float:
    """Return the images per second of a plain loop, with Pillow's default memory settings."""
    Image.core.set_blocks_max(0)
    random = np.random.default_rng(0)
    in_memory = isinstance(images, ArrayImages)

    def view(index: int) -> np.ndarray:
        image = images.image(index) if in_memory else Image.open(images.name(index))
        image = image.convert("RGB").resize((precrop, precrop), Image.Resampling.BILINEAR)
        top, left = random.integers(0, precrop - crop + 1, 2)
        image = image.crop((left, top, left + crop, top + crop))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = np.array(image).transpose(2, 0, 1)  # ToTensor
        pixels = np.ascontiguousarray(pixels).astype(np.float32)
        pixels /= np.float32(255)
        pixels -= np.float32(0.5)  # Normalize
        pixels /= np.float32(0.5)
        return pixels

    order = random.permutation(len(images))
    start = time.perf_counter()
    for k in range(batches):
        np.stack([view(int(index)) for index in order[k * batch : (k + 1) * batch]])
    Image.core.set_blocks_max(int(os.environ["PILLOW_BLOCKS_MAX"]))  # the setting of bit_paddle
    return batches * batch / (time.perf_counter() - start)


def ours(stream, batch: int, batches: int, scaled: bool) -> float:
    """Return the images per second of ``stream``, from its current position."""
    (part,) = next(stream).micro_batches(1)
    floats = np.empty(part.images.shape, np.float32)
    start = time.perf_counter()
    for _ in range(batches):
        (part,) = next(stream).micro_batches(1)
        pixels = part.images
        if scaled:
            np.divide(pixels, np.float32(127.5), out=floats[: len(pixels)], dtype=np.float32)
            floats -= np.float32(1)
    return batches * batch / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("datadir")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=48, help="batches per measurement")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write all ratios to this file")
    parser.add_argument("--plot", type=Path, help="write a figure to this file")
    flags = parser.parse_args()
    images = registry.open_dataset(flags.dataset, flags.datadir).train
    sizes = registry.sizes(images, np.arange(len(images)))
    sides = resolution(*sizes[len(sizes) // 2])
    one_measurement = np.arange(min(len(images), flags.batch * flags.batches))

    def stream(subset: np.ndarray, memory: int):
        return loader.training_batches(
            images, subset, sides, flags.batch, 0, flags.workers, memory=memory
        )

    ratios: dict[str, list[float]] = {}
    cached = stream(one_measurement, 1 << 40)
    # Skip the first epoch and the batches that are prepared ahead.
    ours(cached, flags.batch, flags.batches + 4, False)
    for _ in range(flags.rounds):
        plain = baseline(images, sides.precrop, sides.crop, flags.batch, flags.batches)
        plain *= flags.workers
        for name, source, scaled in (
            ("first epoch", stream(np.arange(len(images)), 0), False),
            ("first epoch, scaled", stream(np.arange(len(images)), 0), True),
            ("first epoch, kept", stream(np.arange(len(images)), 1 << 40), False),
            ("cached", cached, False),
            ("cached, scaled", cached, True),
        ):
            speed = ours(source, flags.batch, flags.batches, scaled)
            ratios.setdefault(name, []).append(speed / plain)
            print(f"{name:20} {speed:8,.0f} images/s; baseline {plain:7,.0f}", flush=True)
            if source is not cached:
                source.close()
    cached.close()
    title = f"{flags.dataset}, {sides.precrop} -> {sides.crop}, {flags.workers} workers"
    print(f"\n{title}: ratio to the baseline, median (min, max) of {flags.rounds} rounds")
    for name, values in ratios.items():
        print(f"{name:20} {statistics.median(values):.2f} ({min(values):.2f}, {max(values):.2f})")
    if flags.json:
        flags.json.write_text(json.dumps({title: ratios}, indent=1))
    if flags.plot:
        contenders.draw({title: ratios}, flags.plot, "images per second / baseline")


if __name__ == "__main__":
    main()
