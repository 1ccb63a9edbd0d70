"""Draw the table and figure of `transfer_table.sh`: ``scripts/benchmarks/transfer_table.py DIR``.

Reads DIR/<set>-<images a class>-<start>/repeats.json; writes DIR/table.md and DIR/figure.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bit_paddle.system import files

SETS, SHOTS = ("digits", "omniglot136", "clothing10"), ("1", "5", "10", "all")
STARTS = {"mini": "BiT-Mini", "scratch": "random weights"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    found = {
        (name, start, shots): top1(folder / f"{name}-{shots}-{start}")
        for name in SETS
        for start in STARTS
        for shots in SHOTS
    }
    columns = [*SHOTS[:-1], "all images"]
    lines = [f"| top-1, % | start | {' | '.join(columns)} |", "|---" * (2 + len(SHOTS)) + "|"]
    for name in SETS:
        for start, title in STARTS.items():
            cells = (spread(found[name, start, shots]) for shots in SHOTS)
            lines.append(f"| {name} | {title} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    files.write_text(folder / "table.md", text)
    print(text, end="")
    files.write(folder / "figure.png", lambda stream: draw(found).savefig(stream, dpi=120))


def top1(runs: Path) -> dict[str, float]:
    """Return the spread that --repeats has written."""
    return json.loads((runs / "repeats.json").read_text())["top1"]


def spread(top1: dict[str, float]) -> str:
    """Return lowest, median and highest, in %."""
    low, middle, high = (f"{100 * top1[key]:.1f}" for key in ("min", "median", "max"))
    return f"{low}-**{middle}**-{high}"


def draw(found: dict[tuple[str, str, str], dict[str, float]]) -> object:
    """Draw accuracy over images a class, as the paper's figure 1 does, a panel a data set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(SETS)), SETS):
        for start, title in STARTS.items():
            values = [found[name, start, shots] for shots in SHOTS]
            low, middle, high = ([100 * one[k] for one in values] for k in ("min", "median", "max"))
            (line,) = axes.plot(range(len(SHOTS)), middle, "o-", label=title)
            axes.fill_between(range(len(SHOTS)), low, high, color=line.get_color(), alpha=0.15)
        axes.set_xticks(range(len(SHOTS)), SHOTS)
        axes.set_xlabel("training images a class")
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.2)
    figure.axes[0].set_ylabel("top-1, %: median and range of five seeds")
    figure.axes[0].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
