"""Measure the seconds from the train command to its first step, and to the end of that step.

    python scripts/benchmarks/first_step.py [--model R50x1] [--new_user] [--without_compiler]

Runs ``python -m bit_paddle.train`` several times, for three steps of 8 images of 128 pixels. R50x1
and its like are written as checkpoints with pseudo-random weights and train on 40 image files;
BiT-Mini trains on digits. A first run is not counted: it may compile the operators, which happens
once per machine, and it leaves Python's bytecode, as an installation does. With --new_user each run
has an empty BIT_PADDLE_HOME: it has to find and check its operators.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parents[2]
WRITE = "import sys; from bit_paddle import *; save_npz(create_model(sys.argv[1], 10), sys.argv[2])"
PYTHON = [sys.executable, "-W", "ignore"]
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="R50x1", help="R<layers>x<width>, or BiT-Mini")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new_user", action="store_true", help="an empty cache for each run")
    parser.add_argument("--without_compiler", action="store_true", help="a PATH without g++")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        environ = {**os.environ, "PYTHONPYCACHEPREFIX": str(root / "bytecode")}
        environ["PYTHONPATH"] = str(HERE)
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        if flags.new_user:
            environ["BIT_PADDLE_HOME"] = str(root / "home")
        if flags.without_compiler:
            environ["PATH"] = str(root)
            environ.pop("CXX", None)
        words = write_inputs(flags.model, root, environ)
        words += ["--batch", str(BATCH), "--steps", "3", "--no-save", "--logdir", root / "logs"]
        runs = []
        for number in range(flags.rounds + 1):
            shutil.rmtree(root / "home", ignore_errors=True)
            runs.append(
                measure([*words, "--name", str(number)], root / "logs" / str(number), environ)
            )
        log = (root / "logs" / str(number) / "train.log").read_text().splitlines()
    for line in log:
        if " operators: " in line or " s in all: " in line:
            print(line.split(" ", 2)[2])
    print(f"{flags.model}, {flags.rounds} runs{', each with an empty cache' * flags.new_user}")
    for title, seconds in zip(("command to the first step", "to its end"), zip(*runs[1:])):
        least, most = min(seconds), max(seconds)
        print(f"{title}: {statistics.median(seconds):.2f} s ({least:.2f} to {most:.2f})")


def write_inputs(model: str, root: Path, environ: dict[str, str]) -> list[str | Path]:
    """Return the flags that name model and data; write both into ``root`` for R<layers>x<width>."""
    if not model.startswith("R"):
        return ["--model", model, "--dataset", "digits"]
    path = root / "m.npz"
    subprocess.run([*PYTHON, "-c", WRITE, model, path], check=True, cwd=root, env=environ)
    random = np.random.default_rng(0)
    for number in range(40):
        image = root / "data" / f"class{number % 2}" / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (90, 90, 3)).astype(np.uint8)).save(image)
    return ["--model", path, "--dataset", "folder", "--datadir", root / "data"]


def measure(words: list[str | Path], folder: Path, environ: dict[str, str]) -> tuple[float, float]:
    """Return the seconds from the command to its first step, and to the end of that step."""
    command = [*PYTHON, "-m", "bit_paddle.train", *words]
    start = time.time()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, cwd=folder.parents[1], env=environ
    )
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    end = first["time"] - start
    return end - BATCH / first["images_per_second"], end


if __name__ == "__main__":
    main()
