"""Learn several labels per image: ``python scripts/benchmarks/several_labels.py FOLDER``.

FOLDER is what ``scripts/make_canvases.py`` writes: labels.csv, train/ and val/. BiT-Mini and the
same network with random weights are trained with several seeds, for --steps each.

Writes runs.csv (a line per run) and table.md into --logdir: the minimum, median and maximum of the
seeds. The same command resumes after a stop; without FOLDER it only rewrites the table.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np

from bit_paddle import errors
from bit_paddle.config.types import whole
from bit_paddle.system import environment, files

STARTS = {
    "BiT-Mini": ["--model", "BiT-Mini"],
    "random weights": ["--model", "R26x0.5", "--from_scratch"],
}
METRICS = {
    "mean_average_precision": "mean average precision, %",
    "macro_f1": "macro F1, %",
    "micro_f1": "micro F1, %",
}
COLUMNS = ("start", "seed", *METRICS, "loss")
# Whole canvases: a crop could cut a photograph off, and with it a label
RULE = ["--batch", "64", "--base_lr", "0.1", "--precrop", "128", "--crop", "128", "--no-crop"]


def main(arguments: list[str]) -> int:
    """Make the runs, one per core at a time; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="folder of labels.csv")
    parser.add_argument("--repeats", type=whole(1), default=5, help="seeds (default: 5)")
    parser.add_argument("--steps", type=whole(1), default=200, help="(default: 200)")
    parser.add_argument("--amp", default="auto", help="--amp of train (default: auto)")
    parser.add_argument(
        "--logdir",
        type=Path,
        default="bit_logs/my-several-labels",
        help="(default: bit_logs/my-several-labels)",
    )
    flags = parser.parse_args(arguments)
    if flags.folder is not None:
        jobs, workers = list(product(STARTS, range(flags.repeats))), environment.cpu_count()

        def start(job: tuple[str, int]) -> int:
            command = [sys.executable, "-W", "ignore", "-m", "bit_paddle.train"]
            command += words(flags, *job)
            return subprocess.run(command, env=environment.share(workers)).returncode

        with ThreadPoolExecutor(workers) as pool:
            if any(pool.map(start, jobs)):
                return 1
        collect(flags.logdir, jobs)
    text = table(flags.logdir)
    files.write_text(flags.logdir / "table.md", text)
    print(text, end="")
    return 0


def name_of(start: str, seed: int) -> str:
    """Return the name of a run's folder."""
    return f"{start.replace(' ', '-')}-seed-{seed}"


def words(flags: argparse.Namespace, start: str, seed: int) -> list[str]:
    """Return the arguments of one run."""
    return [
        *STARTS[start],
        *("--dataset", "folder", "--datadir", str(flags.folder), "--separator", ";", *RULE),
        *("--steps", str(flags.steps), "--seed", str(seed), "--amp", flags.amp, "--no-save"),
        *("--logdir", str(flags.logdir), "--name", name_of(start, seed)),
    ]


def collect(logs: Path, jobs: list[tuple[str, int]]) -> None:
    """Write the results of all runs as runs.csv."""
    lines = [files.csv_line(COLUMNS)]
    for start, seed in jobs:
        result = json.loads((logs / name_of(start, seed) / "result.json").read_text())
        lines.append(files.csv_line([start, seed, *(result[name] for name in COLUMNS[2:])]))
    files.write_text(logs / "runs.csv", "".join(lines))


def table(logs: Path) -> str:
    """Return a Markdown table of runs.csv."""
    with open(logs / "runs.csv", newline="") as lines:
        runs = list(csv.DictReader(lines))
    text = f"| starts with | seeds | {' | '.join(METRICS.values())} |\n|---|---|---|---|---|\n"
    for start in dict.fromkeys(run["start"] for run in runs):
        own = [run for run in runs if run["start"] == start]
        cells = (spread(np.array([float(run[metric]) for run in own])) for metric in METRICS)
        text += f"| {start} | {len(own)} | {' | '.join(cells)} |\n"
    return text


def spread(shares: np.ndarray) -> str:
    """Return minimum, median and maximum as text, in %."""
    low, middle, high = np.quantile(100 * shares, [0, 0.5, 1])
    return f"{low:.1f}, **{middle:.1f}**, {high:.1f}"


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
