"""Measure the seconds from the train command to the end of its first step.

    python scripts/benchmarks/first_step.py [--model R50x1]

Writes a checkpoint with pseudo-random weights and 40 images, and runs ``python -m
bit_paddle.train`` on them several times, for three steps of 8 images of 128 pixels. A first run is
not counted: it may compile the operators, which happens once per machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

WRITE = "import sys; from bit_paddle import *; save_npz(create_model(sys.argv[1], 10), sys.argv[2])"
TRAIN = [sys.executable, "-W", "ignore", "-m", "bit_paddle.train"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="R50x1", help="R<layers>x<width>")
    parser.add_argument("--rounds", type=int, default=7)
    flags = parser.parse_args()
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", WRITE, flags.model, root / "m.npz"], check=True
        )
        for number in range(40):
            path = root / "data" / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (90, 90, 3)).astype(np.uint8)).save(path)
        words = ["--model", root / "m.npz", "--dataset", "folder", "--datadir", root / "data"]
        words += ["--batch", "8", "--steps", "3", "--no-save", "--logdir", root / "logs", "--name"]
        seconds = []
        for number in range(flags.rounds + 1):
            start = time.time()
            subprocess.run([*TRAIN, *words, str(number)], check=True, stdout=subprocess.DEVNULL)
            first = (root / "logs" / str(number) / "metrics.jsonl").read_text().splitlines()[0]
            if number:  # the first run may compile
                seconds.append(json.loads(first)["time"] - start)
                log = (root / "logs" / str(number) / "train.log").read_text()
        print(log.splitlines()[-2].split(" ", 2)[2])
    print(
        f"{flags.model}, command to the end of the first step: {statistics.median(seconds):.1f} s "
        f"({min(seconds):.1f} to {max(seconds):.1f} in {flags.rounds} rounds)"
    )


if __name__ == "__main__":
    main()
