#!/usr/bin/env python3
"""Measure the start of a run on millions of images in shards: time, first batch, memory.

    python scripts/benchmarks/scale.py                  # 14.2 million images, 5 labels each
    python scripts/benchmarks/scale.py --images 100000

An index of so many images is made: it has shards of 10,000 small JPEGs, which are links to one
file, and 21,843 classes. Then a new process makes the plan of a run (`start`) and draws the first
batch of 64 images. "cold": the system has no page of the index in memory before. At the end
`bit_paddle train` makes one step, on images of 64 pixels.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from bit_paddle.data.shards import index, pieces
from bit_paddle.data.shards.pieces import Collector, Summed

CLASSES, OF_A_SHARD = 21_843, 10_000

START = """
import sys, time
began = time.perf_counter()

def since(began, used=0.0):
    seconds = time.process_time() - used
    return f"{time.perf_counter() - began:6.2f} s, {seconds:.2f} s of the processor"

import numpy as np
from bit_paddle.config.settings import Settings
from bit_paddle.data import loader
from bit_paddle.training.classification.plan import make_plan

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return {line.split()[0]: int(line.split()[1]) / 1e6 for line in lines if " kB" in line}

settings = Settings(
    model="R14x0.5", from_scratch=True, dataset=sys.argv[1], precrop=72, crop=64, batch=64
)
plan = make_plan(settings)
plan.data_identity
print("start        ", since(began))
began, used = time.perf_counter(), time.process_time()
batches = loader.training_batches(
    plan.data.train, plan.subset, plan.resolution, 64, 0, 2, memory=plan.cache_bytes
)
batch = next(batches)
print("first batch  ", since(began, used))
memory = peak()
print(f"memory        {memory['VmHWM:']:6.2f} GB at the peak, {memory['VmRSS:']:.2f} GB now, of "
      f"which {memory['RssFile:']:.2f} GB are files that all processes share")
print(*[f"{title:13} {text}" for title, text in plan.rows() if title == "index"], sep="\\n")
batches.close()
"""


TRAIN = """
import sys
from bit_paddle import train

status = train.main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(f"memory        {int(peak.split()[1]) / 1e6:6.2f} GB at the peak", file=sys.stderr)
sys.exit(status)
"""

STEP = ["--model", "R14x0.5", "--from_scratch", "--precrop", "72", "--crop", "64"]
STEP += ["--batch", "64", "--batch_split", "1", "--steps", "1", "--no-save"]


def make_shard(path: Path, images: int, labels: int) -> pieces.Piece:
    """Write a shard of small JPEGs, and return its piece with so many ``labels`` per image."""
    random, collector = np.random.default_rng(0), Collector()
    jpegs = []
    for _ in range(100):
        pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
        image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
        file = path.with_suffix(".jpg")
        image.save(file)
        jpegs.append(file.read_bytes())
        file.unlink()
    with open(path, "wb") as stream:
        tar = Summed(stream)
        for number in range(images):
            content = jpegs[number % len(jpegs)]
            place = pieces.write_member(tar, f"{number:06d}.jpg", content)
            own = np.sort(random.choice(CLASSES, labels, replace=False)).tolist()
            collector.add(place, content, [f"n{label:08d}" for label in own], f"{number:06d}.jpg")
        pieces.write_end(tar)
    return collector.piece(tar.size, tar.crc32c)


def make_index(folder: Path, images: int, labels: int) -> None:
    """Make the shards and the index in ``folder``."""
    folder.mkdir()
    one, count = folder / "one", -(-images // OF_A_SHARD)
    pieces.save(make_shard(one, min(images, OF_A_SHARD), labels), folder / "piece.npz")
    names = [f"{number:06d}.tar" for number in range(count)]
    for name in names:
        (folder / name).symlink_to(one.name)
    classes = [f"n{label:08d}" for label in range(CLASSES)]
    index.build(folder, names, [folder / "piece.npz"] * count, classes)


def train(described: Path, logs: Path) -> None:
    """Let `bit_paddle train` make one step; print its times and its memory at the peak."""
    words = [sys.executable, "-W", "ignore", "-c", TRAIN, "--dataset", str(described), *STEP]
    words += ["--logdir", str(logs), "--name", "scale"]
    done = subprocess.run(words, capture_output=True, text=True)
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    if done.returncode:
        sys.exit("\n".join(lines))
    wanted = (" s in all: ", " at the peak")
    print(*[line for line in lines if any(text in line for text in wanted)], sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=14_200_000)
    parser.add_argument("--labels", type=int, default=5, help="labels of each image")
    parser.add_argument("--temporary", type=Path, help="a folder with 2 GB of space")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=flags.temporary) as temporary:
        root = Path(temporary)
        began = time.perf_counter()
        make_index(root / "train", flags.images, flags.labels)
        make_index(root / "val", 64, flags.labels)
        size = sum(path.stat().st_size for path in root.glob("train/*.npy"))
        print(
            f"made an index of {flags.images:,} images with {flags.labels} labels each: "
            f"{size / 1e9:.2f} GB in {time.perf_counter() - began:.0f} s"
        )
        described = {"reader": "shards", "datadir": ".", "train": "train", "val": "val"}
        described["several"] = flags.labels != 1
        (root / "data.yaml").write_text(yaml.safe_dump(described))
        for title in ("cold", "warm"):
            if title == "cold":
                os.sync()
                for path in root.glob("*/*.npy"):
                    descriptor = os.open(path, os.O_RDONLY)
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                    os.close(descriptor)
            print(f"\n{title}:", flush=True)
            words = [sys.executable, "-W", "ignore", "-c", START, str(root / "data.yaml")]
            subprocess.run(words, check=True)
        print("\ntrain:", flush=True)
        train(root / "data.yaml", root / "logs")


if __name__ == "__main__":
    main()
