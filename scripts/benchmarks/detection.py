"""Detect blood cells, or objects of your own: ``python scripts/benchmarks/detection.py FOLDER``.

FOLDER has train.json and val.json (COCO's format) and the images, such as BCCD or what
``scripts/make_scenes.py`` writes. Both detectors are trained on BiT-Mini and from random weights,
with several seeds, and measured on val.json: once as trained, and once with three scales, mirrored
images (without --no-flip) and soft-NMS.

Writes runs.csv, table.md and figure.png into --logdir, and the runs. The same command resumes
after a stop; without FOLDER it only draws runs.csv again. Time is that of the processor, with
validation, of training with one thread.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from timing import processor_seconds

from bit_paddle import errors
from bit_paddle.config.types import positive, whole
from bit_paddle.system import environment, files

STARTS = {  # title: flags
    "mini": ("BiT-Mini", ["--model", "BiT-Mini"]),
    "random": ("random weights", ["--model", "R26x0.5", "--from_scratch"]),
}
KINDS = {  # title, flags
    "retinanet": ("RetinaNet", ["--depth", "2"]),
    "faster_rcnn": ("Faster R-CNN", []),
}
SETTINGS = ["--channels", "64", "--batch", "8", "--scale_min", "0.8"]
SETTINGS += ["--scale_max", "1.2", "--amp", "off", "--device", "cpu"]
SEVERAL = ["--scales", "0.8,1,1.2", "--suppression", "soft-nms"]
FIELDS = ("detector", "start", "seed", "minutes", "ap", "ap50", "ap_several", "ap50_several")


def main(arguments: list[str]) -> int:
    """Make the runs, one per core at a time; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="folder of train.json and val.json")
    parser.add_argument("--seeds", type=whole(1), default=3, help="(default: 3)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="(all)")
    parser.add_argument("--side", type=whole(32), default=512, help="in pixels (default: 512)")
    parser.add_argument("--steps", type=whole(1), default=160, help="(default: 160)")
    parser.add_argument("--base_lr", type=positive, default=0.02, help="(default: 0.02)")
    parser.add_argument(
        "--no-flip", dest="flip", action="store_false", help="no mirroring, as for characters"
    )
    parser.add_argument(
        "--logdir", type=Path, default="bit_logs/my-detection", help="(bit_logs/my-detection)"
    )
    flags = parser.parse_args(arguments)
    files.make_folder(flags.logdir, "--logdir")
    if flags.folder is not None:
        jobs = product(range(flags.seeds), flags.kinds, STARTS)
        with ThreadPoolExecutor(environment.cpu_count()) as pool:
            for _ in pool.map(lambda job: carry_out(flags, *job), jobs):
                collect(flags.logdir)
    with open(flags.logdir / "runs.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    text = table(rows)
    files.write_text(flags.logdir / "table.md", text)
    files.write(flags.logdir / "figure.png", lambda stream: draw(rows).savefig(stream, dpi=120))
    print(text, end="")
    return 0


def carry_out(flags: argparse.Namespace, seed: int, kind: str, start: str) -> None:
    """Train and evaluate, as far as that is not done."""
    name = f"{kind}-{start}-{seed}"
    folder, boxes = flags.logdir / name, flags.folder
    if not (folder / "result.json").exists():
        words = ["train", *STARTS[start][1], "--detector", kind, *KINDS[kind][1], *SETTINGS]
        words += ["--boxes", str(boxes / "train.json"), "--val_boxes", str(boxes / "val.json")]
        words += ["--on_bad_box", "skip", "--side", str(flags.side), "--steps", str(flags.steps)]
        words += ["--base_lr", f"{flags.base_lr:g}", "--warmup", str(flags.steps // 12)]
        words += ["--seed", str(seed), *([] if flags.flip else ["--no-flip"])]
        words += ["--logdir", str(flags.logdir), "--name", name]
        files.write_text(folder.with_suffix(".seconds"), f"{run(words):.0f}\n")
    several = [*SEVERAL, *(["--flip"] if flags.flip else [])]
    for how, more in (("one", []), ("several", several)):
        out = flags.logdir / f"{name}-{how}"
        if not (out / "metrics.json").exists():
            words = ["evaluate", "--model", str(folder), "--boxes", str(boxes / "val.json")]
            run([*words, "--on_bad_box", "skip", "--output", str(out), *more])


def run(words: list[str]) -> float:
    """Run a command of detection on its share of the cores; return its processor time."""
    command = [sys.executable, "-W", "ignore", "-m", "bit_paddle.detect", *words]
    return processor_seconds(command)


def collect(logs: Path) -> None:
    """Write the results of all measured runs as runs.csv."""
    lines, classes = [], []
    for path in sorted(logs.glob("*-several/metrics.json")):
        name = path.parent.name[: -len("-several")]
        one, several = (
            json.loads((logs / f"{name}-{how}" / "metrics.json").read_text())
            for how in ("one", "several")
        )
        minutes = float((logs / f"{name}.seconds").read_text()) / 60
        values = [*name.split("-"), f"{minutes:.1f}"]
        values += [part[key] for part in (one, several) for key in ("ap", "ap50")]
        with open(logs / f"{name}-one" / "per_class.csv", newline="") as stream:
            rows = list(csv.DictReader(stream))
        classes = [f"ap50 {row['class']}" for row in rows]
        values += [row["ap50"] for row in rows]
        lines.append(files.csv_line(values))
    text = "".join([files.csv_line([*FIELDS, *classes]), *lines])
    files.write_text(logs / "runs.csv", text)


def table(rows: list[dict[str, str]]) -> str:
    """Return a Markdown table of runs.csv: minimum, median, maximum over the seeds."""
    names = [name for name in rows[0] if name.startswith("ap50 ")] if rows else []
    titles = ["detector", "start", "runs", "AP", "AP50", "AP50, several views"]
    titles += [name.replace("ap50", "AP50 of") for name in names] + ["minutes"]
    text = "| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|\n"
    for kind, start in product(KINDS, STARTS):
        own = [row for row in rows if (row["detector"], row["start"]) == (kind, start)]
        if not own:
            continue
        cells = [KINDS[kind][0], STARTS[start][0], str(len(own))]
        for key in ("ap", "ap50", "ap50_several", *names):
            cells.append(spread([100 * float(row[key]) for row in own]))
        cells.append(spread([float(row["minutes"]) for row in own]))
        text += "| " + " | ".join(cells) + " |\n"
    return text


def draw(rows: list[dict[str, str]]) -> Figure:
    """Draw the AP50 of every seed: once with one view of each image, once with several."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes, ticks = figure.add_subplot(), []
    for kind in KINDS:
        for key, title in (("ap50", "one view"), ("ap50_several", "several views")):
            chosen = [row for row in rows if row["detector"] == kind]
            for start, colour in zip(STARTS, ("C0", "C1")):
                values = [100 * float(row[key]) for row in chosen if row["start"] == start]
                places = len(ticks) + 0.12 * (np.arange(len(values)) - (len(values) - 1) / 2)
                label = None if ticks else STARTS[start][0]
                axes.plot(places, values, "o", color=colour, label=label)
            if chosen:
                ticks.append(f"{KINDS[kind][0]},\n{title}")
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_ylabel("AP50, %, of each seed")
    axes.grid(axis="y", alpha=0.2)
    axes.legend(fontsize=8)
    return figure


def spread(values: list[float]) -> str:
    """Return minimum, median and maximum, or the only value."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{min(values):.1f}, **{np.median(values):.1f}**, {max(values):.1f}"


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
