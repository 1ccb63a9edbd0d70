#!/usr/bin/env python3
"""Memory: of a training step beside the estimate that splits batches, of loading, of prediction.

    python scripts/bench_memory.py step R50x1 128        # two steps, of 8 and of 32 images
    python scripts/bench_memory.py load R152x4 21843     # writes a file of 4.4 GB first
    python scripts/bench_memory.py features R14x0.5 10000   # predict --features, that many images

Peaks are of the resident memory of processes of their own.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from bit_paddle import create_model, npz, save_npz
from bit_paddle.architecture import Architecture

PEAK = "import resource\npeak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
STEP = (
    PEAK
    + """
import sys
import numpy as np
from bit_paddle import create_model, sgd, train
from bit_paddle.data.loader import MicroBatch
name, size, images = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = create_model(name, num_classes=10)
optimizer = sgd.Momentum(0.003, 0.9, model.parameters())
batch = MicroBatch(np.zeros((images, 3, size, size), np.uint8), np.zeros(images, np.int64), None)
for _ in range(3):
    train.update(model, optimizer, [batch], [np.arange(images)], 1.0, 0.003)
print(peak())
"""
)
LOAD = (
    PEAK
    + """
import sys
from bit_paddle import create_model
start = peak()
create_model(sys.argv[1])
print(peak() - start)
"""
)

FEATURES = (
    PEAK
    + """
import sys
from bit_paddle import predict
assert predict.main(sys.argv[1:]) == 0
print(peak())
"""
)


def run(code: str, *arguments: object) -> int:
    """Return the number that ``code`` prints last."""
    words = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


def step(name: str, size: int) -> None:
    few, many = 8, 32
    measured = (run(STEP, name, size, many) - run(STEP, name, size, few)) / (many - few)
    estimate = 4 * Architecture.parse(name).activations(size)
    print(
        f"{name} at {size}: {measured / 1e6:.1f} MB an image measured, {estimate / 1e6:.1f} MB "
        f"estimated, ratio {estimate / measured:.2f}"
    )


def load(name: str, classes: int) -> None:
    architecture, random = Architecture.parse(name), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.npz")
        npz.write(
            path,
            (
                (key, random.standard_normal(shape, np.float32))
                for key, shape in npz.shapes(architecture, classes)
            ),
        )
        size, peak = path.stat().st_size, run(LOAD, path)
        print(
            f"{path.name}: {size / 1e9:.2f} GB on disk, {peak / 1e9:.2f} GB more memory at the peak"
        )


def features(name: str, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model.npz")
        save_npz(create_model(name, num_classes=2), model)
        for images in (count // 10, count):
            photos = Path(folder, str(images))
            photos.mkdir()
            for k in range(images):
                pixels = np.random.default_rng(k).integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(photos / f"{k}.png")
            peak = run(
                FEATURES, photos, "--model", model, "--crop", 32, "--features", f"{folder}/f.npz"
            )
            print(f"predict --features, {images:,} images: {peak / 1e6:.0f} MB at the peak")


if __name__ == "__main__":
    {"step": step, "load": load, "features": features}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
