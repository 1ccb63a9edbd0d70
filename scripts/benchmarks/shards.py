#!/usr/bin/env python3
"""Compare the speed of reading images from shards and from files, warm and cold.

    python scripts/benchmarks/shards.py cifar10 FOLDER       # its images are first written as PNG
    python scripts/benchmarks/shards.py folder FOLDER --batches 64

The training images are packed into --temporary. "read" gives the bytes of the images in the order
of an epoch, "decode" also their pixels, "batches" the training batches of the loader. "cold": the
system has no page of the files and no entry of their folders in memory. This needs the right to
write /proc/sys/vm/drop_caches; without it, "cold" is left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from bit_paddle.data import loader
from bit_paddle.data.images import FileImages, Images
from bit_paddle.data.readers import registry
from bit_paddle.data.shards import pack, windows
from bit_paddle.recipes.hyperrule import resolution
from bit_paddle.system import environment

_DROP = Path("/proc/sys/vm/drop_caches")


def as_files(images: Images, folder: Path) -> FileImages:
    """Return the images as files; those in memory are written as PNG, in a folder per class."""
    if isinstance(images, FileImages):
        return images
    paths = []
    for index, label in enumerate(images.labels.tolist()):
        path = f"{images.classes[label]}/{index:06d}.png"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        images.image(index).save(folder / path)
        paths.append(path)
    return FileImages(paths, images.labels, images.classes, folder)


def content(images: Images, index: int) -> bytes:
    """Return the bytes of an image."""
    if isinstance(images, FileImages):
        return Path(images.name(index)).read_bytes()
    return images.content(index)


def forget() -> None:
    """Empty the system's memory of files. Raises `OSError` without the right to do so."""
    os.sync()
    _DROP.write_text("3")


def per_second(job: Callable[[], int]) -> float:
    """Return what ``job`` counts, per second."""
    start = time.perf_counter()
    return job() / (time.perf_counter() - start)


def jobs(images: Images, workers: int, batches: int) -> dict[str, Callable[[], int]]:
    """Return the measurements by name; each returns the number of images."""
    sizes = registry.sizes(images, np.arange(len(images)))
    sides = resolution(*sizes[len(sizes) // 2])
    some = np.random.default_rng(0).permutation(len(images))[: 64 * batches].tolist()

    def through(function: Callable[[int], object]) -> int:
        windows.begin(images, np.arange(len(images)))  # as the loader does
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(lambda part: [function(k) for k in part], np.array_split(some, 64)):
                pass
        return len(some)

    def batch() -> int:
        made = loader.training_batches(images, np.arange(len(images)), sides, 64, 0, workers)
        total = sum(len(one.indices) for one in islice(made, max(1, batches // 4)))
        made.close()
        return total

    return {
        "read": lambda: through(lambda index: content(images, int(index))),
        "decode": lambda: through(lambda index: images.image(int(index))),
        "batches": batch,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("datadir")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--batches",
        type=int,
        default=128,
        help="64 images each: read, decoded; a quarter of it in batches",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--temporary", type=Path, help="a folder on the disk that is measured")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=flags.temporary) as temporary:
        root = Path(temporary)
        images = registry.open_dataset(flags.dataset, flags.datadir).train
        files = as_files(images, root / "files")
        pack.pack({"train": files}, root / "packed", 10**9, flags.workers)
        pack.finish(root / "packed")
        print(
            f"{environment.machine()}; {flags.dataset}: {len(files):,} images, "
            f"{flags.workers} workers",
            flush=True,
        )
        measure(files, root / "packed", flags)


def measure(files: FileImages, packed: Path, flags: argparse.Namespace) -> None:
    """Print the speeds of all rounds and the ratios; files and shards take turns."""
    ratios: dict[str, list[float]] = {}
    for _ in range(flags.rounds):
        for cold in (False, True):
            for name in ("read", "decode", "batches"):
                speeds = []
                for kind in ("files", "shards"):
                    images = files
                    if kind == "shards":
                        images = registry.open_dataset("shards", str(packed)).train
                    job = jobs(images, flags.workers, flags.batches)[name]
                    try:
                        forget() if cold else job()
                    except OSError:
                        break
                    speeds.append(per_second(job))
                if len(speeds) < 2:
                    continue
                title = f"{name}, {'cold' if cold else 'warm'}"
                ratios.setdefault(title, []).append(speeds[1] / speeds[0])
                print(
                    f"{title:15} files {speeds[0]:9,.0f}/s, shards {speeds[1]:9,.0f}/s", flush=True
                )
    print(f"\n{flags.dataset}: shards / files, median (min, max) of {flags.rounds} rounds")
    for title, values in ratios.items():
        median, least, most = statistics.median(values), min(values), max(values)
        print(f"{title:15} {median:.2f} ({least:.2f}, {most:.2f})")


if __name__ == "__main__":
    main()
