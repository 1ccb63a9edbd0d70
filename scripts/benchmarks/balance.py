"""Weigh rare classes in the loss, or not: ``python scripts/benchmarks/balance.py FOLDER``.

Makes long-tailed subsets of FOLDER/clothing10 (train/<class>/*, val/<class>/*), one per seed: the
training images per class fall geometrically from 100 to 5, in an order of the classes that the seed
draws. All validation images are kept.

BiT-Mini is fine-tuned with --balance 0, 0.5 and 1 on each of the subsets. Writes runs.csv (a line
per run) and table.md into --logdir: the minimum, median and maximum of the seeds, and of the
differences to --balance 0 on the same subset. The same command resumes after a stop; without FOLDER
it only rewrites the table. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bit_paddle import errors
from bit_paddle.config.types import whole
from bit_paddle.data.images import FileImages
from bit_paddle.data.readers import registry
from bit_paddle.system import environment, files

DATA = "clothing10"
POWERS = ("0", "0.5", "1")
RATIO = 20  # largest : smallest class
METRICS = {"balanced_accuracy": "balanced accuracy, %", "top1": "top-1, %"}
COLUMNS = ("balance", "seed", *METRICS, "loss")
RULE = ["--steps", "100", "--batch", "64", "--base_lr", "0.1", "--precrop", "72", "--crop", "64"]


def main(arguments: list[str]) -> int:
    """Make the subsets and the runs, one per core at a time; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help=f"folder that contains {DATA}/")
    parser.add_argument("--repeats", type=whole(2), default=5, help="seeds (default: 5)")
    parser.add_argument("--amp", default="auto", help="--amp of train (default: auto)")
    parser.add_argument(
        "--logdir", type=Path, default="bit_logs/my-balance", help="(default: bit_logs/my-balance)"
    )
    flags = parser.parse_args(arguments)
    seeds = range(flags.repeats)
    if flags.folder is not None:
        whole_set = registry.open_dataset("folder", str(flags.folder / DATA))
        for seed in seeds:
            write_subset(whole_set, seed, subset(flags.logdir, seed))
        workers = environment.cpu_count()

        def start(job: tuple[str, int]) -> int:
            command = [sys.executable, "-W", "ignore", "-m", "bit_paddle.train"]
            command += [*words(flags.logdir, *job), "--amp", flags.amp]
            return subprocess.run(command, env=environment.share(workers)).returncode

        with ThreadPoolExecutor(workers) as pool:
            if any(pool.map(start, [(power, seed) for seed in seeds for power in POWERS])):
                return 1
        collect(flags.logdir, seeds)
    text = table(flags.logdir)
    files.write_text(flags.logdir / "table.md", text)
    print(text, end="")
    return 0


def subset(logs: Path, seed: int) -> Path:
    """Return the folder of the lists of one seed."""
    return logs / f"subset-{seed}"


def words(logs: Path, power: str, seed: int) -> list[str]:
    """Return the arguments of one run."""
    return [
        *("--model", "BiT-Mini", "--dataset", "list", "--datadir", str(subset(logs, seed)), *RULE),
        *("--balance", power, "--seed", str(seed), "--no-save"),
        *("--logdir", str(logs), "--name", f"balance-{power}-seed-{seed}"),
    ]


def write_subset(data: registry.Dataset, seed: int, folder: Path) -> None:
    """Write train.csv, a long-tailed part of the training images of ``data``, and val.csv."""
    random = np.random.default_rng(seed)
    train, classes = data.train, len(data.train.classes)
    least = np.bincount(train.labels).min() // RATIO  # so that any class can be the largest
    counts = np.rint(least * RATIO ** np.linspace(1, 0, classes)).astype(int)
    chosen = [
        random.permutation(np.flatnonzero(train.labels == label))[:count]
        for label, count in zip(random.permutation(classes), counts)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_list(train, np.sort(np.concatenate(chosen)), folder / "train.csv")
    write_list(data.val, np.arange(len(data.val)), folder / "val.csv")


def write_list(images: FileImages, indices: np.ndarray, path: Path) -> None:
    """Write a list of images with absolute paths."""
    rows = [("path", "label")]
    for index in indices:
        rows.append((Path(images.name(index)).resolve(), images.classes[images.labels[index]]))
    files.write_text(path, "".join(map(files.csv_line, rows)))


def collect(logs: Path, seeds: range) -> None:
    """Write the results of all runs as runs.csv."""
    lines = [files.csv_line(COLUMNS)]
    for power in POWERS:
        for seed in seeds:
            path = logs / f"balance-{power}-seed-{seed}" / "result.json"
            result = json.loads(path.read_text())
            values = (result[column] for column in COLUMNS[2:])
            lines.append(files.csv_line([power, seed, *values]))
    files.write_text(logs / "runs.csv", "".join(lines))


def table(logs: Path) -> str:
    """Return a Markdown table of runs.csv."""
    with open(logs / "runs.csv", newline="") as lines:
        runs = list(csv.DictReader(lines))
    values = {
        (power, metric): np.array([float(run[metric]) for run in runs if run["balance"] == power])
        for power in POWERS
        for metric in METRICS
    }
    text = f"| {DATA}, {RATIO} : 1 | {' | '.join(METRICS.values())} |\n|---|---|---|\n"
    for power in POWERS:
        cells = (spread(values[power, metric]) for metric in METRICS)
        text += f"| `--balance {power}` | {' | '.join(cells)} |\n"
    for power in POWERS[1:]:
        cells = (spread(values[power, metric] - values["0", metric], "+") for metric in METRICS)
        text += f"| `--balance {power}` minus `--balance 0` | {' | '.join(cells)} |\n"
    return text


def spread(shares: np.ndarray, sign: str = "") -> str:
    """Return minimum, median and maximum as text, in %; ``sign`` "+" also writes plus signs."""
    low, middle, high = np.quantile(100 * shares, [0, 0.5, 1])
    return f"{low:{sign}.1f}, **{middle:{sign}.1f}**, {high:{sign}.1f}"


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
