#!/usr/bin/env python3
"""Measure the peak memory of loading a model and of prediction (for training: `plan.py`).

    python scripts/benchmarks/memory.py load R152x4 21843     # writes a file of 4.4 GB first
    python scripts/benchmarks/memory.py features R14x0.5 10000   # predict --features

Each peak is the resident memory of a new process.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from bit_paddle import create_model, save_npz
from bit_paddle.models import npz
from bit_paddle.models.architecture import Architecture

PEAK = "import resource\npeak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
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
    """Run ``code`` in a new process; return the last number that it prints."""
    words = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


def load(name: str, classes: int) -> None:
    """Print the size of a model's file with random weights, and the peak memory to load it."""
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
    """Print the peak memory of predict --features for a tenth of ``count`` images, and for all."""
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=("load", "features"))
    parser.add_argument("model", help="R<layers>x<width>")
    parser.add_argument("count", type=int, help="classes of load, images of features")
    flags = parser.parse_args()
    {"load": load, "features": features}[flags.task](flags.model, flags.count)


if __name__ == "__main__":
    main()
