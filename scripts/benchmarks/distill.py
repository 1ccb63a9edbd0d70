"""A student with a teacher, and with labels: ``python scripts/benchmarks/distill.py FOLDER``.

FOLDER has CIFAR-10's official files. The student is R26x0.5 at 32 pixels: 12.6 million
multiply-adds per image, a quarter of BiT-Mini's 50.2 million (`models.cost`). The saving is in the
pixels: width 0.5 is the least, and R14x0.5 at 64 pixels is still 64 % of the cost. The student
learns, from random weights:

distilled     the outputs of BiT-Mini, which sees the same views at its own 64 pixels; no labels
labels        the labels, in everything else the same run
labels-plain  the labels without MixUp

The first two differ in their targets alone: network, first weights, images, crops, flips, lambdas,
partners, steps, Adam, learning rates, weight decay and clipping are the same, step by step. That
is the fair comparison of targets. But MixUp Beta(1, 1) is strong, and short runs on labels can be
better without it; so the third is there too, and the student should be ahead of both. All are
measured by the labels of the 10,000 test images, which decide nothing.

Writes runs.csv and table.md (minimum, median, maximum over the seeds) into --logdir, and the runs.
The same command resumes after a stop; without FOLDER it only rewrites the table. Time is that of
the processor, with validation. ``--speed`` makes 20 steps of each kind instead, and prints images
per second of a process, and the hours of the whole bench.
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
from timing import processor_seconds

from bit_paddle import errors
from bit_paddle.config.types import positive, whole
from bit_paddle.recipes import recipe
from bit_paddle.system import environment, files

KINDS = {  # name of the runs: title, flags
    "distilled": (
        "BiT-Mini's outputs",
        ["--rule", "distill", "--teacher", "BiT-Mini", "--teacher_crop", "64"],
    ),
    "labels": ("labels", ["--rule", "labels"]),
    "labels-plain": ("labels, no MixUp", ["--rule", "labels-plain"]),
}
STUDENT = ["--model", "R26x0.5", "--from_scratch", "--precrop", "32", "--crop", "32"]
FIELDS = ("targets", "seed", "steps", "minutes", "top1", "loss")
TRIED = 20  # steps of --speed; the first five are not counted


class Labels(recipe.Distill):
    """The recipe of distillation, with labels in place of the teacher."""

    name, taught = "labels", False


class LabelsPlain(Labels):
    """The same without MixUp."""

    name = "labels-plain"

    def mixup_alpha(self, images: int) -> float:
        return 0.0


def main(arguments: list[str]) -> int:
    """Make the runs, one per core at a time; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="folder of CIFAR-10's files")
    parser.add_argument("--seeds", type=whole(1), default=3, help="(default: 3)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="(all)")
    parser.add_argument("--steps", type=whole(1), default=4000, help="(default: 4000)")
    parser.add_argument("--batch", type=whole(1), default=128, help="(default: 128)")
    parser.add_argument("--base_lr", type=positive, default=0.003, help="(default: 0.003)")
    parser.add_argument("--amp", default="off", help="--amp of train (default: off)")
    parser.add_argument("--speed", action="store_true", help="only measure the speed")
    parser.add_argument(
        "--logdir", type=Path, default="bit_logs/my-distill", help="(bit_logs/my-distill)"
    )
    parser.add_argument("--one", nargs=2, metavar=("KIND", "SEED"), help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    if flags.one:
        return run(flags, *flags.one)
    files.make_folder(flags.logdir, "--logdir")
    if flags.folder is not None:
        seeds = range(environment.cpu_count() if flags.speed else flags.seeds)
        jobs = product(seeds, flags.kinds)
        if flags.speed:  # one process per core, both of the same kind
            jobs = ((seed, kind) for kind in flags.kinds for seed in seeds)
        with ThreadPoolExecutor(environment.cpu_count()) as pool:
            for _ in pool.map(lambda job: carry_out(flags, arguments, *job), jobs):
                if not flags.speed:
                    collect(flags.logdir)
        if flags.speed:
            return tell_speed(flags)
    text = table(flags.logdir)
    files.write_text(flags.logdir / "table.md", text)
    print(text, end="")
    return 0


def run(flags: argparse.Namespace, kind: str, seed: str) -> int:
    """Train in this process; return the exit status."""
    recipe.RECIPES.update({one.name: one for one in (Labels(), LabelsPlain())})
    from bit_paddle import train  # only now: --rule takes the names that are there

    steps = TRIED if flags.speed else flags.steps
    words = [*KINDS[kind][1], *STUDENT, "--dataset", "cifar10", "--datadir", str(flags.folder)]
    words += ["--steps", str(steps), "--batch", str(flags.batch), "--batch_split", "1"]
    words += ["--base_lr", f"{flags.base_lr:g}", "--seed", seed, "--amp", flags.amp]
    words += ["--workers", "0", "--device", "cpu", "--logdir", str(flags.logdir)]
    words += ["--name", name_of(kind, seed, flags.speed), "--keep", "1"]
    return train.main(words)


def name_of(kind: str, seed: object, speed: bool) -> str:
    """Return the name of a run's folder."""
    return f"{'speed-' if speed else ''}{kind}-{seed}"


def carry_out(flags: argparse.Namespace, arguments: list[str], seed: int, kind: str) -> None:
    """Train in a process of its own, on its share of the cores, unless that is done."""
    folder = flags.logdir / name_of(kind, seed, flags.speed)
    if (folder / "result.json").exists() and folder.with_suffix(".seconds").exists():
        return
    command = [sys.executable, "-W", "ignore", __file__, *arguments, "--one", kind, str(seed)]
    spent = processor_seconds(command)  # of this process; a run that resumed took longer
    files.write_text(folder.with_suffix(".seconds"), f"{spent:.0f}\n")


def tell_speed(flags: argparse.Namespace) -> int:
    """Print images per second of each kind, and the time of the bench; return 0."""
    cores, hours = environment.cpu_count(), 0.0
    for kind in flags.kinds:
        speeds = []
        for seed in range(cores):
            path = flags.logdir / name_of(kind, seed, True) / "metrics.jsonl"
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            speeds += [line["images_per_second"] for line in lines if line["kind"] == "train"][5:]
        speed = float(np.median(speeds))
        hours += flags.seeds * flags.steps * flags.batch / speed / cores / 3600
        print(f"{kind:14}{speed:8.0f} images/s in each of {cores} processes")
    print(
        f"{flags.seeds} seeds of {flags.steps:,} steps of {flags.batch} images: {hours:.2f} hours "
        f"on {cores} cores, without validation"
    )
    return 0


def collect(logs: Path) -> None:
    """Write the results of all runs that are complete as runs.csv."""
    lines = [files.csv_line(FIELDS)]
    for kind in KINDS:
        for path in sorted(logs.glob(f"{kind}-[0-9]*/result.json")):
            result, seconds = json.loads(path.read_text()), path.parent.with_suffix(".seconds")
            if seconds.exists():
                seed, minutes = path.parent.name.rpartition("-")[2], float(seconds.read_text()) / 60
                values = [result["steps"], f"{minutes:.1f}", result["top1"], result["loss"]]
                lines.append(files.csv_line([kind, seed, *values]))
    if len(lines) > 1 or not (logs / "runs.csv").exists():
        files.write_text(logs / "runs.csv", "".join(lines))


def table(logs: Path) -> str:
    """Return a Markdown table of runs.csv: minimum, median, maximum over the seeds."""
    with open(logs / "runs.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    text = "| targets | runs | steps | top-1, % | loss | minutes |\n|---|---|---|---|---|---|\n"
    for kind, (title, _) in KINDS.items():
        own = [row for row in rows if row["targets"] == kind]
        if own:
            top1, loss, minutes = (
                [float(row[key]) for row in own] for key in ("top1", "loss", "minutes")
            )
            cells = [title, str(len(own)), own[0]["steps"], spread([100 * one for one in top1])]
            cells += [spread(loss, 3), spread(minutes)]
            text += "| " + " | ".join(cells) + " |\n"
    return text


def spread(values: list[float], digits: int = 1) -> str:
    """Return minimum, median and maximum, or the only value."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    low, middle, high = min(values), float(np.median(values)), max(values)
    return f"{low:.{digits}f}, **{middle:.{digits}f}**, {high:.{digits}f}"


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
