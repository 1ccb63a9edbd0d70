"""Draw the table and figure of `transfer_table.sh`: ``scripts/benchmarks/transfer_table.py DIR``.

Reads the runs DIR/<set>-<images per class>-<start>/repeats.json and writes DIR/runs.csv (a line per
run and seed), DIR/table.md and DIR/figure.png. If the runs' folders are missing, it reads
DIR/runs.csv instead.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from bit_paddle.system import files

COLUMNS = ("run", "seed", "steps", "images", "top1", "top5", "loss")

SETS, SHOTS = ("digits", "omniglot136", "clothing10"), ("1", "5", "10", "all")
STARTS = {"mini": "BiT-Mini", "scratch": "random weights"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    runs = collect(
        folder, (f"{name}-{shots}-{start}" for name in SETS for start in STARTS for shots in SHOTS)
    )
    text = table(runs)
    files.write_text(folder / "table.md", text)
    print(text, end="")
    files.write(folder / "figure.png", lambda stream: draw(runs).savefig(stream, dpi=120))


def table(runs: dict[str, list[float]]) -> str:
    """Return a Markdown table of ``runs``, {name: top-1 per seed}."""
    columns = [*SHOTS[:-1], "all images"]
    lines = [f"| top-1, % | start | {' | '.join(columns)} |", "|---" * (2 + len(SHOTS)) + "|"]
    for name in SETS:
        for start, title in STARTS.items():
            cells = (spread(runs[f"{name}-{shots}-{start}"]) for shots in SHOTS)
            lines.append(f"| {name} | {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def collect(folder: Path, names: Iterable[str]) -> dict[str, list[float]]:
    """Return {name: top-1 per seed} of the runs in ``folder``, and write runs.csv there.

    If the folders of the runs are missing, reads runs.csv instead.
    """
    names = list(names)
    if not (folder / names[0]).is_dir():
        return read(folder)
    lines = [files.csv_line(COLUMNS)]
    for name in names:
        for run in json.loads((folder / name / "repeats.json").read_text())["runs"]:
            lines.append(files.csv_line([name, *(run[column] for column in COLUMNS[1:])]))
    files.write_text(folder / "runs.csv", "".join(lines))
    return read(folder)


def read(folder: Path) -> dict[str, list[float]]:
    """Return {name: top-1 per seed} from the runs.csv in ``folder``."""
    runs: dict[str, list[float]] = {}
    with open(folder / "runs.csv", newline="") as lines:
        for row in csv.DictReader(lines):
            runs.setdefault(row["run"], []).append(float(row["top1"]))
    return runs


def spread(top1: list[float]) -> str:
    """Return minimum, median and maximum as text, in %."""
    low, middle, high = (f"{100 * aggregate(top1):.1f}" for aggregate in (min, median, max))
    return f"{low}-**{middle}**-{high}"


def draw(runs: dict[str, list[float]]) -> object:
    """Draw accuracy over images per class, as in the paper's figure 1, one panel per data set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(SETS)), SETS):
        for start, title in STARTS.items():
            values = [runs[f"{name}-{shots}-{start}"] for shots in SHOTS]
            low, middle, high = (
                [100 * aggregate(top1) for top1 in values] for aggregate in (min, median, max)
            )
            (line,) = axes.plot(range(len(SHOTS)), middle, "o-", label=title)
            axes.fill_between(range(len(SHOTS)), low, high, color=line.get_color(), alpha=0.15)
        axes.set_xticks(range(len(SHOTS)), SHOTS)
        axes.set_xlabel("training images per class")
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.2)
    figure.axes[0].set_ylabel("top-1, %: median and range of five seeds")
    figure.axes[0].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
