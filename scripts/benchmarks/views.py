"""What more than one look brings and costs: ``python scripts/benchmarks/views.py FOLDER``.

BiT-Mini is fine-tuned on FOLDER/clothing10 (train/<class>/*, val/<class>/*) with several seeds, and
each model is evaluated on the validation images with several --views. Writes runs.csv (a line per
seed and --views) and table.md into --logdir: the minimum, median and maximum of the seeds, and of
the differences to one view of the same model. The time is that of the processor in an evaluation,
with decoding. The same command resumes after a stop; without FOLDER it only rewrites the table.
About a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path

import numpy as np

import bit_paddle as bit
from bit_paddle import errors
from bit_paddle.config.types import whole
from bit_paddle.inference import views
from bit_paddle.system import files

DATA = "clothing10"
VIEWS = ("", "flip", "five", "scales", "flip,five", "flip,scales", "flip,five,scales")
COLUMNS = ("views", "seed", "top1", "loss", "seconds")
RULE = {"steps": 100, "batch": 64, "base_lr": 0.1, "precrop": 72, "crop": 64}


def main(arguments: list[str]) -> int:
    """Make the runs and evaluate them; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help=f"folder that contains {DATA}/")
    parser.add_argument("--repeats", type=whole(2), default=5, help="seeds (default: 5)")
    parser.add_argument(
        "--logdir", type=Path, default="bit_logs/my-views", help="(default: bit_logs/my-views)"
    )
    flags = parser.parse_args(arguments)
    if flags.folder is not None:
        lines = [files.csv_line(COLUMNS)]
        for seed in range(flags.repeats):
            lines += map(files.csv_line, measured(flags.folder / DATA, seed, flags.logdir))
        files.write_text(flags.logdir / "runs.csv", "".join(lines))
    text = table(flags.logdir)
    files.write_text(flags.logdir / "table.md", text)
    print(text, end="")
    return 0


def measured(data: Path, seed: int, logs: Path) -> list[tuple]:
    """Train the model of one seed; return a line of `COLUMNS` for each of `VIEWS`."""
    run = bit.fine_tune("BiT-Mini", data, seed=seed, logdir=logs, name=f"seed-{seed}", **RULE)
    bit.evaluate(run.model, data)  # warm
    lines = []
    for words in VIEWS:
        start = time.process_time()
        found = bit.evaluate(run.model, data, views=words or None)
        seconds = time.process_time() - start
        lines.append((words, seed, found.top1, found.loss, f"{seconds:.3f}"))
    return lines


def table(logs: Path) -> str:
    """Return a Markdown table of runs.csv."""
    with open(logs / "runs.csv", newline="") as lines:
        runs = list(csv.DictReader(lines))

    def column(words: str, name: str) -> np.ndarray:
        return np.array([float(run[name]) for run in runs if run["views"] == words])

    text = "| `--views` | views | top-1, % | gain, points | loss | change | work | time |\n"
    text += "|---" * 8 + "|\n"
    for words in VIEWS:
        top1, loss, seconds = (column(words, name) for name in COLUMNS[2:])
        count, work = views.cost(views.parse(words or None))
        ratio = np.median(seconds / column("", "seconds"))
        cells = [f"`{words}`" if words else "none", count, spread(100 * top1, ".1f")]
        cells += [spread(100 * (top1 - column("", "top1")), "+.1f") if words else ""]
        cells += [spread(loss, ".3f")]
        cells += [spread(loss - column("", "loss"), "+.3f") if words else ""]
        cells += [f"x {work:.3g}", f"x {ratio:.1f}" if words else f"{np.median(seconds):.1f} s"]
        text += f"| {' | '.join(map(str, cells))} |\n"
    return text


def spread(values: np.ndarray, form: str) -> str:
    """Return minimum, median and maximum as text."""
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"{low:{form}}, **{middle:{form}}**, {high:{form}}"


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
